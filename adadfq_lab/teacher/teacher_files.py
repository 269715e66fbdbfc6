"""Teachers on disk: the shipped ones, those that `adadfq train-teacher` wrote, and those the zoo downloads."""

import dataclasses
import os
from pathlib import Path

from adadfq_lab.data.locations import stub_path
from adadfq_lab.errors import UserError, first_line
from adadfq_lab.machine.fields import build
from adadfq_lab.machine.files import load_tensors, save_tensors
from adadfq_lab.teacher.networks import build_network
from adadfq_lab.teacher.teacher import Teacher, TeacherInfo
from adadfq_lab.teacher.zoo import ZOO, load_zoo_teacher

SHIPPED = ("fashion_mnist_resnet20", "cifar10_resnet20")


def save_teacher(teacher: Teacher, path: Path) -> str:
    """Writes the weights and facts of `teacher` as safetensors; returns their sha256."""
    info = dataclasses.asdict(teacher.info)
    info.pop("sha256")
    return save_tensors(path, teacher.network.state_dict(), {"kind": "teacher", **info})


def load_teacher(name: str) -> Teacher:
    """The teacher called `name`: a shipped one (see SHIPPED), a file that `adadfq train-teacher` wrote, or one to download
    (`pytorchcv:resnet18`, `torchvision:mobilenet_v2`; see `adadfq_lab.teacher.zoo`).

    Raises UserError where the file is missing, damaged, or does not fit its network.
    """
    path = stub_path(f"{name}.safetensors") if name in SHIPPED else Path(name)
    if not path.exists():
        if ":" in name:
            return load_zoo_teacher(name)
        if os.sep in name:
            raise UserError(f"there is no file or folder {name}")
        raise UserError(
            f"no teacher {name!r}; shipped are {', '.join(SHIPPED)}, to download {', '.join(ZOO)}, "
            "or give a file of adadfq train-teacher"
        )
    tensors, meta, sha256 = load_tensors(path)
    if meta.pop("kind", None) != "teacher":
        raise UserError(f"{path} holds no teacher")
    try:
        info = build(TeacherInfo, meta | {"sha256": sha256})
        network = build_network(info.network, len(info.classes), info.input_shape[0])
        network.load_state_dict(tensors)
        return Teacher(network, info)
    except (TypeError, KeyError, RuntimeError, UserError) as error:
        raise UserError(f"{path} does not fit its network: {first_line(error)}") from None
