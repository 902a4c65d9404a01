"""A finished run as an adapter, merged weights, GGUF, ONNX or MLX, verified by a round trip; serving and upload.

A new target is one file in `targets/`.
"""
