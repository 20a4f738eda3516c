"""The settings of `train`: the adapter, and its class prior."""

from dataclasses import dataclass
from typing import Literal

from objtune_cli.config.setting_fields import MAX_SEED, MAX_WEIGHT, SEEDS, setting


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
        "Number format of the linear layers of the frozen denoiser, and of a language model that reads prompts, during training (needs bitsandbytes).",
        absent="none",
    )
    self_evaluation: bool = setting(
        True,
        "Measure identity, prompt, copy and drift on the adapter's own samples at the end.",
        identifies=False,
        neutral=False,
    )
    sample_every: int = setting(
        -1,
        "Steps between samples of the object while it trains. auto: up to six times a run, in at most 5 % of its time; 0: never.",
        -1,
        1_000_000,
        auto="auto",
        identifies=False,
        neutral=0,
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
