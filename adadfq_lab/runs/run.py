"""One run, from a configuration to a folder: what `adadfq demo`, `adadfq train` and every table are made of.

`run(config, folder)` is a plain function of its arguments. The folder it fills:

    config.json           the resolved configuration; the same one starts the same run again
    records.jsonl         one line a round: loss terms, H and H' of each sample, agreement, gains, measured accuracies
    round_000800.ckpt     checkpoints, the last two
    student.safetensors   Q after the last round
    result.json           the table
    teacher.safetensors   P, if it was made for this run
    report.html           the figures, in one file without a network
"""

import dataclasses
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adadfq_lab.data.accuracy import Accuracy, accuracy
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.errors import UserError, first_line, printable
from adadfq_lab.game.game import Game
from adadfq_lab.game.history import Record
from adadfq_lab.machine.devices import pick_device
from adadfq_lab.machine.distributed import hand_out, receive
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.machine.interrupts import interrupts_wait
from adadfq_lab.machine.memory import keep_freed_memory, out_of_memory
from adadfq_lab.methods.method import DrownedWarning, drowned
from adadfq_lab.runs.agreement import CAUTION, Agreement, chance, on_generated, on_images, rows, table
from adadfq_lab.runs.config import RunConfig, offer
from adadfq_lab.runs.folder import _claimed, checkpoints, resumed, round_of, save_checkpoint
from adadfq_lab.runs.log import RecordLog
from adadfq_lab.runs.players import build_game, build_student, images_of, observe_noise
from adadfq_lab.student.student_files import save_student
from adadfq_lab.teacher.teacher import Teacher
from adadfq_lab.teacher.teacher_files import load_teacher, save_teacher

NAMES = {
    "teacher": "teacher P",
    "plain": "plainly quantised",
    "calibrated": "calibrated on G's images",
    "student": "student Q, last round",
}
"""The rows of a result's table: the fields of `Result`, and what they are called."""


@dataclass(frozen=True)
class Result:
    """The result of a run. Accuracies are top-1 on the same labelled images, in percent; None without such images.

    plain:      Q with ranges observed on standard-normal images, nothing trained
    calibrated: Q with ranges observed on the warm generator's images, untrained; None if the run ended in the warm-up
    student:    Q after the last round
    best:       the highest accuracy measured along the way: chosen on these images, so not a result
    source:     the images, in words
    agreement:  with P instead of with labels: by "generated", and by "images" if images without labels were given
    log:        what the log lacks, after a resume that found it damaged; empty if it is whole
    """

    teacher: Accuracy | None
    plain: Accuracy | None
    calibrated: Accuracy | None
    student: Accuracy | None
    best: Accuracy | None
    rounds: int
    seconds: float
    seed: int
    source: str
    run: str
    log: str = ""
    agreement: dict[str, Agreement] = field(default_factory=dict)
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """The keys `adadfq demo --json` prints: top-1 in percent, and the intervals beside them."""
        rows = {k: getattr(self, k) for k in ("teacher", "plain", "calibrated", "student", "best")}
        plain: dict[str, Any] = {name: row.top1 if row else None for name, row in rows.items()}
        plain["intervals"] = {name: [row.low, row.high] for name, row in rows.items() if row}
        plain |= {"images": self.student.images if self.student else 0, "rounds": self.rounds}
        plain |= {"seconds": round(self.seconds, 1), "seed": self.seed, "run": self.run, "source": self.source}
        return plain | {
            "agreement": {name: found.as_json() for name, found in self.agreement.items()},
            "note": self.note,
            "log": self.log,
        }

    def table(self) -> str:
        """The result as a few lines of text."""
        spent = f"in {self.rounds:,} rounds and {self.seconds:.0f} s"
        lines, generated = [], self.agreement.get("generated")
        if self.teacher and self.plain and self.student:
            lines += table([(name, getattr(self, key)) for key, name in NAMES.items()], "top-1")
            lost, back = self.teacher.top1 - self.plain.top1, self.student.top1 - self.plain.top1
            share = f"{100 * back / lost:.0f} % of the {lost:.1f} points lost were won back" if lost > 0 else "nothing was lost"
            lines += [f"{share}, {spent}; measured on {self.source}"]
            if self.calibrated:
                steps = self.calibrated.top1 - self.plain.top1, self.student.top1 - self.calibrated.top1
                lines += [f"calibration changed {steps[0]:+.1f} points, learning {steps[1]:+.1f}"]
            if generated:
                lines += [f"Q predicts what P does for {generated.student} of {generated.source}"]
        else:
            for one in self.agreement.values():
                lines += [*table(rows(one), "same as P"), f"on {one.source}", ""]
            lines += [f"{spent[:1].upper()}{spent[1:]}. Agreement with P on generated images: {CAUTION}."]
        return "\n".join([*lines, *filter(None, (self.note, self.log))])


