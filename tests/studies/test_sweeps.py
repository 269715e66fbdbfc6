"""Combinations of options, and how far each run of a grid is."""

import json
from pathlib import Path

import pytest
from helpers.tiny_games import images_for, saved_teacher

from adadfq_lab.cli.main import main
from adadfq_lab.errors import UserError
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.runs.config import RunConfig
from adadfq_lab.studies.grid import folder_name, prepare
from adadfq_lab.studies.sweeps import RunStatus, combinations, status, varied
from adadfq_lab.studies.tables import Budget


def test_every_combination_once():
    """Two methods, two lower bounds, two seeds and two batches are sixteen configurations, the last option changing fastest."""
    found = combinations(RunConfig(rounds=9), ["method=gdfq,adadfq", "lower=0,0.1", "seed=0,1", "batch=8,16"])
    assert len(set(map(folder_name, found))) == 16 and {c.rounds for c in found} == {9}
    assert [(c.method, c.lower, c.seed, c.schedule.batch) for c in found[:3]] == [
        ("gdfq", 0.0, 0, 8),
        ("gdfq", 0.0, 0, 16),
        ("gdfq", 0.0, 1, 8),
    ]
    assert combinations(RunConfig(), []) == [RunConfig()]


def test_each_method_of_a_grid_has_the_warm_up_that_serves_it():
    """IntraQ makes its 16 images in 1,600 rounds, ZAQ's has no warm-up; all play 800 rounds. A warm-up that is given stays."""
    varied_methods = ["method=adadfq,intraq,zaq"]

    def found(config, *more):
        return [(c.schedule.warmup, c.rounds) for c in combinations(config, [*varied_methods, *more])]

    assert found(RunConfig(rounds=1000)) == [(200, 1000), (1600, 2400), (0, 800)]
    assert found(RunConfig(rounds=1000, schedule=Schedule(warmup=50))) == [(50, 1000)] * 3
    assert found(RunConfig(rounds=1000), "warmup=200") == [(200, 1000)] * 3
    assert found(RunConfig(rounds=1000), "schedule.warmup=200") == [(200, 1000)] * 3


def test_values_have_their_options_type():
    """A number is a number, a choice one of its choices, an option that may be absent is given as what it is when present."""
    texts = ["evaluate_every=5", "precision=bf16", "student-lr=1e-3", "every_input=true,false"]
    (first, second) = combinations(RunConfig(), texts)
    assert (first.evaluate_every, first.precision, first.schedule.student_lr) == (5, "bf16", 1e-3)
    assert (first.every_input, second.every_input) == (True, False)


def test_settings_of_the_method_are_options_too():
    """They are varied by name, and a grid's status tells runs apart by them."""
    found = combinations(RunConfig(), ["alpha_ds=0.1,0.3", "lower=0.2"])
    assert [(c.settings, c.lower) for c in found] == [({"alpha_ds": 0.1}, 0.2), ({"alpha_ds": 0.3}, 0.2)]
    rows = [
        RunStatus(Path(name), config, "waiting", 0, 0)
        for name, config in zip("abc", [*found, RunConfig(lower=0.2)], strict=True)
    ]
    assert [told["alpha_ds"] for told in varied(rows).values()] == [0.1, 0.3, None]


