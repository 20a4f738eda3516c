"""Bytes of live tensors, counted as a GPU's allocator counts them: each storage once, in blocks of 512 bytes, until it is freed.

Knows no model. What it does not see: scratch memory inside one kernel, a GPU's context, freed blocks that an allocator keeps.
"""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

BLOCK = 512
"""What CUDA's caching allocator rounds up to, bytes."""
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention_for_cpu_backward")  # fmt: skip
"""Operations whose results are zeros of the right shape where nothing is multiplied."""


class LiveTensorCounter(TorchDispatchMode):
    """Inside, every storage that an operation reads or makes is counted from then on.

    Args:
        multiply: Whether products are computed. If not, their results are zeros: what lives depends on no number, and a processor is
            many times quicker.

    Attributes:
        now: Bytes that live. peak: the most since `forget`. attention: names of the fused attention kernels that ran.
    """

    def __init__(self, *, multiply: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's constructor has no types
        self.multiply = multiply
        self.live_bytes = self.peak = 0
        self.attention: set[str] = set()
        self._known: dict[int, weakref.ref[Any]] = {}

    def add(self, tensors: Iterable[Tensor]) -> int:
        """Count tensors that were there before; the bytes that they add."""
        before = self.live_bytes
        for tensor in tensors:
            self._count(tensor)
        return self.live_bytes - before

    def reset_peak(self) -> None:
        """Begin to watch the peak anew."""
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


def _tensors(given: Any) -> Iterator[Tensor]:
    """Those in an operation's arguments and results."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, tuple | list):
        for each in given:
            yield from _tensors(each)
    elif isinstance(given, dict):
        yield from _tensors(tuple(given.values()))


def _zeros(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operation gives, in shape and layout alone."""

    def shape(x: Any) -> Any:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta") if isinstance(x, Tensor) else x

    given = next(_tensors((args, kwargs))).device
    found = func(*tree_map(shape, args), **tree_map(shape, kwargs))
    return tree_map(
        lambda x: (
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=given).zero_()
            if isinstance(x, Tensor)
            else x
        ),
        found,
    )


def module_tensors(*modules: nn.Module | None) -> list[Tensor]:
    """What modules hold: parameters and buffers."""
    return [t for m in modules if m is not None for t in (*m.parameters(), *m.buffers())]