def side_by_side(titles: Sequence[str], results: Sequence[Result]) -> str:
    """Results on the same labelled images as one table, a column each: what calibration alone gives, and what Q learned."""
    width = max(22, *(len(title) + 2 for title in titles))

    def line(name: str, cells: Iterable[str]) -> str:
        return f"{name:26}" + "".join(f"{cell:>{width}}" for cell in cells).rstrip()

    lines = [line("top-1 [95 % interval]", titles)]
    for key, name in NAMES.items():
        lines.append(line(name, (str(found).replace(" %", "") if (found := getattr(r, key)) else "" for r in results)))
    lines.append(line("rounds, seconds", (f"{r.rounds:,}, {r.seconds:.0f}" for r in results)))
    return "\n".join([*lines, f"measured on {results[0].source}"])


def run(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    from_round: int | None = None,
    on_record: Callable[[Record], None] | None = None,
    quiet: bool = False,
    report: bool = True,
    interactive: bool = False,
    teacher: Teacher | None = None,
) -> Result:
    """Plays a whole run in `folder` and returns its result; `resume` continues from the folder's last checkpoint.

    report: also write report.html; interactive: with plotly in it
    teacher: used instead of the one that `config` names, and saved in the folder as teacher.safetensors
    from_round: continue from the checkpoint of that round instead; later rounds are played again

    Progress goes to standard error. Raises UserError if the folder cannot be written, is full, is in use, or holds another
    run. On Ctrl-C, SIGTERM and SIGHUP the game is saved, and KeyboardInterrupt is raised.
    """
    keep_freed_memory()
    own = folder / "teacher.safetensors"
    file = b""
    if teacher is not None:
        config, file = dataclasses.replace(config, teacher=str(own)), _as_file(teacher)
    teacher = _from_file(file) if file else load_teacher(config.teacher)
    data = images_of(teacher, config)
    game = build_game(config, teacher)  # before the folder is touched: a wrong option leaves nothing behind
    resume = resume or from_round is not None
    with _claimed(folder, config, resume):
        if file:
            write_atomically(own, file)
        if resume and (checkpoints(folder) or (folder / "records.jsonl").exists()):
            game = resumed(folder, game, from_round)
        else:
            save_checkpoint(game, folder)
        if game.last_checkpoint:
            hand_out(game.last_checkpoint)
        try:
            result = _play(config, folder, game, data, on_record, quiet)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise UserError(offer(config)) from error
        if report:
            from adadfq_lab.runs.report import write_report  # plotly is slow to import and only needed here

            try:
                write_report(folder, game, teacher, data, interactive=interactive)
            except Exception as error:
                said = f"the run is finished and saved, but its report was not written: {first_line(error)}"
                print(f"adadfq: {printable(said)}", file=sys.stderr)
        return result


def _as_file(teacher: Teacher) -> bytes:
    """What `save_teacher` writes; raises UserError if the teacher cannot be rebuilt from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.safetensors"
        save_teacher(teacher, path)
        return path.read_bytes()


def _from_file(content: bytes) -> Teacher:
    """The teacher of a file's content: with the file's sha256, so that the run can be resumed from the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.safetensors"
        path.write_bytes(content)
        return load_teacher(str(path))


def play_along(config: RunConfig) -> None:
    """The part of all processes but the first in a run on several: plays the same rounds; writes and measures nothing.

    The game comes from the first process, at the round at which it starts or continues.
    """
    keep_freed_memory()
    teacher = load_teacher(config.teacher)
    with tempfile.TemporaryDirectory() as folder:
        path = receive(Path(folder) / "game.ckpt")
        game = Game.resume(path, teacher=teacher, device=str(pick_device(config.device)))
    game.last_checkpoint = None  # a message must not name a file that is gone
    with interrupts_wait() as interrupt:
        for _ in game.play(config.rounds - game.index):
            interrupt()


