"""The tensors of one layer in a LoRA file of another tool as factors of the base's layer: sizes, scale, biases, fused layers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from objtune_cli.errors import IncompatibleError, InputError
from objtune_cli.lora.import_source import FLOAT_TYPES, GET_AGAIN, LARGEST_NUMBER, Source
from objtune_cli.lora.layer_names import Place

Pair = tuple[Tensor, Tensor]
"""A (r, in, …) and B (out, r, …)."""


def read_factors(source: Source, stem: str, parts: Mapping[str, Tensor], place: Place, module: Any) -> list[Pair]:
    """Read pairs A (r, in, …) and B (out, r, …) whose products sum to a layer's change of weights.

    Args:
        stem: The layer's name in the file. parts: Its tensors. place, module: The layer of the base.

    Raises:
        InputError: The layer is incomplete, quantised, or contains NaN or infinity. IncompatibleError: the base's layer has another size.
    """
    for part, value in parts.items():
        if part != "alpha" and value.dtype not in FLOAT_TYPES:
            kind = str(value.dtype).removeprefix("torch.")
            raise InputError(
                f"{source.what} contains {kind} numbers in {stem}, which need scales that the file lacks",
                "it is quantised; give it in fp32, fp16 or bf16",
            )
    pairs = []
    if parts.keys() - {"alpha", "diff", "diff_bias"} or parts.keys() == {"alpha"}:
        pairs.append(_read_low_rank(source, parts, place, module))
    if "diff" in parts:
        pairs.append(_read_difference(source, parts["diff"], place, module))
    return [pair for pair in pairs if len(pair[0])]


def read_bias(source: Source, parts: Mapping[str, Tensor], place: Place, module: Any) -> Tensor | None:
    """Read the change of a layer's bias (out,): peft's, which has the layer's scale, and the difference of ComfyUI and LyCORIS.

    Returns:
        None where nothing changes.

    Raises:
        IncompatibleError: The base's layer has no bias, or one of another size.
    """
    if "diff_bias" in parts and module.bias is None and bool(parts["diff_bias"].any()):
        raise IncompatibleError(
            f"{source.what} has a difference of the bias of {place.own}, which has none in this base", source.hint()
        )
    scale = _read_scale(source, place.own, parts, parts["A"].shape[0]) if "lora_bias" in parts else 1.0
    scaled = [(parts[part].float(), by) for part, by in (("lora_bias", scale), ("diff_bias", 1.0)) if part in parts]
    rows = module.weight.shape[0]
    values = [_select_outputs(value, place.part, rows) * by for value, by in scaled if value.ndim == 1]
    if len(values) < len(scaled) or any(len(value) != rows for value in values):
        raise IncompatibleError(
            f"{source.what} is for another base: the bias of {place.own} has another size here", source.hint()
        )
    if not values:
        return None
    total = sum(values[1:], values[0])
    _check_numbers(source, place.own, total, total, scaled=True)
    return total if bool(total.any()) else None


def zero_factors(module: Any) -> Pair:
    """Factors of rank 1 whose product is zero."""
    out, *rest = module.weight.shape
    return torch.zeros(1, *rest), torch.zeros(out, 1, *(1 for _ in rest[1:]))


def _read_low_rank(source: Source, parts: Mapping[str, Tensor], place: Place, module: Any) -> Pair:
    """Read a layer's factors, B scaled; of a fused layer its own outputs, without the ranks that are zero in them."""
    own = place.own
    if "A" not in parts or "B" not in parts:
        raise InputError(
            f"{source.what} has only half of the layer {own}",
            "the file is incomplete; download it again",
        )
    down, up = parts["A"].float(), parts["B"].float()
    shape = tuple(module.weight.shape)
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or not down.numel() or not up.numel():
        raise InputError(
            f"{source.what} has LoRA factors of a wrong shape: {own} {tuple(down.shape)}, {tuple(up.shape)}", GET_AGAIN
        )
    if "mid" in parts:
        down = _multiply_middle(source, own, down, parts["mid"].float())
    down, up = _match_dimensions(down, shape), _match_dimensions(up, shape)
    rank, kernel = down.shape[0], (1,) * (len(shape) - 2)
    scale = _read_scale(source, own, parts, rank)
    rows = up.shape[0]
    up = _select_outputs(up, place.part, shape[0])
    if tuple(up.shape) != (shape[0], rank, *kernel) or tuple(down.shape[1:]) != shape[1:]:
        raise IncompatibleError(f"{source.what} is for another base: {own} has other sizes here", source.hint())
    _check_numbers(source, own, down, up)
    up = up * scale
    _check_numbers(source, own, down, up, scaled=True)
    if rows != shape[0]:
        used = up.flatten(1).any(dim=0)
        down, up = down[used], up[:, used]
    return down, up


