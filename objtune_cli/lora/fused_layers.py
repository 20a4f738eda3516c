"""LoRA layers under the original names of a transformer, where queries, keys and values are one layer."""

from collections.abc import Callable, Mapping
from typing import Any

from objtune_cli.errors import IncompatibleError

OriginalName = tuple[str, int | str | None]
"""A layer's name in a file, and the part of its outputs, as in `FileNames.original_names`."""


def fuse_qkv(
    layers: Mapping[str, tuple[Any, Any]], original_name: Callable[[str], OriginalName | None]
) -> dict[str, tuple[Any, Any]]:
    """Rename LoRA layers, and fuse queries, keys and values: downs stacked, ups block-diagonal.

    Args:
        original_name: Our name of a layer to the name in the file; None if the files have none.

    Raises:
        IncompatibleError: A layer has no name in those files.
    """
    renamed: dict[str, tuple[Any, Any]] = {}
    thirds: dict[str, dict[int, tuple[Any, Any]]] = {}
    for layer, pair in layers.items():
        name, part = original_name(layer) or ("", "none")
        if isinstance(part, str):
            raise IncompatibleError(
                f"kohya's files have no name for the layer {layer}", "`--format diffusers` writes it"
            )
        if part is None:
            renamed[name] = pair
        else:
            thirds.setdefault(name, {})[part] = pair
    return renamed | {name: _fuse(parts) for name, parts in thirds.items()}


def _fuse(parts: Mapping[int, tuple[Any, Any]]) -> tuple[Any, Any]:
    """Down (3 r, in) and up (3 out, 3 r) of three layers fused into one; a third without a LoRA is zeros."""
    import numpy as np

    down, up = (np.asarray(side) for side in next(iter(parts.values())))
    rank, out = max(len(own_down) for own_down, _ in parts.values()), len(up)
    downs, ups = np.zeros((3 * rank, down.shape[1]), down.dtype), np.zeros((3 * out, 3 * rank), up.dtype)
    for third, (own_down, own_up) in parts.items():
        own = len(own_down)
        downs[third * rank : third * rank + own] = own_down
        ups[third * out : (third + 1) * out, third * rank : third * rank + own] = own_up
    return downs, ups