def test_bounds_that_cross_are_left_out():
    """Only lower < upper is played, also against a bound that is the method's own (AdaDFQ: 0.1 and 0.8)."""
    found = combinations(RunConfig(), ["lower=0,0.5", "upper=0.5,1"])
    assert [(c.lower, c.upper) for c in found] == [(0.0, 0.5), (0.0, 1.0), (0.5, 1.0)]
    assert [c.lower for c in combinations(RunConfig(), ["lower=0.5,0.8"])] == [0.5]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["lowest=1"], "adadfq has no setting 'lowest'"),
        (["=1"], "'=1' varies nothing"),
        (["lower"], "'lower' varies nothing"),
        (["schedule=1"], "adadfq has no setting 'schedule'"),
        (["rounds=many"], "rounds does not take 'many'; it takes int"),
        (["precision=fp8"], "precision does not take 'fp8'; it takes float32 or tf32 or bf16"),
        (["seed=0", "seed=1"], "seed is varied twice"),
        (["lower=0.9"], "no combination is left"),
        (["bits=9w9a"], "9w9a is not a bit width"),
        (["method=magic"], "no method is called 'magic'"),
        (["every_input=maybe"], "every_input does not take 'maybe'; it takes bool"),
    ],
)
def test_what_cannot_be_varied_is_said(texts, message):
    """A wrong name or value is refused before anything is played."""
    with pytest.raises(UserError, match=message):
        combinations(RunConfig(), texts)


def test_a_grid_is_shown_by_the_options_that_differ_and_in_their_order(tmp_path):
    """Settings of the method stand under their own names; numbers go by size, and names after them."""
    prepare(combinations(RunConfig(), ("method=adadfq", "alpha_ds=1,0.2,0.1", "seed=10,9")), tmp_path)
    shown = [options.items() for options in varied(status(tmp_path)).values()]
    assert [dict(options) for options in shown] == [{"seed": s, "alpha_ds": a} for s in (9, 10) for a in (0.1, 0.2, 1.0)]
    prepare(combinations(RunConfig(), ("seed=9", "lower=0.05")), tmp_path)
    assert [options["lower"] for options in varied(status(tmp_path)).values()][:1] == [0.05]


def test_adadfq_grid_plays_and_shows(tmp_path, monkeypatch, capsys):
    """`adadfq grid play` plays every combination and shows each; `status` shows the same; a failure is exit status 1."""
    monkeypatch.setenv("ADADFQ_DATA", str(tmp_path))
    teacher, root = tmp_path / "teacher.safetensors", str(tmp_path / "grid")
    saved_teacher(teacher, classes=10, data="cifar10")
    images_for(tmp_path, "cifar10")
    options = f"--teacher {teacher} --rounds 3 --batch 4 --warmup 1 --observe 2 --engine inprocess".split()
    main(["grid", "play", root, "--vary", "lower=0,0.2", "seed=0,1", *options, "--json"])
    played = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert played["counts"] == {"done": 4, "running": 0, "failed": 0, "damaged": 0, "stopped": 0, "waiting": 0}
    found = sorted((run["options"]["lower"], run["options"]["seed"]) for run in played["runs"])
    assert found == [(0, 0), (0, 1), (0.2, 0), (0.2, 1)]
    assert all(run["rounds"] == run["of"] == 3 and run["starts"] == 1 and 0 <= run["student"] <= 100 for run in played["runs"])
    with pytest.raises(SystemExit, match="2"):
        main(["grid", "play", root, "--vary", "teacher=nobody", *options])
    assert "1 of 1 runs failed" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="1"):
        main(["grid", "status", root])
    text = capsys.readouterr().out
    assert text.startswith("4 done, 0 running, 1 failed") and "no teacher" in text
    with pytest.raises(SystemExit, match="2"):
        main(["grid", "status", str(tmp_path / "nowhere")])
    assert "holds no grid" in capsys.readouterr().err


def test_a_table_is_played_by_an_engine(tmp_path, monkeypatch, capsys):
    """`adadfq table --play --engine inprocess` plays its runs here and shows them."""
    monkeypatch.setenv("ADADFQ_DATA", str(tmp_path))
    monkeypatch.setattr("adadfq_lab.studies.table_rows.BUDGETS", {"short": Budget(2, batch=4, warmup=1)})
    teacher = tmp_path / "teacher.safetensors"
    saved_teacher(teacher, classes=10, data="cifar10")
    images_for(tmp_path, "cifar10")
    main(f"table --play --methods gdfq adadfq --teacher {teacher} --engine inprocess --folder {tmp_path / 't'}".split())
    assert "| gdfq " in (text := capsys.readouterr().out) and "| adadfq " in text
