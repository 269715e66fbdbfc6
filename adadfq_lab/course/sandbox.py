"""Runs other people's functions, each in a process of its own with limits: what `adadfq course mark` stands on.

    with Sandbox() as sandbox:
        outcomes = sandbox.run("p_ds", source)        a list of outcomes, or a sentence that says why there is none

A helper process imports the package once and waits; for each function it starts a child, which

- may use so many seconds and so much memory more than it has (`resource`, where the system has it),
- writes no file, starts no program, sends no signal and opens no connection: the kernel refuses these where it can (Linux,
  `adadfq_lab.machine.confinement`), and Python's audit hook everywhere,
- has an empty folder as its working directory, no standard input, and an output that goes nowhere,
- gives back numbers as JSON, a few megabytes at most; the verdict is made elsewhere, by code it cannot reach.

This stops accidents and pranks. It is no prison: the child runs as the same user and can read what that user can read; where
there is the audit hook alone, a determined attacker gets around it. Code of people you do not trust belongs on a machine with
nothing to lose.
"""

import base64
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from adadfq_lab.course.answers import rebuild
from adadfq_lab.course.comparing import Other, dense, kind
from adadfq_lab.course.exercises.catalogue import EXERCISES
from adadfq_lab.course.grading import Outcome, collect
from adadfq_lab.machine.confinement import confine

SECONDS, MEGABYTES = 10.0, 1024
MAX_REPLY = 4_000_000
FORKS = hasattr(os, "fork")
REFUSED = (
    "os.", "shutil.", "subprocess.", "socket.", "ctypes.", "signal.", "fcntl.", "mmap.", "pty.", "ftplib.", "http.", "urllib.",
    "smtplib.", "webbrowser.", "gc.", "sys.setprofile", "sys.settrace", "sys.addaudithook", "winreg.", "msvcrt.",
    "syslog.", "tempfile.", "cpython.run_",
)  # fmt: skip
ALLOWED = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.stat")


# In the parent


