"""CLIP's two towers: unit vectors of pictures and of prompts, from one folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.errors import ResourceError
from objtune_cli.models.stack import UNREADABLE, Stack, quiet

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's colour statistics, for pictures in [0, 1]."""
GROUNDS = ("the background", "the sky", "the ground", "the floor", "a wall", "water", "a pattern", "a part of something")
"""What a cut-out may be that is no object."""


@dataclass(slots=True)
class Towers:
    """A frozen CLIP; the text side takes token vectors from outside, so that one can be learned."""

    clip: Any
    device: torch.device

    @property
    def size(self) -> int:
        return int(self.clip.config.vision_config.image_size)

    @property
    def scale(self) -> float:
        """What makes logits of cosines, as the towers were trained: 100 in OpenAI's."""
        return float(self.clip.logit_scale.detach().exp())

    @torch.no_grad()
    def pictures(self, pictures: Tensor) -> Tensor:
        """Unit vectors (B, d) of pictures (B, 3, H, W) in [0, 1]; each is resized to the tower's side."""
        x = F.interpolate(pictures, size=(self.size, self.size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        mean, std = x.new_tensor(MEAN).view(1, 3, 1, 1), x.new_tensor(STD).view(1, 3, 1, 1)
        pooled = self.clip.vision_model(pixel_values=((x - mean) / std).to(self.device)).pooler_output
        return F.normalize(self.clip.visual_projection(pooled), dim=-1)

    def texts(self, stack: Stack, texts: list[str]) -> Tensor:
        """Unit vectors (B, d) of prompts, read through the base's own token table, placeholders included.

        The sentence is read at its end token: old configs name another one, or the largest id,
        which a placeholder would be.
        """
        ids = stack.token_ids(texts)
        states = stack.text_encoder(input_ids=ids)[0]
        end = (ids == stack.tokenizer.eos_token_id).int().argmax(dim=1)
        pooled = states[torch.arange(len(ids), device=ids.device), end]
        return F.normalize(self.clip.text_projection(pooled.float()), dim=-1)


def load(folder: Path, stack: Stack) -> Towers:
    """Open the CLIP whose text tower is the base's own text encoder.

    Raises:
        ResourceError: Not readable, or of another width than the base's text encoder.
    """
    from transformers import CLIPModel

    quiet()
    try:
        clip: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, *UNREADABLE) as error:
        raise ResourceError(f"the CLIP in {folder} cannot be opened: {str(error).splitlines()[0]}", "download it again") from None
    if clip.config.text_config.hidden_size != stack.text_encoder.config.hidden_size:
        raise ResourceError(f"the CLIP in {folder} is not the base's own", "give the CLIP that the base's text encoder was taken from")
    clip.requires_grad_(False).eval().to(stack.device, torch.float32)
    return Towers(clip, stack.device)
