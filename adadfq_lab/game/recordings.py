"""Recorded games: small files in `data_stubs/` that a notebook replays at once.

    run_<name>.npz         150 or 300 rounds of one method at one bit width: history, and images on the way
    population.npz         logits of P and of students of 2 to 8 bits on the same 480 generated images
    similarity.npz         p_ds of 100 samples, ten of each class, at the end of two games: Fig. 5(c)
    grid.npz               the band of Fig. 4 in small: H' and accuracy for 35 pairs (lambda_l, lambda_u)

`python -m adadfq_lab.authoring.recording` records all of them again: half an hour on one core. Files are npz without pickle;
the `meta` of a recording says what it is (teacher, method, rounds, images it was measured on).
"""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from adadfq_lab.data.locations import stub_path
from adadfq_lab.equations import disagreement_entropy, normalized_entropy
from adadfq_lab.errors import UserError
from adadfq_lab.game.history import Column, History, Mark
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.machine.reading import check_regular

HALF = ("h_prime", "entropy")

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Recording:
    """A recorded run.

    images: uint8, (S, classes, H, W): one image of each class at the rounds `image_rounds`, from the same z each time
    meta:   how it was made, and what was measured at the end
    """

    name: str
    history: History
    images: Images
    image_rounds: tuple[int, ...]
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Population:
    """Logits of P and of several students on the same generated images, in batches of `batch` as a game sees them.

    teacher_logits: (N, C); student_logits: bits -> (N, C); labels: (N,), what G was asked for
    """

    labels: NDArray[np.int64]
    teacher_logits: Column
    student_logits: dict[int, Column]
    batch: int
    meta: dict[str, Any]

    def entropy(self, bits: int) -> Column:
        """H_info of each sample for the student of `bits` bits, (N,), nats."""
        z_p, z_q = torch.from_numpy(self.teacher_logits), torch.from_numpy(self.student_logits[bits])
        return np.asarray(disagreement_entropy(z_p, z_q).numpy(), np.float32)

    def h_prime(self, bits: int) -> Column:
        """H' of each sample, (N,), H_min being that of its batch, as in a game."""
        return batched_h_prime(self.entropy(bits), self.teacher_logits.shape[1], self.batch)


def batched_h_prime(entropy: Column, classes: int, batch: int) -> Column:
    """H' of entropies (N,) whose batches of `batch` follow one another. Eq. (3)."""
    batches = torch.from_numpy(np.ascontiguousarray(entropy, np.float32)).split(batch)
    return np.asarray(torch.cat([normalized_entropy(one, classes) for one in batches]).numpy(), np.float32)


# Reading and writing


def _write(path: Path, arrays: dict[str, Any], meta: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays, meta=np.array(json.dumps(meta)))
    write_atomically(path, buffer.getvalue())


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if path.exists():
        check_regular(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return arrays, json.loads(str(arrays.pop("meta")))
    except FileNotFoundError:
        recorded = sorted(file.stem.removeprefix("run_") for file in path.parent.glob("run_*.npz"))
        raise UserError(f"there is no recording {path.name}; recorded are {', '.join(recorded)}") from None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} is not a recording: {error}") from None


def save_recording(recording: Recording, path: Path) -> None:
    """Writes `recording` to `path`; numbers of single samples are kept as half floats."""
    columns = recording.history.columns.items()
    arrays: dict[str, Any] = {f"column.{k}": v.astype(np.float16) if k in HALF else v for k, v in columns}
    arrays |= {"images": recording.images, "image_rounds": np.array(recording.image_rounds, np.int32)}
    marks = [[mark.round, mark.text] for mark in recording.history.marks]
    meta = {"kind": "run", "name": recording.name, "classes": recording.history.classes, "marks": marks, **recording.meta}
    _write(path, arrays, meta)


def load_recording(name: str | Path) -> Recording:
    """A recorded run: a shipped one by its name, or a file of `save_recording`. Raises UserError if there is none."""
    path = name if isinstance(name, Path) else stub_path(f"run_{name}.npz")
    arrays, meta = _read(path)
    if meta.pop("kind", None) != "run":
        raise UserError(f"{path} holds no recorded run")
    columns = {k.removeprefix("column."): v.astype(np.float32) for k, v in arrays.items() if k.startswith("column.")}
    marks = tuple(Mark(int(number), str(text)) for number, text in meta.pop("marks"))
    rounds = tuple(int(number) for number in arrays["image_rounds"])
    history = History(columns, marks, int(meta.pop("classes")))
    return Recording(str(meta.pop("name")), history, arrays["images"], rounds, meta)


def load_population() -> Population:
    """The recorded population."""
    arrays, meta = _read(stub_path("population.npz"))
    students = {int(k.removeprefix("student.")): v.astype(np.float32) for k, v in arrays.items() if k.startswith("student.")}
    return Population(
        arrays["labels"].astype(np.int64), arrays["teacher"].astype(np.float32), students, int(meta["batch"]), meta
    )


def load_grid() -> tuple[dict[str, Any], dict[str, Any]]:
    """(arrays, meta) of Fig. 4 in small; arrays are over (len(lower), len(upper)), NaN where lower = upper.

    accuracy: top-1 on real images in percent, low and high its interval; test_loss in nats; mean_h_prime and inside of the
    samples `h_prime` (6, 6, S) of the last rounds
    """
    return _read(stub_path("grid.npz"))


def paper_region(lower: ArrayLike, upper: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of these lambda_l and lambda_u lie in the region of Fig. 4 that the paper calls optimal."""
    low, high = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    return low < 0.25, (high > 0.65) & (high < 0.95)


def load_similarity() -> dict[str, Column]:
    """p_ds `(100, C)` of samples of AdaDFQ's and of GDFQ's generator, ordered by class. Eq. (1)."""
    arrays, _ = _read(stub_path("similarity.npz"))
    return {name: values.astype(np.float32) for name, values in arrays.items()}
