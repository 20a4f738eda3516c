"""LoRA files of other tools as the tensors of an adapter: names by the base's own layers, strength in the weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from objtune_cli.errors import IncompatibleError, InputError
from objtune_cli.lora import import_kinds
from objtune_cli.lora.import_scale import Strength
from objtune_cli.lora.layer_names import Place, modules_of, places
from objtune_cli.models.base_model import BaseModel

Pair = tuple[Tensor, Tensor]
"""A (r, in, …) and B (out, r, …)."""
LARGEST = 65504.0
"""The largest number of fp16, in which other tools compute: what is larger becomes infinite there."""
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
BUNDLED = re.compile(r"bundle_emb\.(.+?)\.(string_to_param\..+|clip_l|clip_g|clip_h|t5|t5xxl)")
"""Vectors of a token inside a LoRA file."""
AGAIN = "get the file again"
HELD = "LoRA is read: of linear layers and convolutions, with alphas and biases or without; merge another kind into its base, and give that as `--base`"


@dataclass(frozen=True, slots=True)
class Source:
    """A file that was opened.

    Attributes:
        what: How messages call it. metadata: of its header. strengths: settings by network (`lora_strength`), "" for all of them.
        network: Which network it is of, where its place in a folder says so.
    """

    what: str
    weights: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    strengths: Mapping[str, Strength] = field(default_factory=dict)
    network: str = ""

    def hint(self) -> str:
        """Which family it looks like one of."""
        return import_kinds.family_hint({key: tuple(value.shape) for key, value in self.weights.items()}, self.metadata)


def is_lora(weights: Mapping[str, Tensor]) -> bool:
    """Whether a file holds layers, of whatever kind."""
    return import_kinds.is_lora(weights)


def lora(model: BaseModel, weights: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """`read_lora` of tensors without settings."""
    return read_lora(model, Source(what, weights))


def read_lora(model: BaseModel, source: Source) -> dict[str, Tensor]:
    """The layers of a file under an adapter's names, float32, strength multiplied into B, low ranks filled with zeros to the largest.

    Every key is read, or the file is refused: two that mean one part of a layer, too. A whole difference of a layer is a
    LoRA of full rank, which is the layer's own.

    Raises:
        IncompatibleError: Of another kind than LoRA, or for layers that this base does not have.
        InputError: A layer is not whole, or not a number.
    """
    other = import_kinds.other_kind(source.weights)
    if other:
        verb = "are" if other[0].startswith("has ") else "is"
        raise IncompatibleError(f"{source.what} {other[0]}, which {verb} not read here", HELD)
    modules = modules_of(model)
    names = places(model, modules, source.network or _bare_network(model, source))
    layers: dict[str, list[Pair]] = {}
    biases: dict[str, Tensor] = {}
    low: set[str] = set()
    for stem, parts in _grouped(source, names).items():
        for place in names[stem]:
            module = modules[place.own]
            layers[place.own] = _factors(source, stem, parts, place, module)
            bias = _bias(source, parts, place, module)
            if bias is not None:
                biases[place.own] = bias
            if "diff" not in parts:
                low.add(place.own)
    for own in biases:  # beside a bias alone stands a product that is zero
        layers[own] = layers[own] or [_nothing(modules[own])]
    found = _stored({own: pairs for own, pairs in layers.items() if pairs}, low)
    return found | {f"{own}.lora_B.bias": value for own, value in biases.items()}


def _bare_network(model: BaseModel, source: Source) -> str:
    """The text encoder that names without a network are of, by their width, where the base has two."""
    if len(model.text_encoders) < 2:
        return ""
    for key, value in source.weights.items():
        named = import_kinds.split_key(key)
        if (
            named
            and named[1] == "A"
            and re.match(r"(?:text_model\.)?encoder\.layers\.\d+\.self_attn\.[qkv]_proj$", named[0])
            and value.ndim == 2
        ):
            found = [i for i, width in enumerate(model.widths) if width == value.shape[1]]
            return ("text_encoder", "text_encoder_2")[found[0]] if len(found) == 1 else ""
    return ""


def _grouped(source: Source, names: Mapping[str, tuple[Place, ...]]) -> dict[str, dict[str, Tensor]]:
    """The parts of each layer, by one of its names.

    Raises:
        IncompatibleError: A layer that this base does not have. InputError: a key of no layer, or two of one part of it.
    """
    found: dict[str, dict[str, Tensor]] = {}
    first: dict[tuple[Place, ...], str] = {}
    keys: dict[tuple[str, str], str] = {}
    for key, value in source.weights.items():
        if BUNDLED.fullmatch(key):
            continue
        named = import_kinds.split_key(key)
        whole = re.fullmatch(r"(.+)\.(?:weight|bias)", key)
        if named is None and whole:
            where = import_kinds.WRAPPERS.sub("", whole[1])
            raise IncompatibleError(
                f"{source.what} has whole trained weights ({where[:80]}) beside its layers, which are not read here",
                HELD,
            )
        if named is None:
            raise InputError(
                f"{source.what} holds {key[:80]!r}, which is of no layer",
                "LoRA files of kohya's scripts, diffusers, peft and ComfyUI are read",
            )
        stem, part = named
        if stem not in names:
            raise _unknown(source, stem, part)
        stem = first.setdefault(names[stem], stem)
        if (stem, part) in keys and not _is_same(found[stem][part], value):
            raise InputError(
                f"{source.what} holds one layer twice: {keys[stem, part][:80]} and {key[:80]}",
                "it was put together of two files; give one of them",
            )
        keys[stem, part] = key
        found.setdefault(stem, {})[part] = value
    owners: dict[str, str] = {}
    for stem in found:
        for place in names[stem]:
            other = owners.setdefault(place.own, stem)
            if other != stem:  # once by itself, once as a third of a fused layer
                raise InputError(
                    f"{source.what} holds one layer twice: {other[:80]} and {stem[:80]}",
                    "it was put together of two files; give one of them",
                )
    return found


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same to the bit."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.flatten().contiguous().view(torch.uint8), other.flatten().contiguous().view(torch.uint8))


def _unknown(source: Source, stem: str, part: str) -> IncompatibleError:
    """Why a layer is not one of the base's."""
    if part in ("diff", "diff_bias"):
        norm = re.search(r"norm\d*$|ln_\w+$|_layers[._]0$|(?:^|[._])out[._]0$", stem)
        where = "norms" if norm else "what is no linear layer or convolution of this base"
        return IncompatibleError(
            f"{source.what} has whole differences of {where} ({stem}), which are not read here", HELD
        )
    if re.match(r"lora_te3_|text_encoder_3\.|(?:text_encoders\.)?t5", stem):
        return IncompatibleError(
            f"{source.what} has layers of T5 ({stem}), which are not read here", "give a LoRA without them"
        )
    return IncompatibleError(f"{source.what} is for another base: no layer {stem} here", source.hint())


