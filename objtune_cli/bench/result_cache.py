"""Cache of benchmark results on disk: a stopped command continues where it stopped and measures nothing twice."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from objtune_cli.bench.former_names import FORMER_METHODS, current_measures
from objtune_cli.bench.methods import Method
from objtune_cli.errors import GateError, ObjtuneError
from objtune_cli.evaluation import statistics
from objtune_cli.images import grids, png
from objtune_cli.store import atomic_files
from objtune_cli.store.checkpoints import Checkpoint
from objtune_cli.workflow.context import StageContext
from objtune_cli.workflow.reporting import Reporter

Row = dict[str, Any]
Item = TypeVar("Item")
"""An object that methods are measured on: a toybox object, or a subject of a data set."""
Measurement = tuple[dict[str, float], np.ndarray | None]
"""Measures, and the images (N, S, S, 3) uint8 for the contact sheet."""


@dataclass(slots=True)
class ResultCache:
    """Results in the folder `out`, and the progress of the run.

    Attributes:
        total: Number of results of the whole run.
        known: Results of another run, by method and object.
    """

    out: Path
    report: Reporter
    total: int
    known: Mapping[tuple[str, str], Row] = field(default_factory=dict)
    done: int = 0
    began: float = field(default_factory=time.monotonic)

    def get_or_measure(
        self, name: str, case: str, key: str, measure: Callable[[], Measurement], about: Callable[[], Row]
    ) -> Row:
        """The cached result of a method on an object, or a new one, which is then cached.

        Args:
            key: Digest of everything that the result depends on.
            measure: Measures the method.
            about: Further values for the result's row.
        """
        file = self.out / "results" / name / f"{case}.json"
        _move_former(file)
        self.done += 1
        previous = self.known.get((name, case), {})
        result = previous if previous.get("key") == key else _read_result(file, key)
        if result is None:
            head = {"key": key, "case": case}
            try:
                values, images = measure()
            except ObjtuneError as failed:
                if failed.code != GateError.code or getattr(
                    failed, "of_base", False
                ):  # no method works with such a base
                    raise
                values, images = {}, None  # a diverged training is a result too
                self.report.note("; ".join(filter(None, (failed.message, failed.hint))))
            nonfinite = [n for n, value in values.items() if not math.isfinite(value)]
            if nonfinite:
                self.report.note(f"{name} on {case}: {', '.join(nonfinite)} not finite, left out")
                values = {n: value for n, value in values.items() if n not in nonfinite}
            result = _write_result(
                file, head | about() | {"measures": {n: round(value, 5) for n, value in values.items()}}, images
            )
            spent = time.monotonic() - self.began
            self.report.note(
                f"{name} on {case}: {_summarize(result['measures'])}  ({self.done} of {self.total}, {spent:.0f} s)"
            )
        return result


def measure_all(
    ctx: StageContext,
    out: Path,
    cases: Sequence[Item],
    plan: Mapping[str, Method],
    result: Callable[[Item, str, Method], Row],
) -> dict[str, list[Row]]:
    """Measure every method on every item and write `results.jsonl`, also after a signal.

    Args:
        plan: Name to method.
        result: Measures a method on an item, or reads the cached result.

    Raises:
        Stopped: A signal came.
    """
    results: dict[str, list[Row]] = {name: [] for name in plan}
    with Checkpoint(ctx.store, "bench").lock("another bench runs in this folder", "wait for it, or give another --out"):
        try:
            for case in cases:
                for name, method in plan.items():
                    ctx.check_stopped()
                    results[name].append(result(case, name, method))
        finally:
            write_results(out, results)
    return results


def write_results(out: Path, results_by_method: Mapping[str, list[Row]]) -> None:
    """Write `results.jsonl`, one result per line."""
    lines = [
        json.dumps({"method": name, **result}, sort_keys=True) + "\n"
        for name, results in results_by_method.items()
        for result in results
    ]
    atomic_files.write_file(out / "results.jsonl", "".join(lines).encode())


def write_table(file: Path, rows: list[Row]) -> None:
    """Write rows as CSV."""
    columns = statistics.column_names(rows)
    lines = [",".join(columns)] + [",".join("" if row[c] is None else str(row[c]) for c in columns) for row in rows]
    atomic_files.write_file(file, ("\n".join(lines) + "\n").encode())


def _write_result(file: Path, result: Row, images: np.ndarray | None) -> Row:
    """Write images, then the result: the result's file marks the images as complete."""
    strip = np.full((grids.CELL, grids.CELL, 3), 255, np.uint8) if images is None else np.concatenate(list(images), 1)
    atomic_files.write_file(file.with_suffix(".png"), png.encode_png(strip))
    atomic_files.write_file(file, (json.dumps(result) + "\n").encode())
    return result


def _read_result(file: Path, key: str) -> Row | None:
    """The result in a file, or None if there is none with this key."""
    try:
        stored = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    is_complete = isinstance(stored, dict) and stored.get("key") == key and file.with_suffix(".png").is_file()
    return stored | {"measures": current_measures(stored["measures"])} if is_complete else None


def _move_former(file: Path) -> None:
    """Move a result of an earlier version, whose folder has the method's former name."""
    folder = file.parent.parent / FORMER_METHODS.get(file.parent.name, "")
    if folder != file.parent.parent and not file.exists() and (folder / file.name).is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".png", ".json"):  # the result's file marks the images as complete
            (folder / file.name).with_suffix(suffix).replace(file.with_suffix(suffix))


def _summarize(measures: dict[str, float]) -> str:
    names = (
        "identity",
        "prompt",
        "clip_i",
        "clip_t",
        "dino",
        "diversity",
        "background_leakage",
        "drift",
        "all_present",
        "seconds",
    )
    return "  ".join(
        f"{n} {measures[n]:.2f}" if n != "seconds" else f"{measures[n]:.0f} s" for n in names if n in measures
    )