def _match_dimensions(factor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Add or remove the kernel's dimensions: 1 x 1 convolutions of old bases are linear layers in newer ones, and the other way round."""
    if factor.ndim == 4 and len(shape) == 2:
        return factor.flatten(1) if factor.shape[2:] == (1, 1) else factor
    return factor[..., None, None] if factor.ndim == 2 and len(shape) == 4 else factor


def _multiply_middle(source: Source, own: str, down: Tensor, mid: Tensor) -> Tensor:
    """Multiply the middle factor of a Tucker decomposition into A: (r, q) and (r, r, k, k) to (r, q, k, k)."""
    if mid.ndim != 4 or tuple(mid.shape[:2]) != (len(down), len(down)) or down.flatten(1).shape[1] != down.shape[1]:
        raise InputError(f"{source.what} has factors of different sizes in {own}", GET_AGAIN)
    return torch.einsum("prhw,rq->pqhw", mid, down.flatten(1))


def _select_outputs(up: Tensor, part: int | str | None, rows: int) -> Tensor:
    """Select the outputs of a fused layer that belong to one layer of the base."""
    if part == "swapped" and up.shape[0] % 2 == 0:
        return torch.cat(up.chunk(2)[::-1])
    if isinstance(part, int) and up.shape[0] == 3 * rows:
        return up[part * rows : (part + 1) * rows]
    return up


def _read_scale(source: Source, own: str, parts: Mapping[str, Tensor], rank: int) -> float:
    """The factor of B A: alpha over the rank, or the one of the settings beside the weights; without either 1.

    Raises:
        InputError: Alpha is no number, or the two differ.
    """
    network, _, layer = own.partition(".")
    network = "transformer" if network == "unet" and "transformer" in source.strengths else network
    strength = source.strengths.get(network, source.strengths.get(""))
    from_settings = (
        strength.of((layer, layer.removeprefix("text_model."), own), rank, source.what) if strength else None
    )
    if "alpha" not in parts:
        return 1.0 if from_settings is None else from_settings
    if parts["alpha"].numel() != 1 or parts["alpha"].is_complex():
        raise InputError(f"{source.what} contains {parts['alpha'].numel()} numbers as the alpha of {own}", GET_AGAIN)
    alpha = float(parts["alpha"]) / rank
    if not abs(alpha) < LARGEST_NUMBER:
        raise InputError(
            f"{source.what} has NaN or infinite values in the alpha of {own}",
            "the training that wrote it had diverged",
        )
    if from_settings is not None and abs(from_settings - alpha) > 1e-6 * max(abs(from_settings), abs(alpha)):
        raise InputError(
            f"{source.what} has two strengths of {own}: {alpha:g} by its alpha, {from_settings:g} by its settings",
            GET_AGAIN,
        )
    return alpha


def _read_difference(source: Source, diff: Tensor, place: Place, module: Any) -> Pair:
    """Read a whole difference of weights as two factors, one of them the identity on the shorter side."""
    own = place.own
    shape = tuple(module.weight.shape)
    delta = _select_outputs(
        _match_dimensions(diff.float(), shape) if diff.ndim in (2, 4) else diff.float(), place.part, shape[0]
    )
    if tuple(delta.shape) != shape:
        raise IncompatibleError(f"{source.what} is for another base: {own} has other sizes here", source.hint())
    _check_numbers(source, own, delta, delta)
    if len(shape) == 2 and shape[1] < shape[0]:
        return torch.eye(shape[1]), delta
    return delta, torch.eye(shape[0]).view(shape[0], shape[0], *((1,) * (len(shape) - 2)))


def _check_numbers(source: Source, own: str, down: Tensor, up: Tensor, *, scaled: bool = False) -> None:
    """Refuse factors with NaN or infinity, and scaled ones that overflow fp16.

    Raises:
        InputError: They have such values.
    """
    for factor in (down, up):
        if not bool(torch.isfinite(factor).all()):
            raise InputError(
                f"{source.what} has NaN or infinite values in {own}", "the training that wrote it had diverged"
            )
        if scaled and factor.numel() and float(factor.abs().max()) > LARGEST_NUMBER:
            raise InputError(
                f"{source.what} contains numbers too large to compute with, in {own}",
                "the training that wrote it had diverged, or its alpha is wrong",
            )
