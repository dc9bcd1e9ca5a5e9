"""Backends that compute the networks: PyTorch on a CPU or a CUDA device, TensorRT; and ONNX files."""
