"""One run, from a configuration to a folder: what `adadfq demo`, `adadfq train` and every table are made of.

`run(config, folder)` is a plain function of its arguments. The folder it fills:

    config.json           the resolved configuration; the same one starts the same run again
    records.jsonl         one line a round: loss terms, H and H' of each sample, agreement, gains, measured accuracies
    round_000800.ckpt     checkpoints, the last two
    student.safetensors   Q after the last round
    result.json           the table
    report.html           the figures, in one file without a network
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adadfq_lab.data.accuracy import Accuracy, accuracy
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.data.loading import load_data
from adadfq_lab.errors import UserError, first_line, printable
from adadfq_lab.game.game import Game
from adadfq_lab.game.history import Record
from adadfq_lab.machine.devices import pick_device
from adadfq_lab.machine.distributed import hand_out, receive
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.machine.interrupts import interrupts_wait
from adadfq_lab.machine.memory import keep_freed_memory, out_of_memory
from adadfq_lab.runs.config import RunConfig, offer
from adadfq_lab.runs.folder import _claimed, checkpoints, resumed, round_of, save_checkpoint
from adadfq_lab.runs.log import RecordLog
from adadfq_lab.runs.players import build_game, build_student, fitting_data, observe_noise
from adadfq_lab.student.student_files import save_student
from adadfq_lab.teacher.teacher_files import load_teacher


@dataclass(frozen=True)
class Result:
    """What became of a run; accuracies are top-1 on the same images, in percent.

    plain:      Q with ranges observed on standard-normal images, nothing trained
    calibrated: Q with ranges observed on the warm generator's images, untrained; None if the run ended in the warm-up
    student:    Q after the last round
    best:       the highest accuracy measured along the way: chosen on these images, so not a result
    log:        what the log lacks, after a resume that found it damaged; empty if it is whole
    """

    teacher: Accuracy
    plain: Accuracy
    calibrated: Accuracy | None
    student: Accuracy
    best: Accuracy
    rounds: int
    seconds: float
    seed: int
    source: str
    run: str
    log: str = ""

    def as_json(self) -> dict[str, Any]:
        """The keys `adadfq demo --json` prints: top-1 in percent, and the intervals beside them."""
        rows = {k: getattr(self, k) for k in ("teacher", "plain", "calibrated", "student", "best")}
        plain: dict[str, Any] = {name: row.top1 if row else None for name, row in rows.items()}
        plain["intervals"] = {name: [row.low, row.high] for name, row in rows.items() if row}
        plain |= {"images": self.student.images, "rounds": self.rounds, "seconds": round(self.seconds, 1), "seed": self.seed}
        return plain | {"run": self.run, "source": self.source, "log": self.log}

    def table(self) -> str:
        """The result as a few lines of text."""
        lost = self.teacher.top1 - self.plain.top1
        back = self.student.top1 - self.plain.top1
        rows = [("teacher P", self.teacher), ("plainly quantised", self.plain)]
        rows += [("calibrated on G's images", self.calibrated)] if self.calibrated else []
        rows += [("student Q, last round", self.student)]
        lines = [f"{'':26}{'top-1':>8}   95 % interval"]
        lines += [f"{name:26}{row.top1:6.2f} %   [{row.low:.2f}, {row.high:.2f}]" for name, row in rows]
        share = f"{100 * back / lost:.0f} % of the {lost:.1f} points lost were won back" if lost > 0 else "nothing was lost"
        lines.append(f"{share}, in {self.rounds:,} rounds and {self.seconds:.0f} s; measured on {self.source}")
        return "\n".join([*lines, *([self.log] if self.log else [])])


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
) -> Result:
    """Plays a whole run in `folder` and returns its result; `resume` continues from the folder's last checkpoint.

    report: also write report.html; interactive: with plotly in it
    from_round: continue from the checkpoint of that round instead; what was played after it is played again

    Progress goes to standard error. Raises UserError where the folder cannot be written, is full, is in use, or holds another
    run. On Ctrl-C, SIGTERM and SIGHUP the game is saved, and KeyboardInterrupt is raised.
    """
    keep_freed_memory()
    teacher = load_teacher(config.teacher)
    data = fitting_data(teacher, load_data(config.data or teacher.info.data, "test", stub=config.stub))
    game = build_game(config, teacher)  # before the folder is touched: a wrong option leaves nothing behind
    resume = resume or from_round is not None
    with _claimed(folder, config, resume):
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


def follow(config: RunConfig) -> None:
    """What every process but the first does in a run on several: plays the same rounds, and writes and measures nothing.

    The game is the first process's, handed out by it, at whatever round it starts or continues.
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
    config: RunConfig, folder: Path, game: Game, data: ImageSet, on_record: Callable[[Record], None] | None, quiet: bool
) -> Result:
    teacher = game.teacher
    log = RecordLog(folder / "records.jsonl", game.index, every=game.check_every, batch=config.schedule.batch)
    if log.trouble:
        print(f"adadfq: {printable(log.trouble)}", file=sys.stderr)
    plain = build_student(teacher, config).to(game.device)
    observe_noise(plain, teacher.info.input_shape, seed=config.seed)
    measured: dict[str, Accuracy] = {
        "teacher": accuracy(teacher, data, teacher.normalize),
        "plain": accuracy(plain, data, teacher.normalize),
    }
    calibrated, best = log.measured("calibrated"), log.best()
    del plain
    started, before = time.perf_counter(), log.seconds
    progress = tqdm(
        total=config.rounds, initial=game.index, unit="round", file=sys.stderr, disable=quiet, mininterval=0.5, smoothing=0.05
    )
    latest = log.measured("accuracy") or calibrated
    student: Accuracy | None = None
    try:
        with interrupts_wait(lambda: _lost(game, folder)) as interrupt, _saved_on_interrupt(log, game, folder), progress:
            for record in game.play(config.rounds - game.index):
                done = record.index + 1
                extra: dict[str, Any] = {"seconds": round(before + time.perf_counter() - started, 2)}
                if done == config.schedule.warmup:
                    calibrated = latest = extra["calibrated"] = accuracy(game.student, data, teacher.normalize)
                due = config.evaluate_every and done % config.evaluate_every == 0
                if done == config.rounds or (due and done > config.schedule.warmup):
                    latest = extra["accuracy"] = accuracy(game.student, data, teacher.normalize)
                    best = max(best or latest, latest, key=lambda a: a.top1)
                    student = latest if done == config.rounds else None
                log.write(record, extra)
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
    student = student or accuracy(game.student, data, teacher.normalize)
    seconds = before + time.perf_counter() - started
    result = Result(
        measured["teacher"],
        measured["plain"],
        calibrated,
        student,
        best or student,
        game.index,
        seconds,
        config.seed,
        data.source,
        str(folder),
        log.trouble,
    )
    save_student(game.student, teacher, folder / "student.safetensors")
    write_atomically(folder / "result.json", json.dumps(result.as_json(), indent=1).encode())
    return result


@contextmanager
def _saved_on_interrupt(log: RecordLog, game: Game, folder: Path) -> Iterator[None]:
    """Saves the game on a KeyboardInterrupt, which then goes on."""
    try:
        yield
    except KeyboardInterrupt:
        log.sync()
        save_checkpoint(game, folder)
        raise


def _lost(game: Game, folder: Path) -> str:
    """What an end on the spot costs, and how to go on."""
    found = checkpoints(folder)
    if not found:
        return "nothing is saved"
    lost = game.index - round_of(found[-1])
    what = f"the last {lost:,} rounds are lost" if lost > 1 else "the last round is lost" if lost else "no round is lost"
    return f"{what}; continue with: adadfq train --resume {folder}"


def _live(record: Record, latest: Accuracy | None) -> str:
    text = f"H' {float(record.h_prime.mean()):.2f}, agreement {100 * float(record.agreement):.0f} %"
    return text + (f", accuracy {latest.top1:.1f} %" if latest else "")
