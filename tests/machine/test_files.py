"""Files are written whole or not at all, every flipped bit is found, and nothing is ever unpickled."""

import hashlib
import os
import pickle
import threading
from pathlib import Path

import pytest
import torch
from helpers.traps import Trap
from safetensors.torch import save_file
from torch import Tensor

from adadfq_lab.errors import UserError
from adadfq_lab.machine.files import digest, load_tensors, save_tensors, write_atomically

META = {"name": "tiny", "classes": ["a", "b"], "top1": 93.5, "none": None}


def tensors(generator: torch.Generator) -> dict[str, Tensor]:
    """One tensor of every kind that a teacher, a student or a checkpoint holds."""
    return {
        "weight": torch.randn(3, 2, generator=generator),
        "channels_last": torch.randn(2, 3, 2, 2, generator=generator).contiguous(memory_format=torch.channels_last),
        "count": torch.tensor(7),
        "codes": torch.tensor([-4, 3], dtype=torch.int8),
        "half": torch.tensor([1.5, -2.5], dtype=torch.bfloat16),
        "state": torch.get_rng_state()[:16],
        "empty": torch.empty(0, 4),
        "flag": torch.tensor(True),
    }


def refuse(path: Path, reason: str) -> None:
    """Loading `path` is a UserError of one line that names the file and matches `reason`."""
    with pytest.raises(UserError, match=reason) as error:
        load_tensors(path)
    assert len(str(error.value).splitlines()) == 1
    assert str(path) in str(error.value)


def test_what_is_read_is_what_was_written(tmp_path, generator):
    """Tensors come back with their values, types and shapes, the JSON object as it was, and the sha256 that saving returned."""
    written = tensors(generator)
    sha256 = save_tensors(tmp_path / "file", written, META)
    read, meta, found = load_tensors(tmp_path / "file")
    assert read.keys() == written.keys()
    for name, tensor in written.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name], tensor)
    assert meta == META
    assert found == sha256
    assert len(sha256) == 64


def test_the_same_content_has_the_same_sha256(tmp_path, generator):
    """The sha256 knows values, names, types, shapes and facts, but neither the order of names nor the memory layout."""
    written = tensors(generator)
    sha256 = save_tensors(tmp_path / "a", written, META)
    backwards = {name: written[name].clone().contiguous() for name in reversed(written)}
    assert save_tensors(tmp_path / "b", backwards, dict(reversed(META.items()))) == sha256
    weight = written["weight"]
    others = (
        written | {"weight": weight + 1e-7},
        written | {"weight": weight.T},
        written | {"weight": weight.view(2, 3)},
        written | {"weight": weight.view(torch.int32)},
        {("w" if name == "weight" else name): tensor for name, tensor in written.items()},
    )
    found = {save_tensors(tmp_path / "c", other, META) for other in others}
    found.add(save_tensors(tmp_path / "c", written, META | {"top1": 93.6}))
    assert len(found - {sha256}) == 6


def test_one_tensor_under_two_names_is_written_under_both(tmp_path, generator):
    """As in the state of a network that shares a weight; safetensors itself refuses that."""
    weight = torch.randn(3, 4, generator=generator)
    save_tensors(tmp_path / "a", {"first": weight, "second": weight, "row": weight[0]}, {})
    tensors, _, _ = load_tensors(tmp_path / "a")
    assert torch.equal(tensors["first"], weight) and torch.equal(tensors["second"], weight)
    assert torch.equal(tensors["row"], weight[0])


def test_digest_is_sha256_of_the_description_by_hand():
    """Of the JSON text, then for each name in order `name dtype shape` and the bytes in memory order."""
    text = b'{"a": 1}' + b"x torch.int16 (2,)" + b"\x01\x00\x02\x01"
    assert digest({"x": torch.tensor([1, 258], dtype=torch.int16)}, '{"a": 1}') == hashlib.sha256(text).hexdigest()


