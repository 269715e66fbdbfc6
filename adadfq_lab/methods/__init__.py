"""Data-free quantization methods: one file a method, its generator and its losses included.

`method` says what a method is, `registry` finds one by name, `generators` holds what several share.
"""
