"""The settings of every command: default, unit, range and help of each, once."""

from dataclasses import dataclass
from typing import Literal

from objtune_cli.config.bench_section import Bench as Bench
from objtune_cli.config.sampling_sections import Compose as Compose
from objtune_cli.config.sampling_sections import Generate as Generate
from objtune_cli.config.sampling_sections import Place as Place
from objtune_cli.config.setting_fields import MAX_RATE as MAX_RATE
from objtune_cli.config.setting_fields import MAX_SEED as MAX_SEED
from objtune_cli.config.setting_fields import MAX_WEIGHT, setting
from objtune_cli.config.setting_fields import SEEDS as SEEDS
from objtune_cli.config.setting_fields import identifying as identifying
from objtune_cli.config.setting_fields import neutral as neutral
from objtune_cli.config.setting_fields import seed_after as seed_after
from objtune_cli.config.train_section import Prior as Prior
from objtune_cli.config.train_section import Train as Train


@dataclass(frozen=True, repr=False)
class Common:
    """Settings of every command that runs a model."""

    base: str = setting(
        "toybox",
        "Base model: toybox, sd15, sd21, sdxl, sd3, sd35, klein, z-image, a diffusers folder, a .safetensors checkpoint, or a hub id.",
        path="model",
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto",
        "Number format of the frozen base. auto: bf16 on GPUs that support it, and for training on CPUs that support it.",
    )
    clip_model: str = setting(
        "", "CLIP model with a vision encoder for the base's text encoder: hub id, folder or safetensors file; for SDXL and SD 3 two, separated by a comma. auto: "
        "clip/ in the base's folder, else the base's own from the hub if it is on this machine.", auto="auto", path="models",
    )  # fmt: skip
    vae: str = setting(
        "",
        "VAE that replaces the base's own: a folder, a .safetensors file, or a hub id. The result counts as another base.",
        auto="auto",
        path="model",
    )
    base_parts: str = setting(
        "",
        "Model with the parts that a file of a denoiser alone lacks: a diffusers folder, an alias or a hub id. auto: `klein` for FLUX.2, `z-image` for Z-Image.",
        auto="auto",
        path="model",
    )
    prediction_type: Literal["", "epsilon", "v_prediction", "v", "sample"] = setting(
        "",
        "What the base's denoiser predicts, where its scheduler config is missing or wrong. auto: as the config says.",
        auto="auto",
    )
    strict_base: bool = setting(
        False,
        "Require exactly the base that an object was trained on. false: also accept another base of its family, with a note.",
        identifies=False,
    )


@dataclass(frozen=True, repr=False)
class Segment:
    """Segmenting the object."""

    segmenter: Literal["auto", "sam", "sam2", "sam3", "salient", "grabcut"] = setting(
        "auto",
        "Segmenter: segment-anything (the embedded model, or a checkpoint), SAM 2.1, SAM 3, a salient-object network, or GrabCut. auto: the best on "
        "this machine; for drawings the embedded model, and GrabCut for photographs where nothing better is here.",
    )
    select: Literal["best", "largest", "smallest", "left", "right", "top", "bottom"] = setting(
        "best",
        "Which of several objects of the class is selected. best: the most probable one, if it leads clearly.",
    )
    min_class_probability: float = setting(
        0.55, "Smallest CLIP probability of the class for an object that the class word selects.", 0, 1
    )
    min_score_margin: float = setting(
        0.2, "Smallest score margin of the selected object over the runner-up, in logits."
    )
    min_score: float = setting(
        0.0, "Smallest score of the selected object: class probability, mask quality and outline together."
    )
    edge_softness: float = setting(
        0.01, "Half width of the soft mask edge, fraction of the object's longer side.", 0, 0.1
    )
    max_image_size: int = setting(1024, "Longest side at which photos are stored, px.", 128, 4096)
    detector: str = setting(
        "",
        "Zero-shot detector that proposes boxes: folder or hub id of OWLv2 or Grounding DINO. none: the segmenter proposes.",
        auto="none",
        path="model",
    )
    sam_checkpoint: str = setting(
        "", "segment-anything checkpoint. none: the embedded model.", auto="none", path="file"
    )
    sam_model: str = setting(
        "",
        "SAM 2.1 or SAM 3 in transformers' layout, or a salient-object network in ONNX: folder or hub id. auto: the best of that kind in the hub cache.",
        auto="auto",
        path="model",
        identifies=False,
    )


@dataclass(frozen=True, repr=False)
class Embed:
    """The initial embedding of the object's token."""

    init: Literal["auto", "prototype", "class", "random", "rare-token"] = setting(
        "auto",
        "Initial vectors of the token. auto: prototype where the base has a CLIP vision encoder, else class. rare-token: as in DreamBooth.",
    )
    image_weight: float = setting(1.0, "Weight of the whole photo in the prototype.", 0, MAX_WEIGHT, absent=1.0)
    object_weight: float = setting(1.0, "Weight of the cropped object in the prototype.", 0, MAX_WEIGHT, absent=1.0)
    text_weight: float = setting(1.0, "Weight of the class word in the prototype.", 0, MAX_WEIGHT, absent=1.0)
    rare_token: str = setting(
        "sks",
        "Word whose vectors `init=rare-token` takes (DreamBooth, arXiv:2208.12242); each of several objects needs its own.",
        absent="sks",
    )
    append_class_token: bool = setting(True, "Append the class word's vectors to the learned vectors.")
    num_vectors: int = setting(2, "Learned vectors of the token, without the class word's own.", 1, 16)
    steps: int = setting(80, "Adam steps through the text encoder.", 0, 10_000)
    relative_lr: float = setting(0.02, "Learning rate, fraction of the class token's norm.", 0, MAX_RATE)
    seed: int = setting(0, f"Random seed, {SEEDS}.", 0, MAX_SEED)

    @property
    def weights(self) -> tuple[float, float, float]:
        """Weights of photo, object and class word in the prototype."""
        return self.image_weight, self.object_weight, self.text_weight


@dataclass(frozen=True, repr=False)
class Merge:
    """Merging several adapters."""

    method: Literal["linear", "ties", "dare", "dare-ties"] = setting(
        "linear", "Weighted sum, TIES, DARE, or DARE with the signs of TIES."
    )
    rank: int = setting(
        0,
        "Rank of the result, by SVD. auto: the sum of the ranks for linear, which is exact; the largest rank for the others.",
        0,
        4096,
        auto="auto",
    )
    density: float = setting(0.5, "Share of each adapter's weights that TIES and DARE keep.", 0.01, 1)
    seed: int = setting(0, f"Random seed of DARE, {SEEDS}.", 0, MAX_SEED)


SECTIONS: dict[str, type] = {
    "segment": Segment,
    "init-embedding": Embed,
    "train": Train,
    "prior": Prior,
    "generate": Generate,
    "compose": Compose,
    "place": Place,
    "merge": Merge,
    "bench": Bench,
}

GUIDANCES = ("prompt_guidance_scale", "autoguidance_scale", "subject_conditioning_start")
"""Settings of `generate` that act on trained objects alone."""

OPTIONS = {
    "init-embedding.num_vectors": "--vectors", "train.max_steps": "--steps", "generate.num_images": "-n",
    "generate.num_inference_steps": "--steps", "generate.guidance_scale": "--guidance", "generate.negative_prompt": "--negative",
    "generate.image_format": "--format",
    "compose.max_retries": "--retries", "place.max_retries": "--retries", "bench.num_objects": "--objects", "bench.prompt_kinds": "--prompts",
}  # fmt: skip
"""Command-line options that are not named as their settings are."""
