"""A network of one's own on disk: rebuilt from data alone, the same to the bit, and no file can make it call anything else."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from adadfq_lab.errors import UserError
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.student_files import rebuild_student, save_student
from adadfq_lab.teacher.architecture import build_described, describe
from adadfq_lab.teacher.teacher import Teacher, wrap_teacher
from adadfq_lab.teacher.teacher_files import load_teacher, save_teacher


class Mixed(nn.Module):
    """Functional calls, a parameter and a buffer of its own, slices, keyword arguments and a name with a hyphen."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("conv-1", nn.Conv2d(3, 8, 3, padding=1, bias=False))
        self.bn = nn.BatchNorm2d(8, eps=1e-3)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, 8).view(1, 8, 1, 1))
        self.register_buffer("offset", torch.full((1,), 0.25), persistent=False)
        self.linear = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.get_submodule("conv-1")(x))) * self.gain + self.offset
        x = torch.cat([x, F.pad(x[:, :, ::2, ::2], (0, x.shape[3] // 2, 0, 4))], dim=1)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def teacher(network: nn.Module, side: int = 8) -> Teacher:
    return wrap_teacher(network, input_shape=(3, side, side), classes=4, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize(("make", "side"), [
    (Mixed, 8),
    (lambda: models.mobilenet_v3_small(num_classes=4), 32),
    pytest.param(lambda: models.resnet18(num_classes=4), 32, marks=pytest.mark.slow),
    pytest.param(lambda: models.efficientnet_b0(num_classes=4), 32, marks=pytest.mark.slow),
])  # fmt: skip
def test_a_network_of_ones_own_is_saved_and_loaded(make, side, tmp_path, generator):
    """load_teacher gives the same logits to the bit; a student made of either is the same, and saved again so is the file."""
    P = teacher(make(), side)
    sha256 = save_teacher(P, tmp_path / "mine.safetensors")
    loaded = load_teacher(str(tmp_path / "mine.safetensors"))
    x = torch.randn(2, 3, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    assert torch.equal(loaded(x), P(x))
    assert (loaded.info.classes, loaded.info.mean, loaded.info.sha256) == (P.info.classes, P.info.mean, sha256)
    assert save_teacher(loaded, tmp_path / "again.safetensors") == sha256
    students = [quantize(one, "4w4a") for one in (P, loaded)]
    assert set(students[0].state_dict()) >= set(students[1].state_dict()) - {"graph.offset"}
    with torch.no_grad():
        students[0](x)
        students[0].observing = False
    if make is Mixed:  # its buffer is not part of what a student stores
        return
    save_student(students[0], P, tmp_path / "student.safetensors")
    _, again, _ = rebuild_student(tmp_path / "student.safetensors")
    assert torch.equal(again(x), students[0](x))


def test_a_network_whose_class_has_a_known_name_is_not_taken_for_it(tmp_path, generator):
    """A resnet8 with another slope inside computes something else, so it is described rather than named."""
    from adadfq_lab.teacher.networks import resnet8

    network = resnet8(4)
    network.relu = nn.LeakyReLU(0.3)  # type: ignore[assignment]
    network.__class__ = type("resnet8", (type(network),), {})
    P = teacher(network)
    save_teacher(P, tmp_path / "mine.safetensors")
    x = torch.randn(2, 3, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last)
    assert torch.equal(load_teacher(str(tmp_path / "mine.safetensors"))(x), P(x))


def changed(text: str, change: object) -> str:
    plain = json.loads(text)
    change(plain)  # type: ignore[operator]
    return json.dumps(plain)


def call(op: str, target: str, *args: object, name: str = "bad", **named: object) -> object:
    return lambda plain: plain["nodes"].insert(1, [op, name, target, list(args), named])


@pytest.mark.parametrize(
    "change",
    [
        call("call_function", "os.system", "touch proof"),
        call("call_function", "torch.load", "proof"),
        call("call_function", "torch.from_file", "proof"),
        call("call_function", "builtins.eval", "1"),
        call("call_function", "getattr", {"node": "x"}, "__class__"),
        call("call_function", "getattr", "text", "shape"),
        call("call_method", "__reduce__", {"node": "x"}),
        call("call_method", "add(1); open('proof', 'w'); x.add", {"node": "x"}),
        call("call_method", "register_hook", {"node": "x"}),
        call("call_method", "abs", {"node": "x"}, name="open('proof','w')"),
        call("call_method", "add", {"node": "x"}, **{"x=1); open('proof', 'w') #": 1}),
        call("call_module", 'a"); open("proof", "w") #', {"node": "x"}),
        call("get_attr", "__class__.x y"),
        lambda plain: plain["modules"].update({"evil": ["Unflatten", {"dim": {"code": "1"}}]}),
        lambda plain: plain["modules"].update({"evil": ["Thread", {}]}),
        lambda plain: plain.update(format=2),
        lambda plain: plain.pop("nodes"),
        lambda plain: plain["tensors"].update(huge=[[-1], "float32", False]),
    ],
)
def test_no_description_calls_anything_but_tensor_functions(change, tmp_path, monkeypatch):
    """Other functions, methods and attributes, code in names, arguments of other kinds: one line, and nothing is executed."""
    monkeypatch.chdir(tmp_path)
    text, _ = describe(Mixed().eval())
    build_described(text)
    with pytest.raises(UserError) as caught:
        build_described(changed(text, change))
    assert "\n" not in str(caught.value) and not (tmp_path / "proof").exists()


class Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten.mean.dim(self.conv(x), [2, 3])


def test_what_cannot_be_described_is_named(tmp_path):
    """A call that is not one of torch's functions on tensors: which, before anything is written."""
    with pytest.raises(UserError, match=r"^the network calls .*mean.*, which is not a function of torch"):
        save_teacher(teacher(Foreign()), tmp_path / "mine.safetensors")
    assert not list(tmp_path.iterdir())
