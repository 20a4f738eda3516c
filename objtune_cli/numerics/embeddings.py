"""The prototype of an object, the loss that pulls its token towards it, and the norms of token embeddings."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def prototype(vectors: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    r"""$p = \mathrm{normalise}(\sum_i w_i v_i)$ of unit vectors (d,); equal weights by default.

    Source:
        arXiv:2401.15708, section 3.2: image, masked object and class word; the weights are an addition.

    Raises:
        ValueError: The numbers of weights and vectors differ, a weight is negative, or none is positive.
    """
    shares = torch.ones(len(vectors)) if weights is None else torch.tensor(list(weights))
    if len(shares) != len(vectors) or not bool((shares >= 0).all() and shares.sum() > 0):
        raise ValueError(f"weights {shares.tolist()} for {len(vectors)} vectors")
    stacked = torch.stack(list(vectors))
    return F.normalize((shares.to(stacked)[:, None] * stacked).sum(0), dim=-1)


def cosine_loss(vector: Tensor, target: Tensor) -> Tensor:
    """L_PE = 1 - cos(vector, target), in [0, 2], over the last dimension."""
    return 1 - F.cosine_similarity(vector, target, dim=-1)


def lengths(vectors: Tensor, widths: Sequence[int] = ()) -> Tensor:
    """Norms of embeddings (k, d): (k,), or (k, n) for embeddings that concatenate n >= 2 vectors of the given widths."""
    if len(widths) < 2:
        norms: Tensor = vectors.norm(dim=1)
        return norms
    return torch.stack([part.norm(dim=1) for part in torch.split(vectors, list(widths), dim=1)], dim=1)


def keep_norm(vectors: Tensor, norm: Tensor, widths: Sequence[int] = ()) -> Tensor:
    """Embeddings (k, d) rescaled to norms (k,) or (); with n >= 2 widths, each concatenated vector to its norm in (k, n).

    The token embeddings of a text encoder have nearly equal norms, so training should not change them.
    """
    if len(widths) > 1:
        parts = zip(torch.split(vectors, list(widths), dim=1), norm.unbind(-1), strict=True)
        return torch.cat([keep_norm(part, length) for part, length in parts], dim=1)
    return F.normalize(vectors, dim=-1) * norm.expand(vectors.shape[0])[:, None]
