"""The paper's other evidence at classroom scale: for each figure a claim, a rule that was fixed before looking, and a verdict.

`adadfq evidence fig3` prints the claim, what was measured and whether it supports the claim, and draws the figure. What is
measured are the recorded games in data_stubs/: ResNet-20 on Fashion-MNIST, 3w3a unless a figure needs other bits, 150 to 300
rounds of batch 16, seed 0. That is one network, one data set and one seed where the paper has ImageNet and 400 epochs: "not
supported" says only that the effect is not visible at this scale, and "supported" that the rule holds, by any margin.
`--play` records the games again first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch

from adadfq_lab.data.accuracy import wilson
from adadfq_lab.data.loading import load_data
from adadfq_lab.errors import UserError
from adadfq_lab.game.history import Column, History
from adadfq_lab.game.recordings import load_grid, load_recording, load_similarity
from adadfq_lab.views.figures import bars, curves, grid_map, histograms, image_grid
from adadfq_lab.views.pages import page


@dataclass(frozen=True)
class Evidence:
    """One figure of the paper, measured again.

    claim:     what the paper says, in a sentence
    rule:      what must hold here for the claim to be supported
    measured:  the numbers the rule is about, by name
    supported: whether it holds
    """

    name: str
    claim: str
    rule: str
    measured: dict[str, float]
    supported: bool
    figures: tuple[go.Figure, ...]

    def as_json(self) -> dict[str, Any]:
        """All but the figures, as plain numbers."""
        rounded = {name: round(value, 4) for name, value in self.measured.items()}
        plain = {"figure": self.name, "claim": self.claim, "rule": self.rule, "measured": rounded, "supported": self.supported}
        return plain | {"alt": [str(fig.layout.meta["alt"]) for fig in self.figures]}

    def __str__(self) -> str:
        numbers = "; ".join(f"{name} {value:.4g}" for name, value in self.measured.items())
        verdict = "supported" if self.supported else "not supported at this scale"
        return f"{self.name}: {self.claim}\n  supported if {self.rule}\n  measured: {numbers}\n  {verdict}"


def fig1() -> Evidence:
    """Training and testing loss of GDFQ and AdaDFQ at 3 and 5 bits."""
    runs = {f"{name} {bits} bits": f"{name.lower()}_{bits}w{bits}a" for bits in (3, 5) for name in ("AdaDFQ", "GDFQ")}
    histories = {name: load_recording(file).history.upto(150) for name, file in runs.items()}
    some = histories["AdaDFQ 3 bits"]
    at = np.isfinite(some["test.loss"]) & (some["round"] > 10)
    end = {f"{name}, {kind}": float(h[f"{kind}.loss"][at][-1]) for name, h in histories.items() for kind in ("train", "test")}
    under = all(end[f"GDFQ 3 bits, {kind}"] > end[f"AdaDFQ 3 bits, {kind}"] for kind in ("train", "test"))
    gap = {name: end[f"{name} 5 bits, test"] - end[f"{name} 5 bits, train"] for name in ("GDFQ", "AdaDFQ")}
    over = end["GDFQ 5 bits, test"] > end["AdaDFQ 5 bits, test"] and gap["GDFQ"] > gap["AdaDFQ"]
    drawn = []
    for kind, what in (("train", "generated"), ("test", "real")):
        series = {name: history[f"{kind}.loss"][at] for name, history in histories.items()}
        y = f"loss on {what} images [nats]"
        words = ", ".join(f"{name} ends at {values[-1]:.2f}" for name, values in series.items())
        title = f"Fig. 1, {kind}ing loss"
        drawn.append(curves(series, some["round"][at], title=title, x="round", y=y, alt=f"{title}: {words} nats."))
    return Evidence(
        "fig1",
        "GDFQ underfits at 3 bits (training and testing loss are large) and overfits at 5 (only testing loss is).",
        "GDFQ ends above AdaDFQ in both losses at 3 bits, and in testing loss and its distance from training loss at 5",
        end,
        under and over,
        tuple(drawn),
    )


def fig3() -> Evidence:
    """Gains of the disagreement by G's steps and by Q's."""
    history = load_recording("adadfq_3w3a").history
    measured = np.isfinite(history["gain_g"]) & (history["round"] >= 60)
    at, g, q = (history[name][measured] for name in ("round", "gain_g", "gain_q"))
    total, moved = float(np.sum(g + q)), float(np.abs(g).sum() + np.abs(q).sum())
    series = {"G": g.cumsum(), "Q": q.cumsum(), "sum": (g + q).cumsum()}
    alt = f"Fig. 3: gains added up over {len(g)} rounds; G {g.sum():+.2f}, Q {q.sum():+.2f}, together {total:+.2f} nats."
    figure = curves(series, at, title="Fig. 3, gains added up", x="round", y="cumulative gain [nats]", alt=alt)
    numbers = {"sum of Δ_G [nats]": float(g.sum()), "sum of Δ_Q [nats]": float(q.sum()), "sum of both [nats]": total}
    numbers |= {"sum of their sizes [nats]": moved}
    numbers |= {"share of rounds with Δ_G > 0": float((g > 0).mean()), "share with Δ_Q < 0": float((q < 0).mean())}
    supported = abs(total) <= 0.1 * moved and (g > 0).mean() > 0.5 and (q < 0).mean() > 0.5
    return Evidence(
        "fig3",
        "G's steps raise the disagreement, Q's lower it, and their gains sum to nearly zero.",
        "Δ_G > 0 and Δ_Q < 0 in most rounds, and the sum of all gains is within 10 % of the sum of their sizes",
        numbers,
        bool(supported),
        (figure,),
    )


def fig4() -> Evidence:
    """Accuracy over the bounds, and H' in three regions."""
    grid, _ = load_grid()
    accuracy, lower, upper = grid["accuracy"], np.asarray(grid["lower"]), np.asarray(grid["upper"])
    red = np.ix_((lower <= 0.21).nonzero()[0], ((upper >= 0.69) & (upper <= 0.91)).nonzero()[0])
    inside = np.zeros(accuracy.shape, bool)
    inside[red] = True
    known = np.isfinite(accuracy)
    optimal, other = accuracy[inside & known].astype(float), accuracy[~inside & known].astype(float)
    error = float(np.sqrt(optimal.var(ddof=1) / len(optimal) + other.var(ddof=1) / len(other)))
    corners = {"λ_l 0.0, λ_u 0.5": (0, 0), "λ_l 0.1, λ_u 0.8": (1, 3), "λ_l 0.5, λ_u 1.0": (5, 5)}
    samples = {name: grid["h_prime"][at].astype(float) for name, at in corners.items()}
    low, middle, high = (float(np.median(values)) for values in samples.values())
    numbers = {"mean in the optimal region [%]": float(optimal.mean()), "mean elsewhere [%]": float(other.mean())}
    numbers |= {"standard error of the difference": error}
    numbers |= {f"median H', {name}": float(np.median(values)) for name, values in samples.items()}
    supported = optimal.mean() - other.mean() > 2 * error and low < middle < high
    drawn = (
        grid_map(grid, "accuracy"),
        histograms(samples, title="Fig. 4(b), H' in three regions", x="H'", limits=(0, 1), bins=16),
    )
    return Evidence(
        "fig4",
        "Q is best for λ_l in {0, 0.1, 0.2} and λ_u in {0.7, 0.8, 0.9}, where H' is neither too small nor too large.",
        "the nine cells' mean exceeds the others' by two standard errors, and the medians of H' rise with the bounds",
        numbers,
        bool(supported),
        drawn,
    )


