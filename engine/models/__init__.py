"""Every network and the face model; torch, numpy, safetensors and the standard library only.

Letters in shapes: B batch, T frames at 25 Hz, N samples, V vertices (468), C channels, D feature width,
K coefficients, H and W pixels.
"""
