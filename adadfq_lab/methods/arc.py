"""ARC: GDFQ with a generator found by searching architectures.

AutoReCon searches, for each teacher, which convolutions a generator of three cells should have so that its images match P's
batch-norm statistics; the game is then GDFQ's, with its losses and rates. The search is not repeated here: the cells it found
are in `adadfq_lab.arc_generator`.

Zhu et al., AutoReCon: Neural Architecture Search-based Reconstruction for Data-free Compression, IJCAI 2021; the cells as
listed in the code of ARC+AIT. `fidelity` decides the eps of the generator's batch norms, and what it does for GDFQ.
"""

from adadfq_lab.arc_generator import searched_generator
from adadfq_lab.fidelity import Fidelity
from adadfq_lab.generators import Generator
from adadfq_lab.methods.gdfq import generator_loss, student_loss
from adadfq_lab.methods.method import Method
from adadfq_lab.teacher.teacher import Teacher


def arc(cells: str | None = None) -> Method:
    """ARC with the cells found for the teacher `cells`, a key of CELLS; by default those that fit the images and classes."""

    def build_generator(teacher: Teacher, fidelity: Fidelity) -> Generator:
        info = teacher.info
        return searched_generator(cells, len(info.classes), info.input_shape, eps=fidelity.generator_bn_eps)

    return Method("ARC", generator_loss, student_loss, settings={"cells": cells}, build_generator=build_generator)
