"""What is compared: our method, what people would use instead, and ours with one part taken away.

Each is a set of settings of the same two stages, `init-embedding` and `train`; nothing else differs.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from objtune_cli.config.resolve import Settings
from objtune_cli.config.sections import GUIDANCES, SECTIONS
from objtune_cli.errors import UsageError
from objtune_cli.models.registry import Base

NOTHING: Mapping[str, Any] = MappingProxyType({})
PLAIN = {"views": 1, "background_weight": 0.0, "timesteps": "uniform", "schedule": "constant", "token_norm": "free",
         "templates": "one", "context": "own", "joint_attention": 0.0, "latents": "sample", "beta2": 0.999,
         "blocks": "all", "class_every": 1, "passes": "together", "stop": "end",
         "scores": "none", "as_taken": 0.0, "singles": 0.0, "idle": "stays"}  # fmt: skip
"""What all of the others share, as diffusers' examples have it: the photo as it is and its latents drawn anew at each
step, no teacher outside the mask, any noise level, one rate, one sentence, PyTorch's own AdamW, every row in one pass, the whole model in memory.
Each names its rates too, those of what does not learn included: what suits ours changes none of theirs."""
CLASS_PICTURES = {"samples": 100}
"""DreamBooth's set of generated class images (diffusers' README: 100; 12 are enough for the teacher of ours)."""


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the table.

    Attributes:
        title: As shown. source: Where its losses and settings come from.
        embed, train, prior: Settings that differ from the defaults.
        given: What it is handed: a way of `given.WAYS`. hint: as what the mask is handed: `--mask`, taken as it is, or `--rough`, to be made exact.
        draw: `scene_guidance` and `object_below`, where they are not the base's own, and `object_guidance`, where there is any.
    """

    title: str
    source: str
    embed: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    train: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    prior: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    given: str = "exact"
    hint: str = "mask"
    draw: Mapping[str, float] = field(default_factory=lambda: NOTHING)

    def learning(self) -> dict[str, dict[str, Any]]:
        """What it sets of learning, by section."""
        return {"init-embedding": dict(self.embed), "train": dict(self.train), "prior": dict(self.prior)}

    def guidances(self, base: Base) -> dict[str, Any]:
        """What of its pictures is drawn for objects, as `generation.sampling.sample` takes it; where it says nothing, or less than 0, what suits the base."""
        return {
            "scene": base.scene_guidance(self.draw.get("scene_guidance", -1.0)), "own": self.draw.get("object_guidance", 0.0),
            "object_below": base.object_below(self.draw.get("object_below", -1.0)),
        }  # fmt: skip


OURS = {"objtune": Method("objtune", "docs/method.md")}

PLAINLY = {"scene_guidance": 0.0, "object_below": 1.0}
"""Pictures as any tool draws them from an adapter."""
"""What of drawing a method may name."""
BASELINES = {
    "textual-inversion": Method(
        "Textual Inversion", "arXiv:2208.01618; diffusers examples: 1 vector, no prior",
        {"init": "class", "vectors": 1, "noun": "none"},
        {**PLAIN, "modules": "none", "photo_loss": "frame", "class_weight": 0.0, "lr": 1e-3, "token_lr": 1e-2,
         "steps": 500, "batch": 4},
        draw=PLAINLY,
    ),
    "dreambooth-lora": Method(
        "DreamBooth-LoRA", "arXiv:2208.12242; diffusers train_dreambooth_lora.py: rank 4, 500 steps of 1, prior weight 1, rare word",
        {"init": "rare", "vectors": 3},
        {**PLAIN, "token": "fixed", "photo_loss": "frame", "class_term": "noise", "class_weight": 1.0, "modules": "attention",
         "rank": 4, "lr": 3e-3, "token_lr": 1e-2, "steps": 500, "batch": 1},
        CLASS_PICTURES, draw=PLAINLY,
    ),
    "masked-lora": Method(
        "masked LoRA", "OneTrainer, kohya: area-normalised masked loss, no class term",
        {"init": "class", "vectors": 1},
        {**PLAIN, "photo_loss": "object", "class_weight": 0.0, "modules": "attention+ff", "rank": 16,
         "lr": 1e-4, "token_lr": 1e-2, "steps": 400, "batch": 2},
        draw=PLAINLY,
    ),
    "break-a-scene": Method(
        "Break-A-Scene (LoRA)", "arXiv:2305.16311: 400 steps of the token, 400 of the rest; masked and cross-attention loss 0.01, prior 1",
        {"init": "class", "vectors": 1, "noun": "none"},
        {**PLAIN, "photo_loss": "masked", "class_term": "noise", "class_weight": 1.0, "attention_weight": 0.01, "modules": "all",
         "rank": 16, "lr": 3e-3, "token_lr": 1e-2, "token_first": 400, "steps": 800, "batch": 1},
        CLASS_PICTURES, draw=PLAINLY,
    ),
    "custom-diffusion": Method(
        "Custom Diffusion", "arXiv:2212.04488: keys and values of cross-attention (full rank), one new token, prior 1, 250 steps of 2; without its rescaling of the photo",
        {"init": "rare", "vectors": 1},
        {**PLAIN, "photo_loss": "frame", "class_term": "noise", "class_weight": 1.0, "modules": "cross-kv", "rank": 128, "lr": 3e-4,
         "token_lr": 1e-2, "steps": 250, "batch": 2},
        CLASS_PICTURES, draw=PLAINLY,
    ),
}  # fmt: skip

