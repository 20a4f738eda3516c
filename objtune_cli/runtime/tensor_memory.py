"""Counts the bytes of live tensors as a GPU's allocator does: each storage once, in blocks of 512 bytes, until it is freed.

Not counted: scratch memory inside a kernel, a GPU's context, freed blocks that an allocator caches.
"""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

BLOCK = 512
"""Block size of CUDA's caching allocator, bytes."""
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention_for_cpu_backward")  # fmt: skip
"""Operations that return zeros if `multiply` is off."""


class LiveTensorCounter(TorchDispatchMode):
    """A context that counts every storage from the first operation that reads or makes it.

    Args:
        multiply: Whether matrix products are computed. Otherwise their results are zeros, which is many times faster on a
            CPU; memory does not depend on the values.

    Attributes:
        live_bytes: Bytes of live storages. peak: Their maximum since `reset_peak`.
        attention: Names of the fused attention kernels that ran.
    """

    def __init__(self, *, multiply: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's constructor has no types
        self.multiply = multiply
        self.live_bytes = self.peak = 0
        self.attention: set[str] = set()
        self._known: dict[int, weakref.ref[Any]] = {}

    def add(self, tensors: Iterable[Tensor]) -> int:
        """Count existing tensors, and return the bytes that they add."""
        before = self.live_bytes
        for tensor in tensors:
            self._count(tensor)
        return self.live_bytes - before

    def reset_peak(self) -> None:
        """Restart the peak."""
        self.peak = self.live_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        empty = not self.multiply and name in PRODUCTS
        out = _zeros(func, args, kwargs or {}) if empty else func(*args, **(kwargs or {}))
        if "scaled_dot_product" in name and not name.endswith("backward"):
            self.attention.add(name)
        self.add(_tensors((args, kwargs, out)))
        return out

    def _count(self, tensor: Tensor) -> None:
        if tensor.layout is not torch.strided:
            return
        storage = tensor.untyped_storage()
        key = id(storage)  # the same object as long as the storage lives
        if key in self._known or not storage.nbytes():
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK

        def freed(_: object) -> None:
            del self._known[key]
            self.live_bytes -= size

        self._known[key] = weakref.ref(storage, freed)
        self.live_bytes += size
        self.peak = max(self.peak, self.live_bytes)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in an operation's arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _zeros(func: Any, args: Any, kwargs: Any) -> Any:
    """Return zeros with the shape and layout of an operation's result."""

    def shape(x: Any) -> Any:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta") if isinstance(x, Tensor) else x

    device = next(_tensors((args, kwargs))).device
    out = func(*tree_map(shape, args), **tree_map(shape, kwargs))
    return tree_map(
        lambda x: (
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device).zero_()
            if isinstance(x, Tensor)
            else x
        ),
        out,
    )


def module_tensors(*modules: nn.Module | None) -> list[Tensor]:
    """Return the parameters and buffers of modules."""
    return [t for m in modules if m is not None for t in (*m.parameters(), *m.buffers())]
