"""Pure plotly figures of notebooks 04 to 07: a grid over (lambda_l, lambda_u), and a bar for each row of a table."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from adadfq_lab import style

GRID_WORDS = {
    "accuracy": ("Accuracy of Q on real images [%]", ".1f"),
    "test_loss": ("Cross-entropy of Q on real images [nats]", ".2f"),
    "mean_h_prime": ("Mean H' of the last 320 samples", ".2f"),
    "inside": ("Share of the last 320 samples in the band", ".2f"),
    "mean_entropy": ("Mean H_info of the last 320 samples [nats]", ".2f"),
}


def grid_map(grid: Mapping[str, Any], quantity: str) -> go.Figure:
    """A recorded quantity over the bounds, as Fig. 4(a): lambda_l upwards, lambda_u to the right, the value in each cell."""
    title, digits = GRID_WORDS[quantity]
    values, lower, upper = (np.asarray(grid[name], np.float64) for name in (quantity, "lower", "upper"))
    known = values[np.isfinite(values)]
    extent = f"from {known.min():{digits}} to {known.max():{digits}}, mean {known.mean():{digits}}"
    alt = f"{title} for {len(known)} pairs of bounds: {extent}."
    fig = style.figure(title, "upper bound λ_u", "lower bound λ_l", alt=alt, height=400)
    text = [[f"{v:{digits}}" if np.isfinite(v) else "" for v in row] for row in values]
    names = [f"{v:.1f}" for v in upper], [f"{v:.1f}" for v in lower]
    fig.add_heatmap(z=values, x=names[0], y=names[1], text=text, texttemplate="%{text}", colorscale="Cividis", xgap=2, ygap=2)
    fig.update_xaxes(type="category")
    fig.update_yaxes(type="category")
    return fig


def bars(values: Mapping[str, float], *, title: str, x: str, y: str, errors: ArrayLike | None = None) -> go.Figure:
    """One bar a name, with its value written on it and, where given, an interval of +- `errors`."""
    words = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
    fig = style.figure(title, x, y, alt=f"{title}: {words}.")
    interval = None if errors is None else {"type": "data", "array": np.asarray(errors), "color": style.TEXT}
    numbers = [f"{value:.2f}" for value in values.values()]
    fig.add_bar(x=list(values), y=list(values.values()), text=numbers, textposition="auto", error_y=interval, showlegend=False)
    fig.data[0].marker.color = style.BLUE
    return fig if errors is None else fig.update_traces(textposition="inside", insidetextanchor="middle")  # clear of intervals
