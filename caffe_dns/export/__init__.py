"""Taking a net away: as a plain .caffemodel, as ONNX, as safetensors, or as a compact file."""
