"""Attention processors that bind each object's tokens and image features to the object's region."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.composition.region_masks import RegionMasks
from objtune_cli.models.attention import is_joint, pad_mask, project_out, project_qkv

BLOCKED = -1e4
"""Attention bias of a masked token; finite, so that no row becomes NaN."""


class RegionalAttention:
    """Attention to text in which only queries inside an object's region attend to its tokens."""

    def __init__(self, regions: RegionMasks, within: "BoundedAttention | None" = None) -> None:
        """`within`: bounds self-attention of the image in joint layers too."""
        self.regions, self.self_attention = regions, within
        self.cache: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def _tokens(self, length: int) -> Tensor:
        """Masks of the objects' tokens, (N, L) boolean."""
        return torch.stack([pad_mask(p.tokens, length) for p in self.regions.objects])

    def bias(self, length: int, like: Tensor, words: int = 0) -> Tensor:
        """Attention bias (Q, L): log of the object's weight at its own tokens, 0 at the others.

        Args:
            words: L, if it is larger than the number of tokens.
        """
        shares = self.regions.flat(length)
        tokens = self._tokens(words or len(self.regions.objects[0].tokens)).to(shares)
        logs = shares.clamp_min(math.exp(BLOCKED)).log().clamp_min(BLOCKED)
        return (logs.T @ tokens).to(like)

    def _joint(self, cells: int, words: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Attention biases without and with prompt, (Q, Q) each; queries and keys are the image's cells, then the tokens."""
        if (cells, words) not in self.cache:
            without = like.new_zeros(cells + words, cells + words)
            if self.self_attention is not None:
                without[:cells, :cells] = self.self_attention.bias(cells, like)
            prompted, tokens = without.clone(), self._tokens(words)
            prompted[:cells, cells:] = self.bias(cells, like, words)
            prompted[cells:, :cells] = prompted[:cells, cells:].T
            same = (tokens[:, :, None] & tokens[:, None]).any(0)
            prompted[cells:, cells:] = torch.where(tokens.any(0) & ~same, BLOCKED, 0.0).to(like)
            self.cache[cells, words] = without, prompted
        return self.cache[cells, words]

    def add_mask(
        self, denoiser: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A forward pre-hook of a denoiser that takes a mask for text tokens, then the image's cells.

        Its latents are tokens (B, n, d), or (B, C, h, w) in patches of 2 x 2.
        """
        latents, words = kwargs["hidden_states"], kwargs["encoder_hidden_states"].shape[1]
        cells = latents.shape[1] if latents.ndim == 3 else latents[0, 0].numel() // 4
        half = len(latents) // 2
        without, prompted = (torch.roll(bias, (words, words), (0, 1)) for bias in self._joint(cells, words, latents))
        mask = torch.stack([without] * half + [prompted] * (len(latents) - half))[:, None]
        options = {**(kwargs.get("joint_attention_kwargs") or {}), "attention_mask": mask}
        return args, kwargs | {"joint_attention_kwargs": options}

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Any:
        q, k, v = project_qkv(attn, hidden_states, encoder_hidden_states)
        cells, half = hidden_states.shape[1], len(q) // 2
        if encoder_hidden_states is not None and is_joint(attn, encoder_hidden_states):
            without, bias = self._joint(cells, encoder_hidden_states.shape[1], q)
        else:
            bias = self.bias(cells, q, k.shape[2])
            without = torch.zeros_like(bias)
        full = torch.stack([without] * half + [bias] * (len(q) - half))[:, None]
        return project_out(
            attn, F.scaled_dot_product_attention(q, k, v, attn_mask=full), hidden_states, encoder_hidden_states
        )


class BoundedAttention:
    """Self-attention in which one object's region does not attend to another's (Bounded Attention, arXiv:2403.16990).

    Objects and background still attend to each other, for light and contact.
    """

    def __init__(self, regions: RegionMasks) -> None:
        self.regions = regions
        self.cache: dict[int, Tensor] = {}

    def bias(self, length: int, like: Tensor) -> Tensor:
        """Attention bias (Q, K): log of 1 minus the weight with which query and key lie in different objects."""
        if length not in self.cache:
            shares = self.regions.flat(length)
            together = shares.sum(0)
            apart = together[:, None] * together[None] - shares.T @ shares
            self.cache[length] = (1 - apart).clamp_min(math.exp(BLOCKED)).log().clamp_min(BLOCKED).to(like)
        return self.cache[length]

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        q, k, v = project_qkv(attn, hidden_states, encoder_hidden_states)
        bias = self.bias(hidden_states.shape[1], q)[None, None]
        output: Tensor = project_out(
            attn, F.scaled_dot_product_attention(q, k, v, attn_mask=bias), hidden_states, encoder_hidden_states
        )
        return output
