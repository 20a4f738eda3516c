"""The optimizer of training, and its state as tensors for checkpoints."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from objtune_cli.models.memory_savings import bitsandbytes

MOMENTS = {"m": "exp_avg", "v": "exp_avg_sq"}


def build_optimizer(name: str, groups: list[dict[str, Any]], beta2: float) -> Any:
    """AdamW: PyTorch's, or with both moments in 8 bits, in blocks of 256 ("adamw8bit", arXiv:2110.02861).

    Raises:
        ResourceError: bitsandbytes is not installed.
    """
    if name == "adamw8bit":
        return bitsandbytes("train.optimizer=adamw8bit").optim.AdamW8bit(groups, betas=(0.9, beta2))
    return torch.optim.AdamW(groups, betas=(0.9, beta2), fused=True)


def pack_state(slots: Mapping[str, Any], stem: str) -> dict[str, Tensor]:
    """The optimizer state of one parameter, with names that start with `stem`; empty before its first step."""
    if not slots:
        return {}
    packed = {f"{stem}.n": torch.tensor([int(slots["step"])])}  # less than the run's where it rested
    if "exp_avg" in slots:
        return packed | {f"{stem}.{short}": slots[long].cpu() for short, long in MOMENTS.items()}
    return packed | {f"{stem}.slot.{key}": value.cpu() for key, value in slots.items() if isinstance(value, Tensor)}


def unpack_state(state: Mapping[str, Tensor], stem: str, device: torch.device) -> dict[str, Any]:
    """The inverse of `pack_state`; empty if nothing is stored."""
    if f"{stem}.n" not in state:
        return {}
    if f"{stem}.m" in state:
        step = torch.tensor(float(state[f"{stem}.n"]), device=device)  # where the fused kernel reads it
        return {"step": step, **{long: state[f"{stem}.{short}"].to(device) for short, long in MOMENTS.items()}}
    start = f"{stem}.slot."
    return {"step": int(state[f"{stem}.n"])} | {
        key.removeprefix(start): value.to(device) for key, value in state.items() if key.startswith(start)
    }
