r"""Rectified flow: noising, the velocity target, and timestep sampling (arXiv:2403.03206).

| here | paper | meaning |
|---|---|---|
| z | x_0 | clean latent |
| eps | epsilon | standard normal noise |
| sigma | t | noise level in (0, 1], ascending over the timesteps |
| z_t | z_t | (1 - sigma) z + sigma eps |
"""

import torch
from torch import Tensor


def add_noise(z: Tensor, eps: Tensor, sigma: Tensor, t: Tensor) -> Tensor:
    """z_t = (1 - sigma_t) z + sigma_t eps; t: (B,) indices into sigma."""
    s = sigma.to(z.device)[t].to(z.dtype).view(-1, *[1] * (z.ndim - 1))
    return (1 - s) * z + s * eps


def target(z: Tensor, eps: Tensor) -> Tensor:
    """Return the velocity eps - z, which does not depend on the timestep."""
    return eps - z


def timesteps(count: int, total: int, generator: torch.Generator) -> Tensor:
    """Sample timesteps (count,), int64: logit-normal with mean 0 and deviation 1 before the schedule's shift, as for SD 3.

    Source:
        arXiv:2403.03206, section 3.1, rf/lognorm(0.00, 1.00).
    """
    u = torch.randn(count, generator=generator).sigmoid()
    return (u * total).long().clamp_max(total - 1)
