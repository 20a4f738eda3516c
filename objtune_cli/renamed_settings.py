"""The former names of settings, and the values that changed with them: one table for settings, stored records and base folders."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

SAME: Mapping[Any, Any] = MappingProxyType({})
"""For settings whose values did not change."""


@dataclass(frozen=True, slots=True)
class Renamed:
    """The present form of a former setting.

    Attributes:
        key: Its present key, `section.name`. values: Former values to present ones; other values stay.
    """

    key: str
    values: Mapping[Any, Any] = field(default_factory=lambda: SAME)

    def value(self, former: Any) -> Any:
        """The present value for a former one."""
        return self.values.get(former, former) if isinstance(former, str | int) else former


FLAG = {0: False, 1: True, "0": False, "1": True}
WORDS = {"own": "placeholder"}

RENAMED: dict[str, Renamed] = {
    "tower": Renamed("clip_model"),
    "prediction": Renamed("prediction_type"),
    "strict_base": Renamed("strict_base", FLAG),
    "segment.which": Renamed("segment.select"),
    "segment.min_likeness": Renamed("segment.min_class_probability"),
    "segment.min_margin": Renamed("segment.min_score_margin"),
    "segment.edge": Renamed("segment.edge_softness"),
    "segment.max_side": Renamed("segment.max_image_size"),
    "init-embedding.init": Renamed("init-embedding.init", {"rare": "rare-token"}),
    "init-embedding.picture": Renamed("init-embedding.image_weight"),
    "init-embedding.object": Renamed("init-embedding.object_weight"),
    "init-embedding.word": Renamed("init-embedding.text_weight"),
    "init-embedding.rare": Renamed("init-embedding.rare_token"),
    "init-embedding.noun": Renamed("init-embedding.append_class_token", {"kept": True, "none": False}),
    "init-embedding.vectors": Renamed("init-embedding.num_vectors"),
    "init-embedding.lr": Renamed("init-embedding.relative_lr"),
    "train.steps": Renamed("train.max_steps"),
    "train.lr": Renamed("train.learning_rate"),
    "train.token_lr": Renamed("train.embedding_lr"),
    "train.batch": Renamed("train.batch_size"),
    "train.background_weight": Renamed("train.background_loss_weight"),
    "train.class_weight": Renamed("train.prior_loss_weight"),
    "train.modules": Renamed("train.target_modules"),
    "train.blocks": Renamed("train.target_blocks"),
    "train.class_every": Renamed("train.prior_loss_interval"),
    "train.passes": Renamed("train.single_forward", {"apart": False, "together": True}),
    "train.views": Renamed("train.num_augmentations"),
    "train.known": Renamed("train.num_teacher_samples"),
    "train.as_taken": Renamed("train.original_view_prob"),
    "train.photo_loss": Renamed("train.loss_region", {"object": "mask-normalized", "masked": "mask", "frame": "image"}),
    "train.class_term": Renamed("train.prior_target", {"prediction": "teacher"}),
    "train.singles": Renamed("train.single_object_prob"),
    "train.joint_attention": Renamed("train.multi_object_attention_loss_weight"),
    "train.attention_weight": Renamed("train.attention_loss_weight"),
    "train.timesteps": Renamed("train.timestep_sampling"),
    "train.highest": Renamed("train.max_timestep"),
    "train.schedule": Renamed("train.lr_scheduler"),
    "train.token": Renamed("train.train_embedding", {"learned": True, "fixed": False}),
    "train.latents": Renamed("train.sample_vae_latents", {"sample": True, "mean": False}),
    "train.beta2": Renamed("train.adam_beta2"),
    "train.average": Renamed("train.ema_decay"),
    "train.stop": Renamed("train.early_stopping", {"end": "off", "good": "plateau"}),
    "train.idle": Renamed("train.offload_vae", {"leaves": True, "stays": False}),
    "train.checkpointing": Renamed("train.gradient_checkpointing"),
    "train.quantised": Renamed("train.quantize_base"),
    "train.scores": Renamed("train.self_evaluation", {"shown": True, "none": False}),
    "train.token_norm": Renamed("train.fix_embedding_norm", {"kept": True, "free": False}),
    "train.token_first": Renamed("train.embedding_only_steps"),
    "train.context": Renamed("train.context_words", WORDS),
    "train.templates": Renamed("train.multiple_templates", {"several": True, "one": False}),
    "prior.samples": Renamed("prior.num_class_images"),
    "prior.entries": Renamed("prior.num_predictions"),
    "prior.around": Renamed("prior.mixed_prompts", {"wide": True, "class": False}),
    "generate.n": Renamed("generate.num_images"),
    "generate.steps": Renamed("generate.num_inference_steps"),
    "generate.guidance": Renamed("generate.guidance_scale"),
    "generate.guidance_below": Renamed("generate.guidance_interval_high"),
    "generate.scene_guidance": Renamed("generate.prompt_guidance_scale"),
    "generate.object_below": Renamed("generate.subject_conditioning_start"),
    "generate.object_guidance": Renamed("generate.autoguidance_scale"),
    "generate.negative": Renamed("generate.negative_prompt"),
    "generate.scheduler": Renamed("generate.scheduler", {"base": "auto"}),
    "compose.retries": Renamed("compose.max_retries"),
    "compose.context": Renamed("compose.context_words", WORDS),
    "compose.edge": Renamed("compose.region_softness"),
    "compose.attention": Renamed("compose.bounded_self_attention", {"open": False, "bounded": True}),
    "compose.detail": Renamed("compose.refine_strength"),
    "compose.object_guidance": Renamed("compose.refine_autoguidance_scale"),
    "compose.laid": Renamed("compose.paste", {"object": "mask", "place": "box"}),
    "compose.check": Renamed("compose.presence_check", {"shown": True, "none": False}),
    "compose.strict": Renamed("compose.strict", FLAG),
    "merge.method": Renamed("merge.method", {"sum": "linear"}),
    "bench.objects": Renamed("bench.num_objects"),
    "bench.repeats": Renamed("bench.prompt_rounds"),
    "bench.prompts": Renamed("bench.prompt_kinds"),
    "bench.together": Renamed("bench.scene_kinds"),
    "bench.samples": Renamed("bench.num_base_samples"),
    "bench.scenes": Renamed("bench.num_mask_scenes"),
    "bench.pictures": Renamed("bench.mask_dataset", {"photographs": "photos"}),
    "bench.rounds": Renamed("bench.timing_rounds"),
    "bench.script": Renamed("bench.diffusers_script"),
    "bench.layouts": Renamed("bench.memory_models"),
    "bench.side": Renamed("bench.resolution"),
    "bench.products": Renamed("bench.skip_matmuls", {"zeros": True, "multiplied": False}),
    "bench.photo": Renamed("bench.dreambooth_photo"),
    "bench.live": Renamed("bench.live_classes"),
    "bench.seeds": Renamed("bench.images_per_prompt"),
    "bench.clip": Renamed("bench.clip_model"),
    "bench.dino": Renamed("bench.dino_model"),
}
"""Former key to present setting; a key that maps to itself changed only in its values."""

_OF_KIND = {"mask": "segment", "embedding": "init-embedding", "prior": "prior", "scene": "generate"}
"""Section of the settings in records, by kind of artifact; an adapter has those of `train` or `merge`."""


def join(section: str, name: str) -> str:
    """The key of a setting; settings without a section have only their name."""
    return f"{section}.{name}" if section else name


def current(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one section under their present names; settings that were not renamed stay."""
    present: dict[str, Any] = {}
    for name, value in values.items():
        renamed = RENAMED.get(join(section, name))
        present[renamed.key.rpartition(".")[2] if renamed else name] = renamed.value(value) if renamed else value
    return present


