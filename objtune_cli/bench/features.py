"""Feature models for photographs: CLIP and DINO from transformers, by name or folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.errors import ResourceError, UsageError
from objtune_cli.models.stack import UNREADABLE, quiet

CLIP = "openai/clip-vit-base-patch32"
DINO = "facebook/dino-vits16"
"""The models of the papers' tables (DreamBooth, arXiv:2208.12242, section 4.1)."""


def clip(name: str = CLIP) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[list[str]], np.ndarray]]:
    """Unit vectors of pictures (N, H, W, 3) uint8 and of texts, both (N, d).

    Raises:
        ResourceError: Not on this machine.
    """
    from transformers import CLIPModel, CLIPTokenizer

    model, words = _opened(CLIPModel, name, "--clip", ("clip",)), _opened(CLIPTokenizer, name, "--clip", ("clip",))
    side, mean, std = int(model.config.vision_config.image_size), *_statistics(name, (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758))

    @torch.no_grad()
    def pictures(shown: np.ndarray) -> np.ndarray:
        pooled = model.vision_model(pixel_values=_prepared(shown, side, mean, std)).pooler_output
        return F.normalize(model.visual_projection(pooled), dim=-1).numpy()

    @torch.no_grad()
    def texts(prompts: list[str]) -> np.ndarray:
        ids = words(prompts, padding=True, truncation=True, return_tensors="pt")
        pooled = model.text_model(input_ids=ids.input_ids, attention_mask=ids.attention_mask).pooler_output
        return F.normalize(model.text_projection(pooled), dim=-1).numpy()

    return pictures, texts


def dino(name: str = DINO) -> Callable[[np.ndarray], np.ndarray]:
    """Unit vectors of pictures (N, H, W, 3) uint8 at the class token, (N, d).

    Raises:
        ResourceError: Not on this machine.
    """
    from transformers import AutoModel

    model = _opened(AutoModel, name, "--dino", ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit"))
    side, mean, std = int(model.config.image_size), *_statistics(name, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    @torch.no_grad()
    def pictures(shown: np.ndarray) -> np.ndarray:
        return F.normalize(model(pixel_values=_prepared(shown, side, mean, std)).last_hidden_state[:, 0], dim=-1).numpy()

    return pictures


def _opened(kind: Any, name: str, option: str, families: tuple[str, ...]) -> Any:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from transformers import AutoConfig

    quiet()
    try:
        name = name if Path(name).is_dir() else snapshot_download(name, local_files_only=True)
        family = AutoConfig.from_pretrained(name, local_files_only=True).model_type
        found = kind.from_pretrained(name, local_files_only=True) if family in families else None
    except (OSError, *UNREADABLE) as error:
        missing = isinstance(error, LocalEntryNotFoundError)
        why = "is not on this machine" if missing else f"cannot be opened: {str(error).splitlines()[0]}"
        raise ResourceError(
            f"{name} {why}",
            f"give its folder with `{option} DIR`, or bring it with `hf download {name}`",
        ) from None
    if found is None:
        raise UsageError(f"{name} is a {family}", f"{option} takes one of: {', '.join(families)}")
    return found.eval().requires_grad_(False) if isinstance(found, torch.nn.Module) else found


def _statistics(name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Colour statistics of a folder's preprocessor_config.json, else those of the family."""
    import json

    try:
        own = json.loads((Path(name) / "preprocessor_config.json").read_text())
        return tuple(own["image_mean"]), tuple(own["image_std"])
    except (OSError, ValueError, KeyError):
        return mean, std


def _prepared(shown: np.ndarray, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """The largest middle square, resized and normalised: (N, 3, side, side)."""
    x = torch.from_numpy(np.array(shown)).permute(0, 3, 1, 2).float() / 255
    height, width = x.shape[-2:]
    cut = min(height, width)
    top, left = (height - cut) // 2, (width - cut) // 2
    x = x[..., top : top + cut, left : left + cut]
    x = F.interpolate(x, size=(side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
