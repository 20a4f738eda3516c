"""The prototype of an object and the loss that pulls its token there."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def prototype(vectors: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    r"""$p = \mathrm{normalise}(\sum_i w_i v_i)$ of unit vectors (d,); without weights each counts the same.

    Source:
        arXiv:2401.15708, section 3.2: picture, masked object and class word; weights are ours.

    Raises:
        ValueError: Not one weight a vector, or none above 0.
    """
    shares = torch.ones(len(vectors)) if weights is None else torch.tensor(list(weights))
    if len(shares) != len(vectors) or not bool((shares >= 0).all() and shares.sum() > 0):
        raise ValueError(f"weights {shares.tolist()} for {len(vectors)} vectors")
    stacked = torch.stack(list(vectors))
    return F.normalize((shares.to(stacked)[:, None] * stacked).sum(0), dim=-1)


def cosine_loss(vector: Tensor, aim: Tensor) -> Tensor:
    """L_PE = 1 - cos(vector, aim), in [0, 2], over the last dimension."""
    return 1 - F.cosine_similarity(vector, aim, dim=-1)


def lengths(vectors: Tensor, widths: Sequence[int] = ()) -> Tensor:
    """Norms of rows (k, d): (k,), or (k, n) of their n parts where they are several vectors side by side."""
    if len(widths) < 2:
        return vectors.norm(dim=1)
    return torch.stack([part.norm(dim=1) for part in vectors.split(list(widths), dim=1)], dim=1)


def keep_norm(vectors: Tensor, norm: Tensor, widths: Sequence[int] = ()) -> Tensor:
    """Rows (k, d) rescaled to the given norms (k,) or (), each of their n parts to (k, n): token rows live on a thin shell."""
    if len(widths) > 1:
        parts = zip(vectors.split(list(widths), dim=1), norm.unbind(-1), strict=True)
        return torch.cat([keep_norm(part, length) for part, length in parts], dim=1)
    return F.normalize(vectors, dim=-1) * norm.expand(vectors.shape[0])[:, None]