def former(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `current`, to find results that were measured under former names."""
    named = {renamed.key: (key, renamed) for key, renamed in RENAMED.items()}
    restored: dict[str, Any] = {}
    for name, value in values.items():
        key, renamed = named.get(join(section, name), (name, None))
        before = (
            [k for k, v in renamed.values.items() if v is value or (isinstance(v, str) and v == value)]
            if renamed
            else []
        )
        restored[key.rpartition(".")[2]] = before[0] if before else value
    return restored


def of_record(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in an artifact's record under their present names.

    A composed scene, which has `places`, has the settings of `generate` and `compose`. If both had object guidance, that of
    `compose` was stored.
    """
    if kind == "adapter":
        return current("merge" if "weights" in config else "train", config)
    if kind == "scene" and "places" in config:
        own = {name: value for name, value in config.items() if f"compose.{name}" in RENAMED}
        rest = {name: value for name, value in config.items() if name not in own}
        return current("generate", rest) | current("compose", own)
    settings = current(_OF_KIND.get(kind, ""), config)
    if kind == "embedding" and "tower" in settings:  # a CLIP model other than the base's own
        settings["clip_model"] = settings.pop("tower")
    return settings


def present_key(key: str) -> str:
    """The present key for a present or former key."""
    return RENAMED[key].key if key in RENAMED else key


def current_text(text: str) -> str:
    """`section.name=value` with present name and value."""
    key, equals, value = text.partition("=")
    renamed = RENAMED.get(key.strip())
    return f"{renamed.key}{equals}{as_text(renamed.value(value))}" if renamed else text


def former_spelling(text: str) -> str:
    """The inverse of `current_text`."""
    key, equals, value = text.partition("=")
    for old, renamed in RENAMED.items():
        if renamed.key == key:
            values = {as_text(new): before for before, new in renamed.values.items()}
            return f"{old}{equals}{values.get(value, value)}"
    return text


def as_text(value: Any) -> str:
    """A value as in `--set section.name=VALUE`."""
    return str(value).lower() if isinstance(value, bool) else str(value)
