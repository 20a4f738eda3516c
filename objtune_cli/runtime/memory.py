"""Available and peak memory of this process, on a GPU or a CPU."""

import contextlib
import gc
from pathlib import Path

import torch

MB = 2**20


def empty_cache(device: str) -> None:
    """Free a GPU's cached blocks, after a garbage collection: a reference cycle may still hold a former base model."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def reset_peak(device: str) -> None:
    """Restart the peak of `peak_mb`; systems without that ability keep the peak of the whole process."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: str) -> float:
    """Return the peak memory since `reset_peak`, MB; 0 if the system does not report it."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / MB
    return _read_mb("/proc/self/status", "VmHWM:")


def available_mb(device: str) -> float:
    """Return the memory that this process can use, including what it uses already, MB; 0 if the system does not report it."""
    if device == "cuda":
        return (torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()) / MB
    available, own = _read_mb("/proc/meminfo", "MemAvailable:"), _read_mb("/proc/self/status", "VmRSS:")
    return available + own if available else 0.0


def _read_mb(path: str, what: str) -> float:
    """Return the value of a line in a /proc file, MB; 0 without it."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(what)), 0.0)
