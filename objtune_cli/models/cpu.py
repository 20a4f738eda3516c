"""The processor's settings: memory that is kept between steps, and threads."""

import contextlib
import ctypes
import sys


def keep_memory() -> None:
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


def give_back() -> None:
    """Return freed blocks to the system: what preparing took would stay beside all that follows."""
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
