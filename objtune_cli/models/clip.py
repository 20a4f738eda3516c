"""CLIP's vision and text encoders: unit vectors of images and prompts, from a folder or a safetensors file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.errors import DamagedError, IncompatibleError, MissingError
from objtune_cli.models import finite_checks
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.families import bundled_tokenizers
from objtune_cli.models.families.component_loading import load_complete, load_tokenizer
from objtune_cli.models.loading import UNREADABLE, silence_library_logging
from objtune_cli.runtime.load_lock import LOAD_LOCK

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's colour statistics, for images in [0, 1]."""
TOKENS = 77
"""Number of tokens that a CLIP's text encoder reads."""
BACKGROUND_LABELS = (
    "the background",
    "the sky",
    "the ground",
    "the floor",
    "a wall",
    "water",
    "a pattern",
    "a part of something",
)
"""Labels of cut-outs that show no object."""


@dataclass(slots=True)
class Clip:
    """A frozen CLIP model; its text encoder reads the token table of the base, so that a token vector can be learned.

    Attributes:
        index: Position of the base's text encoder that shares its text space.
        tokenizer: Its own tokenizer if no text encoder of the base shares its text space. It then reads class words in the
            place of placeholders.
    """

    clip: Any
    device: torch.device
    index: int = 0
    tokenizer: Any = None

    @property
    def shares_text_space(self) -> bool:
        """Whether the base's tokens can be learned in this text space."""
        return self.tokenizer is None

    def get_tokenizer(self, model: BaseModel) -> Any:
        """The tokenizer of its text encoder."""
        return self.tokenizer or model.tokenizers[self.index]

    @property
    def image_size(self) -> int:
        return int(self.clip.config.vision_config.image_size)

    @property
    def logit_scale(self) -> float:
        """The factor from cosines to logits in CLIP's training: 100 in OpenAI's models."""
        return float(self.clip.logit_scale.detach().exp())

    def offload(self) -> None:
        """Move the model to CPU memory until it is next used."""
        self.clip.to("cpu")

    def onload(self) -> None:
        """Move the model to the base's device."""
        self.clip.to(self.device)

    @torch.no_grad()
    def image_features(self, pictures: Tensor) -> Tensor:
        """Unit vectors (B, d) of images (B, 3, H, W) in [0, 1]; each image is resized to the encoder's input size."""
        self.onload()
        x = F.interpolate(
            pictures, size=(self.image_size, self.image_size), mode="bicubic", antialias=True, align_corners=False
        ).clamp(0, 1)
        mean, std = x.new_tensor(MEAN).view(1, 3, 1, 1), x.new_tensor(STD).view(1, 3, 1, 1)
        pooled = self.clip.vision_model(pixel_values=((x - mean) / std).to(self.device)).pooler_output
        features = self.clip.visual_projection(pooled)
        finite_checks.checked(
            "CLIP vision encoder", features.dtype, features.norm(dim=-1)
        )  # a norm that overflows would give a vector of zeros
        return F.normalize(features, dim=-1)

    def text_features(self, model: BaseModel, texts: list[str]) -> Tensor:
        """Unit vectors (B, d) of prompts, encoded with the base's own token table, placeholders included.

        The state at the tokenizer's end token counts. Old configs name another id, or the model takes the largest id,
        which a placeholder would have.
        """
        self.onload()
        tokenizer = self.get_tokenizer(model)
        if self.shares_text_space:
            ids = model.token_ids(texts, tokenizer)
        else:
            plain = [model.with_class_words(text) for text in texts]
            ids = tokenizer(
                plain, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
            ).input_ids
            ids = ids.to(self.device)
        states = self._reader(model)(input_ids=ids).last_hidden_state
        end = (ids == tokenizer.eos_token_id).int().argmax(dim=1)
        pooled = states[torch.arange(len(ids), device=ids.device), end]
        features = self.clip.text_projection(pooled.float())
        if not torch.is_grad_enabled():
            finite_checks.checked("text encoder", features.dtype, features.norm(dim=-1))
        return F.normalize(features, dim=-1)

    def _reader(self, model: BaseModel) -> Any:
        """The base's own text encoder; if it lacks layers (SD 2.x lacks the last), this CLIP's encoder with the base's token table."""
        if not self.shares_text_space:
            return self.clip.text_model
        own = model.text_encoders[self.index]
        if own.config.num_hidden_layers == self.clip.config.text_config.num_hidden_layers:
            return own
        self.clip.text_model.set_input_embeddings(own.get_input_embeddings())
        return self.clip.text_model