class Sandbox:
    """The helper process, started when it is first needed and again if something killed it."""

    def __init__(self, *, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> None:
        self.seconds, self.megabytes = seconds, megabytes
        self._helper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the helper process."""
        if self._helper is not None:
            with suppress(OSError):
                self._helper.kill()
            self._helper.wait()
            for stream in (self._helper.stdin, self._helper.stdout):
                if stream is not None:
                    stream.close()
            self._helper = None

    def run(self, exercise: str, source: str) -> list[Outcome] | str:
        """What the function that `source` defines gives for the hidden cases of `exercise`, or why there is nothing."""
        job = {"exercise": exercise, "source": source, "seconds": self.seconds, "megabytes": self.megabytes}
        reply = self._ask(json.dumps(job).encode() + b"\n")
        if isinstance(reply, str):
            return reply
        try:
            said = json.loads(reply)
            return [_read_outcome(row) for row in said] if isinstance(said, list) else str(said["why"])[:300]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, RuntimeError):
            return "gave back nothing that can be read"

    def _ask(self, job: bytes) -> bytes | str:
        if self._helper is None or self._helper.poll() is not None:
            self.close()
            self._helper = self._start()
        helper, end = self._helper, time.monotonic() + self.seconds + 60  # importing torch takes a while on a busy machine
        if not FORKS:
            return self._ask_once(helper, job)
        assert helper.stdin is not None and helper.stdout is not None
        try:
            helper.stdin.write(job)
            helper.stdin.flush()
        except OSError:
            self.close()
            return "ended the helper process"
        reply = bytearray()
        while not reply.endswith(b"\n"):
            ready, _, _ = select.select([helper.stdout], [], [], max(0.0, end - time.monotonic()))
            part = os.read(helper.stdout.fileno(), 1 << 20) if ready else b""
            reply += part
            if not part or len(reply) > 2 * MAX_REPLY:
                self.close()
                return "ended the helper process" if ready else "did not end, and neither did the helper process"
        return bytes(reply)

    def _ask_once(self, helper: "subprocess.Popen[bytes]", job: bytes) -> bytes | str:
        """Where processes do not fork (Windows): a helper for each job, and the limit is on time only."""
        try:
            return helper.communicate(job, timeout=self.seconds + 60)[0]
        except subprocess.TimeoutExpired:
            return f"did not end within {self.seconds:g} seconds (an endless loop?)"
        finally:
            self.close()

    def _start(self) -> "subprocess.Popen[bytes]":
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "ADADFQ_LAB_ANSWERS": "off",
        }
        command = [sys.executable, "-c", "from adadfq_lab.course.sandbox import serve; serve()"]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=FORKS,
        )


# In the helper process


def serve() -> None:
    """Reads jobs, a line each, and answers each with a line, until there are no more."""
    torch.set_num_threads(1)
    rebuild("warm", "def warm(): pass")  # what a first answer imports, and a child then has already
    replies = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin.buffer:
        job = json.loads(line)
        reply = _in_a_child(job) if FORKS else _here(job)
        view = memoryview(reply + b"\n")
        while view:
            view = view[os.write(replies, view) :]
    os._exit(0)


def _why(text: str) -> bytes:
    return json.dumps({"why": text}).encode()


def _in_a_child(job: dict[str, Any]) -> bytes:
    """Runs a job in a child, which is killed with all its descendants when it is over or its time is up."""
    with tempfile.TemporaryDirectory(prefix="adadfq_mark_") as folder:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                _close_all_but(writing)
                os.setsid()
                os.chdir(folder)
                _limit(job["seconds"], job["megabytes"])
                confine()
                _answer(job, writing)
            finally:
                os._exit(0)
        os.close(writing)
        reply, late = _listen(reading, time.monotonic() + job["seconds"])
        os.close(reading)
        if late:
            _kill(child)
        _, status = os.waitpid(child, 0)
        _kill(child)  # what it started and left
    if late:
        return _why(f"did not end within {job['seconds']:g} seconds (an endless loop?)")
    if len(reply) > MAX_REPLY:
        return _why("gave back more than 4 MB")
    if reply.endswith(b"\n"):
        return bytes(reply[:-1])
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        words = {"SIGXCPU": "used up its processor time", "SIGKILL": "was killed: too much memory, or it killed itself"}
        return _why(words.get(name, f"crashed ({name})"))
    return _why("ended its process itself (os._exit, exit() or a crash)")


def _close_all_but(pipe: int) -> None:
    """Closes what the child got from the helper, its line to the parent above all; 0, 1 and 2 lead nowhere already."""
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.closerange(3, pipe)
    os.closerange(pipe + 1, 1024)


def _kill(child: int) -> None:
    with suppress(OSError):
        os.killpg(child, signal.SIGKILL)


def _listen(pipe: int, end: float) -> tuple[bytearray, bool]:
    """What comes out of `pipe` until it is closed, a line is complete or too much, and whether time ran out."""
    reply = bytearray()
    while len(reply) <= MAX_REPLY and not reply.endswith(b"\n"):
        ready, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return reply, True
        part = os.read(pipe, 1 << 16)
        if not part:
            break
        reply += part
    return reply, False


def _limit(seconds: float, megabytes: int) -> None:
    """Limits of this process: processor time, memory beyond what it has now, no files, no core dumps, few processes."""
    import resource  # Windows has none

    def at_most(what: int, value: int) -> None:
        with suppress(OSError, ValueError):
            resource.setrlimit(what, (value, value))

    at_most(resource.RLIMIT_CPU, math.ceil(seconds) + 1)
    at_most(resource.RLIMIT_FSIZE, 0)
    at_most(resource.RLIMIT_CORE, 0)
    with suppress(OSError, ValueError, IndexError):
        with open("/proc/self/statm") as file:
            have = int(file.read().split()[0]) * resource.getpagesize()
        at_most(resource.RLIMIT_AS, have + megabytes * 2**20)
    if hasattr(resource, "RLIMIT_NPROC"):
        at_most(resource.RLIMIT_NPROC, 0)


def _forbid() -> None:
    """Refuses, from now on, what a function of this course has no use for; cannot be taken back in this process."""
    refused, allowed, writing = REFUSED, ALLOWED, os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def hook(event: str, arguments: Sequence[Any]) -> None:
        if event == "open":
            mode, flags = arguments[1], arguments[2]
            if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & writing):
                raise PermissionError("an answer may not write files")
        elif event.startswith(refused) and event not in allowed:
            raise PermissionError(f"an answer may not do this ({event})")

    sys.addaudithook(hook)


def _answer(job: dict[str, Any], pipe: int) -> None:
    write, dumps = os.write, json.dumps
    _forbid()
    view = memoryview(_here(job, dumps) + b"\n")
    while view:
        view = view[write(pipe, view) :]


def _here(job: dict[str, Any], dumps: Any = json.dumps) -> bytes:
    """The outcomes of a job as JSON, computed in this process."""
    name = job["exercise"]
    try:
        function = rebuild(name, job["source"])
        outcomes = collect(EXERCISES[name], function)
        return dumps([_write_outcome(outcome) for outcome in outcomes]).encode()  # type: ignore[no-any-return]
    except MemoryError:
        return _why("used up its memory")
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: an answer may raise anything
        return _why(f"does not run: {type(error).__name__}: {str(error)[:200]}")


# Outcomes as JSON: nothing is unpickled


def _write_outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "value": write_value(outcome.value),
        "error": outcome.error[:500],
        "unwritten": outcome.unwritten,
        "changed": outcome.changed,
        "gradients": None if outcome.gradients is None else [write_value(gradient) for gradient in outcome.gradients],
    }


def _read_outcome(row: dict[str, Any]) -> Outcome:
    given = row["gradients"]
    read = None if given is None else tuple(read_value(gradient) for gradient in given)
    gradients = None if read is None else tuple(g if isinstance(g, Tensor) else None for g in read)
    return Outcome(read_value(row["value"]), str(row["error"])[:500], bool(row["unwritten"]), bool(row["changed"]), gradients)


def write_value(value: Any, depth: int = 0) -> Any:
    """`value` as JSON."""
    if depth > 5:
        return {"other": "deeply nested"}
    if value is None or type(value) in (bool, int, float, str):
        return {"is": value}
    if isinstance(value, Tensor) and value.numel() > 100_000:
        return {"other": f"a tensor of {value.numel():,} numbers"}
    if dense(value) and not value.is_complex():
        data = value.detach().cpu().contiguous()
        raw = base64.b64encode(data.reshape(-1).view(torch.uint8).numpy().tobytes()).decode() if data.numel() else ""
        return {"tensor": str(data.dtype).removeprefix("torch."), "shape": list(data.shape), "data": raw}
    if type(value) in (tuple, list):
        return {type(value).__name__: [write_value(item, depth + 1) for item in value[:1000]]}
    if isinstance(value, complex) or (isinstance(value, Tensor) and value.is_complex()):
        return {"other": "complex numbers"}
    return {"other": "a tensor that is not dense" if isinstance(value, Tensor) else kind(value)}


def read_value(written: Any) -> Any:
    """What `write_value` wrote. Raises ValueError, KeyError or TypeError for anything else."""
    if "is" in written:
        return written["is"] if isinstance(written["is"], bool | int | float | str | None) else None
    if "tensor" in written:
        dtype = getattr(torch, written["tensor"])
        if not isinstance(dtype, torch.dtype):
            raise ValueError
        raw = bytearray(base64.b64decode(written["data"]))
        flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        return flat.reshape(written["shape"])
    for collection in (tuple, list):
        if collection.__name__ in written:
            return collection(read_value(item) for item in written[collection.__name__])
    return Other(str(written["other"])[:200])
