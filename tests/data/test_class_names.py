"""Class names: labels are counted as the teacher counts them, or refused."""

import pytest
import torch

from adadfq_lab.data.class_names import in_order_of
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.errors import UserError


def of(*classes: str) -> ImageSet:
    """An image of each class, in their order."""
    labels = torch.arange(len(classes))
    return ImageSet("mine", "test", torch.zeros(len(classes), 1, 2, 2, dtype=torch.uint8), labels, classes, "some")


TEACHER = ("T-shirt/top", "dress", "ankle boot")


@pytest.mark.parametrize(
    ("classes", "labels"),
    [
        (("dress", "ankle boot", "T-shirt/top"), [1, 2, 0]),
        (("ankle_boot", "DRESS", "t shirt top"), [2, 1, 0]),
        (("ankle boot", "dress"), [2, 1]),
        (("0", "1", "2"), [0, 1, 2]),
        (("class 0", "class 1", "class 2"), [0, 1, 2]),
    ],
)
def test_the_same_names_are_mapped_to_the_teachers_order(classes, labels):
    """Whatever the order and the spelling; some of them suffice; numbers are not names and are taken as they are."""
    assert in_order_of(of(*classes), TEACHER, "teacher P").labels.tolist() == labels


@pytest.mark.parametrize(
    ("classes", "what"),
    [
        (
            ("dress", "cat", "boot"),
            "not those of teacher P: cat, boot there, T-shirt/top, ankle boot here",
        ),
        (("dress", "Dress", "ankle boot"), "the classes of mine are not those of teacher P"),
        (("0", "1"), "teacher P tells 3 classes apart; mine has 2"),
    ],
)
def test_other_names_are_refused(classes, what):
    with pytest.raises(UserError, match=what) as caught:
        in_order_of(of(*classes), TEACHER, "teacher P")
    assert "\n" not in str(caught.value)


def test_names_that_occur_twice_are_taken_in_their_order_only():
    """ImageNet has two cranes: the same list is the same; a shuffled one cannot be told apart."""
    cranes = ("crane", "dog", "crane")
    assert in_order_of(of(*cranes), cranes, "P").labels.tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="are not those of P"):
        in_order_of(of("dog", "crane", "crane"), cranes, "P")
