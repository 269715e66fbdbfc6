"""The student Q: the quantizer of Eq. (18), the layers it is made of, and a network turned into them."""
