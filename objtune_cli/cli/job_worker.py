"""A worker process of `run`: reads tasks from stdin, one JSON object a line, and writes results to stdout in the same form.

It ends when its stdin ends. If it is at work then, because the process that started it was killed, it saves its state first.
"""

import gc
import json
import os
import queue
import signal
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from objtune_cli.cli import environment, job_batch, streams
from objtune_cli.cli.app import COLLECTED_EVERY
from objtune_cli.cli.signals import StopFlag


def main() -> None:
    """Work on tasks until stdin ends."""
    streams.prepare()
    environment.repair_environment()
    gc.set_threshold(COLLECTED_EVERY)
    tasks: queue.Queue[dict[str, Any] | None] = queue.Queue()
    stop = StopFlag()
    stop.install()
    threading.Thread(target=_read_tasks, args=(tasks, stop), daemon=True).start()
    while (task := tasks.get()) is not None and not stop.signum:
        _open_log(Path(task["log"]), append=task["again"])
        with streams.only_results_to_stdout():
            ending = job_batch.run_task(task, stop, lambda result: _write(asdict(result)))
            _write(ending)
        gc.collect()


def _read_tasks(tasks: "queue.Queue[dict[str, Any] | None]", stop: StopFlag) -> None:
    for line in sys.stdin:
        tasks.put(json.loads(line))
    stop.signum = stop.signum or signal.SIGTERM
    tasks.put(None)


def _open_log(file: Path, *, append: bool) -> None:
    """Send stderr, also that of libraries, to a log."""
    sys.stderr.flush()
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC), 0o644)
    os.dup2(handle, 2)
    os.close(handle)


def _write(document: dict[str, Any]) -> None:
    print(json.dumps(document), file=streams.result_stream(), flush=True)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # the interpreter's end would look through everything once more
