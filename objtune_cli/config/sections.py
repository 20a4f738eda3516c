"""The settings of every command: default, unit, range and help of each, once."""

from dataclasses import dataclass
from typing import Literal

from objtune_cli.config.bench_section import Bench as Bench
from objtune_cli.config.setting_fields import MAX_RATE as MAX_RATE
from objtune_cli.config.setting_fields import MAX_SEED as MAX_SEED
from objtune_cli.config.setting_fields import MAX_WEIGHT, setting
from objtune_cli.config.setting_fields import SEEDS as SEEDS
from objtune_cli.config.setting_fields import identifying as identifying
from objtune_cli.config.setting_fields import neutral as neutral
from objtune_cli.config.setting_fields import seed_after as seed_after


@dataclass(frozen=True, repr=False)
class Common:
    """Settings of every command that runs a model."""

    base: str = setting(
        "toybox",
        "Base model: toybox, sd15, sd21, sdxl, sd3, sd35, a diffusers folder, a .safetensors checkpoint, or a hub id.",
        path="model",
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto",
        "Number format of the frozen base. auto: bf16 on GPUs that support it, and for training on CPUs that support it.",
    )
    clip_model: str = setting(
        "", "CLIP model with a vision encoder for the base's text encoder: hub id, folder or safetensors file; two with a comma for SDXL and SD 3. auto: "
        "clip/ in the base's folder, else the base's own from the hub if it is on this machine.", auto="auto", path="models",
    )  # fmt: skip
    vae: str = setting(
        "",
        "VAE that replaces the base's own: a folder, a .safetensors file, or a hub id. The result counts as another base.",
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

    segmenter: Literal["sam", "grabcut"] = setting(
        "sam", "Segmenter: segment-anything (the embedded model, or a checkpoint) or GrabCut."
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
class Train:
    """Training the object."""

    max_steps: int = setting(
        0,
        "Largest number of optimizer steps; early stopping may end before it. auto: the base's own number.",
        0,
        1_000_000,
        auto="auto",
    )
    rank: int = setting(16, "LoRA rank.", 1, 512)
    learning_rate: float = setting(0.0, "Learning rate of the LoRA weights.", 0, auto="auto")
    embedding_lr: float = setting(0.0, "Learning rate of the token, fraction of its norm.", 0, auto="auto")
    batch_size: int = setting(0, "Views of the object per step.", 0, 256, auto="auto")
    background_loss_weight: float = setting(
        1.0,
        "Weight w_bg of the loss outside the mask, where the frozen base is the teacher.",
        0,
        MAX_WEIGHT,
        neutral=0.0,
    )
    prior_loss_weight: float = setting(
        3.0, "Weight w_cc of the prior-preservation loss, which keeps the class unchanged.", 0, MAX_WEIGHT, neutral=0.0
    )
    target_modules: Literal["auto", "none", "cross-kv", "attention", "attention+ff", "all"] = setting(
        "auto", "Layers that get LoRA. auto: as suits the base; none: only the token is trained."
    )
    target_blocks: Literal["auto", "all", "decoder"] = setting(
        "auto",
        "Blocks of the denoiser that are trained. decoder: those after the middle block; no gradient flows further back.",
        absent="all",
        neutral="all",
    )
    prior_loss_interval: int = setting(
        0,
        "Compute the prior-preservation loss every n-th step, with n times its weight.",
        0,
        1000,
        auto="auto",
        absent=1,
        neutral=1,
    )
    single_forward: bool | None = setting(
        None,
        "Run photo and class samples in one forward pass. false: one after the other, with less memory.",
        auto="auto",
        absent=True,
        neutral=True,
    )
    num_augmentations: int = setting(
        8, "Augmented views of the object, drawn before training. 1: the original view only.", 1, 4096, neutral=1
    )
    num_teacher_samples: int = setting(
        24,
        "Cached teacher predictions for each template and each combination of a photo's objects.",
        1,
        4096,
        absent=24,
    )
    original_view_prob: float = setting(
        0.3,
        "Probability that a sample shows the original view, added to its share of the augmented views.",
        0,
        1,
        absent=0.0,
        neutral=0.0,
    )
    seed: int = setting(0, f"Random seed, {SEEDS}.", 0, MAX_SEED)
    loss_region: Literal["mask-normalized", "mask", "image"] = setting(
        "mask-normalized",
        "Region of the photo loss: the mask, divided by its area; the mask, divided by the image's area; or the whole image.",
        neutral="image",
    )
    prior_target: Literal["teacher", "noise"] = setting(
        "teacher", "Target of class samples: the frozen base's prediction, or their noise as in DreamBooth."
    )
    single_object_prob: float = setting(
        0.95,
        "Probability that a step shows one object alone, added to its share, where several objects of one photo are trained together.",
        0,
        1,
        absent=0.0,
        neutral=0.0,
    )
    multi_object_attention_loss_weight: float = setting(
        0.05,
        "Weight of the attention loss where several objects of one photo are trained together and `attention_loss_weight` is 0.",
        0,
        MAX_WEIGHT,
        absent=0.0,
        neutral=0.0,
    )
    attention_loss_weight: float = setting(
        0.0, "Weight of the loss that keeps each token's cross-attention on its object (Break-A-Scene).", 0, MAX_WEIGHT
    )
    timestep_sampling: Literal["focused", "uniform"] = setting(
        "focused",
        "How timesteps are sampled: focused favours the middle range, where identity is learned; uniform samples all equally.",
        neutral="uniform",
    )
    max_timestep: float = setting(
        1.0,
        "Largest timestep that is trained on, fraction of the schedule; above it pose and layout are decided.",
        0.01,
        1,
        absent=1.0,
    )
    lr_scheduler: Literal["cosine", "constant"] = setting(
        "cosine", "Learning rate schedule after the warm-up.", neutral="constant"
    )
    train_embedding: bool = setting(True, "Train the token's vectors, too.")
    sample_vae_latents: bool = setting(
        True, "Sample the VAE's latent distribution anew at each step. false: use its mean.", absent=False
    )
    adam_beta2: float = setting(
        0.99,
        "AdamW's beta2, the decay of squared gradients; PyTorch's default is 0.999.",
        0,
        0.999999,
        absent=0.99,
        neutral=0.999,
    )
    ema_decay: float = setting(
        0.0,
        "Decay of the moving average of the weights, which is what is saved. 0: save the last step's weights.",
        0,
        0.9999,
        absent=0.0,
    )
    early_stopping: Literal["auto", "off", "plateau"] = setting(
        "auto", "plateau: stop when the loss under fixed noise no longer falls, after a final decay of the rate. off: run all steps. "
        "auto: off where the number of steps is given, else plateau.", absent="off", neutral="off",
    )  # fmt: skip
    offload_vae: bool = setting(
        True, "Move the VAE off the device while it is not in use.", identifies=False, neutral=False
    )
    gradient_checkpointing: Literal["auto", "off", "on"] = setting(
        "auto", "Recompute activations in the backward pass: far less memory, a third more time. auto: only when a GPU's memory runs out.",
        identifies=False,
    )  # fmt: skip
    optimizer: Literal["adamw", "adamw8bit"] = setting(
        "adamw", "AdamW, or AdamW with 8-bit moments (needs bitsandbytes).", absent="adamw"
    )
    quantize_base: Literal["none", "8bit", "4bit"] = setting(
        "none",
        "Number format of the frozen denoiser's linear layers during training (needs bitsandbytes).",
        absent="none",
    )
    self_evaluation: bool = setting(
        True,
        "Measure identity, prompt, copy and drift on the adapter's own samples at the end.",
        identifies=False,
        neutral=False,
    )
    fix_embedding_norm: bool = setting(True, "Keep the token's vectors at the class word's norm.", neutral=False)
    embedding_only_steps: int = setting(
        0, "First steps, in which only the token is trained; after them only the layers are.", 0, 1_000_000
    )
    context_words: Literal["class", "placeholder"] = setting(
        "class",
        "What the prompt's other words see in the object's place during training: its class word, or its placeholder token.",
        absent="placeholder",
        neutral="placeholder",
    )
    multiple_templates: bool = setting(
        True, "Train the photo with several prompt templates. false: with one.", neutral=False
    )


@dataclass(frozen=True, repr=False)
class Prior:
    """The class prior: class images and predictions of the frozen base."""

    num_class_images: int = setting(12, "Class images that the base generates.", 1, 1024)
    num_predictions: int = setting(96, "Stored predictions of the frozen base.", 1, 65_536)
    mixed_prompts: bool = setting(
        True,
        "Half of the predictions are for the class prompt and half for no prompt or other things. false: the class prompt only.",
    )
    seed: int = setting(0, f"Random seed, {SEEDS}.", 0, MAX_SEED)


@dataclass(frozen=True, repr=False)
class Generate:
    """Generating images."""

    num_images: int = setting(4, "Images per prompt.", 1, 1024)
    seed: int = setting(0, f"Seed of the first image, {SEEDS}.", 0, MAX_SEED)
    width: int = setting(
        0, "Width of the images, px, a multiple of the base's size unit. auto: the base's resolution.", 0, 8192, auto="auto", absent=0
    )  # fmt: skip
    height: int = setting(0, "Height of the images, as `width`.", 0, 8192, auto="auto", absent=0)
    num_inference_steps: int = setting(0, "Sampling steps.", 0, 1000, auto="auto")
    guidance_scale: float = setting(-1.0, "Classifier-free guidance scale.", auto="auto")
    guidance_interval_high: float = setting(
        -1.0, "Noise level below which guidance acts, fraction of the schedule (limited-interval guidance, arXiv:2404.07724); lower: more varied poses.",
        None, 1, auto="auto", absent=1.0,
    )  # fmt: skip
    prompt_guidance_scale: float = setting(
        -1.0, "Scale of the frozen base's own direction for the prompt's other words (composable diffusion); one more call of the base a step.",
        None, 20, auto="auto", absent=0.0,
    )  # fmt: skip
    subject_conditioning_start: float = setting(
        -1.0, "Noise level below which trained objects act, fraction of the schedule (arXiv:2305.10431); above it, where pose and layout form, the base sees their class words.",
        None, 1, auto="auto", absent=1.0,
    )  # fmt: skip
    autoguidance_scale: float = setting(
        0.0,
        "Scale of the difference between the adapter and the frozen base with the class word (autoguidance, arXiv:2406.02507); one more sample a step.",
        0,
        20,
        absent=0.0,
    )
    strength: float = setting(
        1.0,
        "Factor on the objects' LoRA weights where the prompt sets none, as `<dog:0.8>` does. 0: their classes are generated.",
        0,
        2,
        absent=1.0,
    )
    negative_prompt: str = setting("", "What the images should not show.")
    scheduler: Literal["auto", "ddim", "euler", "dpm++"] = setting(
        "auto", "Sampler. auto: the one in the base's folder."
    )


@dataclass(frozen=True, repr=False)
class Compose:
    """Composing several objects in one image."""

    max_retries: int = setting(
        4,
        "How many times an image with a missing or mixed object is generated again, each time from another seed.",
        0,
        100,
        absent=0,
    )
    context_words: Literal["class", "placeholder"] = setting(
        "class",
        "What the prompt's other words see in an object's place: its class word, or its placeholder token.",
        absent="placeholder",
    )
    region_softness: float = setting(
        0.06, "Width of the soft edge of the regions, fraction of the image.", 0, 0.5, absent=0.06
    )
    bounded_self_attention: bool = setting(False, "Keep self-attention within each object's region.", absent=False)
    refine_strength: float = setting(
        0.55,
        "Strength of the refinement pass, in which each object's box is enlarged and resampled with its adapter alone. 0: no pass.",
        0,
        1,
        absent=0.0,
    )
    refine_autoguidance_scale: float = setting(
        -1.0,
        "Autoguidance scale of the refinement pass.",
        None,
        20,
        auto="auto",
        absent=0.0,
    )
    paste: Literal["mask", "box"] = setting(
        "mask",
        "Region of a refined object that replaces the image's: the object's mask, or its whole box.",
        absent="box",
    )
    presence_check: bool = setting(True, "Check that each object is in its box.", identifies=False)
    strict: bool = setting(
        False, "Refuse a scene in which an object is missing or mixed for every seed.", identifies=False
    )


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
    "merge": Merge,
    "bench": Bench,
}

GUIDANCES = ("prompt_guidance_scale", "autoguidance_scale", "subject_conditioning_start")
"""Settings of `generate` that act on trained objects alone."""

OPTIONS = {
    "init-embedding.num_vectors": "--vectors", "train.max_steps": "--steps", "generate.num_images": "-n",
    "generate.num_inference_steps": "--steps", "generate.guidance_scale": "--guidance", "generate.negative_prompt": "--negative",
    "compose.max_retries": "--retries", "bench.num_objects": "--objects", "bench.prompt_kinds": "--prompts",
}  # fmt: skip
"""Command-line options that are not named as their settings are."""
