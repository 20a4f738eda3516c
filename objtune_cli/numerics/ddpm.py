r"""DDPM: noising, regression targets and timestep sampling.

| here | paper | meaning |
|---|---|---|
| z | z_0 | clean latent |
| eps | epsilon | standard normal noise |
| alpha_bar | \bar\alpha_t | product of 1 - beta up to t |
| z_t | z_t | sqrt(alpha_bar) z + sqrt(1 - alpha_bar) eps |
"""

import numpy as np
import torch
from torch import Tensor


def torch_seed(seed: int) -> int:
    """Return a seed of 32 bits for torch's CPU generator, which ignores higher bits; smaller seeds stay as they are."""
    return seed if seed < 1 << 32 else int(np.random.SeedSequence(seed).generate_state(1)[0])


def seeded(seed: int) -> torch.Generator:
    """Return a CPU generator for a seed >= 0 of any size."""
    return torch.Generator().manual_seed(torch_seed(seed))


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of one training step, a function of (seed, step), so that resuming needs no random state.

    Args:
        seed, step: >= 0, of any size.
    """
    # torch reads only the low 32 bits of a seed, so both numbers are hashed into them.
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, step)).generate_state(1)[0]))


def _columns(alpha_bar: Tensor, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    columns = alpha_bar.to(like.device)[t].to(like.dtype).view(-1, *[1] * (like.ndim - 1))
    return columns.sqrt(), (1 - columns).sqrt()


def add_noise(z: Tensor, eps: Tensor, alpha_bar: Tensor, t: Tensor) -> Tensor:
    """z_t = sqrt(alpha_bar_t) z + sqrt(1 - alpha_bar_t) eps; t: (B,) indices into alpha_bar."""
    a, s = _columns(alpha_bar, t, z)
    return a * z + s * eps


def target(z: Tensor, eps: Tensor, alpha_bar: Tensor, t: Tensor, prediction: str) -> Tensor:
    """Return the regression target of the denoiser: eps, v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z, or z.

    Args:
        prediction: The scheduler's prediction type: "epsilon", "v_prediction" or "sample".

    Raises:
        ValueError: Another prediction type.
    """
    if prediction == "epsilon":
        return eps
    if prediction == "sample":
        return z
    if prediction == "v_prediction":
        a, s = _columns(alpha_bar, t, z)
        return a * eps - s * z
    raise ValueError(f"prediction type {prediction!r}")


def timesteps(
    count: int, total: int, generator: torch.Generator, focus: tuple[float, float] = (0.2, 0.8), share: float = 0.8
) -> Tensor:
    """Sample timesteps (count,), int64: a `share` of them within `focus` (fractions of `total`), the rest uniformly.

    Samples that start from a noised photo lose most of an object's identity at 0.2 to 0.8 of the timesteps. Above, the
    base decides the layout; below, the texture. No timestep has probability 0.
    """
    uniform = torch.randint(0, total, (count,), generator=generator)
    low, high = int(focus[0] * total), max(int(focus[1] * total), int(focus[0] * total) + 1)
    focused = torch.randint(low, high, (count,), generator=generator)
    return torch.where(torch.rand(count, generator=generator) < share, focused, uniform)
