"""`train --num-processes N`: run the command line in N processes of this machine, with the environment of torch's launcher."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any

from objtune_cli.cli import streams
from objtune_cli.cli.signals import StopFlag
from objtune_cli.errors import UsageError

OPTION = "--num-processes"
GRACE = 20.0
"""Seconds that the first process has to report the error and end after another one failed."""


def requested_processes(argv: list[str]) -> int:
    """The number of processes in a command line; 0 without the option, and inside such a process.

    Raises:
        UsageError: The value is not a whole number above 0.
    """
    positions = [i for i, word in enumerate(argv) if word.partition("=")[0] == OPTION]
    if not positions or os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        return 0
    word, equals, value = argv[positions[-1]].partition("=")
    value = value if equals else next(iter(argv[positions[-1] + 1 :]), "")
    if not value.isdecimal() or int(value) < 1:
        raise UsageError(f"{word} is {value!r}", "1 or more: one for each GPU")
    return int(value)


def accelerate_cpu_single_process() -> bool:
    """Whether `accelerate launch --cpu` should start several processes; it starts one, without a rank."""
    return (
        os.environ.get("ACCELERATE_USE_CPU") == "True"
        and "MASTER_ADDR" in os.environ
        and "WORLD_SIZE" not in os.environ
    )


def run(argv: list[str], count: int) -> int:
    """Run the processes and return the exit code of the first, or of another that failed; signals are passed to all."""
    stop = StopFlag()
    stop.install()
    with _start_processes(argv, count) as (running, logs):
        passed, failed_at = 0, 0.0
        while any(child.poll() is None for child in running):
            if stop.stop_signal() and not passed:
                passed = stop.stop_signal()
                for child in running:
                    child.send_signal(passed)
            if not failed_at and any(child.poll() for child in running):
                failed_at = time.monotonic()
            if failed_at and (running[0].poll() is not None or time.monotonic() > failed_at + GRACE):
                for child in running:
                    child.terminate()
            time.sleep(0.05)
        if running[0].returncode <= 0:  # without an error of the first, show those of the others
            sys.stderr.write(
                "".join(_text(file) for child, file in zip(running[1:], logs, strict=True) if child.returncode > 0)
            )
    codes = [child.returncode for child in running]
    return _code(next((code for code in [codes[0] if codes[0] > 0 else 0, *codes[1:], codes[0]] if code), 0))


@contextlib.contextmanager
def _start_processes(argv: list[str], count: int) -> Iterator[tuple[list[subprocess.Popen[bytes]], list[IO[bytes]]]]:
    """Start the processes, and yield them and the logs of all but the first; afterwards end those that still run."""
    from torch import distributed

    store: Any = distributed.TCPStore(  # type: ignore[attr-defined]  # torch does not list it in __all__
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )  # a free port, on which they connect
    threads = str(max(1, (os.cpu_count() or 1) // count))
    shared = {"OMP_NUM_THREADS": threads} | os.environ | {
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    running: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        logs: list[IO[bytes]] = []
        for rank in range(count):
            own = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            if rank:
                logs.append(stack.enter_context(tempfile.TemporaryFile()))
            own_streams = (
                {"stdout": subprocess.DEVNULL, "stderr": logs[-1]} if rank else {"stdout": streams.stdout_descriptor()}
            )
            command = [sys.executable, "-P", "-m", "objtune_cli", *argv]
            running.append(subprocess.Popen(command, env=own, start_new_session=True, **own_streams))  # type: ignore[arg-type]
        try:
            yield running, logs
        finally:
            for child in running:
                if child.poll() is None:
                    child.kill()
                child.wait()


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _code(code: int) -> int:
    """The exit code as in a shell: 128 plus the number of the signal that ended a process."""
    return 128 - code if code < 0 else code
