"""Images with labels. Data-free quantization needs them only to measure."""

from adadfq_lab._moved import old_names

__getattr__ = old_names("data", "data.loading", "data.image_sets", "data.locations")
