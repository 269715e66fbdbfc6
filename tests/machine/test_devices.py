"""Other devices without one at hand: `meta` refuses host synchronisation and stray CPU tensors, fake tensors know of CUDA."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from helpers.tiny_games import BATCH, CLASSES, OBSERVE, SHAPE, state, tiny_game, tiny_teacher, with_term
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from adadfq_lab.data.accuracy import accuracy
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.equations import Bounds
from adadfq_lab.errors import UserError
from adadfq_lab.fidelity import FIDELITY
from adadfq_lab.game.game import Game
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.machine.devices import pick_device
from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.methods.generators import Generator, conditional_generator
from adadfq_lab.methods.method import Round
from adadfq_lab.methods.registry import BEYOND, METHODS, make_method
from adadfq_lab.runs.players import observe_noise
from adadfq_lab.student.layers import QuantLayer
from adadfq_lab.student.quantize import quantize
from adadfq_lab.teacher.features import stages, with_features
from adadfq_lab.teacher.networks import build_network
from adadfq_lab.teacher.statistics import WithStatistics
from adadfq_lab.teacher.teacher import Teacher, TeacherInfo, normalize


@pytest.mark.parametrize("name", [*METHODS, *BEYOND])
def test_a_round_never_waits_for_the_device_and_leaves_nothing_on_the_host(name):
    """Warm-up, observation and play on `meta`: both players' steps and the record, without reading a single value."""
    game = tiny_game(make_method(name), device="meta", gains_every=1, warmup=1, observe=2)
    for record in game.play(3):
        kept = [record.entropy, record.h_prime, record.agreement, record.gain_g, record.gain_q, *record.terms.values()]
        assert {tensor.device.type for tensor in kept} == {"meta"}
        assert record.entropy.shape == record.h_prime.shape == (BATCH,)
    stay = {"index", "random"} | {n for n in state(game) if n.endswith(".step")}
    assert {tensor.device.type for n, tensor in state(game).items() if n not in stay} == {"meta"}
    assert game.generate(torch.arange(CLASSES)).device.type == "meta"


LARGE = ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow), pytest.param("mobilenet_v2", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=LARGE)
def large_teacher(request):
    """One of torchvision's networks, untrained, for ImageNet's thousand classes at 224 x 224; on no device at all."""
    with torch.device("meta"):
        network = build_network(request.param, 1000)
    classes = tuple(f"class {i}" for i in range(1000))
    info = TeacherInfo(request.param, request.param, "imagenet", classes, (3, 224, 224), (0.5,) * 3, (0.25,) * 3, sha256="0")
    return Teacher(network, info).to("meta")


@pytest.mark.parametrize("name", METHODS)
def test_a_round_at_the_size_of_imagenet_never_waits_for_the_device(name, large_teacher):
    """Every method on ResNet-18, ResNet-50 and MobileNetV2 at 224 x 224: both phases of a published schedule, on `meta`."""
    method = make_method(name)
    with torch.device("meta"):  # 41 million parameters of G need no memory either
        student = quantize(large_teacher, "4w4a")
    build = method.build_generator

    def on_meta(*of: Any) -> Generator:
        with torch.device("meta"):
            return build(*of)

    method = dataclasses.replace(method, build_generator=on_meta)
    game = Game(large_teacher, student, method, schedule=Schedule(batch=2, warmup=1, observe=1), device="meta", gains_every=1)
    for record in game.play(2):
        tensors = [record.entropy, record.h_prime, record.agreement, record.gain_g, *record.terms.values()]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert game.generate(torch.arange(2)).shape == (2, 3, 224, 224)
    kinds = {"resnet18": (21, 17), "resnet50": (54, 49), "mobilenet_v2": (53, 35)}[large_teacher.info.network]
    layers = sum(isinstance(module, QuantLayer) for module in student.modules())
    assert (layers, len(student.activations())) == kinds


def item(r: Round) -> Tensor:
    return r.images.mean() * float(r.teacher_logits.mean())


def stray(r: Round) -> Tensor:
    return (r.teacher_logits * torch.ones(CLASSES)).mean()


def branch(r: Round) -> Tensor:
    return r.images.mean() if r.teacher_logits.mean() > 0 else -r.images.mean()


