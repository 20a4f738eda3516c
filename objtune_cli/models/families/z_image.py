"""Z-Image and Z-Image-Turbo: a transformer over image and text tokens in one stream, a flow, 1024 px, Qwen3-4B.

The sequence of its conditioning is (B, 512, d): the states of Qwen3 before its last layer. Rows of padding are zeros, and the
transformer gets none of them. Latents are (B, 16, h, w), one cell per 8 px; the transformer makes tokens of 2 x 2 cells.
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

PATCH = 2
"""Side of a token, in latent cells."""
OWN_ATTENTION = tuple(f"attention.{end}" for end in ATTENTION)
FEED_FORWARD = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
TEXT_KEYS = tuple(f"context_refiner.{i}.attention.{end}" for i in range(2) for end in ("to_k", "to_v"))
"""Keys and values of the two blocks that see text tokens alone."""
TURBO_SHIFT = 3.0
"""Shift in the scheduler's config of Z-Image-Turbo; that of Z-Image has 6.0, and the folders do not differ otherwise."""
DYNAMIC_SHIFT = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
"""Defaults of a scheduler whose shift depends on the number of image tokens."""


class _ZImage(Qwen3FlowFamily):
    name = "z-image"
    title = "Z-Image"
    pipeline = "ZImagePipeline"
    denoiser_class = "ZImageTransformer2DModel"
    thinking = True
    hub: ClassVar = {
        "z-image": ("Tongyi-MAI/Z-Image", "04cc4abb7c5069926f75c9bfde9ef43d49423021"),
        "z-image-turbo": ("Tongyi-MAI/Z-Image-Turbo", "f332072aa78be7aecdf3ee76d5c247082da564a6"),
    }
    sampling: ClassVar = {"num_inference_steps": 50, "guidance_scale": 5.0}
    distilled_sampling: ClassVar = {"num_inference_steps": 8, "guidance_scale": 1.0}
    training: ClassVar = {"target_blocks": "all"}
    modules: ClassVar = {
        "none": (),
        "cross-kv": TEXT_KEYS,
        "attention": OWN_ATTENTION,
        "attention+ff": OWN_ATTENTION + FEED_FORWARD,
        "all": OWN_ATTENTION + FEED_FORWARD,
    }
    block_names = ("layers.", "_refiner.")
    licence = ("apache-2.0", "https://huggingface.co/Tongyi-MAI/Z-Image")

    def matches(self, pipeline: str, config: Callable[[str], Mapping[str, Any]]) -> bool:
        """The family has its own pipeline class."""
        return pipeline == self.pipeline

    def explain_mismatch(self, configs: Mapping[str, Mapping[str, Any]]) -> str:
        """The denoiser reads one hidden state of the text encoder."""
        width, hidden = configs[self.denoiser].get("cap_feat_dim"), configs["text_encoder"].get("hidden_size")
        if not isinstance(width, int) or not isinstance(hidden, int) or width == hidden:
            return ""
        return f"its denoiser takes text features of width {width}, its text encoder gives {hidden}"

    def is_denoiser_file(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """By queries, keys and values in one layer, and a modulation that Lumina 2 keeps under another name."""
        return {"layers.0.attention.qkv.weight", "layers.0.adaLN_modulation.0.weight"} <= shapes.keys()

    def denoiser_size(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """Number of blocks, and width."""
        blocks = len({key.split(".")[1] for key in shapes if key.startswith("layers.")})
        return f"{blocks} blocks, {shapes['cap_embedder.1.weight'][0]} wide"

    def configured_size(self, denoiser: Mapping[str, Any]) -> str:
        """Number of blocks, and width."""
        return f"{denoiser['n_layers']} blocks, {denoiser['dim']} wide"

    def distilled_from(self, folder: Path) -> str:
        """Z-Image, if the scheduler has the shift of Z-Image-Turbo."""
        config = folders.read_json(folder, "scheduler/scheduler_config.json")
        return "z-image" if config.get("shift") == TURBO_SHIFT and not config.get("use_dynamic_shifting") else ""

    def load_text_encoders(self, folder: Path) -> list[tuple[Any, Any]]:
        """Qwen3 without its last layer."""
        return qwen3_text_encoder.load(folder, qwen3_text_encoder.count_layers(folder) - 1)

    def prepare_denoiser(self, denoiser: Any) -> Any:
        """Let the transformer take tensors, as those of the other families do."""
        from objtune_cli.models.families.z_image_transformer import Transformer

        denoiser.__class__ = Transformer
        return denoiser

    def latent_channels(self, denoiser: Any) -> int:
        """Those of the denoiser's input."""
        return int(denoiser.in_channels)

    def latent_multiple(self, config: Any) -> int:
        """Cells of a token."""
        return PATCH

    def encode_prompt(self, model: "BaseModel", texts: list[str], max_tokens: int = 0) -> "Conditioning":
        """The states before Qwen3's last layer, with zeros for padding."""
        from objtune_cli.models.conditioning import Conditioning

        last = int(model.text_encoder.config.num_hidden_layers)
        return Conditioning(qwen3_text_encoder.encode(model, texts, max_tokens, (last,), keep_padding=False))

    def training_levels(self, model: "BaseModel", cells: int) -> "Tensor":
        """Levels 1/n, 2/n, ... 1 without a shift: the scheduler's own is for sampling.

        Source:
            kohya-ss/musubi-tuner#908; the distribution of the model's own training is not published.
        """
        import torch

        return torch.arange(1, model.num_train_timesteps + 1) / model.num_train_timesteps

    def make_sampler(self, scheduler: Any, name: str, cells: int = 0) -> Any:
        """Noise levels 1, 1 - 1/n, ... 1/n, with the shift of the scheduler's config."""
        sampler = samplers.make_flow_sampler(
            samplers.without_shift(scheduler), "euler" if name == "auto" else name, self.title
        )
        return samplers.shift_by_steps(sampler, partial(_shift, scheduler.config, cells // PATCH**2))

    def is_cross_attention(self, processor: str) -> bool:
        """The blocks after those that refine image and prompt, in which their tokens see each other."""
        return processor.startswith("layers.")

    def acts_on_text_tokens(self, layer: str) -> bool:
        """The blocks that refine the prompt."""
        return layer.startswith(("context_refiner.", "cap_embedder."))

    def acts_on_all_tokens(self, layer: str) -> bool:
        """The blocks after them, and those that refine the image, whose rows are filled up too."""
        return layer.startswith(("layers.", "noise_refiner."))

    def row_weights(self, model: "BaseModel", text: "Tensor", image: "Callable[[int], Tensor]", rows: int) -> "Tensor":
        """The image's rows come first; both parts are filled up."""
        from objtune_cli.models.families.z_image_transformer import row_weights

        return row_weights(text, image(model.denoiser.image_tokens), rows)

    def decoder_layers(self, denoiser: Any) -> tuple[tuple[str, ...], list[Any]]:
        """The later half of the blocks; all need gradients, because text tokens run through all of them."""
        count = len(denoiser.layers)
        return tuple(f"layers.{i}." for i in range(count // 2, count)), []

    def _predict_at(self, model: "BaseModel", z_t: "Tensor", sigma: "Tensor", condition: "Conditioning") -> "Tensor":
        velocity: Tensor = model.denoiser(
            hidden_states=z_t.to(model.dtype), timestep=sigma, encoder_hidden_states=condition.sequence
        ).sample
        return velocity

    def diffusers_guidance(self, scale: float) -> float:
        """Its pipeline adds the difference to the prediction with the prompt: w is smaller by one."""
        return scale - 1


def _shift(config: Mapping[str, Any], tokens: int, steps: int) -> float:
    """The shift of the noise levels of sampling; `steps` makes no difference."""
    import math

    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift") or 1)
    few, many, low, high = (float(config.get(key) or value) for key, value in DYNAMIC_SHIFT.items())
    return math.exp(low + (high - low) * (tokens - few) / (many - few))


Z_IMAGE = _ZImage()
