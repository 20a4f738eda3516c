"""LoRA and embedding files of other tools as the tensors of an adapter: names by the base's own layers, alpha in the weights."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from objtune_cli.errors import IncompatibleError, InputError
from objtune_cli.families import FAMILIES
from objtune_cli.families.interface import first_name
from objtune_cli.models.stack import Stack
from objtune_cli.models.tokens import side_by_side

SIDES = (
    (re.compile(r"(.+)\.lora_(?:A|down)(?:\.default)?\.weight"), "A"), (re.compile(r"(.+)\.lora_(?:B|up)(?:\.default)?\.weight"), "B"),
    (re.compile(r"(.+)\.(?:lora|lora_linear_layer)\.down\.weight"), "A"), (re.compile(r"(.+)\.(?:lora|lora_linear_layer)\.up\.weight"), "B"),
    (re.compile(r"(.+)_lora\.down\.weight"), "A"), (re.compile(r"(.+)_lora\.up\.weight"), "B"), (re.compile(r"(.+)\.alpha"), "alpha"),
)  # fmt: skip
"""Ends of keys, of kohya's, peft's and two older forms of diffusers', and which part of a layer each is."""
OTHER_KINDS = {
    "hada_w1": "LoHa",
    "lokr_w": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude": "DoRA",
    "lora_mid": "LoCon with Tucker factors",
    "oft_": "OFT",
}
WIDTHS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""Widths of the condition that cross-attention of the real models reads."""
BUNDLED = re.compile(r"bundle_emb\.(.+?)\.(string_to_param\.\*|clip_l|clip_g)")
ALONE = ("string_to_param.*", "emb_params")
MAX_ROWS = 64


def is_lora(weights: Mapping[str, Tensor]) -> bool:
    """Whether a file holds layers, of whatever kind."""
    return any(part(key) or any(mark in key for mark in OTHER_KINDS) for key in weights)


def part(key: str) -> tuple[str, str] | None:
    """The layer that a key names, and "A", "B" or "alpha"."""
    for form, side in SIDES:
        match = form.fullmatch(key)
        if match:
            return match[1].replace(".processor.", "."), side
    return None


def lora(stack: Stack, weights: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """The layers of a file under an adapter's names, float32, alpha multiplied into B, one rank for all (zeros where it was less).

    Raises:
        IncompatibleError: Of another kind than LoRA, or for layers that this base does not have.
        InputError: A layer is not whole, or not a number.
    """
    for mark, kind in OTHER_KINDS.items():
        if any(mark in key for key in weights):
            raise IncompatibleError(
                f"{what} is a {kind}, which is not read here", "LoRA is: of linear layers and convolutions, with or without alpha"
            )
    known = dict(_names(stack))
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in stack.family.unfused(weights).items():
        named = part(key)
        if named is None:
            if BUNDLED.fullmatch(key):
                continue
            raise InputError(f"{what} holds {key[:80]!r}, which is of no layer", "a LoRA file of kohya's scripts or of diffusers is read")
        if named[0] not in known:
            raise IncompatibleError(f"{what} is for another base: no layer {named[0]} here", _hint(weights))
        layers.setdefault(known[named[0]], {})[named[1]] = value.float()
    found: dict[str, Tensor] = {}
    rank = max((parts["A"].shape[0] for parts in layers.values() if "A" in parts), default=0)
    for name, parts in sorted(layers.items()):
        down, up = _layer(stack, name, parts, what, weights)
        found[f"{name}.lora_A.weight"], found[f"{name}.lora_B.weight"] = _padded(down, rank, 0), _padded(up, rank, 1)
    return found


def _names(stack: Stack) -> Iterator[tuple[str, str]]:
    """Every name that files have for a layer of this base, with the adapter's own."""
    for layer, module in stack.unet.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            own = f"unet.{layer}"
            yield from (
                (name, own)
                for name in (own, f"{stack.family.denoiser}.{layer}", layer, own.removesuffix(".0"), "lora_unet_" + layer.replace(".", "_"))
            )
            try:
                yield "lora_unet_" + first_name(layer).replace(".", "_"), own
            except (KeyError, ValueError, IndexError):
                continue
    for i, encoder in enumerate(stack.text_encoders):
        prefix, short = ("text_encoder.", ("lora_te_", "lora_te1_")) if i == 0 else ("text_encoder_2.", ("lora_te2_",))
        for layer, module in encoder.named_modules():
            if isinstance(module, torch.nn.Linear):
                bare = layer.removeprefix("text_model.")
                own = f"{prefix}text_model.{bare}"
                yield from ((name, own) for name in (own, prefix + bare, *(f"{s}text_model_{bare.replace('.', '_')}" for s in short)))


