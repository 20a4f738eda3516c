"""Layers of SD 3's transformer as its first repository and kohya's files have them: queries, keys and values of a block in one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from objtune_cli.errors import IncompatibleError

if TYPE_CHECKING:
    from torch import Tensor

STEM = "lora_unet_joint_blocks_"
KOHYA: dict[str, tuple[str, int | None]] = {
    "attn.to_q": ("x_block.attn.qkv", 0), "attn.to_k": ("x_block.attn.qkv", 1), "attn.to_v": ("x_block.attn.qkv", 2),
    "attn.to_out.0": ("x_block.attn.proj", None), "attn.add_q_proj": ("context_block.attn.qkv", 0),
    "attn.add_k_proj": ("context_block.attn.qkv", 1), "attn.add_v_proj": ("context_block.attn.qkv", 2),
    "attn.to_add_out": ("context_block.attn.proj", None), "attn2.to_q": ("x_block.attn2.qkv", 0), "attn2.to_k": ("x_block.attn2.qkv", 1),
    "attn2.to_v": ("x_block.attn2.qkv", 2), "attn2.to_out.0": ("x_block.attn2.proj", None), "ff.net.0.proj": ("x_block.mlp.fc1", None),
    "ff.net.2": ("x_block.mlp.fc2", None), "ff_context.net.0.proj": ("context_block.mlp.fc1", None),
    "ff_context.net.2": ("context_block.mlp.fc2", None),
}  # fmt: skip
"""Layers of a block as the model's first repository calls them, and which third of queries, keys and values in one they are."""


def fused(layers: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """As in the model's first repository, queries, keys and values in one layer: their downs stacked, their ups side by side, zeros elsewhere.

    Raises:
        IncompatibleError: A layer that those files have no name for.
    """
    found: dict[str, tuple[Any, Any]] = {}
    thirds: dict[str, dict[int, tuple[Any, Any]]] = {}
    for name, pair in layers.items():
        block, _, layer = name.removeprefix("transformer_blocks.").partition(".")
        if layer not in KOHYA:
            raise IncompatibleError(f"kohya's files have no name for the layer {name}", "`--format diffusers` writes it")
        last, third = KOHYA[layer]
        called = f"joint_blocks.{block}.{last}"
        if third is None:
            found[called] = pair
        else:
            thirds.setdefault(called, {})[third] = pair
    return found | {called: _fused(parts) for called, parts in thirds.items()}


def unfused(weights: "Mapping[str, Tensor]") -> "Mapping[str, Tensor]":
    """Kohya's layers by diffusers' names, queries, keys and values each with the ranks that are not zero in it."""
    found, groups = dict(weights), dict[str, dict[str, Any]]()
    for key, value in weights.items():
        stem, _, side = key.partition(".")
        if stem.startswith(STEM):
            groups.setdefault(stem, {})[side] = value
    for stem, sides in groups.items():
        block, _, last = stem.removeprefix(STEM).partition("_")
        layers = [(layer, third) for layer, (name, third) in KOHYA.items() if name.replace(".", "_") == last]
        if layers and _whole(sides, 1 if layers[0][1] is None else 3):
            for side in sides:
                del found[f"{stem}.{side}"]
            for layer, third in layers:
                parts = sides if third is None else _third(sides, third)
                found |= {f"unet.transformer_blocks.{block}.{layer}.{side}": value for side, value in parts.items()}
    return found


def _whole(sides: "Mapping[str, Tensor]", parts: int) -> bool:
    """Whether down and up of so many layers are there and fit; what does not is left, and refused where layers are looked up."""
    down, up = sides.get("lora_down.weight"), sides.get("lora_up.weight")
    if down is None or up is None or (down.ndim, up.ndim) != (2, 2):
        return False
    return up.shape[1] == len(down) and len(up) % parts == 0


def _third(sides: "Mapping[str, Tensor]", third: int) -> "dict[str, Tensor]":
    """One of three layers in one, without the ranks that are zero in it; nothing where all are."""
    down, up = sides["lora_down.weight"], sides["lora_up.weight"].chunk(3)[third]
    kept = up.flatten(1).any(dim=0)
    if not kept.any():
        return {}
    alpha = {"alpha": sides["alpha"] * kept.sum() / len(down)} if "alpha" in sides else {}
    return {"lora_down.weight": down[kept], "lora_up.weight": up[:, kept], **alpha}


def _fused(parts: Mapping[int, tuple[Any, Any]]) -> tuple[Any, Any]:
    """Down (3 r, in) and up (3 out, 3 r) of three layers in one; a third that did not learn is zeros."""
    import numpy as np

    down, up = (np.asarray(side) for side in next(iter(parts.values())))
    (rank, _), (out, _) = down.shape, up.shape
    downs, ups = np.zeros((3 * rank, down.shape[1]), down.dtype), np.zeros((3 * out, 3 * rank), up.dtype)
    for third, (own_down, own_up) in parts.items():
        downs[third * rank : (third + 1) * rank] = own_down
        ups[third * out : (third + 1) * out, third * rank : (third + 1) * rank] = own_up
    return downs, ups
