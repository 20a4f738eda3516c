"""What a run at full size found out, in figures: said as it goes, and all of it in order at the end."""

import re
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.support import fuzzing

FIGURES = pytest.StashKey[list[str]]()
BEGAN = time.monotonic()
COUNTED = {
    "test_f8_bad_inputs": "F8  bad photos, files, names and command lines: each its code, one line and a hint, 0 tracebacks, the store untouched",
    "test_f9_pickles_do_not_run": "F9  malicious pickles in every place that takes a file: 0 ran",
    "test_f19": "F19 sockets blocked: the whole path, and missing weights that name `objtune fetch`",
    "test_a_signal_ends_within_the_step_with_its_code": "F13 INT, TERM, HUP: 130, 143, 129, the state saved, within the step",
    "test_reuse.py": "F14 finished work again: same stdout, no file touched, torch not loaded",
    "test_start_up_loads_nothing_heavy": "F15 light commands that load neither torch nor numpy nor PIL",
    "tests/store/test_backend.py": "T1  the contract of the store and its checkpoints, on a folder and in memory; T3 equal work by 16 writers",
    "tests/store/test_object_storage.py::test_": "T1  the same and whole commands on an S3 server; T15 credentials nowhere; T16 without the extra",
    "tests/store/test_atomic_files.py": "T6  injected NFS: lost reply, old listing, no links, no locks, clocks apart",
    "test_schema.py": "F18 files of every released schema, and newer ones refused",
    "test_f19_f21": "F21 photos that say who their owner is: 0 words of it in any file",
    "test_json_of": "F22 command lines with --json, success and failure, checked against the schemas",
}
"""Part of a test's id to what a pass of it shows; the figure is how many passed."""


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print one line of figures to the terminal, at full size."""

    def line(text: str) -> None:
        if request.node.get_closest_marker("faults") or request.node.get_closest_marker("slow"):
            request.config.stash.setdefault(FIGURES, []).append(text)
            with capsys.disabled():
                print(f"\n{text}", end="")

    return line


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """All figures in order, after a run at full size, and what random inputs came to."""
    reports = [report for how in ("passed", "failed") for report in terminalreporter.getreports(how)]
    entrances = fuzzing.summary(reports)
    if entrances and fuzzing.FULL:
        terminalreporter.section("random inputs at every entrance")
        for line in entrances:
            terminalreporter.write_line(line)
    figures = list(config.stash.get(FIGURES, []))
    if not figures:
        return
    passed, failed = (
        Counter(part for r in terminalreporter.getreports(how) for part in COUNTED if part in r.nodeid)
        for how in ("passed", "failed")
    )
    figures += [
        f"{text}: {passed[part]} of {passed[part] + failed[part]}"
        for part, text in COUNTED.items()
        if passed[part] + failed[part]
    ]
    terminalreporter.section("figures")
    for line in sorted(figures, key=lambda text: (text[0], int(re.findall(r"^[FT](\d+)", text)[0]))):
        terminalreporter.write_line(line)
    terminalreporter.write_line(f"all of it: {time.monotonic() - BEGAN:.0f} s")
