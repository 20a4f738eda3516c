"""Environment variables and folders that would stop a library with a traceback, put right before the first one is loaded."""

import os
import re
import sys
import warnings
from collections.abc import MutableMapping

from objtune_cli import paths
from objtune_cli.errors import UsageError

_COUNT = re.compile(r"\s*[1-9][0-9]{0,4}\s*(,\s*[1-9][0-9]{0,4}\s*)*")
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
SIZES = ("COLUMNS", "LINES")
TIMEOUTS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""What a launcher of several processes tells each; MASTER_ADDR and MASTER_PORT say where they meet."""
STARTED_BY = "TORCHELASTIC_RUN_ID"
"""What torch's launcher, and accelerate's, which stands on it, set in each process, and nobody else does."""


def repair_environment() -> list[str]:
    """Put right what is wrong around this process; what was ignored, a line each."""
    paths.leave_deleted_folder()
    if not sys.warnoptions or any(action == "error" for action, *_ in warnings.filters):
        warnings.simplefilter(
            "ignore"
        )  # a library's warning is no failure of the command, and no line of it; -W and PYTHONWARNINGS show them
    return drop_unusable(os.environ)


def drop_unusable(environment: MutableMapping[str, str]) -> list[str]:
    """Drop variables whose values nobody can use; a line for each one that the user should know of."""
    notes = []
    for names, form in ((COUNTS, "a number of threads"), (TIMEOUTS, "a number of seconds")):
        for name in names:
            if environment.get(name, "1") and not _COUNT.fullmatch(environment.get(name, "1")):
                notes.append(f"{name} is {environment.pop(name)!r}, which is not {form}: ignored")
    for name in SIZES:
        if not re.fullmatch(r"[1-9][0-9]{0,4}", environment.get(name, "1")):
            del environment[name]
    if wrong := _not_launched(environment):
        size = environment["WORLD_SIZE"]
        for name in LAUNCHER:
            environment.pop(name, None)
        notes.append(
            f"WORLD_SIZE is {size!r}, but {wrong}: this is one process; `objtune train --num-processes N` starts several"
        )
    return notes


def _not_launched(environment: MutableMapping[str, str]) -> str:
    """Why no launcher can have started this process as one of several; empty where one did, or WORLD_SIZE is not set."""
    size, rank = environment.get("WORLD_SIZE", ""), environment.get("RANK", "")
    if not size or size == "1":
        return ""
    if not (size.isascii() and size.isdecimal() and int(size) > 0):
        return "that is not a number of processes"
    if not (rank.isascii() and rank.isdecimal() and int(rank) < int(size)):
        return f"RANK is {rank!r}" if rank else "RANK is not set"
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        return f"{' and '.join(missing)} {'are' if missing[1:] else 'is'} not set"
    return "" if environment["MASTER_PORT"].isdecimal() else f"MASTER_PORT is {environment['MASTER_PORT']!r}"


def is_follower(command: str) -> bool:
    """Whether another process of the same work speaks for this one."""
    several = os.environ.get("WORLD_SIZE", "1") not in ("", "1") and os.environ.get("RANK", "0") != "0"
    return several and (command == "train" or STARTED_BY in os.environ)


def check_docstrings() -> None:
    """Refuse an interpreter without docstrings, from which transformers makes classes.

    Raises:
        UsageError: PYTHONOPTIMIZE=2 or `python -OO`.
    """
    if sys.flags.optimize >= 2:
        how = "unset PYTHONOPTIMIZE" if os.environ.get("PYTHONOPTIMIZE") else "run Python without -OO"
        raise UsageError(
            "Python runs without docstrings (PYTHONOPTIMIZE=2), and transformers needs them",
            f"{how}, then run the same command",
        )