def _factors(source: Source, stem: str, parts: Mapping[str, Tensor], place: Place, module: Any) -> list[Pair]:
    """A (r, in, …) and B (out, r, …) whose products sum to a layer's delta, checked against the base's and scaled."""
    own = place.own
    for part, value in parts.items():
        if part != "alpha" and value.dtype not in FLOATS:
            kind = str(value.dtype).removeprefix("torch.")
            raise InputError(
                f"{source.what} holds {kind} numbers in {stem}, which mean nothing alone",
                "it is quantised; give it in fp32, fp16 or bf16",
            )
    found = []
    if parts.keys() - {"alpha", "diff", "diff_bias"} or parts.keys() == {"alpha"}:
        found.append(_low_rank(source, own, parts, place, module))
    if "diff" in parts:
        found.append(_whole(source, own, parts["diff"], place, module))
    return [pair for pair in found if pair is not None and len(pair[0])]


def _bias(source: Source, parts: Mapping[str, Tensor], place: Place, module: Any) -> Tensor | None:
    """What is added to a layer's bias: peft's, which is as strong as the layer, and ComfyUI's and LyCORIS's difference; None: nothing."""
    if "diff_bias" in parts and module.bias is None and bool(parts["diff_bias"].any()):
        raise IncompatibleError(
            f"{source.what} has a difference of the bias of {place.own}, which has none in this base", source.hint()
        )
    scale = _scale(source, place.own, parts, parts["A"].shape[0]) if "lora_bias" in parts else 1.0
    found = [(parts[part].float(), by) for part, by in (("lora_bias", scale), ("diff_bias", 1.0)) if part in parts]
    rows = module.weight.shape[0]
    values = [_part(value, place.part, rows) * by for value, by in found if value.ndim == 1]
    if len(values) < len(found) or any(len(value) != rows for value in values):
        raise IncompatibleError(
            f"{source.what} is for another base: the bias of {place.own} has another size here", source.hint()
        )
    if not values:
        return None
    total = sum(values[1:], values[0])
    _check(source, place.own, total, total, scaled=True)
    return total if bool(total.any()) else None


