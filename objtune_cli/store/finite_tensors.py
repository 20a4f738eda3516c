"""Finds NaN and infinity in a published file."""

import math
from collections.abc import Mapping
from typing import Any

from objtune_cli.store import artifacts
from objtune_cli.store.backend import Backend, Local
from objtune_cli.store.safetensors_format import TensorSpec


def find_bad(backend: Backend, key: str, layout: Mapping[str, tuple[TensorSpec, int]]) -> str:
    """Find a tensor that contains NaN or infinity; its name, or "".

    Tensors are mapped to memory from a local file, because an adapter may be larger than the memory that is free.

    Args:
        layout: Name to spec and offset, as `read_header` returns them.
    """
    for name, ((element, shape), offset) in layout.items():
        if element in artifacts.FLOAT_TYPES and 0 not in shape:
            array = _map_tensor(backend, key, artifacts.ARRAY_TYPES[element], offset, shape)
            if not artifacts.is_finite(element, array):
                return name
    return ""


def _map_tensor(backend: Backend, key: str, array_type: str, offset: int, shape: tuple[int, ...]) -> Any:
    import numpy as np

    if isinstance(backend, Local):
        return np.memmap(backend.path(key), array_type, "r", offset, shape)
    size = math.prod(shape) * np.dtype(array_type).itemsize
    return np.frombuffer(backend.read(key, offset, size), array_type).reshape(shape)
