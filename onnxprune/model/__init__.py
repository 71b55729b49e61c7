"""An ONNX file, with nothing lost: read, checked, seen as a graph, changed and written back."""
