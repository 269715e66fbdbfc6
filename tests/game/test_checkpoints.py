"""Games and students on disk: what comes back is what was written, bit for bit, and what is damaged or foreign is refused."""

import dataclasses
import pickle
import random
from pathlib import Path

import pytest
import torch
from helpers.tiny_games import (
    CLASSES,
    OBSERVE,
    SHAPE,
    WARMUP,
    changed,
    play,
    saved_teacher,
    state,
    tiny_game,
    tiny_teacher,
    with_term,
)
from helpers.traps import Trap

from adadfq_lab.equations import Bounds
from adadfq_lab.errors import UserError
from adadfq_lab.game.game import Game
from adadfq_lab.game.history import Record
from adadfq_lab.machine.files import load_tensors, save_tensors
from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.methods.adasg import adasg
from adadfq_lab.methods.arc import arc
from adadfq_lab.methods.arc_ait import arc_ait
from adadfq_lab.methods.gdfq import gdfq
from adadfq_lab.methods.intraq import intraq
from adadfq_lab.methods.qimera import qimera
from adadfq_lab.methods.registry import METHODS
from adadfq_lab.methods.zaq import zaq
from adadfq_lab.student.quantize import quantize
from adadfq_lab.student.student_files import load_student, rebuild_student, save_student


def one_line(caught: pytest.ExceptionInfo[UserError], path: Path) -> None:
    """The message is one line and names the file."""
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def same_records(a: list[Record], b: list[Record]) -> bool:
    return [r.as_json() for r in a] == [r.as_json() for r in b]


# Games


@pytest.mark.parametrize("at", [0, 1, 3, 6, 7])
@pytest.mark.parametrize("make", [zaq, lambda: intraq(iterations=3)])
def test_methods_with_a_memory_are_resumed_bit_for_bit(make, at, tmp_path):
    """Running statistics of Q; which images are on the bench, class centres and targets; whether ranges are observed."""
    path, options = tmp_path / "game.ckpt", {"gains_every": 2, "seed": 7, "warmup": 6, "student_lr": 1e-4}
    teacher = tiny_teacher()
    game = play(tiny_game(make(), teacher=teacher, **options), at)
    game.save(path)
    resumed = Game.resume(path, teacher=tiny_teacher())
    assert resumed.student.observing == game.student.observing
    assert changed(state(game), state(resumed)) == set()
    assert same_records(list(game.play(6)), list(resumed.play(6)))
    assert changed(state(game), state(resumed)) == set()


@pytest.mark.parametrize("at", [0, 1, WARMUP, WARMUP + 1, OBSERVE, OBSERVE + 1])
def test_a_resumed_game_continues_bit_for_bit(at, tmp_path):
    """Saved before the first round, in the warm-up, while ranges are observed and after; optimizers keep their momentum."""
    teacher, path = tiny_teacher(), tmp_path / "game.ckpt"
    game = play(tiny_game(teacher=teacher, gains_every=2, seed=7, milestones=(OBSERVE + 1,), decay=0.5), at)
    game.bounds = Bounds(0.2, 0.6)
    before = state(game)
    game.save(path)
    assert changed(before, state(game)) == set()

    resumed = Game.resume(path, teacher=tiny_teacher())
    assert changed(before, state(resumed)) == set()
    assert (resumed.bounds, resumed.schedule, resumed.fidelity) == (game.bounds, game.schedule, game.fidelity)
    assert resumed.last_checkpoint == path
    assert resumed.student.observing == game.student.observing
    assert same_records(list(game.play(3)), list(resumed.play(3)))
    assert changed(state(game), state(resumed)) == set()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (gdfq(), {"fidelity": "released"}),
        (adasg(0.25, 0.75, gamma=0.5), {"fidelity": "paper"}),
        (adadfq(alpha_as=0.0), {"precision": "bf16", "bits": "4w5a"}),
        (arc("resnet18"), {"fidelity": "released"}),
        (qimera(3, p=0.5, extracted=True), {"fidelity": "released"}),
        (qimera(), {"seed": 1}),
        (arc_ait(share=0.01), {}),
        (arc_ait(), {"fidelity": "paper", "bits": "4w5a"}),
    ],
    ids=["gdfq", "adasg", "bf16", "arc", "qimera released", "qimera", "arc_ait", "arc_ait uncapped"],
)
def test_a_resumed_game_has_its_method_with_its_settings(method, options, tmp_path):
    """Constants other than the defaults, another fidelity, other bits and bf16 come back too."""
    game = play(tiny_game(method, **options), WARMUP + 1)
    game.save(tmp_path / "game.ckpt")
    resumed = Game.resume(tmp_path / "game.ckpt", teacher=tiny_teacher())
    assert resumed.method.settings == method.settings
    assert (resumed.precision, resumed.student.quantization) == (game.precision, game.student.quantization)
    assert same_records(list(game.play(2)), list(resumed.play(2)))
    assert changed(state(game), state(resumed)) == set()


