"""The methods that are compared: ours, baselines, and ablations of ours.

Each method is a set of settings of the same stages, `init-embedding` and `train`; nothing else differs.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from objtune_cli import renamed_settings
from objtune_cli.bench import former_names
from objtune_cli.config.resolve import Settings
from objtune_cli.config.sections import GUIDANCES, SECTIONS, Train, neutral
from objtune_cli.errors import UsageError
from objtune_cli.models.base_spec import BaseSpec

NOTHING: Mapping[str, Any] = MappingProxyType({})
DIFFUSERS_DEFAULTS = neutral(Train)
"""Settings that all baselines start from: every setting has its neutral value, as in diffusers' examples.

That is: no augmentation, latents sampled at each step, no teacher outside the mask, uniform timesteps, a constant learning
rate, one prompt, PyTorch's AdamW, one forward pass per step, and the whole model in memory. Each baseline also sets its
learning rates, so that the base's defaults for ours do not change it."""
CLASS_IMAGES = {"num_class_images": 100}
"""Number of DreamBooth's generated class images (diffusers' README: 100; 12 are enough for our teacher)."""


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the table.

    Attributes:
        title: Name in tables.
        source: Source of its losses and settings.
        embed, train, prior: Settings that differ from the defaults.
        photo_variant: The photo it trains on, one of `photo_variants.VARIANTS`.
        hint: Use of the mask: `mask`, as it is, or `rough`, refined first.
        num_photos: Number of photos of the object that it trains on, each of another scene.
        sampling: `prompt_guidance_scale`, `subject_conditioning_start` and `autoguidance_scale`, where they differ from the base's own.
    """

    title: str
    source: str
    embed: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    train: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    prior: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    photo_variant: str = "exact"
    hint: str = "mask"
    sampling: Mapping[str, float] = field(default_factory=lambda: NOTHING)
    num_photos: int = 1

    def training_settings(self) -> dict[str, dict[str, Any]]:
        """Its settings of training, by section."""
        return {"init-embedding": dict(self.embed), "train": dict(self.train), "prior": dict(self.prior)}

    def sampling_kwargs(self, base: BaseSpec) -> dict[str, Any]:
        """Its settings of sampling as fields of `SamplingSettings`; the base's own where it sets none or a negative value."""
        return {
            "prompt_guidance_scale": base.prompt_guidance_scale(self.sampling.get("prompt_guidance_scale", -1.0)),
            "autoguidance_scale": self.sampling.get("autoguidance_scale", 0.0),
            "subject_conditioning_start": base.subject_conditioning_start(
                self.sampling.get("subject_conditioning_start", -1.0)
            ),
        }


OURS = {"objtune": Method("objtune", "docs/explanation/method.md")}

