"""Results of a bench, each kept as it is found: the same command goes on where it stopped and repeats nothing."""

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
from objtune_cli.store import artifacts
from objtune_cli.store.checkpoints import RunState
from objtune_cli.workflow.context import Reporter, StageContext

Row = dict[str, Any]
Asked = TypeVar("Asked")
"""What methods are measured on: a drawn object, or a subject of a data set."""
Measured = tuple[dict[str, float], np.ndarray | None]
"""Measures, and the pictures (N, S, S, 3) uint8 that are kept for the sheet."""


@dataclass(slots=True)
class Kept:
    """Results in `out`, and how far the run is.

    Attributes:
        total: Results that the run will have. known: results that another run has found, by method and object.
    """

    out: Path
    report: Reporter
    total: int
    known: Mapping[tuple[str, str], Row] = field(default_factory=dict)
    done: int = 0
    began: float = field(default_factory=time.monotonic)

    def result(self, name: str, case: str, key: str, measured: Callable[[], Measured], about: Callable[[], Row]) -> Row:
        """The kept result of a method on an object, or a new one, which is then kept.

        Args:
            key: What the result depends on. about: what else is kept with it.
        """
        file = self.out / "results" / name / f"{case}.json"
        self.done += 1
        known = self.known.get((name, case), {})
        found = known if known.get("key") == key else _read(file, key)
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
            found = _written(
                file, head | about() | {"measures": {n: round(value, 5) for n, value in values.items()}}, shown
            )
            spent = time.monotonic() - self.began
            self.report.note(
                f"{name} on {case}: {_short(found['measures'])}  ({self.done} of {self.total}, {spent:.0f} s)"
            )
        return found


def filled(
    ctx: StageContext,
    out: Path,
    asked: Sequence[Asked],
    plan: Mapping[str, Method],
    result: Callable[[Asked, str, Method], Row],
) -> dict[str, list[Row]]:
    """Every method's results on all that is asked, one case after the other; `results.jsonl` has them, stopped or not: what was found may be handed on.

    Raises:
        Stopped: A signal came.
    """
    found: dict[str, list[Row]] = {name: [] for name in plan}
    with RunState(ctx.project, "bench").locked(
        "another bench is at work in this folder", "wait for it, or give another --out"
    ):
        try:
            for case in asked:
                for name, method in plan.items():
                    ctx.check_stopped()
                    found[name].append(result(case, name, method))
        finally:
            save(out, found)
    return found


def save(out: Path, found: Mapping[str, list[Row]]) -> None:
    """Write `results.jsonl`, a result a line."""
    lines = [
        json.dumps({"method": name, **result}, sort_keys=True) + "\n"
        for name, results in found.items()
        for result in results
    ]
    artifacts.write_file(out / "results.jsonl", "".join(lines).encode())


def table(file: Path, rows: list[Row]) -> None:
    """Write rows as CSV."""
    columns = statistics.columns(rows)
    lines = [",".join(columns)] + [",".join("" if row[c] is None else str(row[c]) for c in columns) for row in rows]
    artifacts.write_file(file, ("\n".join(lines) + "\n").encode())


def _written(file: Path, result: Row, shown: np.ndarray | None) -> Row:
    """Write pictures, then the result: the result's file says that all is there."""
    strip = np.full((grids.CELL, grids.CELL, 3), 255, np.uint8) if shown is None else np.concatenate(list(shown), 1)
    artifacts.write_file(file.with_suffix(".png"), png.encode_png(strip))
    artifacts.write_file(file, (json.dumps(result) + "\n").encode())
    return result


def _read(file: Path, key: str) -> Row | None:
    """A finished result of the same work."""
    try:
        held = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    sound = isinstance(held, dict) and held.get("key") == key and file.with_suffix(".png").is_file()
    return held if sound else None


def _short(found: dict[str, float]) -> str:
    names = ("identity", "prompt", "clip_i", "clip_t", "dino", "diversity", "leak", "drift", "presence", "seconds")
    return "  ".join(f"{n} {found[n]:.2f}" if n != "seconds" else f"{found[n]:.0f} s" for n in names if n in found)
