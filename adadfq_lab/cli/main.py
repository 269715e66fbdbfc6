"""`adadfq`: the command line.

Figures go to standard output, progress to standard error. `--json` prints the result as JSON in the last line. A user's mistake
ends in one line and exit status 2, Ctrl-C in 130 after the run was saved.
"""

import contextlib
import errno
import functools
import inspect
import io
import itertools
import re
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, NoReturn

import tyro

from adadfq_lab.cli import listing
from adadfq_lab.cli.course import COMMANDS as COURSE
from adadfq_lab.cli.course import course
from adadfq_lab.errors import UserError, printable
from adadfq_lab.machine.distributed import launched
from adadfq_lab.machine.memory import keep_freed_memory, out_of_memory
from adadfq_lab.machine.terminal import usable_streams
from adadfq_lab.runs.config import RunConfig
from adadfq_lab.runs.folder import FULL

_WITH_CONFIG = ("train", "train-teacher", "table", "grid")
"""Commands whose options are a configuration's fields, without its name before them."""


def _command(name: str) -> Callable[..., Any]:
    module, _, function = listing.COMMANDS[name].partition(".")
    made: Callable[..., Any] = getattr(import_module(f"adadfq_lab.cli.{module}"), function)
    return tyro.conf.configure(tyro.conf.OmitArgPrefixes)(made) if name in _WITH_CONFIG else made


COMMANDS: dict[str, Callable[..., Any]] = {name: _command(name) for name in listing.COMMANDS}


def _parse(commands: dict[str, Callable[..., Any]], arguments: list[str]) -> functools.partial[Any]:
    """The call that `arguments` ask for, not made yet; raises UserError, one line, where tyro would print a box."""
    if commands is not COURSE and arguments[:1] == ["course"]:
        return _parse(COURSE, arguments[1:])
    program = "adadfq course" if commands is COURSE else "adadfq"
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            call: functools.partial[Any] = tyro.extras.subcommand_cli_from_dict(
                {name: _later(command) for name, command in commands.items()},
                prog=program,
                description=course.__doc__ if commands is COURSE else listing.DESCRIPTION,
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as end:
        if not end.code:  # --help
            raise
        command = [*program.split(), *(name for name in arguments[:1] if name in commands)]
        raise UserError(_one_line(said.getvalue(), command)) from None
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
            home = "" if " ".join(command) in homes else f" of {' or '.join(homes)}"
            text += f"; {head} {more[0]}{home}"
    text = re.sub(r"^Error parsing __tyro\S*: ", "", text)
    return f"{text}; see {' '.join([*command, '--help'])}"


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
    keep_freed_memory()
    with usable_streams():
        try:
            _run(arguments)
        except BrokenPipeError:
            raise
        except UserError as error:
            _fail(str(error))
        except OSError as error:
            if error.errno in FULL:
                what = "name a folder elsewhere" if error.errno == errno.EROFS else "make room, then the same command"
                _fail(f"cannot write: {error.strerror}; {what}")
            if error.filename is None:
                raise
            _fail(f"cannot use {error.filename}: {error.strerror}")
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            _fail("there is too little memory for this; ask for fewer images a round, as with --batch 4")
        except KeyboardInterrupt as error:
            print("; ".join(["adadfq: interrupted", *map(printable, map(str, error.args))]), file=sys.stderr)
            sys.exit(130)


def _fail(text: str) -> NoReturn:
    print(f"adadfq: {printable(text)}", file=sys.stderr)
    sys.exit(2)


def _run(arguments: list[str]) -> None:
    if launched() and arguments[:1] not in ([], ["train"], ["demo"], ["--help"], ["-h"]):
        raise UserError("only train and demo play on several processes; start the others without torchrun")
    commands = COMMANDS
    if arguments[:1] in (["train"], ["grid"]):  # read twice: what the recipe or the method has is the default of the rest
        from adadfq_lab.runs.recipes import resolve, usual_run

        asked = _parse(COMMANDS, arguments).keywords
        usual = resolve(asked["recipe"]) if asked.get("recipe") else usual_run(asked["config"].method)
        commands = COMMANDS | {arguments[0]: _starting_from(usual, COMMANDS[arguments[0]])}
    _parse(commands, arguments)()