def _nothing(module: Any) -> Pair:
    """Factors of rank 1 whose product is zero."""
    out, *rest = module.weight.shape
    return torch.zeros(1, *rest), torch.zeros(out, 1, *(1 for _ in rest[1:]))


def _low_rank(source: Source, own: str, parts: Mapping[str, Tensor], place: Place, module: Any) -> Pair:
    """One layer's factors, of a fused layer those of its part without the ranks that are zero in it."""
    if "A" not in parts or "B" not in parts:
        raise InputError(
            f"{source.what} has half of the layer {own}",
            "the file is cut off or was put together by hand; get it again",
        )
    down, up = parts["A"].float(), parts["B"].float()
    shape = tuple(module.weight.shape)
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or not down.numel() or not up.numel():
        raise InputError(
            f"{source.what} holds a layer without ranks: {own} {tuple(down.shape)}, {tuple(up.shape)}", AGAIN
        )
    if "mid" in parts:
        down = _without_mid(source, own, down, parts["mid"].float())
    down, up = _shaped(down, shape), _shaped(up, shape)
    rank, kernel = down.shape[0], (1,) * (len(shape) - 2)
    scale = _scale(source, own, parts, rank)
    rows = up.shape[0]
    up = _part(up, place.part, shape[0])
    if tuple(up.shape) != (shape[0], rank, *kernel) or tuple(down.shape[1:]) != shape[1:]:
        raise IncompatibleError(f"{source.what} is for another base: {own} has other sizes here", source.hint())
    _check(source, own, down, up)
    up = up * scale
    _check(source, own, down, up, scaled=True)
    if rows != shape[0]:
        used = up.flatten(1).any(dim=0)
        down, up = down[used], up[:, used]
    return down, up


