"""The section of a benchmark: a plot for each measure, the table, and the images to compare."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from objtune_cli.evaluation import statistics
from objtune_cli.report import charts, thumbnails
from objtune_cli.report.bench_results import BenchResults

CALIBRATION = re.compile(r"calibration (floor|ceiling)")
"""Methods that are the raw values behind 0 and 1."""
DIFFERENCE = re.compile(r".+ - .+")
"""Methods that are differences of two."""
COST = re.compile(r"_s$|^seconds|_mb$")
"""Measures of cost, which come last."""


def describe(results: BenchResults) -> dict[str, Any]:
    """What the template shows of a benchmark.

    Raises:
        ResourceError: matplotlib is not installed.
    """
    methods = [row for row in results.rows if not CALIBRATION.fullmatch(row["method"])]
    header, lines = statistics.pivot(results.rows)
    return {
        "name": results.name,
        "charts": _draw_measures([row for row in methods if not DIFFERENCE.fullmatch(row["method"])]),
        "differences": _draw_measures([row for row in methods if DIFFERENCE.fullmatch(row["method"])], with_zero=True),
        "header": header,
        "lines": lines,
        "cases": list(results.strips),
        "methods": list(dict.fromkeys(method for own in results.strips.values() for method in own)),
        "strips": _describe_strips(results),
        "left_out": results.left_out,
    }


def _draw_measures(rows: Sequence[Mapping[str, Any]], *, with_zero: bool = False) -> list[tuple[str, str]]:
    """Each measure with its plot; measures of cost come last."""
    measures = sorted(dict.fromkeys(row["measure"] for row in rows), key=lambda name: bool(COST.search(name)))
    return [
        (name, charts.draw_intervals([row for row in rows if row["measure"] == name], with_zero=with_zero))
        for name in measures
    ]


def _describe_strips(results: BenchResults) -> dict[str, dict[str, list[Any]]]:
    """Address, width and height by object and method."""
    files = [(case, method, file) for case, own in results.strips.items() for method, file in own.items()]
    (made,) = thumbnails.make_thumbnails([[file.read_bytes for _, _, file in files]], thumbnails.STRIP)
    described: dict[str, dict[str, list[Any]]] = {}
    for (case, method, _), each in zip(files, made, strict=True):
        described.setdefault(case, {})[method] = [each.address, each.width, each.height]
    return described
