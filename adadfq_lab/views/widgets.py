"""Things to drag: each an ipywidgets box around a chart of `adadfq_lab.views.charts`, redrawn when a control changes.

    bounds_explorer()        λ_l and λ_u against the H' of recorded samples, or of a running game
    logit_playground()       P's and Q's logits of one image, and p_ds, H, H' that follow from them
    quantizer_staircase()    Eq. (18) on a line, 2 to 8 bits
    sample_gallery()         generated images by class, round and bits
    replay("adadfq_3w3a")    a recorded run, played back
    error_bound_explorer()   Eq. (17), with everything it leaves open as a slider
    method_explorer(...)     what each method's losses pull at, on one batch

Each returns a `Control`; `control.inputs["bits"].value = 4` is what dragging does.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import torch

from adadfq_lab.data.image_sets import FASHION_CLASSES
from adadfq_lab.equations import Bounds, adaptability, disagreement_entropy, hinge, normalized_entropy, p_ds
from adadfq_lab.errors import UserError
from adadfq_lab.game.history import Column, History
from adadfq_lab.game.method_comparison import Comparison, Look, Player, ideas
from adadfq_lab.game.recordings import Population, Recording, load_population, load_recording
from adadfq_lab.student.quantizer import codes, dequantize, qparams, quant_range
from adadfq_lab.theory import decompose_bound
from adadfq_lab.views import charts as svg
from adadfq_lab.views import controls, game_panels
from adadfq_lab.views.charts import Bars, Line, Panel, Rule, chart
from adadfq_lab.views.controls import Control, film
from adadfq_lab.views.live import LiveRun
from adadfq_lab.views.style import BLUE, BOUND_COLOUR, BOUND_DASH, GREEN, GREY, INSIDE, OKABE_ITO, PLAYER, PLAYER_DASH

GALLERY = ("adadfq_3w3a", "adadfq_5w5a", "gdfq_3w3a", "gdfq_5w5a")

# 1. The band


def band_text(h_prime: Column, bounds: Bounds) -> str:
    """What the margin terms of Eq. (12) say about these samples, in words."""
    tensor = torch.from_numpy(np.array(h_prime))  # a copy: recorded columns cannot be written to
    below, above = float((tensor <= bounds.lower).float().mean()), float((tensor >= bounds.upper).float().mean())
    push = "up" if below > above else "down"
    words = f"the hinge pulls the mean H′ {push}" if abs(below - above) > 0.005 else "the hinge pulls equally from both sides"
    return (
        f"{100 * below:.0f} % below λ_l (too hard for Q), {100 * (1 - below - above):.0f} % inside, {100 * above:.0f} % above "
        f"λ_u (nothing to learn). Mean hinge {float(hinge(tensor, bounds).mean()):.3f}; {words}: "
        f"its gradient is −1 on {100 * below:.0f} % of the samples, +1 on {100 * above:.0f} % and 0 on the others."
    )


def band_chart(h_prime: Column, bounds: Bounds, title: str) -> str:
    """Histogram of H' coloured by the band, beside the hinge of Eq. (12) and its slope over H'."""
    x = np.unique([*np.linspace(0, 1, 41), bounds.lower, bounds.lower - 1e-6, bounds.upper, bounds.upper + 1e-6]).clip(0, 1)
    value = np.maximum(bounds.lower - x, 0) + np.maximum(x - bounds.upper, 0)
    slope = np.where(x < bounds.lower, -1.0, np.where(x > bounds.upper, 1.0, 0.0))
    rules = game_panels.bound_rules(bounds)
    panels = [
        game_panels.band_panel(h_prime, bounds, title),
        Panel(
            "The hinge of Eq. (12)",
            "H′ (1: P and Q agree)",
            "hinge, and its slope",
            [Line("hinge", x, value, BLUE), Line("slope", x, slope, GREY, "dot", step=True)],
            rules=rules,
            x_range=(0, 1),
            y_range=(-1.1, 1.1),
        ),
    ]
    return chart(panels, alt=f"{title}. {band_text(h_prime, bounds)}", height=260)


def bounds_explorer(
    run: LiveRun | None = None, *, population: Population | None = None, bits: int = 3, bounds: Bounds | None = None
) -> Control:
    """One slider for (λ_l, λ_u) over a histogram of H', coloured by below, inside and above.

    Without `run` the samples are recorded ones and a toggle chooses the bits of Q. With a run the slider sets the game's bounds
    from its next round on, and the histogram shows the last samples as they come.
    """
    w = controls.ipywidgets()
    start = bounds or (run.game.bounds if run is not None else Bounds())
    slider = w.FloatRangeSlider(
        value=(start.lower, start.upper), min=0, max=1, step=0.05, readout_format=".2f", continuous_update=True,
        **controls.named("λ_l and λ_u"),
    )  # fmt: skip
    inputs: dict[str, Any] = {"bounds": slider}
    if run is None:
        people = population or load_population()
        inputs["bits"] = controls.toggle("bits of Q", sorted(people.student_logits), bits)

        def samples() -> Column:
            return people.h_prime(inputs["bits"].value)

        def title() -> str:
            return f"H′ of {len(people.labels)} generated samples, {inputs['bits'].value}-bit Q"
    else:

        def samples() -> Column:
            return run.history.last_samples()

        def title() -> str:
            return f"H′ of the last {len(samples())} samples"

    def draw() -> str:
        lower, upper = (round(value, 6) for value in slider.value)
        if lower >= upper:
            return "<p>λ_l must be below λ_u: pull the two handles apart. The game keeps its bounds.</p>"
        now = Bounds(lower, upper)
        if run is not None and now != run.game.bounds:
            run.set_bounds(now)
        h_prime = samples()
        if not len(h_prime):
            return "<p>No round has been played yet.</p>"
        return band_chart(h_prime, now, title()) + controls.status(band_text(h_prime, now))

    control = controls.control("Bounds explorer", inputs, draw)
    if run is None:
        low, high = [i / 10 for i in range(6)], [i / 10 for i in range(6, 11)]
        pairs = [(a, b) for a in low for b in high]
        control.film = lambda: film({"λ_l": low, "λ_u": high}, control.over("bounds", pairs), (1, 2))
    else:

        def redraw(_: History) -> None:
            control.output.value = draw()

        run.on_publish.append(redraw)
    return control


# 2. Logits


def logit_playground(z_p: Sequence[float] = (3.0, 0.0, 0.0), z_q: Sequence[float] = (1.0, 1.0, 0.0)) -> Control:
    """Sliders for the logits of P and Q on one image, and Eq. (1) to (3) of them.

    H' is taken with H_min = 0: with one image there is no batch to take a minimum over.
    """
    if len(z_p) != len(z_q) or not 2 <= len(z_p) <= 5:
        raise UserError("the playground takes as many logits of P as of Q, 2 to 5 of them")
    names = [f"{player}, class {c}" for player in ("z_p", "z_q") for c in range(len(z_p))]
    values = [*z_p, *z_q]
    inputs = {
        name: controls.slider(name, value, -6.0, 6.0, 0.5, continuous_update=True)
        for name, value in zip(names, values, strict=True)
    }

    def draw() -> str:
        z = torch.tensor([one.value for one in inputs.values()], dtype=torch.float64).view(2, -1)
        p = p_ds(z[0], z[1])
        h = disagreement_entropy(z[:1], z[1:])
        h_prime = normalized_entropy(h, z.shape[1], floor="zero")
        edges = np.arange(z.shape[1] + 1) - 0.5
        words = (
            f"p_ds = ({', '.join(f'{value:.3f}' for value in p.tolist())}); H = {float(h):.3f} nats of at most "
            f"{np.log(z.shape[1]):.3f}; H′ = {float(h_prime):.3f}, adaptability {float(adaptability(h_prime)):.3f}"
        )
        classes = np.arange(z.shape[1])
        panels = [
            Panel(
                "Logits",
                "class",
                "logit",
                [
                    Line(f"z_{p.lower()}", classes, z[i].numpy(), PLAYER[p], PLAYER_DASH[p], dots=True)
                    for i, p in enumerate("PQ")
                ],
                x_range=(-0.5, z.shape[1] - 0.5),
                y_range=(-6.5, 6.5),
            ),
            Panel(
                "p_ds = softmax(z_p − z_q)",
                "class",
                "probability",
                bars=[Bars("", edges, p.numpy(), INSIDE)],
                rules=[Rule(1 / z.shape[1], "1/C: agreement", GREY, "y", "dot")],
                y_range=(0, 1.05),
            ),
        ]
        return chart(panels, alt=words) + controls.status(words)

    return controls.control("Logit playground", inputs, draw)


# 3. The quantizer


def quantizer_staircase(low: float = -0.6, high: float = 1.0) -> Control:
    """x against its fake-quantised value over [low, high], with the grid's scale and zero point. Eq. (18)."""
    inputs = {"bits": controls.slider("bits", 3, 2, 8, 1, continuous_update=True)}
    inputs["zero_point"] = controls.toggle("zero point", [("integer", "rounded"), ("real, as in Eq. (18)", "real")], "rounded")
    x = torch.linspace(low - 0.25 * (high - low), high + 0.25 * (high - low), 801)

    def draw() -> str:
        bits, rule = int(inputs["bits"].value), inputs["zero_point"].value
        scale, zero = qparams(torch.tensor(low), torch.tensor(high), bits, zero_point=rule)
        y = dequantize(codes(x, scale, zero, bits).float(), scale, zero)
        error = (y - x)[(x >= low) & (x <= high)].abs()
        quant_min, quant_max = quant_range(bits)
        words = (
            f"{bits} bits: {2**bits} levels, codes {quant_min} to {quant_max}, scale {float(scale):.4f}, zero point "
            f"{float(zero):.4g}. Largest error within the range {float(error.max()):.4f}; half a step: {float(scale) / 2:.4f}."
        )
        ends = [Rule(low, "min", BOUND_COLOUR["lower"], "x", BOUND_DASH["lower"])]
        ends.append(Rule(high, "max", BOUND_COLOUR["upper"], "x", BOUND_DASH["upper"]))
        panels = [
            Panel(
                "The staircase",
                "x",
                "x after quantization",
                [Line("x itself", x, x, GREY, "dot"), Line("on the grid", x, y, PLAYER["Q"])],
                rules=ends,
            ),
            Panel("The error", "x", "error", [Line("", x, y - x, PLAYER["Q"])], rules=ends),
        ]
        return chart(panels, alt=words) + controls.status(words)

    control = controls.control("Quantizer staircase", inputs, draw)
    control.film = lambda: film({"bits": range(2, 9)}, control.over("bits", range(2, 9)), (1,))
    return control


