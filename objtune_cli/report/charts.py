"""Curves as SVG, readable on light and dark pages and on paper."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from objtune_cli.errors import ResourceError

GREY = "#808080"
"""Colour of axes and labels: it has the same contrast on white and on black."""
COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7")
SMOOTHING = 25
"""Steps of the running mean."""
TERMS = ("loss", "object", "background", "class")


def draw_losses(history: Mapping[str, Any]) -> str:
    """Draw the loss terms of a run, the loss under fixed noise, and the step at which the rate began to fall.

    Args:
        history: Content of training.json.

    Returns:
        An `<svg>` element.
    """
    figure, axes = _figure()
    for name, colour in zip(TERMS, COLOURS, strict=True):
        values = _smooth(history["curves"].get(name, ()))
        if values:
            axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=1.4, label=name)
    points = [(each["step"], each["loss"]) for each in history.get("validation", ()) if each["loss"] is not None]
    if points:
        axes.plot(*zip(*points, strict=True), color=GREY, marker="o", markersize=3, linestyle=":", label="fixed noise")
    start = decay_start(history)
    if start:
        axes.axvline(start, color=GREY, linewidth=0.8, linestyle="--")
        axes.annotate("rate falls", (start, 1), xycoords=("data", "axes fraction"), color=GREY, fontsize=8, va="top")
    axes.set_xlabel("step")
    axes.set_yscale("log")
    axes.legend(frameon=False, labelcolor=GREY, fontsize=8, ncols=5, loc="lower right", bbox_to_anchor=(1, 1))
    return _to_svg(figure)


def decay_start(history: Mapping[str, Any]) -> int:
    """The step after which the learning rate falls from its peak; 0 if it does not."""
    rates = [rate or 0.0 for rate in history["curves"].get("learning_rate", ())]
    peak = max(rates, default=0.0)
    last = max((step for step, rate in enumerate(rates, 1) if rate == peak), default=0)
    return last if 0 < last < len(rates) and rates[:last].count(peak) > 1 else 0


def _figure() -> tuple[Any, Any]:
    """An empty figure with grey axes.

    Raises:
        ResourceError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ResourceError("a report needs other packages", "`pip install 'objtune[report]'`") from None
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(colors=GREY, labelsize=8)
    axes.xaxis.label.set_color(GREY)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)
    return figure, axes


def _to_svg(figure: Any) -> str:
    """The same bytes for the same figure: without date, and with ids that do not depend on chance."""
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "objtune", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _smooth(values: Sequence[float | None]) -> list[float]:
    """The running mean over the last `SMOOTHING` values; None counts as the value before."""
    means: list[float] = []
    window: list[float] = []
    for value in values:
        window.append(value if value is not None else (window[-1] if window else 0.0))
        window = window[-SMOOTHING:]
        means.append(max(sum(window) / len(window), 1e-12))
    return means
