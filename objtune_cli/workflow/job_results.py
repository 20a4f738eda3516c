"""Results of jobs: their states, the exit code of a run, and the lines of `run.jsonl`."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

DONE, REUSED, UNFINISHED, FAILED, STOPPED = "done", "reused", "unfinished", "failed", "stopped"


@dataclass(slots=True)
class JobResult:
    """The result of a job; `state`: done, reused, unfinished (time limit), failed, stopped.

    Attributes:
        seconds: Its share of a worker's time: its own stages, and an equal part of what its batch shares.
    """

    name: str
    state: str = STOPPED
    code: int = 0
    refs: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    seconds: float = 0.0
    message: str = ""


def exit_code(results: Sequence[JobResult]) -> int:
    """The exit code of the worst job: a signal, then an internal error, then the largest."""
    return max((r.code for r in results), key=lambda code: (code >= 128, code == 1, code), default=0)


class RunFile:
    """`run.jsonl`: one line for each object that ended; lines of earlier runs stay.

    A file that cannot be written does not stop the run.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.started = file, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._broken = False

    def write(self, result: JobResult, about: dict[str, Any]) -> None:
        """Append the result of a job and what is known of its batch."""
        if self._broken:
            return
        line = json.dumps({"run": self.started, **asdict(result), **about}, sort_keys=True, allow_nan=False)
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError:
            self._broken = True