PLAIN_SAMPLING = {"prompt_guidance_scale": 0.0, "subject_conditioning_start": 1.0}
"""Sampling without our guidances, as other tools do."""
BASELINES = {
    "textual-inversion": Method(
        "Textual Inversion", "arXiv:2208.01618; diffusers examples: 1 vector, no prior",
        {"init": "class", "num_vectors": 1, "append_class_token": False},
        {**DIFFUSERS_DEFAULTS, "target_modules": "none", "loss_region": "image", "prior_loss_weight": 0.0, "learning_rate": 1e-3, "embedding_lr": 1e-2,
         "max_steps": 500, "batch_size": 4},
        sampling=PLAIN_SAMPLING,
    ),
    "dreambooth-lora": Method(
        "DreamBooth-LoRA", "arXiv:2208.12242; diffusers train_dreambooth_lora.py: rank 4, 500 steps of 1, prior weight 1, rare word",
        {"init": "rare-token", "num_vectors": 3},
        {**DIFFUSERS_DEFAULTS, "train_embedding": False, "loss_region": "image", "prior_target": "noise", "prior_loss_weight": 1.0, "target_modules": "attention",
         "rank": 4, "learning_rate": 3e-3, "embedding_lr": 1e-2, "max_steps": 500, "batch_size": 1},
        CLASS_IMAGES, sampling=PLAIN_SAMPLING,
    ),
    "masked-lora": Method(
        "masked LoRA", "OneTrainer, kohya: area-normalised masked loss, no class term",
        {"init": "class", "num_vectors": 1},
        {**DIFFUSERS_DEFAULTS, "loss_region": "mask-normalized", "prior_loss_weight": 0.0, "target_modules": "attention+ff", "rank": 16,
         "learning_rate": 1e-4, "embedding_lr": 1e-2, "max_steps": 400, "batch_size": 2},
        sampling=PLAIN_SAMPLING,
    ),
    "break-a-scene": Method(
        "Break-A-Scene (LoRA)", "arXiv:2305.16311: 400 steps of the token, 400 of the rest; masked and cross-attention loss 0.01, prior 1",
        {"init": "class", "num_vectors": 1, "append_class_token": False},
        {**DIFFUSERS_DEFAULTS, "loss_region": "mask", "prior_target": "noise", "prior_loss_weight": 1.0, "attention_loss_weight": 0.01, "target_modules": "all",
         "rank": 16, "learning_rate": 3e-3, "embedding_lr": 1e-2, "embedding_only_steps": 400, "max_steps": 800, "batch_size": 1},
        CLASS_IMAGES, sampling=PLAIN_SAMPLING,
    ),
    "custom-diffusion": Method(
        "Custom Diffusion", "arXiv:2212.04488: keys and values of cross-attention (full rank), one new token, prior 1, 250 steps of 2; without its rescaling of the photo",
        {"init": "rare-token", "num_vectors": 1},
        {**DIFFUSERS_DEFAULTS, "loss_region": "image", "prior_target": "noise", "prior_loss_weight": 1.0, "target_modules": "cross-kv", "rank": 128, "learning_rate": 3e-4,
         "embedding_lr": 1e-2, "max_steps": 250, "batch_size": 2},
        CLASS_IMAGES, sampling=PLAIN_SAMPLING,
    ),
}  # fmt: skip

ABLATIONS = {
    "init-class": Method("init: class word", "ablation", {"init": "class"}),
    "init-object": Method("init: the object alone", "ablation", {"image_weight": 0.0, "text_weight": 0.0}),
    "init-no-picture": Method("init: object and class word", "ablation", {"image_weight": 0.0}),
    "vectors-1": Method("one learned vector", "ablation", {"num_vectors": 1}),
    "vectors-4": Method("four learned vectors", "ablation", {"num_vectors": 4}),
    "init-random": Method("init: random", "ablation", {"init": "random"}),
    "no-class-term": Method("no class term", "ablation", train={"prior_loss_weight": 0.0}),
    "class-prompt-alone": Method("class held by its own prompt alone", "ablation", prior={"mixed_prompts": False}),
    "no-background-term": Method("no background teacher", "ablation", train={"background_loss_weight": 0.0}),
    "whole-frame": Method(
        "loss on the whole frame", "ablation", train={"loss_region": "image", "background_loss_weight": 0.0}
    ),
    "no-placement": Method("no placement", "ablation", train={"num_augmentations": 1}),
    "no-extra-photo": Method("the photo's own placement no more often", "ablation", train={"original_view_prob": 0.0}),
    "latents-mean": Method("latents: the mean", "ablation", train={"sample_vae_latents": False}),
    "context-own": Method("the sentence hears the token", "ablation", train={"context_words": "placeholder"}),
    "all-blocks": Method("the whole denoiser learns", "ablation", train={"target_blocks": "all"}),
    "attention-term": Method("with attention term", "ablation", train={"attention_loss_weight": 0.01}),
    "steps-90": Method("90 steps", "ablation", train={"max_steps": 90}),
    "steps-175": Method("175 steps", "ablation", train={"max_steps": 175}),
    "steps-700": Method("700 steps", "ablation", train={"max_steps": 700}),
}

