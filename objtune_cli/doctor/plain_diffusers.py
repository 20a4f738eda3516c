"""Load an exported object in diffusers alone, as other programs do, and draw the image that `generate` drew."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.interchange.export import DIFFUSERS_FILE
from objtune_cli.lora import file_names
from objtune_cli.models.base_spec import BaseSpec
from objtune_cli.models.families import FAMILIES, SD1, SD2, SD3, SD35, bundled_tokenizers, denoiser_file
from objtune_cli.models.families import pipeline_folder as folders
from objtune_cli.numerics.ddpm import seeded

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class DrawingSettings:
    """How an image is drawn.

    Attributes:
        class_prompt: The prompt with the class word in the object's place, which T5 reads.
        sampler: A sampler of diffusers, whose class and config are used.
        side: Side of the image, px.
    """

    prompt: str
    class_prompt: str
    sampler: Any
    steps: int
    guidance_scale: float
    side: int
    seed: int


def open_pipeline(base: BaseSpec, device: "torch.device", dtype: "torch.dtype") -> Any:
    """Open a base with the pipeline class of its family; one without tokens of its own gets diffusers' mixin for them."""
    import diffusers
    from diffusers.loaders import TextualInversionLoaderMixin  # type: ignore[attr-defined]

    family = base.family
    kind: Any = getattr(diffusers, family.pipeline)
    if not issubclass(kind, TextualInversionLoaderMixin):
        kind = type("Pipeline", (TextualInversionLoaderMixin, kind), {})
    file = denoiser_file.read(base.weights, FAMILIES) if base.weights else None
    options = {"torch_dtype": dtype, **_replacements(replace(base, weights=None) if file else base, dtype)}
    if file is not None:
        options[family.denoiser] = denoiser_file.load(file, base.folder).to(dtype)
        pipe = kind.from_pretrained(base.folder, use_safetensors=True, local_files_only=True, **options)
    elif base.weights is None:
        variant = folders.find_weights(base.folder, family.denoiser).variant or None
        pipe = kind.from_pretrained(
            base.folder, variant=variant, use_safetensors=True, local_files_only=True, **options
        )
    else:
        pipe = kind.from_single_file(str(base.weights), config=str(base.folder), local_files_only=True, **options)
        if getattr(pipe, "text_encoder_3", None) is not None:
            pipe.text_encoder_3.eval().tie_weights()  # diffusers leaves dropout on, and the table's second name empty
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _replacements(base: BaseSpec, dtype: "torch.dtype") -> dict[str, Any]:
    """The components that a base does not bring, or that the settings replace."""
    family, parts = base.family, dict[str, Any]()
    if family in (SD1, SD2):
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if base.weights is not None:
        words = [bundled_tokenizers.clip_tokenizer(pad) for pad in bundled_tokenizers.pad_tokens(family)]
        parts |= dict(zip(("tokenizer", "tokenizer_2"), words, strict=False))
        parts |= {"tokenizer_3": bundled_tokenizers.t5_tokenizer()} if family in (SD3, SD35) else {}
    elif family in (SD3, SD35) and not (base.folder / "text_encoder_3").is_dir():
        parts |= {"text_encoder_3": None, "tokenizer_3": None}
    if base.vae is not None:
        from diffusers import AutoencoderKL

        vae: Any = AutoencoderKL
        load = vae.from_single_file if base.vae.is_file() else vae.from_pretrained
        parts["vae"] = load(str(base.vae), torch_dtype=dtype, local_files_only=True)
    return parts


def load_object(pipe: Any, base: BaseSpec, folder: Path, name: str, embedding: Path) -> None:
    """Load the exported LoRA in a folder, and the vectors of the token `<name>`, into a pipeline."""
    from safetensors.torch import load_file

    pipe.load_lora_weights(str(folder), weight_name=DIFFUSERS_FILE)
    keys = file_names.of_family(base.family).embedding_keys
    if not keys:
        pipe.load_textual_inversion(str(embedding), token=f"<{name}>")
        return
    words = load_file(str(embedding))
    for key, suffix in zip(keys, ("", "_2"), strict=True):
        encoder, tokenizer = (getattr(pipe, f"{part}{suffix}") for part in ("text_encoder", "tokenizer"))
        pipe.load_textual_inversion(words[key], token=f"<{name}>", text_encoder=encoder, tokenizer=tokenizer)
        if hasattr(
            encoder, "text_projection"
        ):  # the pooled vector is read at the end of the text, not at the largest id
            encoder.text_model.eos_token_id = tokenizer.eos_token_id


def draw(pipe: Any, base: BaseSpec, settings: DrawingSettings) -> "tuple[Tensor, Any]":
    """Draw one image; returns its latents (1, C, h, w) in float32 on the CPU, and the image (H, W, 3) uint8."""
    import torch

    if not base.family.pipeline_sets_levels:
        pipe.scheduler = type(settings.sampler).from_config(settings.sampler.config)
    generator = seeded(settings.seed)
    network = getattr(pipe, base.family.denoiser)
    cells = settings.side // base.vae_scale_factor
    noise = torch.randn(network.config.in_channels, cells, cells, generator=generator)[None]
    last: dict[str, Any] = {}

    def keep_latents(pipe: Any, index: int, timestep: object, values: dict[str, Any]) -> Mapping[str, Any]:
        last["latents"] = values["latents"]
        return values

    out = pipe(
        **base.family.diffusers_prompt(pipe, settings.prompt, settings.class_prompt),
        latents=noise.to(network.device, network.dtype),
        generator=[generator],
        num_inference_steps=settings.steps,
        guidance_scale=base.family.diffusers_guidance(settings.guidance_scale),
        height=settings.side,
        width=settings.side,
        output_type="np",
        callback_on_step_end=keep_latents,
    )
    latents = last["latents"].float().cpu()
    if latents.ndim == 3:  # tokens, row by row
        latents = latents.transpose(1, 2).unflatten(2, (cells, cells))
    return latents, (out.images[0] * 255).round().astype("uint8")
