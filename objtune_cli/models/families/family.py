"""The interface of a family of base models, with the defaults of latent-diffusion U-Nets that have one text encoder."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from objtune_cli.models.families import samplers, schedulers
from objtune_cli.models.families.component_loading import load_component, load_tokenizer
from objtune_cli.models.families.diffusers_pipeline import DiffusersPipeline
from objtune_cli.models.families.latent_space import LatentSpace
from objtune_cli.models.families.module_sets import MODULES

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.models.conditioning import Conditioning


class Family(LatentSpace, DiffusersPipeline):
    """One family of base models: detects its folders, loads its components, encodes prompts and calls the denoiser.

    A new family is a subclass that sets `name`, `title`, `hub`, `clip_models` and `licence`, and defines `matches`. It
    overrides what differs from Stable Diffusion 1.x. File names of other tools are in `lora/file_names.py`.

    Attributes:
        name: Identifier in artifacts. title: Name in messages.
        pipeline: The pipeline class of diffusers. denoiser: Folder of the denoiser, "unet" or "transformer".
        encoders: Folders of the CLIP text encoders, whose token tables take placeholders.
        hub: Alias to hub repository and commit. licence: SPDX-like name and address of the licence of those weights.
        clip_models: For each text encoder the hub repository of the CLIP model that it is a part of.
        shares_clip_space: Whether the text encoders are those of CLIP models; otherwise `clip_models` measure only.
        sampling: Default settings of sampling. distilled_sampling: Those of distilled siblings. training: Default settings of training.
        block_names: Parts of the names of layers inside the denoiser's blocks, which quantisation replaces.
        prediction: Prediction type if the scheduler's config has none: "epsilon", "v_prediction" or "flow".
        denoiser_class: The denoiser's class in diffusers. text_encoder_type: Start of `model_type` in the text encoders' configs.
        reads_with_language_model: Whether the text encoder is a language model, as large as the denoiser.
        max_prompt_tokens: Largest number of tokens that the text encoders read; 0: the tokenizer's own limit.
        reads_prompt_weights: Whether prompts may have weights and several chunks; otherwise they are read as plain text.
        modules: `train.target_modules` to suffixes of layer names.
        cross_attention: Part of the names of layers in which image features attend to text. self_attention: Of layers in
            which they attend to themselves only.
        takes_attention_mask: Whether all blocks attend over text tokens, then image tokens, and the denoiser takes a mask for them.
        pipeline_sets_levels: Whether diffusers' pipeline computes the noise levels itself, whatever sampler it has.
        takes_references: Whether the denoiser sees pictures beside the prompt, see `BaseModel.references`.
        weights_join_encoders: Whether the mean that A1111 restores after weighting is that of all CLIP text encoders together.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    pipeline: ClassVar[str] = "StableDiffusionPipeline"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    hub: ClassVar[dict[str, tuple[str, str]]]
    clip_models: ClassVar[tuple[str, ...]]
    shares_clip_space: ClassVar[bool] = True
    sampling: ClassVar[dict[str, float]] = {"num_inference_steps": 30, "guidance_scale": 7.5}
    distilled_sampling: ClassVar[dict[str, float]] = {"num_inference_steps": 4, "guidance_scale": 1.0}
    training: ClassVar[dict[str, Any]] = {}
    block_names: ClassVar[tuple[str, ...]] = ("blocks.", "mid_block.")
    licence: ClassVar[tuple[str, str]]
    denoiser: ClassVar[str] = "unet"
    denoiser_class: ClassVar[str] = "UNet2DConditionModel"
    text_encoder_type: ClassVar[str] = "clip"
    reads_with_language_model: ClassVar[bool] = False
    max_prompt_tokens: ClassVar[int] = 0
    reads_prompt_weights: ClassVar[bool] = True
    prediction: ClassVar[str] = "epsilon"
    modules: ClassVar[Mapping[str, tuple[str, ...]]] = MODULES
    cross_attention: ClassVar[str] = ".attn2."
    self_attention: ClassVar[str] = ".attn1."
    takes_attention_mask: ClassVar[bool] = False
    pipeline_sets_levels: ClassVar[bool] = False
    takes_references: ClassVar[bool] = False
    weights_join_encoders: ClassVar[bool] = False

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders of all components that are loaded."""
        text_parts = [
            part for encoder in self.encoders for part in (encoder.replace("text_encoder", "tokenizer"), encoder)
        ]
        return (*text_parts, self.denoiser, "vae", "scheduler")

    def matches(self, pipeline: str, config: Callable[[str], Mapping[str, Any]]) -> bool:
        """Whether a folder belongs to this family.

        Args:
            pipeline: The pipeline class in `model_index.json`.
            config: Returns the config of a component by its folder, empty if there is none.
        """
        raise NotImplementedError

    def explain_mismatch(self, configs: Mapping[str, Mapping[str, Any]]) -> str:
        """Why components do not fit together, by their configs; "" if they do, or if only loading them tells."""
        return ""

    def fingerprint_extra(self, folder: Path) -> str:
        """Text that a base's fingerprint covers in addition to its components; "" by default."""
        return ""

    def load_text_encoders(self, folder: Path) -> list[tuple[Any, Any]]:
        """Load tokenizer and text encoder for each of `encoders`."""
        from transformers import CLIPTextModel, CLIPTokenizer

        return [
            (
                load_tokenizer(CLIPTokenizer, folder, "tokenizer"),
                load_component(CLIPTextModel, folder, "text_encoder", dtype="float32"),
            )
        ]

    def load_t5(self, folder: Path, dtype: Any) -> tuple[Any, Any]:
        """Load the T5 tokenizer and encoder in number format `dtype`; (None, None) for a family or a folder without T5."""
        return None, None

    def load_scheduler(self, folder: Path, **overrides: Any) -> Any:
        """Load the training noise schedule; keyword arguments override its config."""
        return schedulers.load_ddim(folder, overrides)

    def load_sampler(self, folder: Path, **overrides: Any) -> Any:
        """Load the sampler that the folder's config names; None if it is that of `load_scheduler`, or one that it replaces."""
        return schedulers.load_sampler(folder, overrides)

    def read_scheduler(self, folder: Path, **overrides: Any) -> dict[str, Any]:
        """Read and check the scheduler's config.

        Raises:
            IncompatibleError: The noise schedule is not supported.
        """
        return schedulers.read_config(folder, overrides)

    def load_denoiser(self, folder: Path) -> Any:
        """Load the denoiser."""
        import diffusers

        return load_component(getattr(diffusers, self.denoiser_class), folder, self.denoiser)

    def prepare_denoiser(self, denoiser: Any) -> Any:
        """The loaded denoiser, as `predict` and hooks call it; families change its interface here."""
        return denoiser

    def text_encoder_dtype(self, dtype: Any) -> Any:
        """Number format of the text encoders if the denoiser has `dtype`; gradients of tokens need the precision."""
        import torch

        return torch.float32

    def prompt_text(self, model: "BaseModel", text: str) -> str:
        """The text that the tokenizers read for a prompt, such as a chat template around it."""
        return text

    def word_ids(self, tokenizer: Any, word: str) -> list[int]:
        """Token ids of a word in the middle of a prompt."""
        ids: list[int] = tokenizer(word, add_special_tokens=False).input_ids
        return ids

    def add_tokens(self, tokenizer: Any, tokens: list[str]) -> None:
        """Add placeholder tokens to a tokenizer."""
        tokenizer.add_tokens(tokens, special_tokens=True)

    def options(self, folder: Path) -> dict[str, Any]:
        """Options of the family in `model_index.json`, for `BaseModel.options`."""
        return {}

    def distilled_from(self, folder: Path) -> str:
        """Name of the base to train instead, if the folder's model was distilled to few steps; "" if it was not."""
        return ""

    def encode_prompt(self, model: "BaseModel", texts: list[str], max_tokens: int = 0) -> "Conditioning":
        """Encode prompts for the denoiser.

        Args:
            max_tokens: Encode only so many leading tokens, without pooled vectors; 0: all tokens. The rows are the same
                either way, because CLIP's text encoders are causal.
        """
        from objtune_cli.models.conditioning import Conditioning

        ids = model.token_ids(texts)[:, : max_tokens or None]
        return Conditioning(model.text_encoder(input_ids=ids)[0].to(model.dtype))

    def encode_chunks(self, model: "BaseModel", ids: "Sequence[Tensor]") -> "list[tuple[Tensor, Tensor | None]]":
        """Encode chunks of token ids (K, L), one tensor per CLIP text encoder: states (K, L, d) and projected states (K, p) of each."""
        return [(model.text_encoder(input_ids=ids[0])[0], None)]

    def join_chunks(
        self, model: "BaseModel", text: str, states: "Sequence[Tensor]", pooled: "Sequence[Tensor | None]"
    ) -> "Conditioning":
        """The conditioning of one prompt from its encoded chunks.

        Args:
            text: The prompt, weights and breaks included.
            states: Of each text encoder, (1, K L, d). pooled: Of each text encoder, (1, p), from the first chunk.
        """
        from objtune_cli.models.conditioning import Conditioning

        return Conditioning(states[0].to(model.dtype))

    def match_lengths(self, model: "BaseModel", conditions: "Sequence[Conditioning]") -> "list[Conditioning]":
        """Give all conditions the same number of rows, so that they fit into one batch.

        Rows are repeated up to the least common multiple: attention over text features that are repeated gives the same result.
        """
        from objtune_cli.models.conditioning import repeat_rows

        rows = math.lcm(*(each.sequence.shape[1] for each in conditions))
        return [repeat_rows(each, rows // each.sequence.shape[1]) for each in conditions]

    def pooled_size(self, model: "BaseModel") -> int:
        """Width p of `Conditioning.pooled`; 0 for a family without pooled vectors."""
        return 0

    def t5_token_mask(self, model: "BaseModel", text: str, name: str) -> "Tensor":
        """Mask (L,) of the T5 tokens that stand for `<name>` in an expanded prompt; L = 0 without T5."""
        import torch

        return torch.zeros(0, dtype=torch.bool)

    def t5_tokenizers(self, model: "BaseModel") -> list[tuple[Any, int]]:
        """Tokenizers of encoders that read class words in place of placeholders, each with its maximum number of tokens."""
        return []

    def add_noise_and_target(
        self, model: "BaseModel", z: "Tensor", eps: "Tensor", t: "Tensor"
    ) -> "tuple[Tensor, Tensor]":
        """Noised latents z_t and the regression target, each (B, C, h, w), for latents z, noise eps and timesteps t (B,)."""
        from objtune_cli.numerics import ddpm

        return ddpm.add_noise(z, eps, model.alpha_bar, t), ddpm.target(z, eps, model.alpha_bar, t, model.prediction)

    def timesteps(self, count: int, total: int, generator: "Generator", *focus: Any) -> "Tensor":
        """Sample timesteps (count,), int64 in [0, total), mostly where identity is learned; `focus` as of `ddpm.timesteps`."""
        from objtune_cli.numerics import ddpm

        return ddpm.timesteps(count, total, generator, *focus)

    def make_sampler(self, scheduler: Any, name: str, cells: int = 0) -> Any:
        """A sampler by its name: "auto", or a name that `samplers` knows.

        Args:
            cells: Number of latent cells of an image; 0 for the base's own size.

        Raises:
            IncompatibleError: The family does not support it. ResourceError: It needs scipy.
        """
        return scheduler if name == "auto" else samplers.make_sampler(scheduler, name)

    def latent_multiple(self, config: Any) -> int:
        """Number of latent cells that the sides of latents must be multiples of."""
        return int(2 ** (len(config.block_out_channels) - 1))

    def is_cross_attention(self, processor: str) -> bool:
        """Whether image features attend to text in a layer, by the name of its attention processor."""
        return self.cross_attention in processor

    def acts_on_text_tokens(self, layer: str) -> bool:
        """Whether a layer of the denoiser acts on text features instead of image features."""
        return ".attn2.to_k" in layer or ".attn2.to_v" in layer

    def acts_on_all_tokens(self, layer: str) -> bool:
        """Whether a layer of the denoiser acts on text and image tokens in one sequence, see `row_weights`."""
        return False

    def row_weights(self, model: "BaseModel", text: "Tensor", image: "Callable[[int], Tensor]", rows: int) -> "Tensor":
        """Weights (B, rows) of the rows of such a layer, from those of text tokens (B, L): text tokens come first.

        Args:
            image: Returns the weights (B, n) of n image tokens.
        """
        import torch

        return torch.cat([text, image(rows - text.shape[1])], dim=1)

    def decoder_layers(self, denoiser: Any) -> tuple[tuple[str, ...], list[Any]]:
        """Layers for `train.target_blocks=decoder`.

        Returns:
            Prefixes of the names of the layers after the middle; and the blocks before it, which need no gradients.
        """
        return ("up_blocks.",), [*denoiser.down_blocks, denoiser.mid_block]

    def predict(self, model: "BaseModel", z_t: "Tensor", t: "Tensor", condition: "Conditioning") -> "Tensor":
        """The denoiser's output (B, C, h, w) for z_t (B, C, h, w), timesteps t (B,) and the conditioning of B prompts."""
        height, width = (side * model.vae_scale_factor for side in z_t.shape[-2:])
        prediction: Tensor = model.denoiser(
            z_t.to(model.dtype), t.to(model.device), **self.denoiser_kwargs(model, condition, height, width)
        ).sample
        return prediction

    def denoiser_kwargs(self, model: "BaseModel", condition: "Conditioning", height: int, width: int) -> dict[str, Any]:
        """Arguments of the denoiser besides latents and timesteps, for images of `height` x `width` px."""
        return {"encoder_hidden_states": condition.sequence}

    def _index(self, folder: Path) -> dict[str, Any]:
        index: dict[str, Any] = json.loads((folder / "model_index.json").read_bytes())
        return index