# 4. Images


def sample_gallery(recordings: Sequence[str | Recording] = GALLERY, classes: Sequence[str] = ()) -> Control:
    """What G imagined for each class, from the same z, at several rounds of recorded runs of several methods and bit widths.

    classes: their names; of Fashion-MNIST if empty
    """
    loaded = [one if isinstance(one, Recording) else load_recording(one) for one in recordings]
    if not loaded:
        raise UserError("a gallery needs at least one recording")
    if not classes:
        classes = FASHION_CLASSES
    labels = [(f"{one.meta.get('method', one.name)} {one.meta.get('bits', '')}".strip(), i) for i, one in enumerate(loaded)]
    longest = max(len(one.image_rounds) for one in loaded)
    inputs = {"run": controls.toggle("run", labels, 0)}
    inputs["step"] = controls.slider("snapshot", longest - 1, 0, longest - 1, 1, continuous_update=True, readout=False)
    inputs["class"] = controls.ipywidgets().Dropdown(
        options=[("all classes, one round", -1), *((name, i) for i, name in enumerate(classes))],
        value=-1, description="class", style=controls.STYLE, layout=controls.WIDE,
    )  # fmt: skip

    def draw() -> str:
        one, chosen = loaded[inputs["run"].value], inputs["class"].value
        step = min(inputs["step"].value, len(one.image_rounds) - 1)
        if chosen >= 0:
            rounds = ", ".join(map(str, one.image_rounds))
            words = f"{classes[chosen]}, as imagined after {rounds} rounds, from left to right"
            return svg.image(svg.montage(one.images[None, :, chosen]), alt=words) + f"<p>{escape(words)}</p>"
        names = ", ".join(classes)
        words = f"one image of each class after {one.image_rounds[step]} rounds: {names}"
        rows = one.images[step].reshape(2, -1, *one.images.shape[2:])
        return svg.image(svg.montage(rows), alt=words) + f"<p>{escape(words)}</p>"

    control = controls.control("What G imagines", inputs, draw)
    kept = range(longest)
    control.film = lambda: film({"snapshot": loaded[0].image_rounds}, control.over("step", kept), (longest - 1,))
    return control


