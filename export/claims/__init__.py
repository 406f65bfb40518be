"""The structures that ViLT is compared with, with random weights, one ONNX graph a stage."""
