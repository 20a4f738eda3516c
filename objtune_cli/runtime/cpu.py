"""Threads and malloc settings of a run on a CPU."""

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
"""Number of parameters below which a model's layers are too small for several threads."""


def set_threads_for(parameters: int) -> None:
    """Set torch to one thread for a small model and to all for a large one, unless the user chose a number.

    Threads synchronise after every layer. On small layers, two threads save a third of the time on an idle machine, but
    mostly wait for each other on a busy one. One thread gives the same bits on any number of processors.
    """
    every = _default_threads()  # cached before the next line changes it
    if not _user_chose_threads():
        torch.set_num_threads(1 if parameters < SMALL_MODEL_PARAMETERS else every)


def worker_count(num_tasks: int) -> int:
    """Return how many of `num_tasks` tasks may run at once, each in its own thread, without oversubscribing the processors."""
    return 1 if _user_chose_threads() else max(1, min(num_tasks, _default_threads() // torch.get_num_threads()))


def run_parallel(work: Sequence[Callable[[], T]]) -> list[T]:
    """Run tasks with small models in worker threads and return their results in order.

    Raises:
        Exception: The first error of a task, after all tasks have ended.
    """
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
    """Return a pool that stays alive, because torch's per-thread state is expensive to create."""
    return ThreadPoolExecutor(count)


def _user_chose_threads() -> bool:
    return "OMP_NUM_THREADS" in os.environ or "MKL_NUM_THREADS" in os.environ


@functools.cache
def _default_threads() -> int:
    """Return torch's default number of threads."""
    return torch.get_num_threads()


def tune_malloc() -> None:
    """Make glibc keep freed blocks, because training allocates and frees the same ones in every step.

    Otherwise a small model spends half of its step in the kernel, mapping pages.
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
        return  # another C library, which is only slower


def trim_malloc() -> None:
    """Return freed blocks to the system, so that the memory of the preparation does not stay allocated."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
