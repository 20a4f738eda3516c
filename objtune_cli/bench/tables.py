"""Table rows from results on toybox objects: means, and paired differences between our method and each other one.

The module depends on results only.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from objtune_cli.bench.former_names import current_measures
from objtune_cli.bench.methods import current_name
from objtune_cli.bench.result_cache import Row
from objtune_cli.errors import InputError
from objtune_cli.evaluation import statistics as measures
from objtune_cli.evaluation import truth_scores

FLOOR, CEILING = "calibration floor", "calibration ceiling"
CALIBRATION_ROWS = {FLOOR: 0, CEILING: 1}
"""Rows of the calibration: the raw values at which measures are 0 and 1."""
OURS = "objtune"
COMPARED = ("identity", "prompt", "diversity", "background_leakage", "drift", "all_present")
"""Measures with rows of differences."""


def read_results(file: Path) -> dict[str, list[Row]]:
    """Read results by method from a `results.jsonl`; the last result of a method on an object counts.

    Raises:
        InputError: The file cannot be read or has other contents.
    """
    hint = "give the results.jsonl that a bench wrote"
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        results = {(current_name(row["method"]), row["case"]): _current_row(row) for row in rows}
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}", hint) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file} has no results of a benchmark on toybox objects", hint) from None
    if not all(isinstance(row["scale"], dict) and isinstance(row["measures"], dict) for row in results.values()):
        raise InputError(f"{file} has no results of a benchmark on toybox objects", hint)
    if not results:
        raise InputError(f"{file} is empty", hint)
    return {
        name: [row for (method, _), row in results.items() if method == name]
        for name in dict.fromkeys(name for name, _ in results)
    }


def _current_row(row: Row) -> Row:
    current: Row = {k: row[k] for k in ("key", "case", "scale", "measures")}
    return current | {"measures": current_measures(row["measures"])} if isinstance(row["measures"], dict) else current


def build_table(results_by_method: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Rows of all methods, with fractions divided by the ground truth's; of differences between ours and each other; and of the calibration.

    Raises:
        InputError: There are no results of the ground truth.
    """
    if "truth" not in results_by_method:
        raise InputError(
            "the results lack the method `truth`, which scales the fractions", "use a complete results.jsonl"
        )
    truth = [r["measures"] for r in results_by_method["truth"]]
    pooled = {
        m: float(np.mean([v[m] for v in truth if m in v])) for m in truth_scores.POOLED if any(m in v for v in truth)
    }
    scaled = {
        name: {
            r.get("case", i): {m: v / (pooled.get(m) or 1.0) for m, v in r["measures"].items()}
            for i, r in enumerate(results)
        }
        for name, results in results_by_method.items()
    }
    rows: list[Row] = []
    for name, by_case in scaled.items():
        rows += measures.table_rows(name, [values for values in by_case.values() if values])
        rows += _median_row(name, [values["seconds"] for values in by_case.values() if "seconds" in values])
    rows += [
        row for name, by_case in scaled.items() for row in _paired_differences(scaled.get(OURS, {}), name, by_case)
    ]
    for name, end in CALIBRATION_ROWS.items():
        rows += measures.table_rows(
            name, [{m: ends[end] for m, ends in r["scale"].items()} for r in results_by_method["truth"]]
        )
    return rows + [_single_row(CEILING, measure, share, len(truth)) for measure, share in pooled.items()]


def _median_row(name: str, seconds: Sequence[float]) -> list[Row]:
    """The median of seconds; the mean depends on other work during some trainings."""
    return [_single_row(name, "seconds_median", statistics.median(seconds), len(seconds))] if len(seconds) > 2 else []


def _paired_differences(ours: Mapping[str, Row], name: str, theirs: Mapping[str, Row]) -> list[Row]:
    """Rows of the paired differences between ours and another trained method, over the objects that both have."""
    both = [(ours[case], values) for case, values in theirs.items() if case in ours and "seconds" in values]
    if name == OURS or not both:
        return []
    return measures.table_rows(
        f"{OURS} - {name}", [{m: a[m] - b[m] for m in COMPARED if m in a and m in b} for a, b in both]
    )


def _single_row(method: str, measure: str, value: float, n: int) -> Row:
    return {"method": method, "measure": measure, "mean": round(value, 4), "low": None, "high": None, "n": n}
