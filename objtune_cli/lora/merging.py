"""Several LoRAs as one: their weighted sum, exact or to a rank, and TIES and DARE through peft. Knows tensors, no files."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from objtune_cli.lora.layers import DENOISER_PREFIX, TEXT_ENCODER_PREFIXES
from objtune_cli.numerics.ddpm import torch_seed

Pair = tuple[Tensor, Tensor]
"""Down (r, in) and up (out, r) of a linear layer; (r, in, k, k) and (out, r, 1, 1) of a convolution."""


def merge_adapters(
    adapters: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    method: str = "linear",
    rank: int = 0,
    density: float = 0.5,
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""The LoRA tensors, of denoiser and text encoders, of $\sum_i w_i \Delta_i$, or what TIES or DARE make of the $\Delta_i$, under the same names.

    Args:
        adapters: Tensors of adapter artifacts; those without LoRA add nothing, and to a layer those that do not have it.
        method: "linear", "ties" (arXiv:2306.01708), "dare" (arXiv:2311.03099) or "dare-ties".
        rank: Of the result, by SVD of each layer; 0: a sum is exact at the sum of the ranks, the others get the largest rank.
        density: Share of each delta's entries that TIES and DARE keep. seed: Of what DARE drops.

    Returns:
        float32, one rank for all layers (alpha = rank).
    """
    own = [
        {k: v.float() for k, v in a.items() if k.startswith((DENOISER_PREFIX, *TEXT_ENCODER_PREFIXES))}
        for a in adapters
    ]
    layers = sorted(
        {k.rsplit(".lora_", 1)[0] for a in own for k in a},
        key=lambda name: (name.startswith(TEXT_ENCODER_PREFIXES), name),
    )
    ranks = [
        min((v.shape[0] for k, v in a.items() if k.endswith("lora_A.weight")), default=0) for a in own
    ]  # whole differences have more
    exact = method == "linear" and not rank
    kept = sum(ranks) if exact else rank or max(ranks, default=0)
    found: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):  # peft drops entries by the global generator
        torch.manual_seed(torch_seed(seed))
        for layer in layers:
            pairs = [
                (a[f"{layer}.lora_A.weight"], a[f"{layer}.lora_B.weight"]) if f"{layer}.lora_A.weight" in a else None
                for a in own
            ]
            least = rank or max(kept, *(pair[0].shape[0] for pair in pairs if pair))
            down, up = _concatenated(pairs, weights) if exact else _reduced(pairs, weights, method, least, density)
            found[f"{layer}.lora_A.weight"] = _padded(down, kept, 0)
            found[f"{layer}.lora_B.weight"] = _padded(up, kept, 1)
            if any(f"{layer}.lora_B.bias" in a for a in own):
                biases = [a.get(f"{layer}.lora_B.bias", torch.zeros(up.shape[0])) for a in own]
                found[f"{layer}.lora_B.bias"] = _combined(
                    biases, torch.tensor(weights, dtype=torch.float32), method, density
                )
    return found


def _concatenated(pairs: Sequence[Pair | None], weights: Sequence[float]) -> Pair:
    """The sum itself: B A of concatenated factors is the sum of theirs."""
    known = [(pair, w) for pair, w in zip(pairs, weights, strict=True) if pair]
    return torch.cat([down for (down, _), _ in known]), torch.cat([w * up for (_, up), w in known], dim=1)


def _reduced(pairs: Sequence[Pair | None], weights: Sequence[float], method: str, rank: int, density: float) -> Pair:
    """The combined delta's best approximation of a rank (Eckart-Young), its singular values shared by both factors."""
    like = next(pair for pair in pairs if pair)
    deltas = [_delta(pair) if pair else torch.zeros_like(_delta(like)) for pair in pairs]
    delta = _combined(deltas, torch.tensor(weights, dtype=torch.float32), method, density)
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    root = s[:rank].sqrt()
    down, up = root[:, None] * vh[:rank], u[:, :rank] * root
    return down.unflatten(1, like[0].shape[1:]).contiguous(), (
        up[..., None, None] if like[1].ndim == 4 else up
    ).contiguous()


def _delta(pair: Pair) -> Tensor:
    """(out, in · k · k)."""
    return pair[1].flatten(1) @ pair[0].flatten(1)


def _combined(deltas: list[Tensor], weights: Tensor, method: str, density: float) -> Tensor:
    from peft.utils import merge_utils

    if method == "ties":
        return merge_utils.ties(deltas, weights, density)
    if method == "dare":
        return merge_utils.dare_linear(deltas, weights, density)
    if method == "dare-ties":
        return merge_utils.dare_ties(deltas, weights, density)
    return merge_utils.task_arithmetic(deltas, weights)


def _padded(factor: Tensor, rank: int, dim: int) -> Tensor:
    """A factor with zeros up to the rank: peft reads one rank for all layers."""
    missing = rank - factor.shape[dim]
    if missing <= 0:
        return factor.contiguous()
    shape = list(factor.shape)
    shape[dim] = missing
    return torch.cat([factor, factor.new_zeros(shape)], dim=dim)
