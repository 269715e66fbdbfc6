"""Data-free quantization methods: one file a method, its generator and its losses included.

`method` says what a method is, `registry` finds one by name, `generators` holds what several share.
"""

from adadfq_lab._moved import old_names

__getattr__ = old_names(
    "methods",
    *("methods.registry", "methods.method", "methods.adadfq", "methods.adasg", "methods.gdfq", "methods.arc"),
    *("methods.arc_ait", "methods.qimera", "methods.intraq", "methods.zaq", "methods.real"),
    *("methods.adadfq_plus", "methods.adadfq_lsq", "equations"),
)