def _play(
    config: RunConfig, folder: Path, game: Game, data: ImageSet | None, on_record: Callable[[Record], None] | None, quiet: bool
) -> Result:
    teacher = game.teacher
    log = RecordLog(folder / "records.jsonl", game.index, every=game.check_every, batch=config.schedule.batch)
    if log.trouble:
        print(f"adadfq: {printable(log.trouble)}", file=sys.stderr)
    labelled = data if data is not None and data.labelled else None
    measured: dict[str, Accuracy] = {}
    plain = build_student(teacher, config).to(game.device)
    observe_noise(plain, teacher.info.input_shape, seed=config.seed)
    if labelled is not None:
        players = {"teacher": teacher, "plain": plain}
        measured = {name: accuracy(player, labelled, teacher.normalize) for name, player in players.items()}
    note = chance(measured["teacher"], game.classes) if measured else ""
    if note and not quiet:
        tqdm.write(f"adadfq: {note}", file=sys.stderr)
    calibrated, best = log.measured("calibrated"), log.best()
    started, before = time.perf_counter(), log.seconds
    progress = tqdm(
        total=config.rounds, initial=game.index, unit="round", file=sys.stderr, disable=quiet, mininterval=0.5, smoothing=0.05
    )
    latest = log.measured("accuracy") or calibrated
    student: Accuracy | None = None
    try:
        with (
            interrupts_wait(lambda: _lost(game, folder)) as interrupt,
            _saved_on_interrupt(log, game, folder),
            progress,
            warnings.catch_warnings(action="ignore", category=DrownedWarning),
        ):
            for record in game.play(config.rounds - game.index):
                done = record.index + 1
                extra: dict[str, Any] = {"seconds": round(before + time.perf_counter() - started, 2)}
                if done == config.schedule.warmup and labelled is not None:
                    calibrated = latest = extra["calibrated"] = accuracy(game.student, labelled, teacher.normalize)
                due = config.evaluate_every and done % config.evaluate_every == 0
                if labelled is not None and (done == config.rounds or (due and done > config.schedule.warmup)):
                    latest = extra["accuracy"] = accuracy(game.student, labelled, teacher.normalize)
                    best = max(best or latest, latest, key=lambda a: a.top1)
                    student = latest if done == config.rounds else None
                log.write(record, extra)
                if said := drowned(record.index, record.terms, game.fidelity):
                    note = "; ".join(filter(None, (note, said)))
                    tqdm.write(f"adadfq: {said}", file=sys.stderr)
                if config.save_every and done % config.save_every == 0 and done < config.rounds:
                    log.sync()
                    save_checkpoint(game, folder)
                if on_record:
                    on_record(record)
                progress.update()
                if done % (10 * game.check_every) == 0 or done == config.rounds:
                    progress.set_postfix_str(_live(record, latest), refresh=False)
                interrupt()
            log.sync()
            save_checkpoint(game, folder)
    finally:
        log.close()
    if labelled is not None:
        student = student or accuracy(game.student, labelled, teacher.normalize)
    agreement = {"generated": on_generated(game, plain)}
    if data is not None and labelled is None:
        agreement = {"images": on_images(game, plain, data)} | agreement
    result = Result(
        measured.get("teacher"),
        measured.get("plain"),
        calibrated,
        student,
        best or student,
        game.index,
        before + time.perf_counter() - started,
        config.seed,
        data.source if data is not None else "no images",
        str(folder),
        log.trouble,
        agreement,
        note,
    )
    save_student(game.student, teacher, folder / "student.safetensors")
    write_atomically(folder / "result.json", json.dumps(result.as_json(), indent=1).encode())
    return result


@contextmanager
def _saved_on_interrupt(log: RecordLog, game: Game, folder: Path) -> Iterator[None]:
    """Saves the game on a KeyboardInterrupt, and raises it again."""
    try:
        yield
    except KeyboardInterrupt:
        log.sync()
        save_checkpoint(game, folder)
        raise


def _lost(game: Game, folder: Path) -> str:
    """What a second interrupt would lose, and how to continue."""
    found = checkpoints(folder)
    if not found:
        return "nothing is saved"
    lost = game.index - round_of(found[-1])
    what = f"the last {lost:,} rounds are lost" if lost > 1 else "the last round is lost" if lost else "no round is lost"
    return f"{what}; continue with: adadfq train --resume {folder}"


def _live(record: Record, latest: Accuracy | None) -> str:
    text = f"H' {float(record.h_prime.mean()):.2f}, agreement {100 * float(record.agreement):.0f} %"
    return text + (f", accuracy {latest.top1:.1f} %" if latest else "")