ABLATIONS = {
    "init-class": Method("init: class word", "ablation", {"init": "class"}),
    "init-object": Method("init: the object alone", "ablation", {"picture": 0.0, "word": 0.0}),
    "init-no-picture": Method("init: object and class word", "ablation", {"picture": 0.0}),
    "vectors-1": Method("one learned vector", "ablation", {"vectors": 1}),
    "vectors-4": Method("four learned vectors", "ablation", {"vectors": 4}),
    "init-random": Method("init: random", "ablation", {"init": "random"}),
    "no-class-term": Method("no class term", "ablation", train={"class_weight": 0.0}),
    "class-prompt-alone": Method("class held by its own prompt alone", "ablation", prior={"around": "class"}),
    "no-background-term": Method("no background teacher", "ablation", train={"background_weight": 0.0}),
    "whole-frame": Method(
        "loss on the whole frame", "ablation", train={"photo_loss": "frame", "background_weight": 0.0}
    ),
    "no-placement": Method("no placement", "ablation", train={"views": 1}),
    "no-extra-photo": Method("the photo's own placement no more often", "ablation", train={"as_taken": 0.0}),
    "latents-mean": Method("latents: the mean", "ablation", train={"latents": "mean"}),
    "context-own": Method("the sentence hears the token", "ablation", train={"context": "own"}),
    "all-blocks": Method("the whole denoiser learns", "ablation", train={"blocks": "all"}),
    "attention-term": Method("with attention term", "ablation", train={"attention_weight": 0.01}),
    "steps-90": Method("90 steps", "ablation", train={"steps": 90}),
    "steps-175": Method("175 steps", "ablation", train={"steps": 175}),
    "steps-700": Method("700 steps", "ablation", train={"steps": 700}),
}

ROBUST = {
    "small-object": Method("object on 2-5 % of the photo", "robustness", given="small"),
    "mask-eroded": Method("mask eroded by 5 % of the object", "robustness", given="eroded"),
    "mask-dilated": Method("mask dilated by 5 % of the object", "robustness", given="dilated"),
    "mask-noisy": Method("mask with edges wrong by 5 % of the object", "robustness", given="noisy"),
    "rough-eroded": Method("the eroded mask, made exact", "robustness", given="eroded", hint="rough"),
    "rough-dilated": Method("the dilated mask, made exact", "robustness", given="dilated", hint="rough"),
    "rough-noisy": Method("the noisy mask, made exact", "robustness", given="noisy", hint="rough"),
}
"""Ours on worse input than the table's."""

METHODS: dict[str, Method] = {**OURS, **BASELINES, **ABLATIONS, **ROBUST}
GROUPS = {"baselines": tuple(BASELINES), "ablations": tuple(ABLATIONS), "robust": tuple(ROBUST), "all": tuple(METHODS)}
"""Names for several methods at once."""


def named(text: str) -> dict[str, Method]:
    """The methods of a comma-separated list of names and groups, in the order of the table.

    A name may be followed by settings, `dreambooth-lora+train.lr=5e-4+train.steps=800`: a row of its own.

    Raises:
        UsageError: No such method or setting, or a value that does not fit.
    """
    wanted: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        name, *changes = _split(part)
        if name not in METHODS and (changes or name not in GROUPS):
            raise UsageError(f"there is no method {name}", f"known: {', '.join((*METHODS, *GROUPS))}")
        wanted += [part] if changes else GROUPS.get(name, (name,))
    order = list(METHODS)
    wanted = sorted(dict.fromkeys(wanted), key=lambda part: order.index(_split(part)[0]))
    return {part: _varied(*_split(part)) for part in wanted}


def _split(part: str) -> list[str]:
    """A name and the settings behind it; a plus inside a value (`attention+ff`) stays."""
    return re.split(r"\+(?=[a-z-]+\.)", part)


def _varied(name: str, *changes: str) -> Method:
    """A method with some settings changed, each checked as `--set` checks it."""
    method = METHODS[name]
    if not changes:
        return method
    given = Settings(Path(os.devnull), {}, changes)
    parts = {**method.learning(), "generate": dict(method.draw)}
    for change in changes:
        section, _, key = change.partition("=")[0].strip().partition(".")
        if section not in parts or (section == "generate" and key not in GUIDANCES):
            raise UsageError(
                f"{change} is no setting of a method",
                f"{', '.join(f'{p}.…' for p in list(parts)[:-1])}, {', '.join(f'generate.{g}' for g in GUIDANCES)} are",
            )
        parts[section][key] = getattr(given.resolve(SECTIONS[section]), key)
    embed, train, prior, draw = parts.values()
    return Method(
        f"{method.title}, {' '.join(changes)}", method.source, embed, train, prior, method.given, method.hint, draw
    )
