"""`adadfq`: the command line.

Figures go to standard output, progress to standard error. `--json` prints the result as JSON in the last line. A user's mistake
ends in one line and exit status 2, Ctrl-C in 130 after the run was saved.
"""

import contextlib
import dataclasses
import functools
import inspect
import io
import itertools
import re
import sys
from collections.abc import Callable
from typing import Any, Literal

import tyro

from adadfq_lab.commands import Json, say
from adadfq_lab.commands.integers import export, verify
from adadfq_lab.commands.runs import demo, evaluate, recipes, train, train_teacher, watch
from adadfq_lab.commands.studies import evidence, grid, table
from adadfq_lab.errors import UserError
from adadfq_lab.machine.distributed import launched
from adadfq_lab.runs.config import RunConfig
from adadfq_lab.runs.folder import FULL
from adadfq_lab.teacher.teacher_files import load_teacher


def methods(json: Json = False) -> None:
    """List the methods and the idea of each; last, what goes beyond the paper and what methods are measured against."""
    from adadfq_lab.methods.registry import description, every_method

    rows = {name: description(make) for name, make in every_method().items()}
    width = max(map(len, rows))
    say(rows, "\n".join(f"{name:{width}} {idea.split(': ', 1)[-1]}" for name, idea in rows.items()), json)


def fidelity(json: Json = False) -> None:
    """Show every place where paper, released code and good sense differ, and what each choice means."""
    from adadfq_lab.fidelity import CHOICES

    say({choice.name: dataclasses.asdict(choice) for choice in CHOICES}, "\n\n".join(map(str, CHOICES)), json)


def bench(teacher: str = "cifar10_resnet20", batch: int = 16, bits: str = "3w3a", rounds: int = 20, json: Json = False) -> None:
    """Time a round against a textbook round and against the convolutions alone, in one process, interleaved.

    For example: adadfq bench --batch 4 --rounds 5

    Args:
        teacher: A shipped teacher's name or a teacher file.
        batch: Images a round.
        bits: Of weights and activations.
        rounds: Measurements of each kind.
    """
    from adadfq_lab.studies.bench import bench as time_it

    b = time_it(load_teacher(teacher), batch=batch, bits=bits, rounds=rounds)
    rows = [
        ("round", f"{b.round_ms:8.1f} ms   {1e3 / b.round_ms:.1f} rounds/s"),
        ("textbook round", f"{b.textbook_ms:8.1f} ms   {b.textbook_ratio:.2f} x the round"),
        ("its convolutions alone", f"{b.floor_ms:8.1f} ms   the round is {b.floor_ratio:.2f} x this floor"),
        ("round in bf16", f"{b.bf16_ms:8.1f} ms"),
        ("peak memory", f"{b.peak_mb:8.0f} MB"),
        ("largest difference", f"{b.max_relative_difference:8.1e}   relative, fast against textbook round, in float64"),
    ]
    text = f"{teacher}, {bits}, batch {batch}, {b.threads} thread{'s' * (b.threads != 1)}, medians of {rounds}\n"
    say(dataclasses.asdict(b), text + "\n".join(f"{name:24}{figure}" for name, figure in rows), json)


def course(action: tyro.conf.Positional[Literal["build", "check", "badges"]], target: tyro.conf.Positional[str] = "") -> None:
    """Make the notebooks from their masters, check them, or point their Colab badges at a fork.

    For example: adadfq course badges octocat/adadfq_lab@v0.1.0

    Args:
        action: What to do.
        target: For badges: OWNER/REPO@TAG.
    """
    from adadfq_lab.authoring.build import badges_command, build_command, check_command

    if action == "badges":
        badges_command(target)
    else:
        {"build": build_command, "check": check_command}[action]()


COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "train": tyro.conf.configure(tyro.conf.OmitArgPrefixes)(train),
    "recipes": recipes,
    "watch": watch,
    "evaluate": evaluate,
    "train-teacher": tyro.conf.configure(tyro.conf.OmitArgPrefixes)(train_teacher),
    "export": export,
    "verify": verify,
    "table": tyro.conf.configure(tyro.conf.OmitArgPrefixes)(table),
    "grid": tyro.conf.configure(tyro.conf.OmitArgPrefixes)(grid),
    "evidence": evidence,
    "methods": methods,
    "fidelity": fidelity,
    "bench": bench,
    "course": course,
}


def _parse(commands: dict[str, Callable[..., Any]], arguments: list[str]) -> functools.partial[Any]:
    """The call that `arguments` ask for, not made yet; raises UserError, one line, where tyro would print a box."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            call: functools.partial[Any] = tyro.extras.subcommand_cli_from_dict(
                {name: _later(command) for name, command in commands.items()},
                prog="adadfq",
                description="Adaptive data-free quantization: a teacher, a generator, a student, and the game they play.",
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as end:
        if not end.code:  # --help
            raise
        raise UserError(_one_line(said.getvalue(), [name for name in arguments[:1] if name in commands])) from None
    return call


def _later(command: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(command)(lambda *args, **named: functools.partial(command, *args, **named))


def _one_line(box: str, command: list[str]) -> str:
    """What a box of tyro's says in its first part, what it suggests, and of which command, if not of this one."""
    lines = [re.sub("[│╭╮╰╯─]|-{3,}", "", line).strip() for line in box.splitlines()[1:]]
    parts = [part.split("\n") for part in re.split(r"\n\n+", "\n".join(lines).strip())]
    text = re.sub(r" \(applied to [^)]*\)", "", " ".join(parts[0]).rstrip("."))
    for head, *more in parts[1:]:
        if head.startswith("Available"):
            text += "; " + " ".join([head, *more])
        if head.startswith("Perhaps"):
            about = itertools.takewhile(lambda line: not line.startswith("--"), more[1:])
            homes = [line.removeprefix("in ").removesuffix(" --help") for line in about if line.startswith("in adadfq")]
            home = "" if " ".join(["adadfq", *command]) in homes else f" of {' or '.join(homes)}"
            text += f"; {head} {more[0]}{home}"
    text = re.sub(r"^Error parsing __tyro\S*: ", "", text)
    return f"{text}; see {' '.join(['adadfq', *command, '--help'])}"


def _starting_from(config: RunConfig, command: Callable[..., Any]) -> Callable[..., Any]:
    """`command`, where what is not given of its `config` on the command line is as in `config`."""
    started = functools.wraps(command)(lambda *args, **named: command(*args, **named))
    signature = inspect.signature(command)
    parameters = [p.replace(default=config) if p.name == "config" else p for p in signature.parameters.values()]
    started.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return tyro.conf.configure(tyro.conf.OmitArgPrefixes)(started)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command `adadfq`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if launched() and arguments[:1] not in ([], ["train"], ["demo"], ["--help"], ["-h"]):
            raise UserError("only train and demo play on several processes; start the others without torchrun")
        commands = COMMANDS
        if arguments[:1] in (["train"], ["grid"]):  # read twice: what the recipe or the method has is the default of the rest
            from adadfq_lab.runs.recipes import resolve, usual_run

            asked = _parse(COMMANDS, arguments).keywords
            usual = resolve(asked["recipe"]) if asked.get("recipe") else usual_run(asked["config"].method)
            commands = COMMANDS | {arguments[0]: _starting_from(usual, COMMANDS[arguments[0]])}
        _parse(commands, arguments)()
    except UserError as error:
        print(f"adadfq: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"adadfq: cannot write: {error.strerror}; make room, then the same command", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        print("; ".join(["adadfq: interrupted", *map(str, error.args)]), file=sys.stderr)
        sys.exit(130)
