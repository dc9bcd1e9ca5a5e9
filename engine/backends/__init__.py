"""What computes the networks: PyTorch on a CPU or a CUDA device, ONNX, TensorRT."""
