"""stdin, stdout and stderr in whatever state the caller left them: closed, full, shared with talkative libraries, or in a narrow encoding."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

_results: TextIO | None = None


class Stderr(io.FileIO):
    """stderr as a file that takes everything: where nobody can be told, the work still goes on."""

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)


class Stdout(io.FileIO):
    """stdout as a file that remembers its first failure and then takes everything, so that the interpreter's end does not fail again."""

    failure: OSError | None = None

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        if self.failure is not None:
            return len(data)
        try:
            return super().write(data) or 0
        except OSError as error:
            self.failure = error
            raise


def prepare() -> None:
    """For a process of our own, before anything is opened: no stream is missing, and stdout belongs to results.

    A closed descriptor would be given to the next file that is opened, and whatever prints there would write into it. C code
    and libraries that print to descriptor 1 reach stderr.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            os.set_inheritable(number, True)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    sys.stdin = sys.stdin or io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    encodings = [getattr(stream, "encoding", None) or "utf-8" for stream in (sys.stdout, sys.stderr)]
    sys.stdout = _text(Stdout(own, "w"), encodings[0])
    sys.stderr = _text(Stderr(2, "w", closefd=False), encodings[1], now=True)


def _text(raw: io.FileIO, encoding: str, *, now: bool = False) -> TextIO:
    """A stream of text; a character that its encoding lacks is written as \\xNN."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=now or raw.isatty()
    )


def result_stream() -> TextIO:
    """Where results go, also while a command runs."""
    return _results or sys.stdout


@contextlib.contextmanager
def only_results_to_stdout() -> Iterator[None]:
    """Inside, whatever prints to `sys.stdout` reaches stderr; `results` is still stdout."""
    global _results
    before, stdout = _results, sys.stdout
    _results, sys.stdout = result_stream(), sys.stderr
    try:
        yield
    finally:
        _results, sys.stdout = before, stdout


def stdout_failure() -> OSError | None:
    """Why stdout could not be written, if it could not."""
    raw = getattr(getattr(result_stream(), "buffer", None), "raw", None)
    return raw.failure if isinstance(raw, Stdout) else None


def stdout_descriptor() -> int | None:
    """The descriptor of stdout for a process that shares it; None: the one that processes inherit."""
    raw = getattr(getattr(result_stream(), "buffer", None), "raw", None)
    return raw.fileno() if isinstance(raw, Stdout) else None
