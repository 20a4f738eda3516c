"""Cache of benchmark results on disk: a stopped command continues where it stopped and measures nothing twice."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

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
"""What methods are measured on: a toybox object, or a subject of a data set."""
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
        self, name: str, case: str, key: str, measured: Callable[[], Measurement], about: Callable[[], Row]
    ) -> Row:
        """The cached result of a method on an object, or a new one, which is then cached.

        Args:
            key: Digest of everything that the result depends on.
            measured: Measures the method.
            about: Further values for the result's row.
        """
        file = self.out / "results" / name / f"{case}.json"
        self.done += 1
        known = self.known.get((name, case), {})
        found = known if known.get("key") == key else _read_result(file, key)
        if found is None:
            head = {"key": key, "case": case}
            try:
                values, shown = measured()
            except ObjtuneError as failed:
                if failed.code != GateError.code or getattr(
                    failed, "of_base", False
                ):  # no method can draw with such a base
                    raise
                values, shown = {}, None  # it diverged: that is a result too
                self.report.note("; ".join(filter(None, (failed.message, failed.hint))))
            bad = [n for n, value in values.items() if not math.isfinite(value)]
            if bad:
                self.report.note(f"{name} on {case}: {', '.join(bad)} not finite, left out")
                values = {n: value for n, value in values.items() if n not in bad}
            found = _write_result(
                file, head | about() | {"measures": {n: round(value, 5) for n, value in values.items()}}, shown
            )
            spent = time.monotonic() - self.began
            self.report.note(
                f"{name} on {case}: {_summarize(found['measures'])}  ({self.done} of {self.total}, {spent:.0f} s)"
            )
        return found


def measure_all(
    ctx: StageContext,
    out: Path,
    asked: Sequence[Item],
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
    found: dict[str, list[Row]] = {name: [] for name in plan}
    with Checkpoint(ctx.store, "bench").lock(
        "another bench is at work in this folder", "wait for it, or give another --out"
    ):
        try:
            for case in asked:
                for name, method in plan.items():
                    ctx.check_stopped()
                    found[name].append(result(case, name, method))
        finally:
            write_results(out, found)
    return found


def write_results(out: Path, found: Mapping[str, list[Row]]) -> None:
    """Write `results.jsonl`, one result per line."""
    lines = [
        json.dumps({"method": name, **result}, sort_keys=True) + "\n"
        for name, results in found.items()
        for result in results
    ]
    atomic_files.write_file(out / "results.jsonl", "".join(lines).encode())


def write_table(file: Path, rows: list[Row]) -> None:
    """Write rows as CSV."""
    columns = statistics.column_names(rows)
    lines = [",".join(columns)] + [",".join("" if row[c] is None else str(row[c]) for c in columns) for row in rows]
    atomic_files.write_file(file, ("\n".join(lines) + "\n").encode())


def _write_result(file: Path, result: Row, shown: np.ndarray | None) -> Row:
    """Write images, then the result: the result's file marks the images as complete."""
    strip = np.full((grids.CELL, grids.CELL, 3), 255, np.uint8) if shown is None else np.concatenate(list(shown), 1)
    atomic_files.write_file(file.with_suffix(".png"), png.encode_png(strip))
    atomic_files.write_file(file, (json.dumps(result) + "\n").encode())
    return result


def _read_result(file: Path, key: str) -> Row | None:
    """The result in a file, or None if there is none with this key."""
    try:
        held = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    sound = isinstance(held, dict) and held.get("key") == key and file.with_suffix(".png").is_file()
    return held if sound else None


def _summarize(found: dict[str, float]) -> str:
    names = ("identity", "prompt", "clip_i", "clip_t", "dino", "diversity", "leak", "drift", "presence", "seconds")
    return "  ".join(f"{n} {found[n]:.2f}" if n != "seconds" else f"{found[n]:.0f} s" for n in names if n in found)
