"""Compiled rounds: the same numbers as plain ones, in graphs without a break, and games that do not remember it on disk."""

import dataclasses

import pytest
import torch
from helpers.tiny_games import (
    SCHEDULE,
    WARMUP,
    changed,
    double,
    images_for,
    play,
    saved_teacher,
    state,
    tiny_game,
    tiny_teacher,
    twin,
)

from adadfq_lab.cli import main as cli
from adadfq_lab.errors import UserError
from adadfq_lab.game import compiling
from adadfq_lab.game.game import Game
from adadfq_lab.game.history import Record
from adadfq_lab.machine.files import load_tensors
from adadfq_lab.methods.registry import BEYOND, METHODS, make_method
from adadfq_lab.runs.config import RunConfig, read_config
from adadfq_lab.runs.log import read_records
from adadfq_lab.runs.run import run


@pytest.fixture
def traced(monkeypatch):
    """torch.compile all the way but for the kernels, which here are torch's own: then rounding is the same too."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    yield
    torch.compiler.reset()


def both(name: str = "adadfq", **options: object) -> tuple[Game, Game]:
    """The same game in float64, plain and compiled; at the methods' own rates."""
    make = make_method(name)
    plain, compiled = (double(tiny_game(make, student_lr=None, compile=how, **options)) for how in ("off", "default"))
    return plain, compiled


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS | BEYOND)
def test_a_compiled_round_is_the_round(name, traced):
    """Warm-up, observation and play, with gains: records and weights, for every method; one graph a forward.

    To the bit, but for ARC's generator: its bilinear enlargements are taken apart and round otherwise, which Adam enlarges.
    """
    from torch._dynamo.utils import counters

    counters.clear()
    plain, compiled = both(name, gains_every=3, observe=3)
    lines = [[record.as_json() for record in game.play(WARMUP + 4)] for game in (plain, compiled)]
    assert lines[0] == lines[1]
    if name in ("arc", "arc_ait"):
        torch.testing.assert_close(state(compiled), state(plain), rtol=0, atol=1e-7)
    else:
        assert not changed(state(plain), state(compiled))
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] >= 4
    assert not compiled.forwards._compiled.keys() - {compiled.generator, compiled.observed_teacher.look, *looks(compiled)}


def looks(game: Game) -> set[object]:
    return {game.student, game._observed_student}


@pytest.mark.slow
def test_a_compiled_game_leaves_no_trace_on_disk(traced, tmp_path):
    """Its checkpoint is the plain game's, name by name, and either goes on as the other; a copy is a game of its own."""
    plain, compiled = (play(game, 4) for game in both())
    for name, game in (("plain", plain), ("compiled", compiled)):
        for module in (game.teacher, game.student, game.generator):
            module.float()
        game.save(tmp_path / name)
    (a, meta, _), (b, other, _) = (load_tensors(tmp_path / name) for name in ("plain", "compiled"))
    assert a.keys() == b.keys() and meta == other
    assert all(torch.equal(a[key], b[key]) for key in a)
    ends = []
    for name, how in (("plain", "default"), ("compiled", "off")):
        game = Game.resume(tmp_path / name, teacher=tiny_teacher(), compile=how)
        assert game.forwards.how == how
        copied = twin(game)
        ends += [state(play(game, 2)), state(play(copied, 2))]
    assert not any(changed(ends[0], end) for end in ends[1:])


@pytest.mark.slow
def test_a_run_goes_on_with_or_without_compiling(traced, tmp_path, monkeypatch):
    """Broken off plain and resumed compiled, it ends as if it had been plain from beginning to end; what it was stays open."""
    saved_teacher(tmp_path / "t", classes=10)
    images_for(tmp_path, "cifar10")
    monkeypatch.setenv("ADADFQ_DATA", str(tmp_path))
    plain = RunConfig(str(tmp_path / "t"), rounds=6, schedule=SCHEDULE, save_every=2, device="cpu")
    compiled = dataclasses.replace(plain, compile="default")

    def stop(record: Record) -> None:
        if record.index == 3:
            raise KeyboardInterrupt

    run(plain, tmp_path / "whole", quiet=True, report=False)
    with pytest.raises(KeyboardInterrupt):
        run(plain, tmp_path / "run", quiet=True, on_record=stop)
    run(compiled, tmp_path / "run", resume=True, quiet=True, report=False)
    assert read_config(tmp_path / "run" / "config.json") == compiled
    lines = [[line | {"seconds": 0} for line in read_records(tmp_path / name / "records.jsonl")] for name in ("whole", "run")]
    assert lines[0] == lines[1] and len(lines[0]) == 6


@pytest.mark.slow
def test_the_compiler_makes_the_round_too():
    """torch.compile with its own kernels, on the CPU, in float64: a warm-up round or two and one in which both players step.

    Biases that a batch norm cancels have gradients of rounding alone, which Adam enlarges: hence 1e-8 and not 1e-12.
    """
    plain, compiled = (play(game, WARMUP + 1) for game in both())
    a, b = state(plain), state(compiled)
    assert a.keys() == b.keys()
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=1e-8, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}")
    torch.compiler.reset()


def test_cuda_graphs_need_cuda(tmp_path, monkeypatch, capsys):
    """One line, before anything is written."""
    saved_teacher(tmp_path / "t", classes=10)
    images_for(tmp_path, "cifar10")
    monkeypatch.setenv("ADADFQ_DATA", str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        cli.main(
            ["train", "--teacher", str(tmp_path / "t"), "--compile", "graphs", "--device", "cpu", "--name", str(tmp_path / "r")]
        )
    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert err == "adadfq: CUDA graphs need a CUDA device, which cpu is not; leave out --compile graphs\n"
    assert not (tmp_path / "r").exists()


def test_several_processes_are_not_compiled(monkeypatch):
    """Their forwards exchange messages; it is said before a round is played."""
    monkeypatch.setattr(compiling.distributed, "processes", lambda: 2)
    with pytest.raises(UserError, match="several processes cannot be compiled; leave out --compile"):
        compiling.Forwards("default", torch.device("cpu"))


def test_what_cannot_be_compiled_is_one_line(monkeypatch):
    """A machine without what the compiler needs: what it said first, and what to do."""
    from torch._dynamo.exc import BackendCompilerFailed

    def failing(graph: object, inputs: object) -> None:
        raise FileNotFoundError("no C++ compiler\nand more")

    monkeypatch.setattr(compiling, "BACKEND", failing)
    with pytest.raises(
        UserError, match=r"^torch.compile does not work here: no C\+\+ compiler; leave out --compile$"
    ) as caught:
        tiny_game(compile="default").round()
    assert isinstance(caught.value.__cause__, BackendCompilerFailed)
    torch.compiler.reset()
