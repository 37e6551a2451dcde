"""Trained ONNX networks, compressed and run by onnxruntime."""
