"""Images with labels, which data-free quantization needs for one purpose only: to measure."""