def test_a_method_of_ones_own_is_resumed_by_hand_or_by_name(tmp_path, monkeypatch):
    """A method that is not in METHODS must be given; registered, it is found by its name."""
    own = dataclasses.replace(with_term(gdfq(), "student", lambda r: r.student_logits.square().mean()), name="Own")
    game = play(tiny_game(own), WARMUP)
    path = tmp_path / "game.ckpt"
    game.save(path)
    with pytest.raises(UserError, match="no method is called 'Own'"):
        Game.resume(path, teacher=tiny_teacher())
    given = Game.resume(path, teacher=tiny_teacher(), method=own)
    monkeypatch.setitem(METHODS, "own", lambda: own)
    found = Game.resume(path, teacher=tiny_teacher())
    expected = state(play(game, 2))
    assert changed(expected, state(play(given, 2))) == changed(expected, state(play(found, 2))) == set()


def test_a_checkpoint_is_a_function_of_the_state(tmp_path):
    """Saved, resumed and saved again it has the same sha256: no date and no path is in it. Nothing else is left behind."""
    game = play(tiny_game(), 3)
    game.save(tmp_path / "a.ckpt")
    Game.resume(tmp_path / "a.ckpt", teacher=tiny_teacher()).save(tmp_path / "b.ckpt")
    assert load_tensors(tmp_path / "a.ckpt")[2] == load_tensors(tmp_path / "b.ckpt")[2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ckpt", "b.ckpt"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("game") / "game.ckpt"
    play(tiny_game(), WARMUP + 1).save(path)
    return path


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.99999])
def test_a_truncated_checkpoint_is_refused(share, checkpoint, tmp_path):
    """Cut anywhere, the file is damaged, and says so in one line."""
    content, path = checkpoint.read_bytes(), tmp_path / "cut.ckpt"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="damaged") as caught:
        Game.resume(path, teacher=tiny_teacher())
    one_line(caught, path)


@pytest.mark.parametrize("seed", range(6))
def test_an_altered_checkpoint_is_refused(seed, checkpoint, tmp_path):
    """One bit flipped anywhere, in the weights or in their description: no number of a checkpoint can change unnoticed."""
    content, path = bytearray(checkpoint.read_bytes()), tmp_path / "flipped.ckpt"
    draw = random.Random(seed)
    header = int.from_bytes(content[:8], "little")
    place = 8 + draw.randrange(header) if seed < 2 else draw.randrange(8 + header, len(content))
    content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        Game.resume(path, teacher=tiny_teacher())
    one_line(caught, path)


def test_a_checkpoint_of_another_teacher_is_refused(checkpoint):
    """Even one of the same shape: weights count, also of a teacher that comes from no file."""
    with pytest.raises(UserError, match=r"was played with another teacher than tiny \(sha256 differs\)") as caught:
        Game.resume(checkpoint, teacher=tiny_teacher(seed=1))
    one_line(caught, checkpoint)
    with pytest.raises(UserError, match="no teacher 'tiny'"):
        Game.resume(checkpoint)


def test_a_checkpoint_of_another_method_is_refused(checkpoint):
    """A game of AdaDFQ does not go on as one of GDFQ."""
    with pytest.raises(UserError, match="was played with AdaDFQ, not GDFQ") as caught:
        Game.resume(checkpoint, teacher=tiny_teacher(), method=gdfq())
    one_line(caught, checkpoint)


