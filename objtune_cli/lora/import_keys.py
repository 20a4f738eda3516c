"""Reads LoRA files of other tools as the tensors of an adapter: keys by the base's own layers, scale in the weights."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from objtune_cli.errors import IncompatibleError, InputError
from objtune_cli.lora import import_kinds
from objtune_cli.lora.import_factors import Pair, read_bias, read_factors, zero_factors
from objtune_cli.lora.import_source import BUNDLED_VECTORS, Source
from objtune_cli.lora.layer_names import Place, modules_of, places
from objtune_cli.models.base_model import BaseModel

ATTENTION_INPUT = re.compile(r"(?:text_model\.)?encoder\.layers\.\d+\.self_attn\.[qkv]_proj$")
"""Layers of a text encoder whose inputs have its width."""
SUPPORTED = "objtune reads LoRA of linear layers and convolutions, with or without alphas and biases; merge another kind into its base, and give that as `--base`"


def read_lora(model: BaseModel, source: Source) -> dict[str, Tensor]:
    """Read the layers of a file under an adapter's names: float32, B scaled, low ranks padded with zeros to the largest.

    Every key is read, or the file is refused; so is a file with two keys for one part of a layer. A whole difference of
    a layer becomes a LoRA of full rank.

    Raises:
        IncompatibleError: Of another kind than LoRA, or for layers that this base does not have.
        InputError: A layer is incomplete, or contains NaN or infinity.
    """
    other = import_kinds.other_kind(source.weights)
    if other:
        verb = "are" if other[0].startswith("has ") else "is"
        raise IncompatibleError(f"{source.what} {other[0]}, which {verb} not supported", SUPPORTED)
    modules = modules_of(model)
    names = places(model, modules, source.network or _guess_text_encoder(model, source))
    layers: dict[str, list[Pair]] = {}
    biases: dict[str, Tensor] = {}
    low_rank: set[str] = set()
    for stem, parts in _group_by_layer(source, names).items():
        for place in names[stem]:
            module = modules[place.own]
            layers[place.own] = read_factors(source, stem, parts, place, module)
            bias = read_bias(source, parts, place, module)
            if bias is not None:
                biases[place.own] = bias
            if "diff" not in parts:
                low_rank.add(place.own)
    for own in biases:  # a layer with a bias alone gets a product that is zero
        layers[own] = layers[own] or [zero_factors(modules[own])]
    tensors = _join_factors({own: pairs for own, pairs in layers.items() if pairs}, low_rank)
    return tensors | {f"{own}.lora_B.bias": value for own, value in biases.items()}


def _guess_text_encoder(model: BaseModel, source: Source) -> str:
    """The text encoder that layer names without a network belong to, by their width, where the base has two; "" if unknown."""
    if len(model.text_encoders) < 2:
        return ""
    for key, value in source.weights.items():
        layer, part = import_kinds.split_key(key) or ("", "")
        if part == "A" and ATTENTION_INPUT.match(layer) and value.ndim == 2:
            matching = [i for i, width in enumerate(model.widths) if width == value.shape[1]]
            return ("text_encoder", "text_encoder_2")[matching[0]] if len(matching) == 1 else ""
    return ""


def _group_by_layer(source: Source, names: Mapping[str, tuple[Place, ...]]) -> dict[str, dict[str, Tensor]]:
    """The parts of each layer, by one of its names.

    Raises:
        IncompatibleError: A layer that this base does not have. InputError: a key of no layer, or two of one part of it.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    first_name: dict[tuple[Place, ...], str] = {}
    keys: dict[tuple[str, str], str] = {}
    for key, value in source.weights.items():
        if BUNDLED_VECTORS.fullmatch(key):
            continue
        stem, part = _split_key(source, key)
        if stem not in names:
            raise _explain_unknown_layer(source, stem, part)
        stem = first_name.setdefault(names[stem], stem)
        if (stem, part) in keys and not _is_same(layers[stem][part], value):
            raise _explain_repeated_layer(source, keys[stem, part], key)
        keys[stem, part] = key
        layers.setdefault(stem, {})[part] = value
    owners: dict[str, str] = {}
    for stem in layers:
        for place in names[stem]:
            owner = owners.setdefault(place.own, stem)
            if owner != stem:  # once by itself, once as a third of a fused layer
                raise _explain_repeated_layer(source, owner, stem)
    return layers


def _split_key(source: Source, key: str) -> tuple[str, str]:
    """The layer of a key, as the file names it, and the part that it holds.

    Raises:
        IncompatibleError: A whole weight. InputError: a key of no layer.
    """
    split = import_kinds.split_key(key)
    if split:
        return split
    whole = re.fullmatch(r"(.+)\.(?:weight|bias)", key)
    if whole:
        layer = import_kinds.WRAPPERS.sub("", whole[1])
        raise IncompatibleError(
            f"{source.what} has full trained weights ({layer[:80]}) beside its LoRA layers, which are not supported",
            SUPPORTED,
        )
    raise InputError(
        f"{source.what} contains {key[:80]!r}, which is not part of a layer",
        "LoRA files of kohya's scripts, diffusers, peft and ComfyUI are read",
    )


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same to the bit."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.flatten().contiguous().view(torch.uint8), other.flatten().contiguous().view(torch.uint8))


def _explain_unknown_layer(source: Source, stem: str, part: str) -> IncompatibleError:
    """The error for a layer that the base does not have."""
    if part in ("diff", "diff_bias"):
        norm = re.search(r"norm\d*$|ln_\w+$|_layers[._]0$|(?:^|[._])out[._]0$", stem)
        where = "norms" if norm else "what is no linear layer or convolution of this base"
        return IncompatibleError(
            f"{source.what} has full differences of {where} ({stem}), which are not supported", SUPPORTED
        )
    if re.match(r"lora_te3_|text_encoder_3\.|(?:text_encoders\.)?t5", stem):
        return IncompatibleError(
            f"{source.what} has layers of T5 ({stem}), which are not supported", "give a LoRA without them"
        )
    return IncompatibleError(f"{source.what} is for another base: no layer {stem} here", source.hint())


def _explain_repeated_layer(source: Source, first: str, second: str) -> InputError:
    """The error for two keys that hold the same layer."""
    return InputError(
        f"{source.what} contains one layer twice: {first[:80]} and {second[:80]}",
        "it was merged from two files; use one of them",
    )


def _join_factors(layers: Mapping[str, list[Pair]], low: set[str]) -> dict[str, Tensor]:
    """Join the factors of each layer under an adapter's names; those of low rank get zeros up to the largest rank among them."""
    tensors: dict[str, Tensor] = {}
    joined = {
        own: (torch.cat([down for down, _ in pairs]), torch.cat([up for _, up in pairs], dim=1))
        for own, pairs in layers.items()
    }
    rank = max((len(joined[own][0]) for own in low if own in joined), default=0)
    for own in sorted(joined):
        down, up = joined[own]
        tensors[f"{own}.lora_A.weight"], tensors[f"{own}.lora_B.weight"] = pad(down, rank, 0), pad(up, rank, 1)
    return tensors


def pad(factor: Tensor, rank: int, dim: int) -> Tensor:
    """Pad one dimension of a factor with zeros to a rank."""
    missing = rank - factor.shape[dim]
    if missing <= 0:
        return factor.contiguous()
    shape = list(factor.shape)
    shape[dim] = missing
    return torch.cat([factor, factor.new_zeros(shape)], dim=dim).contiguous()