def module_of(stack: Stack, name: str) -> Any:
    """The layer of an adapter's name in this base; None: there is none."""
    prefix, _, layer = name.partition(".")
    part_of = {"unet": stack.unet, "text_encoder": stack.text_encoder, "text_encoder_2": stack.text_encoder_2}[prefix]
    if part_of is None:
        return None
    modules = dict(part_of.named_modules())
    return modules.get(layer) or modules.get(layer.removeprefix("text_model."))


def _layer(stack: Stack, name: str, parts: Mapping[str, Tensor], what: str, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A (r, in, …) and B (out, r, …) of one layer, checked against the base's and scaled."""
    if "A" not in parts or "B" not in parts:
        raise InputError(f"{what} has half of the layer {name}", "the file is cut off or was put together by hand; get it again")
    down, up = parts["A"], parts["B"]
    module = module_of(stack, name)
    assert module is not None  # names are the base's own
    shape = tuple(module.weight.shape)
    if down.ndim == 4 and len(shape) == 2:  # 1 x 1 convolutions of old bases are linear layers in newer ones
        down, up = down.flatten(1), up.flatten(1)
    if down.ndim == 2 and len(shape) == 4:
        down, up = down[..., None, None], up[..., None, None]
    rank = down.shape[0]
    if up.shape[1] != rank or up.shape[0] != shape[0] or down.shape[1:] != shape[1:]:
        raise IncompatibleError(f"{what} is for another base: {name} has other sizes here", _hint(weights))
    if not bool(torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise InputError(f"{what} holds values that are no numbers", "the training that wrote it had diverged")
    return down, up * (float(parts["alpha"]) / rank if "alpha" in parts else 1.0)


def _padded(factor: Tensor, rank: int, dim: int) -> Tensor:
    missing = rank - factor.shape[dim]
    shape = list(factor.shape)
    shape[dim] = missing
    return torch.cat([factor, factor.new_zeros(shape)], dim=dim).contiguous() if missing else factor.contiguous()


def _hint(weights: Mapping[str, Tensor]) -> str:
    """Which family a file looks like one of."""
    widths = {
        v.shape[1] for k, v in weights.items() if ("attn2_to_k" in k or "attn2.to_k" in k) and v.ndim >= 2 and v.shape[0] < v.shape[1]
    }
    like = next(
        (WIDTHS[w] for w in widths if w in WIDTHS),
        "sdxl" if any("lora_te2_" in k or k.startswith("text_encoder_2.") for k in weights) else "",
    )
    family = next((f for f in FAMILIES if f.name == like), None)
    return (
        f"it looks like one of {family.title}: `--base {next(iter(family.hub))}`"
        if family
        else "`--base` names the base that it was made on"
    )


def rows(stack: Stack, weights: Mapping[str, Tensor], what: str) -> Tensor | None:
    """The vectors of an embedding file, or of one inside a LoRA file, those of several text encoders side by side; None: there are none.

    Raises:
        IncompatibleError: For another family. InputError: Several tokens, or no vectors at all.
    """
    bundled: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        match = BUNDLED.fullmatch(key)
        if match:
            bundled.setdefault(match[1], {})[match[2]] = value
    if len(bundled) > 1:
        raise InputError(f"{what} holds the words {', '.join(sorted(bundled))}", "import a file of one word")
    if not bundled and is_lora(weights):
        return None
    named = next(iter(bundled.values())) if bundled else dict(weights)
    wanted = stack.family.embedding_keys
    if wanted and set(named) >= set(wanted):
        parts = [named[key] for key in wanted]
    elif not wanted and len(named) == 1:
        parts = list(named.values())
    elif not wanted and any(key in named for key in ALONE):
        parts = [next(named[key] for key in ALONE if key in named)]
    else:
        need = f"the keys {' and '.join(wanted)}" if wanted else "one key"
        raise IncompatibleError(
            f"{what} is no embedding for {stack.family.title}: it has {', '.join(sorted(named)[:3])}", f"one for this base has {need}"
        )
    found = [p.float()[None] if p.ndim == 1 else p.float() for p in parts]
    if any(p.ndim != 2 or not 1 <= len(p) <= MAX_ROWS or len(p) != len(found[0]) for p in found):
        raise InputError(
            f"{what} holds no vectors of a token: {', '.join(str(tuple(p.shape)) for p in found)}", "a token has 1 to 64 vectors"
        )
    if not all(bool(torch.isfinite(p).all()) for p in found):
        raise InputError(f"{what} holds values that are no numbers", "the training that wrote it had diverged")
    return side_by_side(found)
