"""The processor's settings: memory that is kept between steps, and threads."""

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")

SMALL_MODEL_PARAMETERS = 64_000_000
"""Parameters below which a model's layers are too small to be shared out among threads."""


def set_threads_for(parameters: int) -> None:
    """One thread for a small model, all for a large one, unless the user has said how many.

    Threads meet after every layer. Two on small layers save a third of the time of a quiet machine, and wait for each other
    for most of it where anything else runs; one gives the same bits on any number of processors.
    """
    every = _default_threads()  # asked before it is changed
    if not _user_chose_threads():
        torch.set_num_threads(1 if parameters < SMALL_MODEL_PARAMETERS else every)


def worker_count(wanted: int) -> int:
    """How many pieces of work, of `wanted`, to do side by side, each in a thread of its own: those that processors are left for."""
    return 1 if _user_chose_threads() else max(1, min(wanted, _default_threads() // torch.get_num_threads()))


def run_parallel(work: Sequence[Callable[[], T]]) -> list[T]:
    """What each gives, in their order, as many at once as there are lanes, small models all; the first error of any, after all have ended."""
    if len(work) > 1:
        set_threads_for(0)
    count = worker_count(len(work))
    if count < 2:
        return [each() for each in work]
    running = [_pool(count).submit(each) for each in work]
    errors = [error for error in (each.exception() for each in running) if error is not None]
    if errors:
        raise errors[0]
    return [each.result() for each in running]


@functools.cache
def _pool(count: int) -> ThreadPoolExecutor:
    """Threads that stay: what torch keeps for each is made once."""
    return ThreadPoolExecutor(count)


def _user_chose_threads() -> bool:
    return "OMP_NUM_THREADS" in os.environ or "MKL_NUM_THREADS" in os.environ


@functools.cache
def _default_threads() -> int:
    """Threads that torch takes by itself."""
    return torch.get_num_threads()


def tune_malloc() -> None:
    """Let glibc keep freed blocks: training frees and takes the same ones in every step.

    Without it half of a small model's step is spent in the kernel, mapping pages.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 256 << 20)
    except (OSError, AttributeError):
        return  # another C library: only slower


def trim_malloc() -> None:
    """Return freed blocks to the system: what preparing took would stay beside all that follows."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