# 5. Runs that were played before


def replay(recording: str | Recording = "adadfq_3w3a", *, step: int = 5) -> Control:
    """The figure of a live run, of a recorded one: press play, or drag to a round."""
    w = controls.ipywidgets()
    one = recording if isinstance(recording, Recording) else load_recording(recording)
    last = len(one.history)
    play = w.Play(value=last, min=1, max=last, step=step, interval=400, description="play")
    slider = controls.slider("rounds played", last, 1, last, 1, continuous_update=True)
    w.jslink((play, "value"), (slider, "value"))

    def draw() -> str:
        return game_panels.svg(one.history.upto(slider.value), 80)

    facts = f"{one.meta.get('method', one.name)} {one.meta.get('bits', '')}, {last} rounds on {one.meta.get('teacher', '?')}"
    control = controls.control(f"Recorded run: {facts}", {"rounds": slider}, draw)
    control.box.children = (control.box.children[0], play, *control.box.children[1:])
    control.inputs["play"] = play
    ends = sorted({last, *range(20, last, 20)})
    control.film = lambda: film({"rounds played": ends}, control.over("rounds", ends), (len(ends) - 1,))
    return control


# 6. The bound


def error_bound_explorer() -> Control:
    """Eq. (17) over the number of samples: capacities, rates and approximation errors as sliders, all constants 1."""
    inputs = {
        "capacity_q": controls.slider("|F_q|, capacity of Q", 8.0, 0.0, 20.0, 0.5, continuous_update=True),
        "rate_qp": controls.slider("α_qp, rate of Q", 0.6, 0.5, 1.0, 0.05, continuous_update=True),
        "epsilon_qp": controls.slider("ε_qp, Q cannot follow P", 0.1, 0.0, 0.5, 0.02, continuous_update=True),
        "n": controls.slider("log10 n, samples", 4.0, 1.0, 6.0, 0.1, continuous_update=True),
    }
    n = np.logspace(1, 6, 101)

    def draw() -> str:
        chosen = {name: inputs[name].value for name in ("capacity_q", "rate_qp", "epsilon_qp")}
        parts = decompose_bound(n, **chosen, capacity_p=8.0, rate_pr=0.8, epsilon_pr=0.05)
        here = decompose_bound(10 ** inputs["n"].value, **chosen, capacity_p=8.0, rate_pr=0.8, epsilon_pr=0.05)
        words = (
            f"With n = {10 ** inputs['n'].value:,.0f} generated samples the bound is {float(here.total):.3f}: "
            f"estimation {float(here.estimation):.3f}, approximation {float(here.approximation):.3f}."
        )
        lines = [
            Line("bound", np.log10(n), parts.total, BLUE),
            Line("estimation", np.log10(n), parts.estimation, PLAYER["Q"], "dash"),
            Line("approximation", np.log10(n), parts.approximation, GREEN, "dot"),
        ]
        here_rule = [Rule(inputs["n"].value, "n", GREY)]
        panel = Panel("Eq. (17)", "log10 n", "R(f_q) − R(f_r) is at most", lines, rules=here_rule, y_range=(0, 1.5))
        return chart([panel], alt=words, width=560, height=300) + controls.status(words)

    control = controls.control("The bound of Eq. (17)", inputs, draw)
    powers = [1 + i / 2 for i in range(11)]
    control.film = lambda: film({"log10 n, samples": powers}, control.over("n", powers))
    return control


