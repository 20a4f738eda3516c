"""Image and text embedders for measures: CLIP and DINO from transformers, and the base's own CLIP."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli import paths
from objtune_cli.config.sections import Bench
from objtune_cli.errors import ResourceError, UsageError
from objtune_cli.models import finite_checks, hub_cache
from objtune_cli.models.families.component_loading import load_complete, translate_errors
from objtune_cli.models.loading import UNREADABLE, silence_library_logging
from objtune_cli.workflow.context import StageContext

CLIP = "openai/clip-vit-base-patch32"
DINO = Bench().dino_model
"""The models of DreamBooth's tables (arXiv:2208.12242, section 4.1)."""
CLIP_STATISTICS = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)
DINO_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 16
"""Images per batch."""
DINO_SIDE, DINO_RESIZE_RATIO = 224, 256 / 224
"""Side of DINO's input, px, and the shorter side before the centre crop as a multiple of it (arXiv:2104.14294)."""
ANY_SIZE = ("dinov2", "dinov2_with_registers", "dinov3_vit")
"""Families that take images of any side."""
ImageEmbedder = Callable[[np.ndarray], np.ndarray]
"""Images (N, H, W, 3) uint8 to unit vectors (N, d)."""
TextEmbedder = Callable[[list[str]], np.ndarray]
"""Texts to unit vectors (N, d)."""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Preprocessing of images: resize the shorter side to `short`, crop the centre `side` x `side`, and normalise the colours.

    Attributes:
        resample: Filter, as Pillow numbers them; 3 is bicubic.
        is_rounded: Whether half a pixel at the crop's corner is rounded (torchvision) or dropped (transformers).
    """

    short: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int = 3
    is_rounded: bool = True


def load_clip(name: str = CLIP) -> tuple[ImageEmbedder, TextEmbedder]:
    """Load the image and the text embedder of a CLIP model, by hub id or folder.

    Raises:
        ResourceError: The model is not on this machine.
    """
    from transformers import CLIPModel, CLIPTokenizer

    model, words = (
        _load_pretrained(CLIPModel, name, "--clip", ("clip",)),
        _load_pretrained(CLIPTokenizer, name, "--clip", ("clip",)),
    )
    side = int(model.config.vision_config.image_size)
    return _clip_embedders(
        model, words, read_preprocessing(_find_folder(name), Preprocessing(side, side, *CLIP_STATISTICS))
    )


def load_base_clip(ctx: StageContext) -> tuple[ImageEmbedder, TextEmbedder]:
    """Load the image and the text embedder of the base's own CLIP, without anything that was trained.

    Raises:
        ResourceError: The base has no CLIP vision encoder on this machine.
    """
    from objtune_cli.models import clip as towers

    source, index = (ctx.base.clip_path, 0) if ctx.base.clip_path else (ctx.base.clip_2_path, 1)
    if source is None:
        raise ResourceError(
            f"the base {ctx.base.id} has no CLIP vision encoder for the measures",
            f"`--set bench.clip_model={CLIP}`, after `objtune fetch --model {CLIP}`; docs/reference/base-models.md lists the other places",
        )
    base_model = ctx.load_base_model()
    loaded = towers.load(source, base_model, index)
    model = loaded.clip
    side = int(model.config.vision_config.image_size)
    return _clip_embedders(model, loaded.get_tokenizer(base_model), Preprocessing(side, side, towers.MEAN, towers.STD))


def _clip_embedders(model: Any, words: Any, prepared: Preprocessing) -> tuple[ImageEmbedder, TextEmbedder]:
    @torch.no_grad()
    def texts(prompts: list[str]) -> np.ndarray:
        ids = words(prompts, padding=True, truncation=True, return_tensors="pt").to(model.device)
        pooled = model.text_model(input_ids=ids.input_ids, attention_mask=ids.attention_mask).pooler_output
        return _normalise(model.text_projection(pooled)).numpy()

    def embed(x: Tensor) -> Tensor:
        vectors: Tensor = model.visual_projection(model.vision_model(pixel_values=x).pooler_output)
        return vectors

    return _image_embedder(embed, model, prepared), texts


def load_dino(name: str = DINO) -> ImageEmbedder:
    """Load the image embedder of a DINO model, its class token.

    Args:
        name: Hub id, folder, or safetensors file with the tensor names of transformers.

    Raises:
        ResourceError: The model is not on this machine.
    """
    from transformers import AutoModel

    if Path(name).is_file():
        model, folder = _load_vit_file(Path(name)), None
    else:
        model, folder = _load_pretrained(AutoModel, name, "--dino", ("vit", *ANY_SIZE)), _find_folder(name)
    side, any_size = int(model.config.image_size), model.config.model_type in ANY_SIZE
    own = Preprocessing(round(side * DINO_RESIZE_RATIO), side, *DINO_STATISTICS)
    if any_size and side > DINO_SIDE:  # DINOv2's config names the side of its last pre-training steps, 518
        own = Preprocessing(round(DINO_SIDE * DINO_RESIZE_RATIO), DINO_SIDE, *DINO_STATISTICS)
    prepared = read_preprocessing(folder, own, any_size=any_size)
    return _image_embedder(lambda x: model(pixel_values=x).last_hidden_state[:, 0], model, prepared)


def _image_embedder(embed: Callable[[Tensor], Tensor], model: Any, prepared: Preprocessing) -> ImageEmbedder:
    @torch.no_grad()
    def embed_images(images: np.ndarray) -> np.ndarray:
        parts = [_preprocess(images[i : i + BATCH], prepared).to(model.device) for i in range(0, len(images), BATCH)]
        return torch.cat([_normalise(embed(x)) for x in parts]).numpy()

    return embed_images


def _normalise(vectors: Tensor) -> Tensor:
    """Vectors (N, d) at unit length, on the CPU.

    Raises:
        NonFiniteError: They are not finite.
    """
    finite_checks.checked("CLIP or DINO that measures", vectors.dtype, vectors.norm(dim=-1))
    return F.normalize(vectors, dim=-1).cpu()


def _load_vit_file(path: Path) -> Any:
    """Load a ViT from one file; its sizes come from its tensors, with attention heads of 64 as in all DINO models.

    Raises:
        ResourceError: The file is not a safetensors file of a ViT.
    """
    from safetensors.torch import load_file
    from transformers import ViTConfig, ViTModel

    silence_library_logging()
    try:
        weights = load_file(path)
        width, patch = (
            weights["embeddings.cls_token"].shape[-1],
            weights["embeddings.patch_embeddings.projection.weight"].shape[-1],
        )
        blocks = {key.split(".")[2] for key in weights if key.startswith("encoder.layer.")}
        config = ViTConfig(
            hidden_size=width, num_hidden_layers=len(blocks), num_attention_heads=max(1, width // 64), patch_size=patch,
            intermediate_size=weights["encoder.layer.0.intermediate.dense.weight"].shape[0],
            image_size=patch * round((weights["embeddings.position_embeddings"].shape[1] - 1) ** 0.5),
        )  # fmt: skip
        loaded: Any = ViTModel.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            add_pooling_layer=False,
            output_loading_info=True,
            local_files_only=True,
        )
    except (OSError, KeyError, *UNREADABLE) as error:
        raise ResourceError(
            f"{path} cannot be opened as a ViT: {str(error).splitlines()[0]}",
            f"use DINO's folder, or download it with `objtune fetch --model {DINO}`",
        ) from None
    model, loading_info = loaded
    if loading_info["missing_keys"]:
        lacking = sorted(loading_info["missing_keys"])[0]
        raise ResourceError(
            f"{path} cannot be opened as a ViT: it lacks {lacking}",
            "use a file with the names of transformers, or DINO's folder",
        )
    finite_checks.check_weights(f"ViT in {path}", model)
    return model.eval().requires_grad_(False)


def fingerprint(pictures: ImageEmbedder) -> str:
    """Fingerprint of a model: digest of its embedding of a noise image, rounded to three digits."""
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    return hashlib.sha256(np.round(pictures(noise), 3).tobytes()).hexdigest()


def _load_pretrained(kind: Any, name: str, option: str, families: tuple[str, ...]) -> Any:
    from transformers import AutoConfig

    silence_library_logging()
    hint = f"give its folder with `{option} DIR`"
    if paths.is_hub_id(name):
        hint += f", or bring it with `objtune fetch --model {name}`"
    folder = _find_folder(name)
    if folder is None:
        raise ResourceError(f"{name} is not on this machine", hint)
    try:
        with translate_errors():
            family = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        if family not in families:
            loaded = None
        elif kind.__name__.endswith("Tokenizer"):
            with translate_errors():
                loaded = kind.from_pretrained(folder, local_files_only=True)
        else:  # the pooling layer is not used, and DINO's files do not have it
            loaded = load_complete(kind, folder, f"the model {name}", unread=("pooler.",))
    except (OSError, *UNREADABLE) as error:
        raise ResourceError(f"{name} cannot be opened: {str(error).splitlines()[0]}", hint) from None
    if loaded is None:
        raise UsageError(f"{name} is a {family}", f"{option} takes one of: {', '.join(families)}")
    if isinstance(loaded, torch.nn.Module):
        finite_checks.check_weights(f"model {name}", loaded)
    return loaded.eval().requires_grad_(False) if isinstance(loaded, torch.nn.Module) else loaded


def _find_folder(name: str) -> Path | None:
    """The folder of a model that is given by folder or hub id; None if it is not on this machine."""
    return Path(name) if Path(name).is_dir() else hub_cache.find_transformers_model(name)


def read_preprocessing(folder: Path | None, default: Preprocessing, *, any_size: bool = False) -> Preprocessing:
    """Read a folder's preprocessor_config.json.

    A config that resizes the whole image to a square (facebook/dino-vits16: height 224, width 224) gives its colour statistics only, because the
    papers' tables resize the shorter side and crop the centre.

    Args:
        default: Values for keys that the file lacks.
        any_size: Whether the model takes images of any side; else the file's sides are scaled to the model's.
    """
    import json

    try:
        config = (
            json.loads(((folder or Path()) / "preprocessor_config.json").read_text(encoding="utf-8")) if folder else {}
        )
        default = replace(
            default, mean=tuple(map(float, config["image_mean"])), std=tuple(map(float, config["image_std"]))
        )
    except (OSError, ValueError, KeyError, TypeError):
        return default
    size, crop = config.get("size"), config.get("crop_size")
    short = size.get("shortest_edge") if isinstance(size, dict) else size if config.get("do_center_crop") else None
    crop = crop.get("height") if isinstance(crop, dict) else crop
    crop = (crop if config.get("do_center_crop") else None) or short
    if not (type(short) is int and type(crop) is int and 0 < crop <= short):
        return default
    side = crop if any_size else default.side
    resample = int(config["resample"]) if config.get("resample") in range(6) else default.resample
    return replace(default, short=round(short * side / crop), side=side, resample=resample, is_rounded=False)


def _preprocess(images: np.ndarray, settings: Preprocessing) -> Tensor:
    """Preprocess images (N, H, W, 3) uint8 to (N, 3, side, side), resized by Pillow as torchvision and transformers do."""
    from PIL import Image

    height, width = images.shape[1:3]
    side = settings.side
    short, least = settings.short, min(height, width)
    size = (
        short if width == least else int(short * width / least),
        short if height == least else int(short * height / least),
    )
    left, top = (round((v - side) / 2) if settings.is_rounded else (v - side) // 2 for v in size)
    box = (left, top, left + side, top + side)
    small = [Image.fromarray(picture).resize(size, settings.resample) for picture in images]
    x = (
        torch.from_numpy(np.stack([np.asarray(picture.crop(box)) for picture in small])).permute(0, 3, 1, 2).float()
        / 255
    )
    return (x - torch.tensor(settings.mean).view(1, 3, 1, 1)) / torch.tensor(settings.std).view(1, 3, 1, 1)