ROBUSTNESS = {
    "small-object": Method("object on 2-5 % of the photo", "robustness", photo_variant="small"),
    "mask-eroded": Method("mask eroded by 5 % of the object", "robustness", photo_variant="eroded"),
    "mask-dilated": Method("mask dilated by 5 % of the object", "robustness", photo_variant="dilated"),
    "mask-noisy": Method("mask with edges wrong by 5 % of the object", "robustness", photo_variant="noisy"),
    "rough-eroded": Method("the eroded mask, made exact", "robustness", photo_variant="eroded", hint="rough"),
    "rough-dilated": Method("the dilated mask, made exact", "robustness", photo_variant="dilated", hint="rough"),
    "rough-noisy": Method("the noisy mask, made exact", "robustness", photo_variant="noisy", hint="rough"),
}
"""Our method on worse input than the table's."""

SEVERAL_PHOTOS = {
    "photos-2": Method("two photos of the object", "several photos", num_photos=2),
    "photos-4": Method("four photos of the object", "several photos", num_photos=4),
}
"""Our method on further photos of the same object."""

METHODS: dict[str, Method] = {**OURS, **BASELINES, **ABLATIONS, **ROBUSTNESS, **SEVERAL_PHOTOS}
GROUPS = {
    "baselines": tuple(BASELINES),
    "ablations": tuple(ABLATIONS),
    "robust": tuple(ROBUSTNESS),
    "photos": tuple(SEVERAL_PHOTOS),
    "all": tuple(METHODS),
}
"""Names of groups of methods."""


def parse_methods(text: str) -> dict[str, Method]:
    """Parse a comma-separated list of methods and groups; the methods in the order of the table.

    A name with settings, `dreambooth-lora+train.learning_rate=5e-4+train.max_steps=800`, is a row of its own.

    Raises:
        UsageError: A method or setting does not exist, or a value is invalid.
    """
    names: list[str] = []
    for part in (current_name(part.strip()) for part in text.split(",")):
        name, *changes = _split(part)
        if name not in METHODS and (changes or name not in GROUPS):
            raise UsageError(f"there is no method {name}", f"known: {', '.join((*METHODS, *GROUPS))}")
        names += [part] if changes else GROUPS.get(name, (name,))
    order = list(METHODS)
    names = sorted(dict.fromkeys(names), key=lambda part: order.index(_split(part)[0]))
    return {part: _with_changes(*_split(part)) for part in names}


def current_name(name: str) -> str:
    """Return the present name of a method and of the settings behind it."""
    method, *changes = _split(name)
    return "+".join([former_names.METHODS.get(method, method), *map(renamed_settings.current_text, changes)])


def former_name(name: str) -> str:
    """Return the first name of a method and of its settings, under which the keys of results are made."""
    method, *changes = _split(name)
    return "+".join([former_names.FORMER_METHODS.get(method, method), *map(renamed_settings.former_spelling, changes)])


def _split(part: str) -> list[str]:
    """Split a name from the settings behind it; a plus inside a value (`attention+ff`) stays."""
    return re.split(r"\+(?=[a-z-]+\.)", part)


def _with_changes(name: str, *changes: str) -> Method:
    """A method with changed settings, which are validated as those of `--set`."""
    method = METHODS[name]
    if not changes:
        return method
    settings = Settings(Path(os.devnull), {}, changes)
    parts = {**method.training_settings(), "generate": dict(method.sampling)}
    for change in changes:
        section, _, key = renamed_settings.present_key(change.partition("=")[0].strip()).partition(".")
        if section not in parts or (section == "generate" and key not in GUIDANCES):
            raise UsageError(
                f"{change} is not a setting of a method",
                f"{', '.join(f'{p}.…' for p in list(parts)[:-1])}, {', '.join(f'generate.{g}' for g in GUIDANCES)} are",
            )
        parts[section][key] = getattr(settings.resolve(SECTIONS[section]), key)
    embed, train, prior, draw = parts.values()
    return Method(
        f"{method.title}, {' '.join(changes)}",
        method.source,
        embed,
        train,
        prior,
        method.photo_variant,
        method.hint,
        draw,
        method.num_photos,
    )
