"""Merges LoRAs into one: their weighted sum, exact or reduced to a rank, and TIES and DARE through peft."""

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
    r"""Merge the LoRAs of several adapters into one: $\sum_i w_i \Delta_i$, or the TIES or DARE combination of the $\Delta_i$.

    Args:
        adapters: Tensors of adapter artifacts; an adapter without a layer (or without any LoRA) adds nothing to it.
        method: "linear", "ties" (arXiv:2306.01708), "dare" (arXiv:2311.03099) or "dare-ties".
        rank: Rank of the result, by SVD of each layer; 0: the sum of the ranks, at which a linear merge is exact, or for
            the other methods the largest rank.
        density: Fraction of each delta's entries that TIES and DARE keep. seed: Selects the entries that DARE drops.

    Returns:
        LoRA tensors of the denoiser and the text encoders, float32, with one rank for all layers (alpha = rank).
    """
    loras = [
        {k: v.float() for k, v in a.items() if k.startswith((DENOISER_PREFIX, *TEXT_ENCODER_PREFIXES))}
        for a in adapters
    ]
    is_exact = method == "linear" and not rank
    ranks = [_main_rank(lora) for lora in loras]
    merged_rank = sum(ranks) if is_exact else rank or max(ranks, default=0)
    merged: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):  # peft drops entries by the global generator
        torch.manual_seed(torch_seed(seed))
        for layer in _layer_names(loras):
            pairs = [_factors(lora, layer) for lora in loras]
            if is_exact:
                down, up = _concatenate(pairs, weights)
            else:
                layer_rank = rank or max(merged_rank, *(pair[0].shape[0] for pair in pairs if pair))
                down, up = _reduce(pairs, weights, method, layer_rank, density)
            merged[f"{layer}.lora_A.weight"] = _pad(down, merged_rank, 0)
            merged[f"{layer}.lora_B.weight"] = _pad(up, merged_rank, 1)
            bias = f"{layer}.lora_B.bias"
            if any(bias in lora for lora in loras):
                biases = [lora.get(bias, torch.zeros(up.shape[0])) for lora in loras]
                merged[bias] = _combine(biases, torch.tensor(weights, dtype=torch.float32), method, density)
    return merged


def _layer_names(loras: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """The layers of all LoRAs, sorted, with those of text encoders last."""
    names = {k.rsplit(".lora_", 1)[0] for lora in loras for k in lora}
    return sorted(names, key=lambda name: (name.startswith(TEXT_ENCODER_PREFIXES), name))


def _main_rank(lora: Mapping[str, Tensor]) -> int:
    """Return the smallest rank of a LoRA's layers, 0 without layers; full differences of imported files have larger ranks."""
    return min((v.shape[0] for k, v in lora.items() if k.endswith("lora_A.weight")), default=0)


def _factors(lora: Mapping[str, Tensor], layer: str) -> Pair | None:
    down = lora.get(f"{layer}.lora_A.weight")
    return None if down is None else (down, lora[f"{layer}.lora_B.weight"])


def _concatenate(pairs: Sequence[Pair | None], weights: Sequence[float]) -> Pair:
    """Return the exact weighted sum: the product of concatenated factors is the sum of the products."""
    present = [(pair, w) for pair, w in zip(pairs, weights, strict=True) if pair]
    return torch.cat([down for (down, _), _ in present]), torch.cat([w * up for (_, up), w in present], dim=1)


def _reduce(pairs: Sequence[Pair | None], weights: Sequence[float], method: str, rank: int, density: float) -> Pair:
    """Return the best approximation of the combined delta at a rank (Eckart-Young); both factors share the singular values."""
    like = next(pair for pair in pairs if pair)
    deltas = [_delta(pair) if pair else torch.zeros_like(_delta(like)) for pair in pairs]
    delta = _combine(deltas, torch.tensor(weights, dtype=torch.float32), method, density)
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    root = s[:rank].sqrt()
    down, up = root[:, None] * vh[:rank], u[:, :rank] * root
    return down.reshape(-1, *like[0].shape[1:]), (up[..., None, None] if like[1].ndim == 4 else up).contiguous()


def _delta(pair: Pair) -> Tensor:
    """(out, in · k · k)."""
    return pair[1].flatten(1) @ pair[0].flatten(1)


def _combine(deltas: list[Tensor], weights: Tensor, method: str, density: float) -> Tensor:
    from peft.utils import merge_utils

    if method == "ties":
        return merge_utils.ties(deltas, weights, density)
    if method == "dare":
        return merge_utils.dare_linear(deltas, weights, density)
    if method == "dare-ties":
        return merge_utils.dare_ties(deltas, weights, density)
    return merge_utils.task_arithmetic(deltas, weights)


def _pad(factor: Tensor, rank: int, dim: int) -> Tensor:
    """Fill a factor with zeros up to the rank, because peft reads one rank for all layers."""
    missing = rank - factor.shape[dim]
    if missing <= 0:
        return factor.contiguous()
    shape = list(factor.shape)
    shape[dim] = missing
    return torch.cat([factor, factor.new_zeros(shape)], dim=dim)
