"""The student Q: the quantizer of Eq. (18), the layers it is made of, and a network turned into them."""

from adadfq_lab._moved import old_names

__getattr__ = old_names("student", "student.student", "student.quantize", "teacher.tracing", "student.grids")
