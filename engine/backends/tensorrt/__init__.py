"""The networks as TensorRT plans."""
