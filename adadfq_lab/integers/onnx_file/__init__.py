"""The ONNX file of a student: its graph, its layers on integers, and every other operation."""
