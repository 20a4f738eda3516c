"""The optimizers of the recipe: AdamW, and Muon for matrices and convolution kernels with AdamW for the rest."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from objtune_cli.models import precision

OptimizerName = Literal["adamw", "muon"]
BETAS = (0.9, 0.99)
MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration that moves singular values towards 1 (Muon, kellerjordan.github.io/posts/muon)."""


def orthogonalize(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Approximate U V^T of a matrix U S V^T (m, n): its singular values are moved into about [0.7, 1.2].

    Args:
        dtype: Of the products; by default bf16 where the device multiplies it itself.

    Source: Muon, kellerjordan.github.io/posts/muon; a quintic Newton-Schulz iteration.
    """
    half = matrix.is_cuda or precision.processor_has_bf16()
    a, b, c = COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = (x / (x.norm() + 1e-7)).to(dtype or (torch.bfloat16 if half else torch.float32))
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    x = x.to(matrix.dtype)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.AdamW):
    """AdamW in which groups with `orthogonal` take the step lr * 0.2 * sqrt(max(m, n)) * orthogonalize(momentum).

    The factor makes the step's root mean square that of AdamW (arXiv:2502.16982, eq. 4), so that both use one
    learning rate. Kernels (out, in, k, k) are matrices (out, in k k). The momentum is in the state `exp_avg`.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of all groups; matrices lose their gradients."""
        for group in self.param_groups:
            for p in group["params"] if group.get("orthogonal") else ():
                if p.grad is not None:
                    self._step_matrix(p, p.grad, group["lr"], group["weight_decay"])
                    p.grad = None
        return super().step(closure)

    def _step_matrix(self, p: nn.Parameter, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[p]
        if not state:
            state["exp_avg"] = torch.zeros_like(p)
        momentum = state["exp_avg"].lerp_(gradient, 1 - MOMENTUM)
        update = orthogonalize(gradient.lerp(momentum, MOMENTUM).flatten(1))
        size = 0.2 * max(update.shape) ** 0.5
        p.mul_(1 - lr * weight_decay).add_(update.reshape(p.shape), alpha=-lr * size)


def build(name: OptimizerName, params: Sequence[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """The optimizer, which decays matrices and kernels, not biases and norms."""
    matrices = {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay}
    others = {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0}
    if name == "muon":
        return Muon([matrices | {"orthogonal": True}, others], lr, betas=BETAS, foreach=True)
    return torch.optim.AdamW([matrices, others], lr, betas=BETAS, foreach=True)
