"""What a family of base models is asked, with the answers that latent-diffusion U-Nets under one text encoder share."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from objtune_cli.models.families import schedulers
from objtune_cli.models.families.component_loading import load_component, load_tokenizer

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from objtune_cli.models.conditioning import Conditioning

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
CONVOLUTION = ("conv1", "conv2")
MODULES: dict[str, tuple[str, ...]] = {
    "none": (),
    "cross-kv": ("attn2.to_k", "attn2.to_v"),
    "attention": ATTENTION,
    "attention+ff": ATTENTION + FEED_FORWARD,
    "all": ATTENTION + FEED_FORWARD + CONVOLUTION,
}
"""Names of layer sets to the ends of a U-Net's layers; "none" leaves the denoiser alone (textual inversion)."""


class Family:
    """A family: which folders are of it, how its parts are opened, what it is told, what it predicts, what others call its layers.

    Attributes:
        name: As artifacts keep it. title: as a person reads it. pipeline: class of diffusers. denoiser: its folder, and what diffusers' files call it.
        hub: alias to hub repository and revision. towers: for each text encoder, the hub id of the CLIP with both towers in its space.
        sampling: settings of sampling that suit it; sampler: what other tools call its own. prediction: where the scheduler's config says none.
        modules: names of layer sets to the ends of its layers. across, within: parts of the names of layers in which the picture looks at
            the words, and at itself alone. architecture, version, network: what ModelSpec and kohya call it, and its LoRA.
        embedding_keys: names of a token's vectors in an embedding file, one a text encoder; none: the token itself is the only key.
        side: of the latents that it was trained on, cells, where the denoiser's config does not say it.
        licence: SPDX-like name and address of the licence of the pinned weights.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    pipeline: ClassVar[str] = "StableDiffusionPipeline"
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    hub: ClassVar[dict[str, tuple[str, str]]]
    clip_models: ClassVar[tuple[str, ...]]
    sampling: ClassVar[dict[str, float]] = {"num_inference_steps": 30, "guidance_scale": 7.5}
    training: ClassVar[dict[str, Any]] = {}
    architecture: ClassVar[str]
    version: ClassVar[str]
    embedding_keys: ClassVar[tuple[str, ...]] = ()
    licence: ClassVar[tuple[str, str]]
    denoiser: ClassVar[str] = "unet"
    sampler: ClassVar[str] = "DDIM"
    prediction: ClassVar[str] = "epsilon"
    modules: ClassVar[Mapping[str, tuple[str, ...]]] = MODULES
    cross_attention: ClassVar[str] = ".attn2."
    self_attention: ClassVar[str] = ".attn1."
    kohya_network_module: ClassVar[str] = "networks.lora"
    default_latent_size: ClassVar[int] = 64

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders of a base that are opened."""
        words = [part for encoder in self.encoders for part in (encoder.replace("text_encoder", "tokenizer"), encoder)]
        return (*words, self.denoiser, "vae", "scheduler")

    def matches(self, pipeline: str, config: Callable[[str], Mapping[str, Any]]) -> bool:
        """Whether a folder is of this family: the pipeline class in `model_index.json`, and the configs of its parts."""
        raise NotImplementedError

    def fingerprint_extra(self, folder: Path) -> str:
        """What a base's fingerprint must hold beside its parts; nothing here."""
        return ""

    def load_text_encoders(self, folder: Path) -> list[tuple[Any, Any]]:
        """Tokenizer and text encoder, each pair of the family."""
        from transformers import CLIPTextModel, CLIPTokenizer

        return [
            (
                load_tokenizer(CLIPTokenizer, folder, "tokenizer"),
                load_component(CLIPTextModel, folder, "text_encoder", dtype="float32"),
            )
        ]

    def load_t5(self, folder: Path, dtype: Any) -> tuple[Any, Any]:
        """Tokenizer and encoder that read no added words, in the denoiser's number format; none here."""
        return None, None

    def load_scheduler(self, folder: Path, **said: Any) -> Any:
        """The noise schedule, with DDIM on it; `said`: what is known better than its config does."""
        return schedulers.load_ddim(folder, said)

    def load_sampler(self, folder: Path, **said: Any) -> Any:
        """The base's own sampler; None where it is the one of `open_scheduler`, or that takes its place."""
        return schedulers.load_sampler(folder, said)

    def read_scheduler(self, folder: Path, **said: Any) -> dict[str, Any]:
        """The scheduler's config, checked."""
        return schedulers.read_config(folder, said)

    def load_denoiser(self, folder: Path) -> Any:
        """The network that is trained."""
        from diffusers import UNet2DConditionModel

        return load_component(UNet2DConditionModel, folder, "unet")

    def vae_dtype(self, dtype: Any) -> Any:
        """The number format of the autoencoder where the denoiser has `dtype`."""
        return dtype

    def options(self, folder: Path) -> dict[str, Any]:
        """What `model_index.json` says beside its parts, as far as the family minds it."""
        return {}

    def encode_prompt(self, model: Any, texts: list[str], max_tokens: int = 0) -> "Conditioning":
        """Encode prompts for the denoiser.

        Args:
            max_tokens: Encode only so many leading tokens, without pooled vectors; 0: all tokens. The rows are the same
                either way, because CLIP's text encoders are causal.
        """
        from objtune_cli.models.conditioning import Conditioning

        ids = model.token_ids(texts)[:, : max_tokens or None]
        return Conditioning(model.text_encoder(input_ids=ids)[0].to(model.dtype))

    def pooled_size(self, model: Any) -> int:
        """Width p of `Conditioning.pooled`; 0 for a family without pooled vectors."""
        return 0

    def t5_token_mask(self, model: Any, text: str, name: str) -> "Tensor":
        """Which rows behind the tokens say `<name>` of an expanded prompt, boolean; none here."""
        import torch

        return torch.zeros(0, dtype=torch.bool)

    def t5_tokenizers(self, model: Any) -> list[tuple[Any, int]]:
        """Tokenizers of encoders that read class words in place of added ones, each with the tokens that it reads at most; none here."""
        return []

    def add_noise_and_target(self, model: Any, z: "Tensor", eps: "Tensor", t: "Tensor") -> "tuple[Tensor, Tensor]":
        """z_t and what the denoiser is to say of it, each as z (B, C, h, w); t: (B,) noise levels, larger is noisier."""
        from objtune_cli.numerics import ddpm

        return ddpm.add_noise(z, eps, model.alpha_bar, t), ddpm.target(z, eps, model.alpha_bar, t, model.prediction)

    def timesteps(self, count: int, total: int, generator: "Generator", *focus: Any) -> "Tensor":
        """Noise levels (count,), int64, below `total`, more of those that are worth more; `focus`: as of `noise.timesteps`."""
        from objtune_cli.numerics import ddpm

        return ddpm.timesteps(count, total, generator, *focus)

    def make_sampler(self, scheduler: Any, name: str) -> Any:
        """The sampler of a name: "auto", "ddim", "euler" or "dpm++".

        Raises:
            IncompatibleError: None of that name suits this family.
        """
        return scheduler if name == "auto" else schedulers.choose(scheduler, name)

    def latent_multiple(self, config: Any) -> int:
        """Latent cells, along one side, of the smallest maps inside the denoiser."""
        return int(2 ** (len(config.block_out_channels) - 1))

    def acts_on_text_tokens(self, layer: str) -> bool:
        """Whether a layer of the denoiser acts on the words' rows, not on the picture's."""
        return ".attn2.to_k" in layer or ".attn2.to_v" in layer

    def decoder_layers(self, denoiser: Any) -> tuple[tuple[str, ...], list[Any]]:
        """Starts of the names of layers after the middle, and the blocks before it, which need not hear what learns."""
        return ("up_blocks.",), [*denoiser.down_blocks, denoiser.mid_block]

    def predict(self, model: Any, z_t: "Tensor", t: "Tensor", condition: "Conditioning") -> "Tensor":
        """The denoiser's output (B, C, h, w) for z_t (B, C, h, w), timesteps t (B,) and the conditioning of B prompts."""
        height, width = (side * model.vae_scale_factor for side in z_t.shape[-2:])
        return model.denoiser(
            z_t.to(model.dtype), t.to(model.device), **self.denoiser_kwargs(model, condition, height, width)
        ).sample

    def denoiser_kwargs(self, model: Any, condition: "Conditioning", height: int, width: int) -> dict[str, Any]:
        """Arguments of the denoiser besides latents and timesteps, for images of `height` x `width` px."""
        return {"encoder_hidden_states": condition.sequence}

    def build_pipeline(self, model: Any, scheduler: Any) -> Any:
        """The pipeline class of diffusers around the stack's parts; takes what `prompts` gives."""
        from diffusers import StableDiffusionPipeline

        if scheduler.config.get("steps_offset", 1) != 1:  # as the pipeline sets it, which says so on stderr
            scheduler.register_to_config(steps_offset=1)
        return StableDiffusionPipeline(
            vae=model.vae, text_encoder=None, tokenizer=None, unet=model.denoiser, scheduler=scheduler, safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
        )  # type: ignore[arg-type]  # fmt: skip

    def pipeline_kwargs(self, condition: "Conditioning", negative: "Conditioning") -> dict[str, Any]:
        """Arguments of the pipeline: the encoded prompts and negative prompts, B each."""
        kwargs: dict[str, Any] = {"prompt_embeds": condition.sequence, "negative_prompt_embeds": negative.sequence}
        if condition.pooled is not None:
            kwargs |= {"pooled_prompt_embeds": condition.pooled, "negative_pooled_prompt_embeds": negative.pooled}
        return kwargs

    def callback_kwargs(
        self, model: Any, condition: "Conditioning", height: int, width: int
    ) -> "dict[str, Tensor | None]":
        """Variables that a step callback must set to change the conditioning inside the pipeline's loop.

        Args:
            condition: Of the batch of a denoiser call: under classifier-free guidance the negative prompts come first.
            height, width: Size of the images, px.
        """
        return {"prompt_embeds": condition.sequence}

    def to_kohya_name(self, layer: str) -> str:
        """A layer of the denoiser as kohya's files name it, dots included."""
        return layer

    def to_kohya(self, layers: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
        """Down and up of the denoiser's layers under the names of kohya's files, dots included."""
        return {self.to_kohya_name(name): pair for name, pair in layers.items()}

    def original_names(self, layer: str, config: Any) -> list[tuple[str, "int | str | None"]]:
        """What files of the model's first repository and of kohya call a layer of the denoiser, and which of its outputs the layer has.

        Returns:
            Names with None where the named layer is this one, 0, 1 or 2 where this one is a third of it, "swapped" where
            the halves of its outputs stand the other way round.
        """
        try:
            name = original_name(layer)
        except (KeyError, ValueError, IndexError):
            return []
        if ".upsamplers." in layer:  # a level without attention has one place less
            return [(name, None), (name.replace(".2.conv", ".1.conv"), None)]
        return [(name, None)]

    def diffusers_example(self, base: str, name: str, class_word: str, trigger: str = "") -> list[str]:
        """Lines in which diffusers reads the files of a repository, from its folder, and draws the object; `trigger`: the name of its embedding file, else its own."""
        lines = [
            f"from diffusers import {self.pipeline}",
            "",
            f'pipe = {self.pipeline}.from_pretrained("{base}")',
            'pipe.load_lora_weights(".", weight_name="pytorch_lora_weights.safetensors")',
        ]
        if self.embedding_keys:
            lines = ["from safetensors.torch import load_file", *lines, *self._words_read(name, trigger or name)]
        else:
            lines.append(f'pipe.load_textual_inversion("embeddings/{trigger or name}.safetensors")')
        return [*lines, f'picture = pipe("a photo of <{name}> on the beach").images[0]']

    def _words_read(self, name: str, trigger: str) -> list[str]:
        """Lines that give each text encoder its vectors of a word."""
        given = "pipe.text_encoder{0}, tokenizer=pipe.tokenizer{0}"
        return [
            f'words = load_file("embeddings/{trigger}.safetensors")',
            *(
                f'pipe.load_textual_inversion(words["{key}"], token="<{name}>", text_encoder={given.format(suffix)})'
                for key, suffix in zip(self.embedding_keys, ("", "_2"), strict=True)
            ),
        ]

    def _index(self, folder: Path) -> dict[str, Any]:
        return json.loads((folder / "model_index.json").read_bytes())


RESIDUAL = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "time_emb_proj": "emb_layers.1",
}
"""Layers of a residual block, and what the first repository calls them; those of attention have the same names."""
OUTSIDE = {
    "conv_in": "input_blocks.0.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
"""Layers of a U-Net before and behind its blocks, and what the first repository calls them."""


def original_name(layer: str) -> str:
    """A layer of a U-Net of two residual blocks a level as the first repository names it: `input_blocks`, `middle_block`, `output_blocks`.

    The convolution after an upsampling is named as in a level with attention.

    Raises:
        KeyError, ValueError, IndexError: It is no layer of such a U-Net.
    """
    if layer in OUTSIDE:
        return OUTSIDE[layer]
    kind, *rest = layer.split(".")
    if kind == "mid_block":
        place = {("attentions", "0"): "1", ("resnets", "0"): "0", ("resnets", "1"): "2"}[rest[0], rest[1]]
        return ".".join(("middle_block", place, *_inside(rest[0], rest[2:])))
    if rest[1] == "downsamplers":
        return f"input_blocks.{3 * int(rest[0]) + 3}.0.op"
    if rest[1] == "upsamplers":
        return f"output_blocks.{3 * int(rest[0]) + 2}.2.conv"
    start = {"down_blocks": ("input_blocks", 1), "up_blocks": ("output_blocks", 0)}[kind]
    slot = {"resnets": "0", "attentions": "1"}[rest[1]]
    return ".".join((start[0], str(start[1] + 3 * int(rest[0]) + int(rest[2])), slot, *_inside(rest[1], rest[3:])))


def _inside(kind: str, rest: list[str]) -> list[str]:
    return [RESIDUAL[rest[0]]] if kind == "resnets" else rest
