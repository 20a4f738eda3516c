"""How random inputs are tried at every entrance, and what must hold of each: an exit code of ours, one line, no traceback."""

import contextlib
import io
import json
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

from objtune_cli.store import artifacts
from objtune_cli.store.store import Store

FULL = settings.get_current_profile_name() != "same"
"""Whether this is `make properties`, which tries the number of inputs that README's table names."""
REFUSED = (2, 3, 4, 5, 6, 7, 9)
"""Exit codes that a bad input may have; 1 is a bug."""


def tries(full: int, few: int) -> settings:
    """Hypothesis settings of one entrance: `full` inputs with `make properties`, `few` with `make test`; inputs are small, so that none is shrunk."""
    return settings(
        max_examples=full if FULL else few,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate),
    )


@dataclass(frozen=True)
class Outcome:
    """What one command did."""

    code: int
    out: str
    err: str


class Entrance:
    """One entrance: a project folder that is emptied before each try, and the count of what came out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.codes: Counter[str] = Counter()

    def empty(self) -> Path:
        """A project without artifacts, as the working folder."""
        os.chdir(self.folder.parent)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        (self.folder / "objtune.toml").write_text("")
        os.chdir(self.folder)
        return self.folder

    def run(self, *args: object) -> Outcome:
        """Run the command line in this process.

        Raises:
            AssertionError: A traceback, an exit code that is not ours, or a failure that is not one line and its hint.
        """
        from objtune_cli.cli.app import run
        from objtune_cli.cli.signals import HANDLED

        out, err = io.StringIO(), io.StringIO()
        handlers = {number: signal.getsignal(number) for number in HANDLED}
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = run([str(a) for a in args])
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        done = Outcome(code, out.getvalue(), err.getvalue())
        assert "Traceback" not in done.err, done.err
        assert code == 0 or code in REFUSED, (code, done.err)
        errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == (code != 0), done.err
        self.codes["accepted" if code == 0 else f"exit {code}"] += 1
        return done

    def load(self, kind: str, name: str) -> tuple[artifacts.Record, dict[str, np.ndarray]]:
        """The newest artifact of a name; every number in it is finite."""
        store = Store.at(self.folder)
        record, tensors = store.read(store.find(name, (kind,)))
        for key, value in tensors.items():
            assert not np.issubdtype(value.dtype, np.floating) or np.isfinite(value).all(), (
                f"{key} of {record.ref} is not finite"
            )
        json.dumps(record.header(), allow_nan=False)
        return record, tensors


@contextlib.contextmanager
def environment() -> Iterator[Path]:
    """A folder of its own with home and caches inside; the working folder and the environment as before afterwards."""
    before, where = dict(os.environ), Path.cwd()
    folder = Path(tempfile.mkdtemp())
    for name in [n for n in os.environ if n.startswith("OBJTUNE_")]:
        del os.environ[name]
    for name in ("HOME", "HF_HOME", "XDG_CACHE_HOME"):
        (folder / name.lower()).mkdir()
        os.environ[name] = str(folder / name.lower())
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield folder
    finally:
        os.chdir(where)
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def entrance() -> Iterator[Entrance]:
    """A place to try inputs in."""
    with environment() as folder:
        yield Entrance(folder / "project")


def figures(entrance: Entrance, record_property: Any, name: str) -> None:
    """Hand the counts of an entrance to the run's summary, and begin the next one's at 0."""
    record_property("fuzz", {"entrance": name, "codes": dict(entrance.codes)})
    entrance.codes.clear()


def summary(reports: list[Any]) -> list[str]:
    """One line an entrance, and the sum of all."""
    found = [value for report in reports for key, value in report.user_properties if key == "fuzz"]
    lines, total = [], Counter[str]()
    for item in sorted(found, key=lambda each: each["entrance"]):
        codes = Counter(item["codes"])
        total += codes
        said = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
        lines.append(f"{item['entrance']}: {sum(codes.values())} inputs, 0 tracebacks, 0 wrong ({said})")
    return (
        [
            *lines,
            f"all entrances: {sum(total.values())} inputs, {total['accepted']} accepted and right, the others refused in one line",
        ]
        if lines
        else []
    )
