"""Results of a benchmark: its table, and the images of each method on each object."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from objtune_cli.errors import InputError

MAX_IMAGES = 400
"""Strips of images of a benchmark on the page."""
HINT = "give the folder of `bench --out`, its results.jsonl, or what `bench --json` printed"
NUMBERS = ("mean", "low", "high")


@dataclass(frozen=True, slots=True)
class BenchResults:
    """A benchmark.

    Attributes:
        rows: Of its table, as `evaluation.statistics.table_rows` makes them. strips: Object to method to file.
        left_out: Number of objects whose images are not shown.
    """

    name: str
    rows: list[dict[str, Any]]
    strips: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)
    left_out: int = 0


def read(path: Path) -> BenchResults:
    """Read a results folder with its table.csv, a results.jsonl, or the JSON document that `bench --json` printed.

    Raises:
        InputError: It cannot be read, or has other contents.
    """
    folder = path if path.is_dir() else path.parent
    rows = _read_csv(path / "table.csv") if path.is_dir() else _read_rows(path)
    strips, left_out = _find_strips(folder / "results")
    return BenchResults(path.name, rows, strips, left_out)


def _read_rows(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".jsonl":
        from objtune_cli.bench import tables

        return tables.build_table(tables.read_results(file))
    try:
        return [_check_row(row) for row in json.loads(file.read_text(encoding="utf-8"))["rows"]]
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}", HINT) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file} has no results of `objtune bench`", HINT) from None


def _read_csv(file: Path) -> list[dict[str, Any]]:
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            return [_check_row(_parse_numbers(row)) for row in csv.DictReader(lines)]
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}", HINT) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file} is no table of `objtune bench`", HINT) from None


def _parse_numbers(row: Mapping[str, str]) -> dict[str, Any]:
    return {**row, **{name: float(row[name]) if row[name] else None for name in NUMBERS}, "n": int(row["n"])}


def _check_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row that has all columns with the right types.

    Raises:
        KeyError, TypeError: It is no row of a table.
    """
    numbers = [row[name] for name in NUMBERS if row[name] is not None]
    if not isinstance(row["method"], str) or not isinstance(row["measure"], str) or row["mean"] is None:
        raise TypeError(row)
    if not all(isinstance(value, int | float) for value in numbers):
        raise TypeError(row)
    return dict(row)


def _find_strips(folder: Path) -> tuple[dict[str, dict[str, Path]], int]:
    """The strips of images by object and method, and the number of objects above `MAX_IMAGES`."""
    strips: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.glob("*/*.png")):
        if file.with_suffix(".json").is_file():  # written after the images: the result is whole
            strips.setdefault(file.stem, {})[file.parent.name] = file
    kept: dict[str, dict[str, Path]] = {}
    for name, own in strips.items():
        if sum(map(len, kept.values())) + len(own) > MAX_IMAGES:
            break
        kept[name] = own
    return kept, len(strips) - len(kept)
