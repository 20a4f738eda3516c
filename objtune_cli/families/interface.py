"""What a family of base models is asked, with the answers that latent-diffusion U-Nets under one text encoder share."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor


class Family:
    """A family: which folders are of it, how its parts are opened, what it is told, what it predicts, what others call its layers.

    Attributes:
        name: As artifacts keep it. title: as a person reads it. pipeline: class of diffusers.
        hub: alias to hub repository and revision. towers: for each text encoder, the hub id of the CLIP with both towers in its space.
        sampling: settings of sampling that suit it. architecture, version: what ModelSpec and kohya call it.
        embedding_keys: names of a token's vectors in an embedding file, one a text encoder; none: the token itself is the only key.
        licence: SPDX-like name and address of the licence of the pinned weights.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    pipeline: ClassVar[str] = "StableDiffusionPipeline"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    hub: ClassVar[dict[str, tuple[str, str]]]
    towers: ClassVar[tuple[str, ...]]
    sampling: ClassVar[dict[str, float]] = {"steps": 30, "guidance": 7.5}
    training: ClassVar[dict[str, Any]] = {}
    architecture: ClassVar[str]
    version: ClassVar[str]
    embedding_keys: ClassVar[tuple[str, ...]] = ()
    licence: ClassVar[tuple[str, str]]

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders of a base that are opened."""
        words = [part for encoder in self.encoders for part in (encoder.replace("text_encoder", "tokenizer"), encoder)]
        return (*words, "unet", "vae", "scheduler")

    def owns(self, pipeline: str, encoder: Mapping[str, Any]) -> bool:
        """Whether a folder is of this family: the pipeline class in `model_index.json`, the first text encoder's config."""
        raise NotImplementedError

    def open_words(self, folder: Path) -> list[tuple[Any, Any]]:
        """Tokenizer and text encoder, each pair of the family."""
        from transformers import CLIPTextModel, CLIPTokenizer

        return [
            (
                CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
                CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True, local_files_only=True),
            )
        ]

    def open_denoiser(self, folder: Path) -> Any:
        """The network that is trained."""
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True, local_files_only=True)

    def picture_dtype(self, dtype: Any) -> Any:
        """The number format of the autoencoder where the denoiser has `dtype`."""
        return dtype

    def options(self, folder: Path) -> dict[str, Any]:
        """What `model_index.json` says beside its parts, as far as the family minds it."""
        return {}

    def encode(self, stack: Any, texts: list[str]) -> "Tensor":
        """Prompts to one tensor (B, rows, d) that says everything the denoiser is told of them."""
        return stack.text_encoder(input_ids=stack.token_ids(texts))[0].to(stack.dtype)

    def words(self, condition: "Tensor") -> "Tensor":
        """The rows of a condition that cross-attention sees, one a token."""
        return condition

    def extras(self, stack: Any, condition: "Tensor", height: int, width: int) -> dict[str, "Tensor"]:
        """What the denoiser is told beside the words, for pictures of a size in px; nothing here."""
        return {}

    def predict(self, stack: Any, z_t: "Tensor", t: "Tensor", condition: "Tensor") -> "Tensor":
        """The denoiser's output for z_t (B, C, h, w), t (B,), and what `encode` gave, (B, rows, d)."""
        height, width = (side * stack.factor for side in z_t.shape[-2:])
        told = self.extras(stack, condition, height, width)
        named = {"added_cond_kwargs": told} if told else {}
        return stack.unet(z_t.to(stack.dtype), t.to(stack.device), encoder_hidden_states=self.words(condition), **named).sample

    def open_pipeline(self, stack: Any, scheduler: Any) -> Any:
        """The pipeline class of diffusers around the stack's parts; takes what `prompts` gives."""
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(
            vae=stack.vae, text_encoder=None, tokenizer=None, unet=stack.unet, scheduler=scheduler, safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
        )  # type: ignore[arg-type]  # fmt: skip

    def prompts(self, stack: Any, condition: "Tensor", against: "Tensor") -> dict[str, Any]:
        """What a call of the pipeline is told: condition and what guidance goes away from, each (B, rows, d)."""
        return {"prompt_embeds": condition, "negative_prompt_embeds": against}

    def guided(self, stack: Any, condition: "Tensor", against: "Tensor", height: int, width: int) -> dict[str, "Tensor"]:
        """What the pipeline's loop reads from the step at which guidance begins."""
        import torch

        return {"prompt_embeds": torch.cat([against, condition])}

    def kohya_layer(self, layer: str) -> str:
        """A layer of the denoiser as kohya's files name it, dots included."""
        return layer

    def _index(self, folder: Path) -> dict[str, Any]:
        return json.loads((folder / "model_index.json").read_text())


RESIDUAL = {"conv1": "in_layers.2", "conv2": "out_layers.3", "conv_shortcut": "skip_connection", "time_emb_proj": "emb_layers.1"}
"""Layers of a residual block, and what the first repository calls them; those of attention have the same names."""


def first_name(layer: str) -> str:
    """A layer of a U-Net of two residual blocks a level as the first repository names it: `input_blocks`, `middle_block`, `output_blocks`.

    Raises:
        KeyError, ValueError, IndexError: It lies outside those blocks.
    """
    kind, *rest = layer.split(".")
    if kind == "mid_block":
        place = {("attentions", "0"): "1", ("resnets", "0"): "0", ("resnets", "1"): "2"}[rest[0], rest[1]]
        return ".".join(("middle_block", place, *_inside(rest[0], rest[2:])))
    start = {"down_blocks": ("input_blocks", 1), "up_blocks": ("output_blocks", 0)}[kind]
    slot = {"resnets": "0", "attentions": "1"}[rest[1]]
    return ".".join((start[0], str(start[1] + 3 * int(rest[0]) + int(rest[2])), slot, *_inside(rest[1], rest[3:])))


def _inside(kind: str, rest: list[str]) -> list[str]:
    return [RESIDUAL[rest[0]]] if kind == "resnets" else rest
