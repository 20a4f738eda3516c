"""Exponential moving average (EMA) of the weights: single steps at a full learning rate vary too much."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


class WeightAverage:
    """Exponential mean of parameters, mean <- d mean + (1 - d) p, with d = min(decay, (1 + n) / (10 + n)) at step n."""

    def __init__(self, params: list[Tensor], decay: float) -> None:
        self.params, self.decay = params, decay
        self.kept = [p.detach().clone() for p in params]

    @torch.no_grad()
    def update(self, step: int) -> None:
        d = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.kept, [p.detach() for p in self.params], 1 - d)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the parameters are their running means; afterwards they are restored."""
        own = [p.detach().clone() for p in self.params]
        copy_values(self.params, self.kept)
        try:
            yield
        finally:
            copy_values(self.params, own)


@torch.no_grad()
def copy_values(params: list[Tensor], values: list[Tensor]) -> None:
    """Set parameters to values."""
    for p, value in zip(params, values, strict=True):
        p.copy_(value)
