"""Images with labels, which data-free quantization needs for one purpose only: to measure."""

from adadfq_lab._moved import old_names

__getattr__ = old_names("data", "data.loading", "data.image_sets", "data.locations")