def load(source: Path, model: BaseModel, index: int = 0) -> Clip:
    """Open the CLIP model that the base's text encoder number `index` is a part of, or any if the family has none of CLIP's.

    Args:
        source: A folder as `save_pretrained` writes it, or a safetensors file with the same names.

    Raises:
        MissingError: A file is missing. DamagedError: A file is unreadable, or weights are missing or not finite.
        IncompatibleError: The text encoder has another width than that of the base.
    """
    from transformers import CLIPModel

    silence_library_logging()
    encoder = model.text_encoders[index]
    is_shared = model.family.shares_clip_space
    if source.is_file() and not is_shared:
        raise IncompatibleError(
            f"the CLIP in {source} has no tokenizer", "give its folder or its hub id: `--set clip_model=…`"
        )
    try:
        with LOAD_LOCK:
            if source.is_file():
                clip = _from_file(source, encoder.config)
            else:  # float32: loading in half precision would change the default of all threads meanwhile
                clip = load_complete(
                    CLIPModel, source, f"the CLIP in {source}", use_safetensors=True, dtype=torch.float32
                )
    except (OSError, *UNREADABLE) as error:
        kind = MissingError if isinstance(error, OSError) else DamagedError
        raise kind(
            f"the CLIP in {source} cannot be opened: {str(error).splitlines()[0]}", "download it again"
        ) from None
    if is_shared and clip.config.text_config.hidden_size != encoder.config.hidden_size:
        raise IncompatibleError(
            f"the CLIP in {source} does not match the base's text encoder",
            "use the CLIP model that contains the base's text encoder",
        )
    clip.requires_grad_(False).eval().to(model.device, torch.float32)
    finite_checks.check_weights(f"CLIP in {source}", clip)
    return Clip(clip, model.device, index, None if is_shared else _load_tokenizer(source))


def _load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a CLIP's folder; OpenAI's if the folder has none."""
    if not (folder / "tokenizer_config.json").is_file():
        return bundled_tokenizers.clip_tokenizer("<|endoftext|>")
    from transformers import CLIPTokenizer

    return load_tokenizer(CLIPTokenizer, folder.parent, folder.name)


VISION_HEADS = 16
"""Number of heads in ViT-L/14, H/14 and bigG/14; weight files do not store it."""


def _from_file(path: Path, text: Any) -> Any:
    """Load a CLIP model from one file, with sizes inferred from its tensors.

    Args:
        text: Config of the base's text encoder.

    Raises:
        ValueError: Tensors are missing, or have other names.
    """
    from safetensors.torch import load_file
    from transformers import CLIPConfig, CLIPModel

    weights = load_file(path)
    if "visual_projection.weight" not in weights:
        layout = (
            "in OpenCLIP's own layout; the transformers form has another file"
            if "visual.proj" in weights
            else "no CLIP with both encoders"
        )
        raise ValueError(f"it is {layout}")

    def layers(tower: str) -> int:
        return 1 + max(
            int(k.split(".layers.")[1].split(".")[0]) for k in weights if k.startswith(f"{tower}.encoder.layers.")
        )

    width, patches = (
        weights["visual_projection.weight"].shape[1],
        weights["vision_model.embeddings.position_embedding.weight"].shape[0],
    )
    projected, patch = (
        weights["visual_projection.weight"].shape[0],
        weights["vision_model.embeddings.patch_embedding.weight"].shape[-1],
    )
    inner = weights["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0]
    vision = {
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers("vision_model"), "num_attention_heads": VISION_HEADS,
        "patch_size": patch, "image_size": patch * round((patches - 1) ** 0.5), "hidden_act": text.hidden_act, "projection_dim": projected,
    }  # fmt: skip
    text_config = text.to_dict() | {"num_hidden_layers": layers("text_model"), "projection_dim": projected}
    text_config["hidden_size"] = weights["text_projection.weight"].shape[1]
    clip = CLIPModel(CLIPConfig(text_config=text_config, vision_config=vision, projection_dim=projected))
    missing, _ = clip.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.endswith("position_ids")]
    if missing:
        raise ValueError(f"it lacks {missing[0]}")
    return clip
