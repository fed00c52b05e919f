"""What runs a compiled graph: NumPy kernels (`numpy`), and ONNX Runtime with NumPy kernels in between (`onnxruntime`)."""
