"""Selects the device that models run on."""

import os

import torch

from objtune_cli.errors import ResourceError


def pick_device(name: str) -> torch.device:
    """Return the torch device of a name; "auto" selects CUDA, else MPS, else the CPU.

    Raises:
        ResourceError: It is not available, or no device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name.strip().lower())
        if device.type == "meta" or not name.strip():  # `meta` computes nothing; an empty name is torch's default
            raise NotImplementedError
        torch.empty(1, device=device)
    except Exception as error:  # every backend raises other exceptions
        full = "out of memory" in str(error).lower()
        reason = "its memory is full" if full else "torch finds no such device on this machine"
        raise ResourceError(f"device {name[:40]} is not available: {reason}", _devices_here()) from None
    return device


def _devices_here() -> str:
    """Return a hint with the available devices, and why a GPU may be missing among them."""
    devices = [
        "cpu",
        *(f"cuda:{i}" for i in range(torch.cuda.device_count())),
        *(["mps"] if torch.backends.mps.is_available() else []),
    ]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    reason = ""
    if len(devices) == 1 and torch.version.cuda is None and torch.version.hip is None:
        reason = "; this torch is built without CUDA, https://pytorch.org has others"
    elif visible is not None:
        reason = f"; CUDA_VISIBLE_DEVICES is {visible[:40]!r}"
    return f"here: {', '.join(devices)}{reason}; `--device cpu` works everywhere"


def explain_no_gpu() -> str:
    """Return a note if CUDA_VISIBLE_DEVICES hides all GPUs from a torch that is built for them, else ""."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not visible or visible == "-1" or torch.version.cuda is None or torch.cuda.device_count():
        return ""
    return f"computes on the processor: CUDA_VISIBLE_DEVICES is {visible[:40]!r}, and there is no such GPU"
