"""The three long games of notebook 03, recorded: GDFQ with L_BNS averaged, as released; summed, as printed; and without it.

A generator needs some thousand rounds before P recognises the classes asked for, longer than a lesson may take. So the notebook
plays the first rounds and replays the rest: `load_recording("gdfq_long")`, `"gdfq_long_sum"` and `"gdfq_long_label"`. Beside
what every recording has, their `meta` hold, of the finished generator:

    recognised   percent of 400 images in which P sees the class asked for
    bns          L_BNS of each batch norm of P on them, averaged over its channels

`python -m adadfq_lab.authoring.imagined` records all three again, into `data_stubs/`: about ten minutes on two cores.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from adadfq_lab.authoring.recording import TEACHER, sample_images
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.data.loading import load_data
from adadfq_lab.data.locations import stub_path
from adadfq_lab.equations import loss_bns
from adadfq_lab.fidelity import fidelity
from adadfq_lab.game.game import Game
from adadfq_lab.game.history import Recorder
from adadfq_lab.game.probing import probe
from adadfq_lab.game.recordings import Recording, save_recording
from adadfq_lab.game.schedule import Schedule
from adadfq_lab.methods.gdfq import gdfq
from adadfq_lab.methods.method import Method, Round
from adadfq_lab.student.quantize import quantize
from adadfq_lab.teacher.teacher_files import load_teacher

ROUNDS, EVERY = 1200, 6
SCHEDULE = Schedule(batch=16, warmup=600, observe=700, student_lr=1e-4)
IMAGES_AT = (0, 100, 300, 600, 1200)
LONG = ("gdfq_long", "gdfq_long_sum", "gdfq_long_label")
"""What is recorded: L_BNS averaged, summed, left out."""


def label_only(r: Round) -> dict[str, torch.Tensor]:
    """GDFQ's loss of G without L_BNS: the classes asked for, and nothing else."""
    return {"label": F.cross_entropy(r.teacher_logits, r.labels)}


def method(name: str) -> Method:
    """The method that the recording `name` plays."""
    if name == "gdfq_long_label":
        return dataclasses.replace(gdfq(), name="GDFQ without L_BNS", generator_loss=label_only)
    return gdfq()


@torch.no_grad()
def finished(game: Game, *, images: int = 400) -> dict[str, Any]:
    """What P makes of the generator's images: `recognised` in percent and `bns` of each layer, averaged over batches of 40."""
    labels = torch.arange(game.classes).repeat(4)
    right, layers = [], []
    for seed in range(images // len(labels)):
        z_p, statistics = game.observed_teacher(game.generate(labels, seed=seed))
        right.append((z_p.argmax(1) == labels).float().mean())
        layers.append([float(loss_bns([layer], reduction="mean")) for layer in statistics])
    return {"recognised": round(100 * float(torch.stack(right).mean()), 1), "bns": np.mean(layers, axis=0).round(6).tolist()}


def record(name: str, data: ImageSet, rounds: int = ROUNDS) -> Recording:
    """Plays the game `name` for `rounds` rounds at 3 bits; every sixth round is kept, images at IMAGES_AT."""
    teacher = load_teacher(TEACHER)
    how = dataclasses.replace(fidelity("corrected"), bns_reduction="sum" if name == "gdfq_long_sum" else "mean")
    game = Game(teacher, quantize(teacher, "3w3a"), method(name), schedule=SCHEDULE, fidelity=how)
    recorder, images, at = Recorder(game.classes), [sample_images(game)], [0]
    for played in game.play(rounds):
        if played.index % EVERY == 0 or played.index == rounds - 1:
            recorder.add(played)
        if game.index in IMAGES_AT:
            images.append(sample_images(game))
            at.append(game.index)
            print(f"{name}: round {game.index}", file=sys.stderr, flush=True)
    meta = {
        "teacher": TEACHER,
        "method": game.method.name,
        "bits": "3w3a",
        "rounds": rounds,
        "seed": 0,
        "kept": f"1 in {EVERY}",
    }
    meta |= {
        "final": probe(game, data),
        "final_on": data.source,
        "command": "python -m adadfq_lab.authoring.imagined",
        **finished(game),
    }
    return Recording(name, recorder.history(), np.stack(images), tuple(at), meta)


def main(folder: Path, names: Sequence[str] = ()) -> None:
    """Records the games called `names`, or all three, into `folder`."""
    data = load_data("fashion_mnist", stub=True)
    for name in names or LONG:
        save_recording(record(name, data), folder / f"run_{name}.npz")


if __name__ == "__main__":
    main(stub_path(f"{TEACHER}.safetensors").parent, sys.argv[1:])
