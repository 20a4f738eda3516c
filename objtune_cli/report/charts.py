"""Curves and intervals as SVG, readable on light and dark pages, on a phone and on paper."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from objtune_cli.errors import ResourceError

GREY = "#808080"
"""Colour of axes and labels: it has the same contrast on white and on black."""
COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7")
SMOOTHING = 25
"""Steps of the running mean."""
MAX_POINTS = 240
"""Points of a curve: a screen shows no more."""
TERMS = ("loss", "object", "background", "class")
SAMPLE_SCORES = ("identity", "copy")
FONT = 9
CURVE_SIZE = (4.8, 2.5)
"""Inches; at this size the labels are readable on a phone."""
MARGINS = {"left": 0.11, "right": 0.985, "top": 0.83, "bottom": 0.18}
"""Of curves, fractions of the figure: a layout by the labels' sizes takes as long as all the rest."""
INTERVAL_WIDTH, ROW_HEIGHT = 4.2, 0.21
"""Inches."""
LONG_NAME, LONGEST_NAME = 22, 60
"""Characters of a method's name from which names stand above their intervals, and those that fit there."""


def draw_losses(history: Mapping[str, Any]) -> str:
    """Draw the loss terms of a run, the loss under fixed noise, and the step at which the rate began to fall.

    Args:
        history: Content of training.json.

    Returns:
        An `<svg>` element.
    """
    figure, axes = _figure(CURVE_SIZE, **MARGINS)
    for name, colour in zip(TERMS, COLOURS, strict=True):
        steps, values = _thin(_smooth(history["curves"].get(name, ())))
        if values:
            axes.plot(steps, values, color=colour, linewidth=1.6, label=name)
    points = [(each["step"], each["loss"]) for each in history.get("validation", ()) if each["loss"] is not None]
    if points:
        axes.plot(*zip(*points, strict=True), color=GREY, marker="o", markersize=3, linestyle=":", label="fixed noise")
    start = decay_start(history)
    if start:
        axes.axvline(start, color=GREY, linewidth=0.8, linestyle="--")
        axes.annotate(
            " rate falls", (start, 0.98), xycoords=("data", "axes fraction"), color=GREY, fontsize=FONT, va="top"
        )
    axes.set_yscale("log")
    axes.minorticks_off()
    return _finish_curves(figure, axes, columns=3)


def draw_sample_scores(history: Mapping[str, Any]) -> str:
    """Draw identity and copy of the samples of a run; empty with fewer than two samples."""
    samples = history.get("samples", ())
    figure, axes = _figure(CURVE_SIZE, **MARGINS)
    for name, colour in zip(SAMPLE_SCORES, COLOURS, strict=False):
        points = [(each["step"], each[name]) for each in samples if each.get(name) is not None]
        if len(points) < 2:
            return ""
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, marker="o", markersize=4, label=name)
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), max(1.0, axes.get_ylim()[1]))
    return _finish_curves(figure, axes, columns=2)


def draw_intervals(rows: Sequence[Mapping[str, Any]], *, with_zero: bool = False) -> str:
    """Draw the mean of each method with its confidence interval, the first method on top.

    Args:
        rows: Of one measure. with_zero: Draw the line at 0, for differences.
    """
    are_long = any(len(row["method"]) > LONG_NAME for row in rows)
    height = ROW_HEIGHT * len(rows) * (2 if are_long else 1)
    figure, axes = _figure((INTERVAL_WIDTH, height + 0.45))
    positions = range(len(rows), 0, -1)
    if with_zero:
        axes.axvline(0, color=GREY, linewidth=0.8)
    for place, row in zip(positions, rows, strict=True):
        if row["low"] is not None:
            axes.plot((row["low"], row["high"]), (place, place), color=COLOURS[0], linewidth=2.2, alpha=0.55)
        axes.plot((row["mean"],), (place,), color=COLOURS[0], marker="o", markersize=5)
    if are_long:
        axes.set_yticks([])
        for place, row in zip(positions, rows, strict=True):  # each name above its interval
            text = _label(row["method"])
            at = (0.0, place + 0.28)
            axes.text(*at, text, transform=axes.get_yaxis_transform(), color=GREY, fontsize=FONT - 1)
    else:
        axes.set_yticks(list(positions), [_label(row["method"]) for row in rows])
    axes.set_ylim(0.4, len(rows) + (0.9 if are_long else 0.6))
    axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
    axes.locator_params(axis="x", nbins=5)
    axes.ticklabel_format(axis="x", scilimits=(-3, 5))
    return _to_svg(figure)


def decay_start(history: Mapping[str, Any]) -> int:
    """The step after which the learning rate falls from its peak; 0 if it does not."""
    rates = [rate or 0.0 for rate in history["curves"].get("learning_rate", ())]
    peak = max(rates, default=0.0)
    last = max((step for step, rate in enumerate(rates, 1) if rate == peak), default=0)
    return last if 0 < last < len(rates) and rates[:last].count(peak) > 1 else 0


def _figure(size: tuple[float, float], **margins: float) -> tuple[Any, Any]:
    """An empty figure with grey axes.

    Args:
        size: Inches. margins: Fractions of the figure; without them the labels' sizes decide.

    Raises:
        ResourceError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ResourceError("a report needs other packages", "`pip install 'objtune[report]'`") from None
    figure = Figure(figsize=size, layout=None if margins else "constrained")
    axes = figure.add_subplot()
    if margins:
        figure.subplots_adjust(**margins)
    axes.tick_params(colors=GREY, labelsize=FONT)
    axes.xaxis.label.set_color(GREY)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)
    return figure, axes


def _finish_curves(figure: Any, axes: Any, columns: int) -> str:
    axes.set_xlabel("step", fontsize=FONT)
    axes.legend(
        frameon=False, labelcolor=GREY, fontsize=FONT, ncols=columns, loc="lower right", bbox_to_anchor=(1, 1),
        borderpad=0, handlelength=1.4, columnspacing=1.2,
    )  # fmt: skip
    return _to_svg(figure)


def _to_svg(figure: Any) -> str:
    """The same bytes for the same figure: without date, and with ids that do not depend on chance."""
    import matplotlib as mpl

    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "objtune", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])  # a page has many figures with these ids


def _label(name: str) -> str:
    """A name with its middle left out, if it is too long: settings at its end tell methods apart. A `$` begins no formula."""
    half = LONGEST_NAME // 2
    short = name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[1 - half :]}"
    return short.replace("$", r"\$")


def _smooth(values: Sequence[float | None]) -> list[float]:
    """The running mean over the last `SMOOTHING` values; None counts as the value before."""
    means: list[float] = []
    window: list[float] = []
    for value in values:
        window.append(value if value is not None else (window[-1] if window else 0.0))
        window = window[-SMOOTHING:]
        means.append(max(sum(window) / len(window), 1e-12))
    return means


def _thin(values: Sequence[float]) -> tuple[list[int], list[float]]:
    """Steps, counted from 1, and values of at most `MAX_POINTS` points, the last one among them."""
    stride = -(-len(values) // MAX_POINTS) or 1
    steps = [*range(1, len(values), stride), len(values)] if values else []
    return steps, [values[step - 1] for step in steps]