# 7. Methods side by side


def method_explorer(comparisons: Mapping[str, Comparison]) -> Control:
    """What pulls at an image of G and at the logits of Q, by method; comparisons of the same methods by what was varied."""
    told = ideas()
    first = next(iter(comparisons.values()))
    inputs = {
        "method": controls.toggle("method", [(look.name, key) for key, look in first.looks.items()], next(iter(first.looks)))
    }
    if len(comparisons) > 1:
        inputs["case"] = controls.toggle("losses", list(comparisons), next(iter(comparisons)))

    def draw() -> str:
        key, case = inputs["method"].value, inputs["case"].value if "case" in inputs else next(iter(comparisons))
        look = comparisons[case][key]
        words = " ".join(_pulls(look, player) for player in ("generator", "student"))
        panels = [_pull_panel(look, "generator", "an image of G"), _pull_panel(look, "student", "a logit of Q")]
        idea = f"<p><strong>{escape(look.name)}</strong>: {escape(told.get(key, ''))}</p>"
        return idea + chart(panels, alt=f"{look.name}, {case}. {words}") + controls.status(words)

    return controls.control("Methods side by side, on one batch", inputs, draw)


def _pull_panel(look: Look, player: Player, at: str) -> Panel:
    shares = look.shares(player)
    edges, hatches = np.arange(len(shares) + 1) - 0.5, ("", "/", "\\")
    bars = [
        Bars("", edges, share * np.eye(len(shares))[i], OKABE_ITO[i % len(OKABE_ITO)], hatches[i % 3])
        for i, share in enumerate(shares.values())
    ]
    title, x, y = f"What pulls at {at}", "term of the loss", "share of all pulls [%]"
    return Panel(title, x, y, bars=bars, y_range=(0, 105), x_names=list(shares))


def _pulls(look: Look, player: Player) -> str:
    terms, shares = getattr(look, player), look.shares(player)
    parts = [f"{name} {term.value:.3g}, {shares[name]:.1f} % of the pull" for name, term in terms.items()]
    return f"The {player} minimises {'; '.join(parts)}."