# Writing


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    """Where the disk takes no more (a limit of 1 kB stands in for it), the old file is intact and nothing else is there."""
    resource = pytest.importorskip("resource", reason="limits on file size are a thing of Unix")
    path = tmp_path / "file"
    write_atomically(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomically(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_reader_sees_the_old_file_or_the_new(tmp_path):
    """While one thread replaces a file of 64 kB fifty times, whoever reads it finds 64 kB of one and the same byte."""
    path = tmp_path / "file"
    write_atomically(path, bytes(65536))
    done = threading.Event()

    def write() -> None:
        for value in range(50):
            write_atomically(path, bytes([value]) * 65536)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        content = path.read_bytes()
        assert len(content) == 65536
        assert len(set(content)) == 1
    writer.join()
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="permission bits are a thing of Unix")
def test_a_file_can_be_read_by_others(tmp_path):
    """The file has the rights of any file, not those of a private temporary one."""
    write_atomically(tmp_path / "file", b"x")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


# Reading what should not be read


def test_every_flipped_bit_is_found(tmp_path, generator):
    """Whichever byte of the file is wrong by one bit (two of its eight are tried), loading refuses it in one line."""
    path = tmp_path / "file"
    save_tensors(path, {"w": torch.randn(3, generator=generator), "n": torch.tensor(7)}, {"top1": 93.5})
    content = path.read_bytes()
    for position in range(len(content)):
        for bit in (position % 8, (position + 3) % 8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            refuse(path, "damaged|not written by adadfq")


def test_every_truncation_is_found(tmp_path, generator):
    """Whatever number of bytes is missing at the end, from one to all of them, loading refuses the rest in one line."""
    path = tmp_path / "file"
    save_tensors(path, {"w": torch.randn(3, generator=generator)}, {"top1": 93.5})
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refuse(path, "damaged")
    path.write_bytes(content + b"\0")
    refuse(path, "damaged")


def test_foreign_files_are_refused(tmp_path, generator):
    """A missing file, a folder, text, and another program's safetensors each have their own line."""
    refuse(tmp_path / "nowhere", "there is no file")
    refuse(tmp_path, "is a folder; give a file")
    (tmp_path / "text").write_text("lr = 0.1\n" * 100)
    refuse(tmp_path / "text", "damaged or not a safetensors file")
    save_file({"w": torch.randn(3, generator=generator)}, tmp_path / "plain")
    refuse(tmp_path / "plain", "was not written by adadfq")
    save_file({"w": torch.zeros(3)}, tmp_path / "no facts", metadata={"format": "adadfq 1", "sha256": "0" * 64})
    refuse(tmp_path / "no facts", "damaged")


@pytest.mark.parametrize(
    "write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))], ids=["torch", "pickle"]
)
def test_a_pickle_is_refused_without_being_executed(write, tmp_path):
    """Neither torch's format nor a bare pickle is opened as one: what is inside does not run."""
    path, proof = tmp_path / "weights.pt", tmp_path / "proof"
    write({"weight": Trap(proof)}, path)
    refuse(path, "damaged or not a safetensors file")
    assert not proof.exists()
    torch.load(path, weights_only=False) if write is torch.save else pickle.loads(path.read_bytes())
    assert proof.exists()  # the trap works


def test_facts_must_be_json(tmp_path):
    """What JSON cannot hold is refused when it is written, not when it is read, and leaves no file."""
    with pytest.raises(TypeError):
        save_tensors(tmp_path / "file", {}, {"path": Path("x")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", [".", "no/where.html", "taken/x.html"])
def test_a_place_where_no_file_can_be_is_one_line_and_leaves_nothing(where, tmp_path):
    """A folder, a folder that is not there, a folder that is a file."""
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(UserError, match=r"^cannot write .*; name a file in a folder that exists and can be written to$"):
        write_atomically(tmp_path / where, b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
