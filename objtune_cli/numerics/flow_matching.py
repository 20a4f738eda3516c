r"""Rectified flow: noising, the velocity that is regressed, and the noise levels that training looks at (arXiv:2403.03206).

| here | paper | meaning |
|---|---|---|
| z | x_0 | clean latent |
| eps | epsilon | standard normal noise |
| sigma | t | share of noise, from above 0 to 1, by level, rising |
| z_t | z_t | (1 - sigma) z + sigma eps |
"""

import torch
from torch import Tensor


def add_noise(z: Tensor, eps: Tensor, sigma: Tensor, t: Tensor) -> Tensor:
    """z_t = (1 - sigma_t) z + sigma_t eps; t: (B,) indices into sigma."""
    s = sigma.to(z.device)[t].to(z.dtype).view(-1, *[1] * (z.ndim - 1))
    return (1 - s) * z + s * eps


def target(z: Tensor, eps: Tensor) -> Tensor:
    """The velocity eps - z, the same at every level."""
    return eps - z


def timesteps(count: int, total: int, generator: torch.Generator) -> Tensor:
    """Noise levels (count,), int64, logit-normal with mean 0 and deviation 1 before the schedule's shift, as SD 3 was trained.

    Source:
        arXiv:2403.03206, section 3.1, rf/lognorm(0.00, 1.00).
    """
    u = torch.randn(count, generator=generator).sigmoid()
    return (u * total).long().clamp_max(total - 1)
