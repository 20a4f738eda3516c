"""FLUX.2 klein base, 4B and 9B: a transformer over image and text tokens with shared modulation, a flow, 1024 px, Qwen3.

The sequence of its conditioning is (B, 512, 3 d): hidden states of Qwen3 at a quarter, half and three quarters of its depth
side by side. Padding rows are kept, and the transformer attends to them, as in diffusers.

Latents are (B, 128, h, w), one cell per 16 px: patches of 2 x 2 of the VAE's latents, normalised by the running statistics
of its batch norm.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from objtune_cli.models.families import pipeline_folder as folders
from objtune_cli.models.families import qwen3_text_encoder, samplers
from objtune_cli.models.families.module_sets import ATTENTION
from objtune_cli.models.families.qwen3_flow import Qwen3FlowFamily

if TYPE_CHECKING:
    from torch import Tensor

    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.models.conditioning import Conditioning

TEXT_ATTENTION = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
SINGLE_STREAM = ("attn.to_qkv_mlp_proj", "attn.to_out")
"""The layers of a single-stream block: queries, keys, values and feed-forward network in one, and both outputs in one."""
FEED_FORWARD = ("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out")
PATCH = 2
"""Side of the patches of VAE latents that make a latent cell."""
REFERENCE_TIME = 10
"""Time between the positions of the image and of each picture beside the prompt."""
TRAINING_SHIFT = ((256, 0.5), (4096, 1.15))
"""Number of image tokens to the logarithm of the shift of the noise levels in training, as for FLUX.1."""


class _Flux2Klein(Qwen3FlowFamily):
    name = "flux2-klein"
    title = "FLUX.2 klein"
    pipeline = "Flux2KleinPipeline"
    denoiser_class = "Flux2Transformer2DModel"
    vae_class = "AutoencoderKLFlux2"
    thinking = False
    hub: ClassVar = {
        "klein": ("black-forest-labs/FLUX.2-klein-base-4B", "a3b4f4849157f664bdbc776fd7453c2783562f4d"),
        "klein-turbo": ("black-forest-labs/FLUX.2-klein-4B", "e7b7dc27f91deacad38e78976d1f2b499d76a294"),
    }
    sampling: ClassVar = {"num_inference_steps": 50, "guidance_scale": 4.0}
    training: ClassVar = {"target_blocks": "all"}
    modules: ClassVar = {
        "none": (),
        "cross-kv": ("attn.add_k_proj", "attn.add_v_proj"),
        "attention": ATTENTION + TEXT_ATTENTION + SINGLE_STREAM,
        "attention+ff": ATTENTION + TEXT_ATTENTION + SINGLE_STREAM + FEED_FORWARD,
        "all": ATTENTION + TEXT_ATTENTION + SINGLE_STREAM + FEED_FORWARD,
    }
    takes_references = True
    licence = ("apache-2.0", "https://huggingface.co/black-forest-labs/FLUX.2-klein-base-4B/blob/main/LICENSE.md")

    def matches(self, pipeline: str, config: Callable[[str], Mapping[str, Any]]) -> bool:
        """The family has its own pipeline class."""
        return pipeline == self.pipeline

    def explain_mismatch(self, configs: Mapping[str, Mapping[str, Any]]) -> str:
        """The denoiser reads three hidden states of the text encoder side by side."""
        width, hidden = configs[self.denoiser].get("joint_attention_dim"), configs["text_encoder"].get("hidden_size")
        if not isinstance(width, int) or not isinstance(hidden, int) or width == 3 * hidden:
            return ""
        return f"its denoiser takes text features of width {width}, its text encoder gives {3 * hidden}"

    def is_denoiser_file(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """By the modulation that all blocks share, which FLUX.1 does not have."""
        return {"double_stream_modulation_img.lin.weight", "single_blocks.0.linear1.weight"} <= shapes.keys()

    def denoiser_size(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """Numbers of blocks, and width."""
        double, single = (
            len({key.split(".")[1] for key in shapes if key.startswith(kind)})
            for kind in ("double_blocks.", "single_blocks.")
        )
        return _describe_size(double, single, shapes["img_in.weight"][0])

    def configured_size(self, denoiser: Mapping[str, Any]) -> str:
        """Numbers of blocks, and width."""
        width = int(denoiser["num_attention_heads"]) * int(denoiser["attention_head_dim"])
        return _describe_size(int(denoiser["num_layers"]), int(denoiser["num_single_layers"]), width)

    def fingerprint_extra(self, folder: Path) -> str:
        """Marks a distilled model, which only `model_index.json` names."""
        return "distilled" if self.distilled_from(folder) else ""

    def distilled_from(self, folder: Path) -> str:
        """The base of 4B by its alias, that of 9B by its repository."""
        if not self._index(folder).get("is_distilled"):
            return ""
        is_large = int(folders.read_json(folder, f"{self.denoiser}/config.json").get("num_attention_heads", 24)) > 24
        return "black-forest-labs/FLUX.2-klein-base-9B" if is_large else "klein"

    def load_text_encoders(self, folder: Path) -> list[tuple[Any, Any]]:
        """Qwen3 up to three quarters of its layers."""
        return qwen3_text_encoder.load(folder, qwen3_text_encoder.count_layers(folder) * 3 // 4)

    def latent_channels(self, denoiser: Any) -> int:
        """Those of the denoiser's input if its config names no output."""
        return int(denoiser.out_channels or denoiser.in_channels)

    def latent_channels_of_vae(self, vae: Mapping[str, Any]) -> int:
        """Those of a patch."""
        return int(vae.get("latent_channels") or 32) * PATCH**2

    def cell_size(self, vae: Mapping[str, Any]) -> int:
        """Pixels per patch."""
        return super().cell_size(vae) * PATCH

    def normalise_latents(self, vae: Any, mean: "Tensor", std: "Tensor") -> "tuple[Tensor, Tensor]":
        """Patches less the running mean of the VAE's batch norm, over its running deviation."""
        centre, scale = _statistics(vae, mean)
        return (_to_patches(mean) - centre) / scale, _to_patches(std) / scale

    def denormalise_latents(self, vae: Any, latents: "Tensor") -> "Tensor":
        """The inverse of `normalise_latents`."""
        import torch

        centre, scale = _statistics(vae, latents)
        patched: Tensor = torch.nn.functional.pixel_shuffle(latents * scale + centre, PATCH)
        return patched

    def latent_multiple(self, config: Any) -> int:
        """A cell is a token."""
        return 1

    def encode_prompt(self, model: "BaseModel", texts: list[str], max_tokens: int = 0) -> "Conditioning":
        """Three hidden states of Qwen3 side by side."""
        from objtune_cli.models.conditioning import Conditioning

        last = int(model.text_encoder.config.num_hidden_layers)
        states = (last // 3, last * 2 // 3, last)
        return Conditioning(qwen3_text_encoder.encode(model, texts, max_tokens, states))

    def training_levels(self, model: "BaseModel", cells: int) -> "Tensor":
        """Levels 1/n, 2/n, ... 1, shifted by the number of image tokens as in the training of FLUX.1.

        The shift of sampling is larger, and for sampling only.
        """
        import torch

        (few, low), (many, high) = TRAINING_SHIFT
        log_shift = low + (high - low) * (cells - few) / (many - few)
        shift, total = torch.tensor(log_shift).exp(), model.num_train_timesteps
        levels = torch.arange(1, total + 1) / total
        return shift * levels / (1 + (shift - 1) * levels)

    def make_sampler(self, scheduler: Any, name: str, cells: int = 0) -> Any:
        """Noise levels shifted by the number of image tokens and of steps."""
        sampler = samplers.make_flow_sampler(
            samplers.without_shift(scheduler), "euler" if name == "auto" else name, self.title
        )
        return samplers.shift_by_steps(sampler, partial(sampling_shift, cells))

    def is_cross_attention(self, processor: str) -> bool:
        """The double-stream blocks, in which text tokens have projections of their own."""
        return processor.startswith("transformer_blocks.")

    def acts_on_text_tokens(self, layer: str) -> bool:
        """The projections and feed-forward layers of text tokens in double-stream blocks, and before them."""
        return layer == "context_embedder" or any(f".{end}" in layer for end in (*TEXT_ATTENTION, "ff_context"))

    def acts_on_all_tokens(self, layer: str) -> bool:
        """The single-stream blocks."""
        return layer.startswith("single_transformer_blocks.")

    def decoder_layers(self, denoiser: Any) -> tuple[tuple[str, ...], list[Any]]:
        """The single-stream blocks; all blocks need gradients, because text tokens run through all of them."""
        return ("single_transformer_blocks.",), []

    def _predict_at(self, model: "BaseModel", z_t: "Tensor", sigma: "Tensor", condition: "Conditioning") -> "Tensor":
        """The velocity at noise levels sigma (B,); clean pictures stand behind the image."""
        import torch

        height, width = (side * model.vae_scale_factor for side in z_t.shape[-2:])
        images = [z_t, *(latents.expand(len(z_t), -1, -1, -1) for latents in model.references)]
        tokens = torch.cat([image.to(model.dtype).flatten(2).transpose(1, 2) for image in images], dim=1)
        cells = z_t.shape[-2] * z_t.shape[-1]
        velocity: Tensor = model.denoiser(
            hidden_states=tokens, timestep=sigma, **self.denoiser_kwargs(model, condition, height, width)
        ).sample
        latents: Tensor = velocity[:, :cells].transpose(1, 2).unflatten(2, z_t.shape[-2:])
        return latents

    def denoiser_kwargs(self, model: "BaseModel", condition: "Conditioning", height: int, width: int) -> dict[str, Any]:
        """Text features, and the positions (time, row, column, number) of image and text tokens; pictures have times of their own."""
        import torch

        sizes = [(height // model.vae_scale_factor, width // model.vae_scale_factor)]
        sizes += [(latents.shape[-2], latents.shape[-1]) for latents in model.references]
        one, device = torch.arange(1), model.device
        image = torch.cat(
            [
                torch.cartesian_prod(one + i * REFERENCE_TIME, torch.arange(rows), torch.arange(columns), one)
                for i, (rows, columns) in enumerate(sizes)
            ]
        )
        text = torch.cartesian_prod(one, one, one, torch.arange(condition.sequence.shape[1]))
        return {
            "encoder_hidden_states": condition.sequence,
            "img_ids": image.to(device),
            "txt_ids": text.to(device),
            "guidance": None,
        }

    def diffusers_prompt(self, pipe: Any, prompt: str, class_prompt: str) -> dict[str, Any]:
        """With the states that a smaller encoder gives."""
        layers = int(pipe.text_encoder.config.num_hidden_layers)
        states = (layers // 4, layers // 2, layers * 3 // 4)
        return {**super().diffusers_prompt(pipe, prompt, class_prompt), "text_encoder_out_layers": states}


def sampling_shift(cells: int, steps: int) -> float:
    """The shift e^mu of the noise levels of sampling, for a number of image tokens and of steps.

    mu is linear in the number of steps, between lines in the number of tokens for 10 and for 200 steps; above 4300 tokens
    the line for 200 steps is used for all.

    Source:
        `compute_empirical_mu` of diffusers' pipeline, fitted by the authors of the model.
    """
    import math

    at_200 = 0.00016927 * cells + 0.45666666
    if cells > 4300:
        return math.exp(at_200)
    at_10 = 8.73809524e-05 * cells + 1.89833333
    slope = (at_200 - at_10) / 190
    return math.exp(slope * steps + at_200 - 200 * slope)


def _describe_size(double: int, single: int, width: int) -> str:
    return f"{double} + {single} blocks, {width} wide"


def _to_patches(latents: "Tensor") -> "Tensor":
    """Patches of VAE latents as channels: (B, c, 2 h, 2 w) to (B, 4 c, h, w)."""
    import torch

    return torch.nn.functional.pixel_unshuffle(latents, PATCH)


def _statistics(vae: Any, like: "Tensor") -> "tuple[Tensor, Tensor]":
    """Running mean and deviation of the VAE's batch norm, (1, C, 1, 1) each."""
    mean, variance = (
        values.to(like.device, like.dtype).view(1, -1, 1, 1) for values in (vae.bn.running_mean, vae.bn.running_var)
    )
    return mean, (variance + vae.config.batch_norm_eps).sqrt()


FLUX2_KLEIN = _Flux2Klein()