def fig5a() -> Evidence:
    """H' with both losses and with either alone."""
    names = {"AdaDFQ": "adadfq_3w3a", "A: no L_as": "no_as_3w3a", "B: no L_ds": "no_ds_3w3a"}
    samples = {name: load_recording(file).history.upto(150).last_samples(320) for name, file in names.items()}
    median = {name: float(np.median(values)) for name, values in samples.items()}
    figure = histograms(samples, title="Fig. 5(a), H' after 150 rounds", x="H'", limits=(0, 1), bins=20)
    return Evidence(
        "fig5a",
        "H' is smaller without L_as and larger without L_ds than with both.",
        "the medians of H' are in that order",
        {f"median H', {name}": value for name, value in median.items()},
        median["A: no L_as"] < median["AdaDFQ"] < median["B: no L_ds"],
        (figure,),
    )


def fig5c() -> Evidence:
    """How alike the samples are, against GDFQ's."""
    distance = {name: mean_distance(p) for name, p in load_similarity().items()}
    figure = bars(distance, title="Fig. 5(c), distance between samples", x="method", y="mean l1 distance of p_ds")
    return Evidence(
        "fig5c",
        "AdaDFQ's samples are more alike than GDFQ's.",
        "the mean l1 distance between the p_ds of two samples is smaller for AdaDFQ",
        {f"mean l1 distance of p_ds, {name}": value for name, value in distance.items()},
        distance["AdaDFQ"] < distance["GDFQ"],
        (figure,),
    )


