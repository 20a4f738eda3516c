"""The denoiser's inputs about prompts: text features, and everything else that a family passes with them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """The encoded prompts of a batch of B samples.

    Every method but `pack` and `unpack` treats all fields alike. A family that passes more to its denoiser (position ids, a
    guidance scale) adds a field here, with the batch as its first dimension, and fills it in `Family.encode_prompt`.

    Attributes:
        sequence: Text features that attention reads, (B, L, d): one row per token of CLIP, then one per token of T5.
        pooled: One vector per prompt, (B, p); None if the family has none.
    """

    sequence: Tensor
    pooled: Tensor | None = None

    @classmethod
    def concat(cls, parts: "Sequence[Conditioning]") -> "Conditioning":
        """Join batches; all parts have the same fields."""
        columns = {name: [values[name] for values in map(_values, parts)] for name in _values(parts[0])}
        return cls(**{name: torch.cat(column) for name, column in columns.items()})

    def map(self, function: Callable[[Tensor], Tensor]) -> "Conditioning":
        """Apply a function to every tensor."""
        return type(self)(**{name: function(value) for name, value in _values(self).items()})

    def tensors(self) -> list[Tensor]:
        """The tensors of all fields in use."""
        return list(_values(self).values())

    def __len__(self) -> int:
        """Number of samples B."""
        return len(self.sequence)

    def __iter__(self) -> "Iterator[Conditioning]":
        """Each sample as a batch of one."""
        return iter(self.split(1))

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> "Conditioning":
        """Some of the samples; the batch dimension stays."""
        return self.map(lambda value: value[index])

    def split(self, size: int) -> "list[Conditioning]":
        """Batches of `size` samples; the last one may be smaller. Nothing is copied."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def expand(self, count: int) -> "Conditioning":
        """Repeat a single sample `count` times. Nothing is copied."""
        return self.map(lambda value: value.expand(count, *value.shape[1:]))

    def to(self, *args: Any, **kwargs: Any) -> "Conditioning":
        """Move or convert every tensor; arguments as of `Tensor.to`."""
        return self.map(lambda value: value.to(*args, **kwargs))

    def detach(self) -> "Conditioning":
        """The same values without gradients."""
        return self.map(Tensor.detach)

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.sequence.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the tensors."""
        return self.sequence.dtype

    def with_tokens(self, other: "Conditioning", tokens: Tensor) -> "Conditioning":
        """The same with the rows of `other` where `tokens` (L,) is true; the pooled vectors stay."""
        return replace(self, sequence=torch.where(tokens[:, None], other.sequence, self.sequence))

    def pack(self) -> Tensor:
        """One tensor as class prior artifacts store it: (B, L, d), or (B, L + 1, d) with the pooled vectors, padded with zeros, as last row."""
        if self.pooled is None:
            return self.sequence
        row = F.pad(self.pooled, (0, self.sequence.shape[-1] - self.pooled.shape[-1]))
        return torch.cat([self.sequence, row[:, None]], dim=1)

    @classmethod
    def unpack(cls, packed: Tensor, pooled_size: int) -> "Conditioning":
        """Read the layout of `pack`; `pooled_size`: p, or 0 without pooled vectors."""
        if not pooled_size:
            return cls(packed)
        return cls(packed[:, :-1], packed[:, -1, :pooled_size])


def repeat_rows(condition: Conditioning, times: int) -> Conditioning:
    """Repeat the text features; once leaves the conditioning as it is."""
    return condition if times == 1 else replace(condition, sequence=condition.sequence.repeat(1, times, 1))


def append_rows(condition: Conditioning, rows: Tensor, length: int) -> Conditioning:
    """Append text features `rows` (1, n, d), repeated, up to `length` rows."""
    missing = length - condition.sequence.shape[1]
    if not missing:
        return condition
    added = rows.repeat(len(condition), -(-missing // rows.shape[1]), 1)[:, :missing]
    return replace(condition, sequence=torch.cat([condition.sequence, added], dim=1))


def _values(condition: Conditioning) -> dict[str, Tensor]:
    """The fields in use, by name."""
    values = {field.name: getattr(condition, field.name) for field in fields(condition)}
    return {name: value for name, value in values.items() if value is not None}
