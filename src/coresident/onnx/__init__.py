"""ONNX files in: the only package that knows protobuf. What it reads is not trusted."""