def mean_distance(p: Column) -> float:
    """The mean l1 distance between two different rows of `p` (N, C): 0 for equal rows, 2 for rows without common support."""
    n = len(p)
    return float(np.abs(p[:, None] - p[None]).sum(2).sum() / (n * (n - 1)))


def fig6() -> Evidence:
    """Generated images at 3, 4 and 5 bits beside real ones."""
    data = load_data("fashion_mnist", stub=True)
    first = [int((data.labels == c).nonzero()[0, 0]) for c in range(len(data.classes))]
    rows = {"real": data.images[first].float() / 255}
    rows |= {f"{bits} bits": _images(f"adadfq_{bits}w{bits}a") for bits in (3, 4, 5)}
    between_bits = _apart([rows[f"{bits} bits"] for bits in (3, 4, 5)])
    between_classes = float(torch.stack([_apart(list(rows[f"{bits} bits"][:, None])) for bits in (3, 4, 5)]).mean())
    figure = image_grid(torch.cat(list(rows.values())), data.classes, rows=list(rows), title="Fig. 6", x="class", y="images")
    numbers = {"mean |difference| between bits": float(between_bits), "mean |difference| between classes": between_classes}
    return Evidence(
        "fig6",
        "Images made for 3, 4 and 5 bits differ greatly, and so do images of different classes.",
        "images of one class and one z differ between bit widths by at least half of what different classes differ by",
        numbers,
        float(between_bits) >= 0.5 * between_classes,
        (figure,),
    )


def _images(name: str) -> torch.Tensor:
    """The last images of a recording, (classes, 1, H, W) in [0, 1]."""
    return torch.from_numpy(load_recording(name).images[-1].astype(np.float32))[:, None] / 255


def _apart(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean absolute difference of pixels over all pairs."""
    pairs = [(x - y).abs().mean() for i, x in enumerate(images) for y in images[:i]]
    return torch.stack(pairs).mean()


def table3() -> Evidence:
    """Six rows of ablation."""
    rows = {"all": "adadfq_3w3a", "no L_ds": "no_ds_3w3a", "no L_as": "no_as_3w3a"}
    rows |= {"neither": "no_bal_3w3a", "no band": "no_band_3w3a", "no L_BNS": "no_bns_3w3a"}
    histories: dict[str, History] = {name: load_recording(file).history.upto(150) for name, file in rows.items()}
    accuracy = {name: float(history["test.accuracy"][-1]) for name, history in histories.items()}
    intervals = {name: wilson(round(5 * value), 500) for name, value in accuracy.items()}
    half = [(high - low) / 2 for low, high in intervals.values()]
    losses = {f"test loss, {name} [nats]": float(history["test.loss"][-1]) for name, history in histories.items()}
    figure = bars(accuracy, title="Table 3, 3 bits, 150 rounds", x="what was left out", y="accuracy of Q [%]", errors=half)
    separate = all(intervals[name][1] < intervals["all"][0] for name in rows if name != "all")
    return Evidence(
        "table3",
        "Leaving out L_ds, L_as, both, the bounds, or L_BNS costs accuracy: 19, 7, 20, 6 and 17 points on ImageNet.",
        "each row's 95 % interval lies below that of the whole method",
        {f"accuracy, {name} [%]": value for name, value in accuracy.items()} | losses,
        separate,
        (figure,),
    )


EVIDENCE: dict[str, Callable[[], Evidence]] = {
    "fig1": fig1,
    "fig3": fig3,
    "fig4": fig4,
    "fig5a": fig5a,
    "fig5c": fig5c,
    "fig6": fig6,
    "table3": table3,
}
"""The figures that can be measured again, by name."""


def evidence(name: str) -> Evidence:
    """The evidence called `name`; raises UserError for an unknown name."""
    if name not in EVIDENCE:
        raise UserError(f"no evidence is called {name!r}; choose from {', '.join(EVIDENCE)}")
    return EVIDENCE[name]()


def evidence_page(found: Sequence[Evidence]) -> str:
    """One HTML page with claims, measurements, verdicts and figures, without a network."""
    parts: list[str | go.Figure] = []
    for one in found:
        verdict = "supported" if one.supported else "not supported at this scale"
        numbers = "".join(f"<tr><td>{escape(k)}</td><td>{v:.4g}</td></tr>" for k, v in one.measured.items())
        words = f"<h2>{one.name}: {verdict}</h2><p>{escape(one.claim)}</p><p>Supported if {escape(one.rule)}.</p>"
        parts += [words, *one.figures, f"<table>{numbers}</table>"]
    return page("Evidence", parts)