def _shaped(factor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """1 x 1 convolutions of old bases are linear layers in newer ones, and the other way round."""
    if factor.ndim == 4 and len(shape) == 2:
        return factor.flatten(1) if factor.shape[2:] == (1, 1) else factor
    return factor[..., None, None] if factor.ndim == 2 and len(shape) == 4 else factor


def _without_mid(source: Source, own: str, down: Tensor, mid: Tensor) -> Tensor:
    """The middle factor of a Tucker decomposition multiplied into A: (r, q) and (r, r, k, k) to (r, q, k, k)."""
    if mid.ndim != 4 or tuple(mid.shape[:2]) != (len(down), len(down)) or down.flatten(1).shape[1] != down.shape[1]:
        raise InputError(f"{source.what} has factors of different sizes in {own}", AGAIN)
    return torch.einsum("prhw,rq->pqhw", mid, down.flatten(1))


def _part(up: Tensor, part: int | str | None, rows: int) -> Tensor:
    """The outputs of a fused layer that belong to one of the base's."""
    if part == "swapped" and up.shape[0] % 2 == 0:
        return torch.cat(up.chunk(2)[::-1])
    if isinstance(part, int) and up.shape[0] == 3 * rows:
        return up[part * rows : (part + 1) * rows]
    return up


def _scale(source: Source, own: str, parts: Mapping[str, Tensor], rank: int) -> float:
    """What B A is multiplied by: alpha over the rank, or what the settings beside the weights say; without either 1.

    Raises:
        InputError: Alpha is no number, or both say different things.
    """
    network, _, layer = own.partition(".")
    network = "transformer" if network == "unet" and "transformer" in source.strengths else network
    strength = source.strengths.get(network, source.strengths.get(""))
    said = strength.of((layer, layer.removeprefix("text_model."), own), rank, source.what) if strength else None
    if "alpha" not in parts:
        return 1.0 if said is None else said
    if parts["alpha"].numel() != 1 or parts["alpha"].is_complex():
        raise InputError(f"{source.what} holds {parts['alpha'].numel()} numbers as the alpha of {own}", AGAIN)
    alpha = float(parts["alpha"]) / rank
    if not abs(alpha) < LARGEST:
        raise InputError(
            f"{source.what} holds values that are no numbers: the alpha of {own}",
            "the training that wrote it had diverged",
        )
    if said is not None and abs(said - alpha) > 1e-6 * max(abs(said), abs(alpha)):
        raise InputError(
            f"{source.what} says two strengths of {own}: {alpha:g} by its alpha, {said:g} by its settings", AGAIN
        )
    return alpha


def _whole(source: Source, own: str, diff: Tensor, place: Place, module: Any) -> Pair:
    """A whole difference as two factors, one of them the identity on the shorter side."""
    shape = tuple(module.weight.shape)
    delta = _part(_shaped(diff.float(), shape) if diff.ndim in (2, 4) else diff.float(), place.part, shape[0])
    if tuple(delta.shape) != shape:
        raise IncompatibleError(f"{source.what} is for another base: {own} has other sizes here", source.hint())
    _check(source, own, delta, delta)
    if len(shape) == 2 and shape[1] < shape[0]:
        return torch.eye(shape[1]), delta
    return delta, torch.eye(shape[0]).view(shape[0], shape[0], *((1,) * (len(shape) - 2)))


def _check(source: Source, own: str, down: Tensor, up: Tensor, *, scaled: bool = False) -> None:
    for factor in (down, up):
        if not bool(torch.isfinite(factor).all()):
            raise InputError(
                f"{source.what} holds values that are no numbers, in {own}", "the training that wrote it had diverged"
            )
        if scaled and factor.numel() and float(factor.abs().max()) > LARGEST:
            raise InputError(
                f"{source.what} holds numbers too large to compute with, in {own}",
                "the training that wrote it had diverged, or its alpha is wrong",
            )


def _stored(layers: Mapping[str, list[Pair]], low: set[str]) -> dict[str, Tensor]:
    """Factors under an adapter's names: several of one layer beside each other, those of low rank filled up to the largest rank among them."""
    found: dict[str, Tensor] = {}
    joined = {
        own: (torch.cat([down for down, _ in pairs]), torch.cat([up for _, up in pairs], dim=1))
        for own, pairs in layers.items()
    }
    rank = max((len(joined[own][0]) for own in low if own in joined), default=0)
    for own in sorted(joined):
        down, up = joined[own]
        found[f"{own}.lora_A.weight"], found[f"{own}.lora_B.weight"] = pad(down, rank, 0), pad(up, rank, 1)
    return found


def pad(factor: Tensor, rank: int, dim: int) -> Tensor:
    """A factor with zeros up to a rank."""
    missing = rank - factor.shape[dim]
    if missing <= 0:
        return factor.contiguous()
    shape = list(factor.shape)
    shape[dim] = missing
    return torch.cat([factor, factor.new_zeros(shape)], dim=dim).contiguous()
