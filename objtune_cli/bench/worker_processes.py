"""Processes that do a round of work each time they are asked: what is measured side by side. Knows nothing of what they do."""

import contextlib
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from objtune_cli.errors import ResourceError


class Children:
    """The processes at work; they end with this one's block.

    Args:
        target: What each does with its end of a pipe and its task.
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
        theirs.close()  # so that its end is heard
        self.pipes[name] = mine
        self.processes.append(process)

    def hear(self, name: str, check: Callable[[], None]) -> Any:
        """The next word of a child.

        Raises:
            ResourceError: It ended without one.
        """
        try:
            while not self.pipes[name].poll(0.2):
                check()
            said = self.pipes[name].recv()
        except (EOFError, OSError):
            check()  # it may have ended by the signal that is meant for us
            raise ResourceError(f"the process that measures {name} ended", "is there enough memory?") from None
        if "failed" in said:
            raise ResourceError(said["failed"], said["hint"])
        return said

    def ask(self, name: str, check: Callable[[], None]) -> dict[str, float]:
        """A round of a child."""
        with contextlib.suppress(OSError):  # one that has ended is noticed by `hear`
            self.pipes[name].send("round")
        return self.hear(name, check)

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.terminate()
            process.join()
