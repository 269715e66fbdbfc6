"""n bits a weight: the stream of bits against Python's integers, the container against the student it came from."""

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.networks import CHANNELS, SIDE, Grouped, ResidualAdd, randomize
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from adadfq_lab.errors import UserError
from adadfq_lab.integers.inference import run_integer
from adadfq_lab.integers.layers import to_integers
from adadfq_lab.integers.packing import ideal_bytes, pack, pack_bits, unpack, unpack_bits
from adadfq_lab.machine.files import load_tensors, save_tensors
from adadfq_lab.runs.players import observe_noise
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.quantizer import quant_range
from adadfq_lab.student.student import Student
from adadfq_lab.teacher.teacher_files import load_teacher


def student(bits: str = "3w4a", kind: type = ResidualAdd, **options: bool) -> Student:
    Q = quantize(randomize(kind(), torch.Generator().manual_seed(0)), bits, **options)
    observe_noise(Q, (CHANNELS, SIDE, SIDE), batches=2, batch=8)
    return Q


def codes(bits: int) -> st.SearchStrategy[list[int]]:
    low, high = quant_range(bits)
    return st.lists(st.integers(low, high), max_size=50)


# The stream of bits


def test_three_codes_of_three_bits_by_hand():
    """-4, 3, 0 are 000 111 100 and so the bytes 00011110 0(0000000)."""
    stream = pack_bits(torch.tensor([-4, 3, 0], dtype=torch.int8), 3)
    assert stream.dtype == torch.uint8 and stream.tolist() == [0b00011110, 0b00000000]
    assert unpack_bits(stream, 3, 3).tolist() == [-4, 3, 0]


@given(data=st.data(), bits=st.integers(2, 8))
def test_a_stream_is_a_number_written_in_base_two_to_the_n(data, bits):
    """The codes, less quant_min, are the digits of one big number; its bytes are the stream; reading it gives them back."""
    given_codes = data.draw(codes(bits))
    stream = pack_bits(torch.tensor(given_codes, dtype=torch.int8), bits)
    number = 0
    for code in given_codes:
        number = number * 2**bits + code - quant_range(bits)[0]
    size = math.ceil(len(given_codes) * bits / 8)
    assert bytes(stream.tolist()) == (number << (size * 8 - len(given_codes) * bits)).to_bytes(size, "big")
    back = unpack_bits(stream, bits, len(given_codes))
    assert back.dtype == torch.int8 and back.tolist() == given_codes


# The container


@pytest.mark.parametrize("options", [{}, {"every_input": True}], ids=str)
@pytest.mark.parametrize("kind", [ResidualAdd, Grouped])
@pytest.mark.parametrize("bits", ["2w2a", "3w4a", "5w3a", "8w8a"])
def test_what_is_packed_is_read_back(bits, kind, options, tmp_path):
    """Codes, zero points, scales, biases and grids are equal bit for bit; so are the logits of the integer network."""
    Q = student(bits, kind, **options)
    before, after = to_integers(Q), unpack(pack(Q, tmp_path / "q.safetensors"))
    assert list(after.layers) == list(before.layers) and list(after.activations) == list(before.activations)
    for a, b in zip(after.layers.values(), before.layers.values(), strict=True):
        assert (a.name, a.kind, a.bits) == (b.name, b.kind, b.bits) and a.codes.dtype == torch.int8
        assert all(torch.equal(getattr(a, part), getattr(b, part)) for part in ("codes", "zero_point", "scale", "bias"))
        assert (a.input is None) == (b.input is None) and str(a.input) == str(b.input)
    x = torch.randn(3, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    assert torch.equal(run_integer(Q, x, table=after), run_integer(Q, x))


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_resnet20_takes_at_most_15_percent_more_than_its_bits(bits, tmp_path):
    """n bits for each number of a convolution or linear weight are the ideal; scales, biases, zero points, grids and the header
    come to less than 15 % of it."""
    P = load_teacher("fashion_mnist_resnet20")
    Q = quantize(P, f"{bits}w{bits}a")
    observe_noise(Q, P.info.input_shape, batches=1, batch=2)
    weights = sum(p.numel() for p in P.network.parameters() if p.dim() > 1)
    assert ideal_bytes(Q) == math.ceil(weights * bits / 8)
    assert pack(Q, tmp_path / "q.safetensors").stat().st_size <= 1.15 * ideal_bytes(Q)


def test_the_weights_in_the_container_are_one_stream(tmp_path):
    """At three bits eight weights share three bytes."""
    Q = student("3w3a")
    path = pack(Q, tmp_path / "q.safetensors")
    weights = sum(layer.weight.numel() for layer in Q.layers().values())
    assert load_file(path)["codes"].shape == (math.ceil(3 * weights / 8),)


# What is refused


STUDENT = student()


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    return pack(STUDENT, tmp_path_factory.mktemp("packed") / "q.safetensors")


@given(position=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_a_byte_changed_anywhere_is_refused_in_one_line(packed, position, change):
    """Whatever single byte of the file is another, reading it ends in one line."""
    path, whole = packed.with_name("changed.safetensors"), bytearray(packed.read_bytes())
    whole[int(position * len(whole))] ^= change
    path.write_bytes(whole)
    with pytest.raises(UserError) as refused:
        unpack(path)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)


@given(kept=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_off_anywhere_is_refused_in_one_line(packed, kept):
    path, whole = packed.with_name("cut.safetensors"), packed.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UserError) as refused:
        unpack(path)
    assert "\n" not in str(refused.value)


def rewrite(path: Path, change: dict[str, object]) -> None:
    """The container with other facts in its header, and a sha256 that fits them."""
    tensors, meta, _ = load_tensors(path)
    save_tensors(path, tensors, meta | change)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "student"},
        {"bits": [5, 4]},
        {"bits": [0, 4]},
        {"bits": ["3", "4"]},
        {"bits": 3},
        {"layers": []},
        {"layers": [["conv", "conv", [4, 4, 3, 3], 7]]},
        {"layers": [["conv", "conv", [-4, 4, 3, 3], None]]},
        {"layers": None},
        {"grids": []},
        {"grids": [["relu", "relu"]]},
    ],
    ids=json.dumps,
)
def test_a_container_that_does_not_fit_its_description_is_refused(change, tmp_path):
    path = pack(STUDENT, tmp_path / "q.safetensors")
    rewrite(path, change)
    with pytest.raises(UserError, match=r"holds no packed student|does not fit its own description") as refused:
        unpack(path)
    assert "\n" not in str(refused.value)


def test_a_missing_file_and_a_student_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        unpack(tmp_path / "none.safetensors")
    save_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, {"kind": "student"})
    with pytest.raises(UserError, match="holds no packed student"):
        unpack(tmp_path / "other.safetensors")
