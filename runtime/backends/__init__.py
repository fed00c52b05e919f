"""What runs a compiled graph: NumPy programs (`numpy`), and ONNX Runtime with NumPy in between (`onnxruntime`)."""
