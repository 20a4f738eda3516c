"""The command line as a checkpoint keeps it, so that the page in the browser can resume the run."""

import contextlib
import os
from collections.abc import Sequence

from objtune_cli.errors import UsageError
from objtune_cli.paths import current_folder
from objtune_cli.workflow.context import TypedCommand
from objtune_cli.workflow.metric_loggers import LOGGERS

_SILENT = ("--json", "--quiet", "-q", "--verbose", "-v")
"""Options without a value that say only how a command reports."""
_REPORTING = (*(f"--{name}" for name in LOGGERS), "--log")
"""Options with a value that say only where a command reports."""
RESUMABLE = "train"
"""The command whose runs can be resumed by the same words."""


def keep(words: Sequence[str]) -> TypedCommand | None:
    """The words that resume a run, and the folder in which they do; None where the words alone do not.

    Words that come from stdin or from a launcher of several processes are not enough, and the address of a photo may
    hold a password, which does not belong into a file.
    """
    if RESUMABLE not in words or "-" in words or "WORLD_SIZE" in os.environ:
        return None
    if any("://" in word for word in words):
        return None
    kept, rest = [], iter(words)
    for word in rest:
        if word in _REPORTING:
            next(rest, "")
        elif word not in _SILENT and not word.startswith(tuple(f"{option}=" for option in _REPORTING)):
            kept.append(word)
    with contextlib.suppress(UsageError):
        return TypedCommand(tuple(kept), str(current_folder()))
    return None
