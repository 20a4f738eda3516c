"""Statistics of measures: means, confidence intervals, calibration and table rows.

The module depends on numbers and vectors only. Formulas without a source are ours.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom; 1.96 (1 + 1.25 / df) beyond."""


def confidence_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of independent values and its 95 % confidence interval, mean -+ t s / sqrt(n).

    The interval of one value is (-inf, inf).

    Raises:
        ValueError: There are no values.
    """
    x = np.asarray(values, float)
    if not len(x):
        raise ValueError("no values to average")
    mean = float(x.mean())
    if len(x) == 1:
        return mean, -math.inf, math.inf
    df = len(x) - 1
    t = T95[df - 1] if df <= len(T95) else 1.96 * (1 + 1.25 / df)
    half = t * float(x.std(ddof=1)) / math.sqrt(len(x))
    return mean, mean - half, mean + half


def calibrate(value: float, zero: float, one: float) -> float:
    """`value` scaled linearly so that `zero` becomes 0 and `one` becomes 1.

    Raises:
        ValueError: `zero` equals `one`.
    """
    if one == zero:
        raise ValueError(f"0 and 1 of the measure have the same raw value {zero}")
    return (value - zero) / (one - zero)


def mean_cosine(vectors: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Mean cosine of each vector (N, d) to the references (R, d), all of unit length: (N,)."""
    cosines: np.ndarray = (vectors @ references.T).mean(axis=1)
    return cosines


def mean_distance(poses: np.ndarray) -> float:
    """Mean distance between two of the poses (N, k); 0 if all are equal.

    Raises:
        ValueError: There are fewer than two poses.
    """
    if len(poses) < 2:
        raise ValueError("one pose has no spread")
    gaps = np.linalg.norm(poses[:, None] - poses[None], axis=-1)
    return float(gaps[np.triu_indices(len(poses), 1)].mean())


def pose_vector(box: Sequence[float]) -> tuple[float, float, float, float]:
    """A box x0, y0, x1, y1 as its centre and the logarithms of width and height, so that shifts and scalings count alike."""
    x0, y0, x1, y1 = box
    return (x0 + x1) / 2, (y0 + y1) / 2, math.log(max(x1 - x0, 1e-3)), math.log(max(y1 - y0, 1e-3))


def table_rows(method: str, results: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """One table row per measure, over the objects that have it."""
    names = list(dict.fromkeys(name for values in results for name in values))
    table: list[dict[str, Any]] = []
    for name in names:
        values = [v[name] for v in results if name in v]
        mean, low, high = (round(x, 4) for x in confidence_interval(values))
        ends = {"low": low, "high": high} if len(values) > 1 else {"low": None, "high": None}
        table.append({"method": method, "measure": name, "mean": mean, **ends, "n": len(values)})
    return table


def column_names(table: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Column names of a table, in order; tables of photographs have more columns."""
    return tuple(table[0]) if table else ("method", "measure", "mean", "low", "high", "n")


def pivot(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Rows as a table for people: header and one line per method; a cell is `mean ±half the interval`."""
    names = list(dict.fromkeys(row["measure"] for row in rows))
    cells = {(row["method"], row["measure"]): _format_cell(row) for row in rows}
    methods = list(dict.fromkeys(row["method"] for row in rows))
    return ["method", *names], [[m, *(cells.get((m, n), "") for n in names)] for m in methods]


def _format_cell(row: dict[str, Any]) -> str:
    name = row["measure"]
    digits = (
        0
        if name.startswith("seconds") or name.endswith("_mb")
        else 4
        if name.endswith("_s")
        else 3
        if name.startswith(("clip_", "dino"))
        else 2
    )
    mean = f"{row['mean']:.{digits}f}"
    return mean if row["low"] is None else f"{mean} ±{(row['high'] - row['low']) / 2:.{digits}f}"
