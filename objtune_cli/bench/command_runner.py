"""Runs `objtune` commands in processes, so that a benchmark measures what a user runs."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from objtune_cli.config.resolve import PREFIX
from objtune_cli.errors import ObjtuneError, ResourceError, Stopped
from objtune_cli.renamed_settings import as_text
from objtune_cli.workflow.context import StageContext


class Named(Protocol):
    """An object of the benchmark."""

    @property
    def name(self) -> str: ...


class TrainingFailed(ObjtuneError):
    """A training process failed, or a signal from outside ended it."""

    def __init__(self, method: str, case: Named, code: int, message: str) -> None:
        killed = code < 0
        how = f"was ended by signal {-code}" if killed else f"failed: {message}"
        super().__init__(f"{method} on {case.name} {how}", "is there enough memory?" if killed else "")
        self.code = ResourceError.code if killed else code or 1


def command_line(ctx: StageContext, *words: str, project: Path | None = None) -> list[str]:
    """Return the command line of `objtune` with the words, JSON output, and the base and device of the context.

    Args:
        project: Folder of the project; None: the context's.
    """
    shared = {
        "project": project or ctx.project.folder,
        "base": ctx.common.base,
        "device": ctx.common.device,
        "precision": ctx.common.precision,
    }
    options = [word for name, value in shared.items() for word in (f"--{name}", str(value))]
    return plain_command_line(*words, *options)


def plain_command_line(*words: str) -> list[str]:
    """Return the command line of `objtune` with the words and JSON output."""
    return [sys.executable, "-P", "-m", "objtune_cli", *words, "--json"]


def set_options(values: Mapping[str, Any], section: str = "") -> list[str]:
    """Return `--set` options of settings, by their full names or by their names in a section."""
    prefix = f"{section}." if section else ""
    return [word for name, value in values.items() for word in ("--set", f"{prefix}{name}={as_text(value)}")]


def run_command(
    ctx: StageContext, command: list[str], label: str, variables: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], float, float]:
    """Run a command: its JSON document, wall seconds, and largest resident memory in MB (0 if the system does not report it).

    Args:
        variables: Further environment variables; those of the user come first.

    Raises:
        Stopped: A signal came; the command was terminated.
    """
    own = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}  # methods set all values themselves
    environment = {**(variables or {}), **own}
    start_time = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            command, stdout=out, stderr=errors, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        memory = 0.0
        while child.poll() is None and not ctx.stopped():
            memory = max(memory, _peak_memory(child.pid))
            time.sleep(0.1)
        if child.poll() is None:
            child.terminate()
            child.wait()
            raise Stopped(
                ctx.stopped(),
                f"stopped during {label}; finished objects are kept",
                "the same command resumes from there",
            )
        out.seek(0), errors.seek(0)
        text = out.read().decode(errors="replace")
        try:
            document = json.loads(text)
        except ValueError:
            lines = errors.read().decode(errors="replace").strip().splitlines() or ["it printed nothing"]
            document = {"error": {"code": child.returncode, "message": lines[-1]}}
    return document, time.monotonic() - start_time, memory


def raise_failure(document: Mapping[str, Any], method: str, case: Named) -> None:
    """Raise the error of a command's JSON document.

    Raises:
        TrainingFailed: The document has an error.
    """
    if "error" in document:
        raise TrainingFailed(method, case, int(document["error"]["code"]), document["error"]["message"])


def processor_seconds() -> float:
    """Processor seconds, user and system, of ended child processes."""
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _peak_memory(pid: int) -> float:
    """Largest resident memory of a running process so far, MB. Unlike `ru_maxrss` it does not include the parent's."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0.0)
