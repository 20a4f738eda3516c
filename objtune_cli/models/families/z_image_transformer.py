"""The transformer of Z-Image behind the interface of the other flows: batches in place of lists, and velocities.

Its blocks attend over the image's tokens, then the prompt's, each filled up to a multiple of 32 with a learned vector.
Masks come in the order of the other families: text tokens, then image tokens.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ZImageTransformer2DModel
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

Base: Any = ZImageTransformer2DModel
MULTIPLE = 32
"""Image and prompt are filled up to a multiple of so many tokens."""
PATCH = 2
BLOCKED = -1e4
"""Attention bias of a token that is not there."""


def pad_length(length: int) -> int:
    """The number of tokens that fills a sequence up."""
    return -length % MULTIPLE


class Transformer(AttentionMixin, Base):  # type: ignore[misc]
    """diffusers' transformer, called with tensors.

    Attributes:
        image_tokens: Number of image tokens of the last call, without those that fill up.
        mask: Attention bias of the call (B, 1, L + n, L + n), for L text tokens, then n image tokens; None without one.
    """

    image_tokens: int
    mask: Tensor | None

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        joint_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The velocity (B, C, h, w).

        Args:
            hidden_states: Noised latents (B, C, h, w).
            timestep: Noise levels sigma (B,).
            encoder_hidden_states: Text features (B, L, d); rows of zeros are padding, and left out.
            joint_attention_kwargs: May have an `attention_mask`, see `mask`.
        """
        self.image_tokens = hidden_states.shape[-2] * hidden_states.shape[-1] // PATCH**2
        self.mask = (joint_attention_kwargs or {}).get("attention_mask")
        captions = [rows[rows.detach().abs().amax(-1) > 0] for rows in encoder_hidden_states]
        images = list(hidden_states.unsqueeze(2).unbind(0))
        negated = super().forward(images, 1 - timestep, captions, return_dict=False)[0]
        velocity = -torch.stack(list(negated)).squeeze(2)
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    def _prepare_sequence(self, feats: Any, pos_ids: Any, inner_pad_mask: Any, pad_token: Any, *rest: Any) -> Any:
        """With the mask among text tokens, for the blocks that refine the prompt."""
        rows, freqs, keys, lengths, noise = super()._prepare_sequence(feats, pos_ids, inner_pad_mask, pad_token, *rest)
        if self.mask is not None and pad_token is self.cap_pad_token:
            keys = self._select(self._text_index(rows.shape[1]), keys, rows)
        return rows, freqs, keys, lengths, noise

    def _build_unified_sequence(self, *args: Any) -> Any:
        """With the mask of all tokens, for the blocks after those that refine."""
        rows, freqs, keys, noise = super()._build_unified_sequence(*args)
        if self.mask is not None:
            count, words = self.image_tokens, self.mask.shape[-1] - self.image_tokens
            filling = [words - 1] * pad_length(count)  # as a padding token: it sees no object
            text = self._text_index(rows.shape[1] - count - len(filling))
            keys = self._select([*range(words, words + count), *filling, *text], keys, rows)
        return rows, freqs, keys, noise

    def _text_index(self, length: int) -> list[int]:
        """Places of a prompt's tokens in the mask, also of those that fill it up."""
        assert self.mask is not None
        words = self.mask.shape[-1] - self.image_tokens
        return [min(i, words - 1) for i in range(length)]

    def _select(self, index: list[int], keys: Tensor | None, like: Tensor) -> Tensor:
        """The mask of some tokens; `keys` (B, length) says which of them are there."""
        assert self.mask is not None
        places = torch.tensor(index, device=self.mask.device)
        mask = self.mask[:, :, places][..., places].to(like)
        return mask if keys is None else mask + (~keys)[:, None, None].to(like) * BLOCKED


def row_weights(text: Tensor, image: Tensor, length: int) -> Tensor:
    """Weights (B, length) of the rows of a block from those of text tokens (B, L) and of image tokens (B, n).

    Rows that fill up the image have the mean of its weights.
    """
    filling = image.mean(1, keepdim=True).expand(-1, pad_length(image.shape[1]))
    count = length - image.shape[1] - filling.shape[1]
    return torch.cat([image, filling, F.pad(text, (0, max(0, count - text.shape[1])))[:, :count]], dim=1)
