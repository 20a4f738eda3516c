"""Feature models for photographs: CLIP and DINO from transformers, by name or folder, and the base's own CLIP."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli import bases
from objtune_cli.config import Bench
from objtune_cli.errors import ResourceError, UsageError
from objtune_cli.models.stack import UNREADABLE, quiet
from objtune_cli.stages.context import Context

CLIP = "openai/clip-vit-base-patch32"
DINO = Bench().dino
"""The models of the papers' tables (DreamBooth, arXiv:2208.12242, section 4.1)."""
CLIP_STATISTICS = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)
DINO_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 16
"""Pictures that a model is shown at a time."""
Pictures = Callable[[np.ndarray], np.ndarray]
"""Pictures (N, H, W, 3) uint8 to unit vectors (N, d)."""
Texts = Callable[[list[str]], np.ndarray]
"""Texts to unit vectors (N, d)."""


def clip(name: str = CLIP) -> tuple[Pictures, Texts]:
    """What a CLIP sees and reads.

    Raises:
        ResourceError: Not on this machine.
    """
    from transformers import CLIPModel, CLIPTokenizer

    model, words = _opened(CLIPModel, name, "--clip", ("clip",)), _opened(CLIPTokenizer, name, "--clip", ("clip",))
    return _towers(model, words, *_statistics(name, *CLIP_STATISTICS))


def own(ctx: Context) -> tuple[Pictures, Texts]:
    """What the base's own CLIP sees and reads, as it was before anything was learned.

    Raises:
        ResourceError: The base has no image tower here.
    """
    from objtune_cli.models import towers

    source, index = (ctx.base.image_tower, 0) if ctx.base.image_tower else (ctx.base.second_tower, 1)
    if source is None:
        raise ResourceError(
            f"the base {ctx.base.id} has no image tower to measure with",
            f"`--set bench.clip={CLIP}`, after `objtune fetch --model {CLIP}`; or a tower of the base's own: docs/bases.md",
        )
    stack = ctx.stack()
    return _towers(towers.load(source, stack, index).clip, stack.tokenizers[index], towers.MEAN, towers.STD)


def _towers(model: Any, words: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Pictures, Texts]:
    side = int(model.config.vision_config.image_size)

    @torch.no_grad()
    def texts(prompts: list[str]) -> np.ndarray:
        ids = words(prompts, padding=True, truncation=True, return_tensors="pt").to(model.device)
        pooled = model.text_model(input_ids=ids.input_ids, attention_mask=ids.attention_mask).pooler_output
        return F.normalize(model.text_projection(pooled), dim=-1).cpu().numpy()

    def see(x: Tensor) -> Tensor:
        return model.visual_projection(model.vision_model(pixel_values=x).pooler_output)

    return _seeing(see, model, side, mean, std), texts


def dino(name: str = DINO) -> Pictures:
    """What DINO sees, at its class token; `name`: a hub id, a folder, or a safetensors file with the names of transformers.

    Raises:
        ResourceError: Not on this machine.
    """
    from transformers import AutoModel

    if Path(name).is_file():
        model = _vit(Path(name))
    else:
        model = _opened(AutoModel, name, "--dino", ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit"))
    return _seeing(
        lambda x: model(pixel_values=x).last_hidden_state[:, 0], model, int(model.config.image_size), *_statistics(name, *DINO_STATISTICS)
    )


def _seeing(see: Callable[[Tensor], Tensor], model: Any, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Pictures:
    @torch.no_grad()
    def pictures(shown: np.ndarray) -> np.ndarray:
        parts = [_prepared(shown[i : i + BATCH], side, mean, std).to(model.device) for i in range(0, len(shown), BATCH)]
        return torch.cat([F.normalize(see(x), dim=-1).cpu() for x in parts]).numpy()

    return pictures


def _vit(path: Path) -> Any:
    """A ViT from one file, its sizes read off its tensors; heads of 64, as all of DINO's have.

    Raises:
        ResourceError: No safetensors file of a ViT.
    """
    from safetensors.torch import load_file
    from transformers import ViTConfig, ViTModel

    quiet()
    try:
        weights = load_file(path)
        width, patch = weights["embeddings.cls_token"].shape[-1], weights["embeddings.patch_embeddings.projection.weight"].shape[-1]
        blocks = {key.split(".")[2] for key in weights if key.startswith("encoder.layer.")}
        config = ViTConfig(
            hidden_size=width, num_hidden_layers=len(blocks), num_attention_heads=max(1, width // 64), patch_size=patch,
            intermediate_size=weights["encoder.layer.0.intermediate.dense.weight"].shape[0],
            image_size=patch * round((weights["embeddings.position_embeddings"].shape[1] - 1) ** 0.5),
        )  # fmt: skip
        found: Any = ViTModel.from_pretrained(
            None, config=config, state_dict=weights, add_pooling_layer=False, output_loading_info=True, local_files_only=True
        )
    except (OSError, KeyError, *UNREADABLE) as error:
        raise ResourceError(
            f"{path} cannot be opened as a ViT: {str(error).splitlines()[0]}",
            f"give DINO's folder, or bring it with `objtune fetch --model {DINO}`",
        ) from None
    model, told = found
    if told["missing_keys"]:
        lacking = sorted(told["missing_keys"])[0]
        raise ResourceError(
            f"{path} cannot be opened as a ViT: it lacks {lacking}", "give a file with the names of transformers, or DINO's folder"
        )
    return model.eval().requires_grad_(False)


def digest(pictures: Pictures) -> str:
    """What tells one model from another: the vector of a picture of noise, to three digits."""
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    return hashlib.sha256(np.round(pictures(noise), 3).tobytes()).hexdigest()


def _opened(kind: Any, name: str, option: str, families: tuple[str, ...]) -> Any:
    from transformers import AutoConfig

    quiet()
    hint = f"give its folder with `{option} DIR`, or bring it with `objtune fetch --model {name}`"
    folder = Path(name) if Path(name).is_dir() else bases.transformers_model(name)
    if folder is None:
        raise ResourceError(f"{name} is not on this machine", hint)
    try:
        family = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        found = kind.from_pretrained(folder, local_files_only=True) if family in families else None
    except (OSError, *UNREADABLE) as error:
        raise ResourceError(f"{name} cannot be opened: {str(error).splitlines()[0]}", hint) from None
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