def test_what_is_no_game_is_refused(tmp_path):
    """A student's file, a missing one, and a pickle, which is not even opened as one."""
    save_student(quantize(tiny_teacher(), "3w3a"), tiny_teacher(), tmp_path / "student.safetensors")

    (tmp_path / "pickle.ckpt").write_bytes(pickle.dumps(Trap(tmp_path / "executed")))
    torch.save({"index": 3}, tmp_path / "torch.ckpt")
    for name, what in {
        "student.safetensors": "holds no game",
        "none.ckpt": "there is no file",
        "pickle.ckpt": "damaged or not a safetensors file",
        "torch.ckpt": "damaged or not a safetensors file",
    }.items():
        with pytest.raises(UserError, match=what) as caught:
            Game.resume(tmp_path / name, teacher=tiny_teacher())
        one_line(caught, tmp_path / name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"schedule": {"batch": 4, "milestones": [], "epochs": 3}}, "another version"),
        ({"fidelity": {"observer": "ema"}}, "another version"),
    ],
)
def test_a_checkpoint_of_another_version_is_refused(changes, what, checkpoint, tmp_path):
    """A field more or less in its description is said in one line, not in a traceback."""
    tensors, meta, _ = load_tensors(checkpoint)
    path = tmp_path / "other.ckpt"
    save_tensors(path, tensors, meta | changes)
    with pytest.raises(UserError, match=what) as caught:
        Game.resume(path, teacher=tiny_teacher())
    one_line(caught, path)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(checkpoint, tmp_path):
    """Of the student, of the generator, or the random state."""
    tensors, meta, _ = load_tensors(checkpoint)
    for name in ("random", "generator.linear.weight", "student.graph.conv1.weight"):
        path = tmp_path / "lacking.ckpt"
        save_tensors(path, {k: v for k, v in tensors.items() if k != name}, meta)
        with pytest.raises(UserError, match="does not fit its own description") as caught:
            Game.resume(path, teacher=tiny_teacher())
        one_line(caught, path)


# Students


@pytest.fixture
def run_folder(tmp_path):
    """A teacher's file, and a folder with a student of that teacher after a few rounds."""
    teacher = saved_teacher(tmp_path / "teacher.safetensors")
    game = play(tiny_game(teacher=teacher), OBSERVE + 1)
    folder = tmp_path / "run"
    folder.mkdir()
    save_student(game.student, teacher, folder / "student.safetensors", accuracy=12.5)
    return folder, teacher, game.student


def test_a_student_comes_back_bit_for_bit(run_folder):
    """The same logits, with its teacher or without, and ranges that no longer move; extra facts travel in the file."""
    folder, teacher, student = run_folder
    path = folder / "student.safetensors"
    x = torch.randn(3, *SHAPE)
    with torch.no_grad():
        expected = student(x)
        _, loaded = load_student(path, teacher)
        info, rebuilt, sha256 = rebuild_student(path)
        for copy in (loaded, rebuilt):
            assert not copy.observing
            assert torch.equal(copy(x), expected)
            assert not torch.equal(copy(100 * x), expected)
            assert torch.equal(copy(x), expected)
            assert copy.quantization == student.quantization
    assert info == teacher.info
    assert sha256 == load_tensors(path)[2]
    assert load_tensors(path)[1]["accuracy"] == 12.5


def test_a_student_finds_its_teacher_through_its_run(run_folder, tmp_path):
    """The config.json beside it names the teacher's file; without it, or with a broken one, one line says what is missing."""
    folder, teacher, _ = run_folder
    path = folder / "student.safetensors"
    with pytest.raises(UserError, match="not shipped; give the teacher's file") as caught:
        load_student(path)
    one_line(caught, path)
    (folder / "config.json").write_text(f'{{"teacher": "{tmp_path / "teacher.safetensors"}"}}')
    assert load_student(path)[0].info == teacher.info
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="does not name the teacher"):
        load_student(path)


def test_a_student_of_another_teacher_is_refused(run_folder, tmp_path):
    """Its weights differ, so their sha256 does."""
    folder, _, _ = run_folder
    other = saved_teacher(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(UserError, match="made from another teacher than tiny") as caught:
        load_student(folder / "student.safetensors", other)
    one_line(caught, folder / "student.safetensors")


def test_a_damaged_student_is_refused(run_folder, tmp_path):
    """Cut, altered, of another kind, or not there at all."""
    folder, teacher, _ = run_folder
    content = (folder / "student.safetensors").read_bytes()
    altered = bytearray(content)
    altered[-1] ^= 1
    (tmp_path / "cut.safetensors").write_bytes(content[:-9])
    (tmp_path / "altered.safetensors").write_bytes(altered)
    for name, what in {
        "cut": "damaged",
        "altered": "damaged",
        "teacher": "holds no student",
        "missing": "there is no file",
    }.items():
        path = tmp_path / f"{name}.safetensors"
        with pytest.raises(UserError, match=what) as caught:
            load_student(path, teacher)
        one_line(caught, path)


def test_a_student_that_does_not_fit_its_network_is_refused(run_folder, tmp_path):
    """A tensor of another shape under a right checksum: another program's mistake, still one line."""
    folder, teacher, _ = run_folder
    tensors, meta, _ = load_tensors(folder / "student.safetensors")
    path = tmp_path / "odd.safetensors"
    save_tensors(path, tensors | {"graph.linear.weight": torch.zeros(CLASSES + 1, 64)}, meta)
    for read in (rebuild_student, lambda p: load_student(p, teacher)):
        with pytest.raises(UserError, match="does not fit its network") as caught:
            read(path)
        one_line(caught, path)
