"""How much memory a process has and takes, on a GPU or a CPU."""

import contextlib
import gc
from pathlib import Path

import torch

MB = 2**20


def empty_cache(device: str) -> None:
    """Give a GPU back what no longer lives, rings of references included: a base that was left may still be held by one."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def reset_peak(device: str) -> None:
    """Begin to watch memory anew; on systems that cannot, the peak of the whole process stays."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb(device: str) -> float:
    """Largest memory since `reset_peak`, MB; 0 where the system hides it."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / MB
    return _read_mb("/proc/self/status", "VmHWM:")


def available_mb(device: str) -> float:
    """Memory that this process may have, what it holds included, MB: a GPU's, else what the system says is available; 0 where it does not say."""
    if device == "cuda":
        return (torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()) / MB
    available, own = _read_mb("/proc/meminfo", "MemAvailable:"), _read_mb("/proc/self/status", "VmRSS:")
    return available + own if available else 0.0


def _read_mb(path: str, what: str) -> float:
    """A line of a file of the system's, MB; 0 where it is not there."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(what)), 0.0)
