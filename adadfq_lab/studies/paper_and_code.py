"""Paper against code: every place where AdaDFQ's text, its released code and this package differ, and what each costs.

`DISCREPANCIES` is the list. If a row is a switch of `fidelity`, `switches` has its effect: AdaDFQ at 3w3a on CIFAR-10,
600 rounds, seed 0, one switch moved at a time, top-1 on 2,000 training images (so that nothing here was chosen on test images).

`python -m adadfq_lab.studies.paper_and_code` measures them again, into data_stubs/switches.json: two minutes a switch on two
cores. `page()` is docs/paper_and_code.md.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from adadfq_lab.data.accuracy import accuracy
from adadfq_lab.data.image_sets import ImageSet
from adadfq_lab.data.loading import load_data
from adadfq_lab.data.locations import stub_path
from adadfq_lab.fidelity import CHOICES, FIDELITY, Choice, Fidelity, fidelity_table
from adadfq_lab.game.game import Game
from adadfq_lab.machine.files import write_atomically
from adadfq_lab.methods.adadfq import adadfq
from adadfq_lab.student.quantize import quantize
from adadfq_lab.studies.discrepancies import DISCREPANCIES
from adadfq_lab.teacher.teacher_files import load_teacher

ROOT = Path(__file__).parents[2]


def switches() -> dict[str, dict[str, float]]:
    """The effect of each switch: name -> answer -> top-1 in percent; the key "" has the default's. Empty if never measured."""
    path = stub_path("switches.json")
    return json.loads(path.read_text())["top1"] if path.exists() else {}


def variants() -> list[tuple[Choice, Any]]:
    """Every answer of AdaDFQ's switches that is not the default."""
    names = {row.switch for row in DISCREPANCIES if row.switch}
    found = []
    for choice in CHOICES:
        others = [v for v in dict.fromkeys((choice.paper, choice.released)) if v != choice.corrected]
        if choice.name == "ste":
            others = ["clipped"]
        found += [(choice, value) for value in others if choice.name in names]
    return found


def measure(f: Fidelity, data: ImageSet, *, rounds: int = 600, teacher: str = "cifar10_resnet20") -> float:
    """Top-1 on `data` of AdaDFQ's Q at 3w3a after `rounds` rounds under `f`, seed 0, in percent."""
    P = load_teacher(teacher)
    game = Game(P, quantize(P, "3w3a", ste=f.ste, rule=f.observer, zero_point=f.zero_point), adadfq(), fidelity=f)
    for _ in game.play(rounds):
        pass
    return accuracy(game.student, data, P.normalize).top1


def training_images(count: int = 2000) -> ImageSet:
    """`count` CIFAR-10 training images, drawn at random, always the same."""
    train = load_data("cifar10", "train")
    pick = torch.randperm(len(train), generator=torch.Generator().manual_seed(99))[:count]
    source = f"{count:,} random cifar10 training images"
    return replace(train, images=train.images[pick], labels=train.labels[pick], source=source)


def page() -> str:
    """docs/paper_and_code.md."""
    measured = switches()
    usual = measured.get("", {}).get("", 0.0)
    lines = ["# Paper against code", "", (__doc__ or "").split("\n")[0], ""]
    for kind in dict.fromkeys(row.kind for row in DISCREPANCIES):
        lines += [
            f"## {kind[0].upper()}{kind[1:]}",
            "",
            "| where | paper | released code | here | effect |",
            "|---|---|---|---|---|",
        ]
        for row in (one for one in DISCREPANCIES if one.kind == kind):
            found = "; ".join(f"`{value}`: {top1:.1f} %" for value, top1 in measured.get(row.switch, {}).items() if row.switch)
            effect = " ".join(filter(None, (row.effect, f"{found} against {usual:.1f} %." if found else "")))
            cells = (row.place, row.paper, row.released, row.here, effect or "Not measured.")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    if measured:
        lines += [
            "Percentages: top-1 of Q at 3w3a on 2,000 CIFAR-10 training images after 600 rounds of AdaDFQ, seed 0, with one "
            "switch moved; one seed, so differences below two points say little.",
            "",
        ]
    lines += ["## The switches of `fidelity`", "", fidelity_table()]
    return "\n".join(lines)


def main() -> None:
    """Measures what data_stubs/switches.json lacks; writes it after each, and docs/paper_and_code.md in the end."""
    path, data = stub_path("switches.json"), training_images()
    found: dict[str, dict[str, float]] = switches()
    usual = FIDELITY["corrected"]
    todo = [("", "", usual)] + [(choice.name, str(v), replace(usual, **{choice.name: v})) for choice, v in variants()]
    for name, value, f in todo:
        if value in found.get(name, {}):
            continue
        found.setdefault(name, {})[value] = round(measure(f, data), 2)
        print(f"{name or 'default'} {value}: {found[name][value]} %", file=sys.stderr, flush=True)
        meta = {"measured_on": data.source, "rounds": 600, "seed": 0, "command": "python -m adadfq_lab.studies.paper_and_code"}
        write_atomically(path, json.dumps({"top1": found, **meta}, indent=1).encode())
    write_atomically(ROOT / "docs" / "paper_and_code.md", page().encode())


if __name__ == "__main__":
    main()