@pytest.mark.parametrize("mistake", [item, stray, branch])
def test_meta_catches_what_it_is_meant_to(mistake):
    """A loss that reads a value, brings a tensor from the host or branches on a number does not play there."""
    game = tiny_game(with_term(adadfq(), "generator", mistake), device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        game.round()


def test_draws_are_made_on_the_host():
    """z and y are the same numbers whatever the device: the game on `meta` advances the same generator."""
    games = [tiny_game(device=device, seed=5) for device in ("cpu", "meta")]
    for game in games:
        game.round()
    assert torch.equal(games[0].random.get_state(), games[1].random.get_state())


class Card:
    """A CUDA device that does not exist: within it shapes, types and devices of tensors are real, and values are not."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode()

    def take(self, tensor: Tensor) -> Tensor:
        fake = self.mode.from_tensor(tensor.detach())
        with self.mode:
            return fake.to("cuda")

    def take_module(self, module: nn.Module) -> nn.Module:
        """`module` with its parameters and buffers on the card; `.to` does not know how to swap fake ones in."""
        for m in module.modules():
            for name, parameter in m.named_parameters(recurse=False):
                m._parameters[name] = nn.Parameter(self.take(parameter), parameter.requires_grad)
            for name, buffer in m.named_buffers(recurse=False):
                m._buffers[name] = self.take(buffer)
        return module


def on_card(*tensors: Tensor) -> bool:
    return all(isinstance(t, FakeTensor) and t.device.type == "cuda" for t in tensors)


@pytest.mark.parametrize("fidelity", FIDELITY)
@pytest.mark.parametrize("name", METHODS)
def test_the_players_and_their_losses_run_on_a_card(name, fidelity):
    """z, y -> G -> P with statistics and Q while it observes -> every term: all of it stays on the card."""
    card, f, method = Card(), FIDELITY[fidelity], make_method(name)
    if name == "intraq":
        f = dataclasses.replace(f, intra_calibration="own")
    teacher = tiny_teacher()
    built = method.build_generator(teacher, f)
    built.plan(BATCH, 2)
    z, y = method.sample(torch.Generator(), BATCH, built.latent, CLASSES)
    places = stages(teacher) if method.features else ()
    student = quantize(teacher, "3w3a", ste=f.ste, rule=f.observer, zero_point=f.zero_point, every_input=True)
    generator = card.take_module(built)
    observed, student = card.take_module(WithStatistics(teacher, places)), card.take_module(student)
    z, y = card.take(z), card.take(y)
    with card.mode:
        x = generator(z, y)
        z_p, statistics, f_p = observed.look(x)
        assert student.observing
        z_q, f_q = with_features(student.graph, places)(x)
        assert z_p.shape == z_q.shape == (BATCH, CLASSES)
        notes = generator.notes(z, y)
        r = Round(0, x, y, z_p, z_q, statistics, Bounds(), f, f_p, f_q, notes)
        terms = [*method.generator_loss(r).values(), *method.student_loss(r).values()]
        assert on_card(x, z_p, z_q, r.entropy, r.h_prime, *terms, *f_p, *f_q, *notes.values())
        assert all(on_card(a.range.low, a.range.high) for a in student.activations().values())


def test_noise_and_images_reach_the_card():
    """Plain quantization and normalisation follow the student's and the teacher's device."""
    card = Card()
    student, teacher = card.take_module(quantize(tiny_teacher(), "3w3a")), card.take_module(tiny_teacher())
    with card.mode:
        observe_noise(student, SHAPE, batches=2, batch=2)
        assert all(on_card(a.range.high) for a in student.activations().values())
        x = normalize(torch.zeros(2, *SHAPE, dtype=torch.uint8), teacher.mean, teacher.std)
        assert on_card(x, student(x), teacher(x), teacher.denormalize(x))


def test_the_card_that_does_not_exist_refuses_tensors_of_the_host():
    """A mistake would be noticed: labels left behind do not index there, nor do two devices add up."""
    card = Card()
    generator = card.take_module(conditional_generator(CLASSES, SHAPE))
    with card.mode, pytest.raises(RuntimeError, match="device"):
        generator(torch.ones(BATCH, generator.latent), torch.arange(BATCH))


def test_measuring_an_accuracy_stays_on_the_card(monkeypatch):
    """Images are sent there in large batches through page-locked memory, and counted there; one number a batch comes back."""
    card, sizes, pinned = Card(), [], []
    teacher = card.take_module(tiny_teacher())
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: (pinned.append(len(self)), self)[1])
    monkeypatch.setattr(torch.Tensor, "item", lambda self: 7 if on_card(self) else pytest.fail("counted on the host"))
    images, labels = torch.zeros(1500, *SHAPE, dtype=torch.uint8), torch.zeros(1500, dtype=torch.long)
    images, labels = card.mode.from_tensor(images), card.mode.from_tensor(labels)  # on the host
    data = ImageSet("tiny", "test", images, labels, teacher.info.classes, "zeros")
    with card.mode:

        def normalize(x: Tensor) -> Tensor:
            assert on_card(x)
            sizes.append(len(x))
            return teacher.normalize(x)

        assert accuracy(teacher, data, normalize).images == 1500
    assert sizes == [1000, 500]
    assert pinned == [1000, 1000, 500, 500]


# Choosing one


def test_auto_takes_a_card_where_there_is_one(monkeypatch):
    """`auto` is cuda or cpu, by what torch can use."""
    for there, device in {True: "cuda", False: "cpu"}.items():
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert pick_device("auto") == torch.device(device)
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("cuda", "no CUDA device that torch can use; leave out --device, or use --device cpu"),
        ("cuda:1", "no CUDA device that torch can use"),
        ("abacus", "'abacus' is not a device; use auto, cpu or cuda"),
        ("", "'' is not a device"),
        ("mps", "torch cannot compute on 'mps' here; leave out --device"),
        ("meta", "torch cannot compute on 'meta' here"),
    ],
)
def test_a_device_that_is_not_there_is_refused(name, what, monkeypatch):
    """In one line that says what else to ask for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has that device")
    with pytest.raises(UserError, match=what) as caught:
        pick_device(name)
    assert "\n" not in str(caught.value)


# With one at hand


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_a_round_on_a_card_is_the_round_on_the_host(name, precision):
    """From the same seed the first round has the same images up to rounding, hence the same losses of P on them."""
    host, card = (
        tiny_game(make_method(name), student_lr=None, device=device, precision=kind)
        for device, kind in (("cpu", "float32"), ("cuda", precision))
    )
    a, b = host.round(), card.round()
    term = "generator.activation" if name == "zaq" else "generator.bns"
    assert float(b.terms[term]) == pytest.approx(float(a.terms[term]), rel=0.05)
    for record in card.play(OBSERVE):
        assert all(math.isfinite(float(term)) for term in record.terms.values())
