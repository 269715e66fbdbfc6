"""Teachers on disk: the shipped ones, those that `adadfq train-teacher` or `save_teacher` wrote, and those the zoo downloads.

A teacher file holds weights, facts, and how to build the network: a name that `build_network` knows or, for any other network,
its architecture as data (`adadfq_lab.teacher.architecture`). So a network of one's own is loaded as the shipped ones are, by
every command and in every process, without the code it came from.
"""

import dataclasses
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from adadfq_lab.data.locations import stub_path
from adadfq_lab.errors import UserError, first_line
from adadfq_lab.machine.fields import build
from adadfq_lab.machine.files import load_tensors, save_tensors
from adadfq_lab.machine.torch_state import untouched_torch
from adadfq_lab.teacher.architecture import build_described, describe
from adadfq_lab.teacher.checking import close
from adadfq_lab.teacher.networks import build_network
from adadfq_lab.teacher.teacher import Teacher, TeacherInfo
from adadfq_lab.teacher.zoo import ZOO, load_zoo_teacher

SHIPPED = ("fashion_mnist_resnet20", "cifar10_resnet20")


def save_teacher(teacher: Teacher, path: Path | str) -> str:
    """Writes `teacher` to `path`, ending in .safetensors, so that `load_teacher` can rebuild it; returns the sha256.

    Raises UserError if the path cannot be written, or if the network cannot be rebuilt from a file: what is in the way.
    """
    info, tensors = described(teacher)
    facts = info.as_json()
    facts.pop("sha256")
    return save_tensors(Path(path), tensors, {"kind": "teacher", **facts})


def described(teacher: Teacher) -> tuple[TeacherInfo, dict[str, Tensor]]:
    """The facts of `teacher` with what rebuilds its network, and its tensors. Raises UserError if nothing can rebuild it.

    Whatever is to be written down is rebuilt first, and compared with the teacher on two random images.
    """
    info, tensors = teacher.info, dict(teacher.network.state_dict())
    with untouched_torch():
        x = torch.randn(2, *info.input_shape, generator=torch.Generator().manual_seed(0))
        for graph in (info.graph, ""):
            if _rebuilds(dataclasses.replace(info, graph=graph), tensors, teacher, x):
                return dataclasses.replace(info, graph=graph), tensors
        graph, tensors = describe(teacher.network, info.input_shape)
        info = dataclasses.replace(info, graph=graph)
        if not _rebuilds(info, tensors, teacher, x):
            raise UserError(f"{info.name} cannot be saved: rebuilt from its graph it gives other logits")
    return info, tensors


def _rebuilds(info: TeacherInfo, tensors: dict[str, Tensor], teacher: Teacher, x: Tensor) -> bool:
    """Whether the network that `info` names computes what `teacher` does, on `x`."""
    try:
        again = network_of(info)
        again.load_state_dict(tensors)
    except (UserError, RuntimeError, TypeError):
        return False
    weight = next((t for t in tensors.values() if t.is_floating_point()), x)
    again = again.eval().to(weight.device).to(memory_format=torch.channels_last)
    with torch.no_grad():
        x = x.to(weight.device).contiguous(memory_format=torch.channels_last)
        try:
            return close(again(x), teacher(x))
        except (RuntimeError, TypeError):
            return False


@untouched_torch()
def network_of(info: TeacherInfo) -> nn.Module:
    """An untrained network as `info` says; raises UserError if it names one that is not known, or describes none."""
    if info.graph:
        return build_described(info.graph)
    return build_network(info.network, len(info.classes), info.input_shape[0])


@untouched_torch()
def load_teacher(name: str) -> Teacher:
    """The teacher called `name`: a shipped one (see SHIPPED), a file that `adadfq train-teacher`, `adadfq quantize` or
    `save_teacher` wrote, or one to download (`pytorchcv:resnet18`, `torchvision:mobilenet_v2`; see `adadfq_lab.teacher.zoo`).

    Raises UserError if the file is missing, damaged, or does not fit its network.
    """
    path = stub_path(f"{name}.safetensors") if name in SHIPPED else Path(name)
    if not path.exists():
        if ":" in name and not name.partition(":")[0].endswith(".py"):
            return load_zoo_teacher(name)
        if ":" in name:
            raise UserError(f"{name} is code, not a teacher; adadfq quantize {name} --weights FILE makes a teacher file of it")
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
        network = network_of(info)
        network.load_state_dict(tensors)
        return Teacher(network, info)
    except (TypeError, KeyError, RuntimeError, UserError) as error:
        raise UserError(f"{path} does not fit its network: {first_line(error)}") from None
