"""Worker processes that do one round of work on request, so that several can be measured in turns."""

import contextlib
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from objtune_cli.errors import ResourceError


class WorkerProcesses:
    """Worker processes, terminated at the end of the `with` block.

    Args:
        target: Function of a worker, called with its end of a pipe and its task.
    """

    def __init__(self, target: Callable[[Connection, Any], None]) -> None:
        self.target = target
        self.spawn: Any = multiprocessing.get_context("spawn")
        self.pipes: dict[str, Connection] = {}
        self.processes: list[Any] = []

    def start(self, name: str, task: Any) -> None:
        mine, theirs = self.spawn.Pipe()
        process = self.spawn.Process(target=self.target, args=(theirs, task), daemon=True)
        process.start()
        theirs.close()  # so that `recv` raises when the worker ends
        self.pipes[name] = mine
        self.processes.append(process)

    def receive(self, name: str, check: Callable[[], None]) -> Any:
        """The next message of a worker.

        Args:
            check: Called while waiting; raises to stop.

        Raises:
            ResourceError: The worker ended or failed.
        """
        try:
            while not self.pipes[name].poll(0.2):
                check()
            message = self.pipes[name].recv()
        except (EOFError, OSError):
            check()  # a signal may have ended both processes
            raise ResourceError(
                f"the process that measures {name} ended unexpectedly", "is there enough memory?"
            ) from None
        if "failed" in message:
            raise ResourceError(message["failed"], message["hint"])
        return message

    def run_round(self, name: str, check: Callable[[], None]) -> dict[str, float]:
        """Request one round of a worker and wait for its result."""
        with contextlib.suppress(OSError):  # `receive` notices a worker that has ended
            self.pipes[name].send("round")
        message: dict[str, float] = self.receive(name, check)
        return message

    def __enter__(self) -> "WorkerProcesses":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.terminate()
            process.join()
