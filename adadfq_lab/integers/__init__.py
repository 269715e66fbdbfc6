"""Q on integers: layers that compute in int32, packed weights, an ONNX file, and the proof that they agree."""
