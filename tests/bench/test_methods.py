"""The methods are settings that the stages take, each different from ours where it says so."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from objtune_cli.bench.methods import (
    ABLATIONS,
    BASELINES,
    DIFFUSERS_DEFAULTS,
    GROUPS,
    METHODS,
    OURS,
    ROBUSTNESS,
    SEVERAL_PHOTOS,
    Method,
    current_name,
    former_name,
    parse_methods,
)
from objtune_cli.bench.photo_variants import VARIANTS
from objtune_cli.config.resolve import Settings
from objtune_cli.config.sections import Embed, Prior, Train, identifying
from objtune_cli.errors import UsageError
from objtune_cli.models import registry
from objtune_cli.renamed_settings import former
from objtune_cli.store.safetensors_format import canonical_json


def _resolved(method: Method) -> tuple[Embed, Train, Prior]:
    """As the command line of a trial gives them."""
    parts = {"init-embedding": method.embed, "train": method.train, "prior": method.prior}
    settings = Settings(
        Path("none.toml"), {}, [f"{part}.{k}={v}" for part, values in parts.items() for k, v in values.items()]
    )
    return settings.resolve(Embed), settings.resolve(Train), settings.resolve(Prior)


@pytest.mark.parametrize("name", METHODS)
def test_settings_arrive_as_they_stand(name: str) -> None:
    embed, train, prior = (asdict(c) for c in _resolved(METHODS[name]))
    assert embed == asdict(Embed()) | dict(METHODS[name].embed)
    assert train == asdict(Train()) | dict(METHODS[name].train)
    assert prior == asdict(Prior()) | dict(METHODS[name].prior)


def test_ours_is_the_defaults() -> None:
    assert list(OURS) == ["objtune"] and _resolved(OURS["objtune"]) == (Embed(), Train(), Prior())


@pytest.mark.parametrize("name", [*BASELINES, *ABLATIONS])
def test_every_named_setting_differs_from_ours(name: str) -> None:
    """A setting that is our default would compare nothing."""
    method = METHODS[name]
    ours = (
        asdict(Train())
        | {f"embed.{k}": v for k, v in asdict(Embed()).items()}
        | {f"prior.{k}": v for k, v in asdict(Prior()).items()}
    )
    named_ones = (
        dict(method.train)
        | {f"embed.{k}": v for k, v in method.embed.items()}
        | {f"prior.{k}": v for k, v in method.prior.items()}
    )
    ablation = name in ABLATIONS
    assert named_ones
    same = {k for k, v in named_ones.items() if v == ours[k]}
    assert (
        not same if ablation else same <= {"rank", "batch_size", "loss_region", "sample_vae_latents", "early_stopping"}
    )  # what a baseline shares with us it still names


@pytest.mark.parametrize("name", ROBUSTNESS)
def test_robustness_is_ours_on_other_input(name: str) -> None:
    assert _resolved(ROBUSTNESS[name]) == (Embed(), Train(), Prior()) and ROBUSTNESS[name].photo_variant in VARIANTS[1:]
    assert ROBUSTNESS[name].hint == ("rough" if name.startswith("rough-") else "mask")


def test_no_two_methods_are_the_same() -> None:
    rows = {(_resolved(m), m.photo_variant, m.hint, m.num_photos) for m in METHODS.values()}
    assert len(rows) == len(METHODS)


def test_further_photos_are_ours_on_more_photos() -> None:
    assert {name: method.num_photos for name, method in SEVERAL_PHOTOS.items()} == {"photos-2": 2, "photos-4": 4}
    assert all(_resolved(method) == (Embed(), Train(), Prior()) for method in SEVERAL_PHOTOS.values())
    assert list(parse_methods("photos")) == list(SEVERAL_PHOTOS)
    assert parse_methods("photos-4+train.max_steps=9")["photos-4+train.max_steps=9"].num_photos == 4


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_see_the_photo_as_it_is_and_learn_something(name: str) -> None:
    train = _resolved(BASELINES[name])[1]
    own = {"loss_region", "prior_loss_weight"}  # what each method says itself
    assert {k: getattr(train, k) for k in DIFFUSERS_DEFAULTS if k not in own} == {
        k: v for k, v in DIFFUSERS_DEFAULTS.items() if k not in own
    }
    assert own <= set(BASELINES[name].train)
    assert train.num_augmentations == 1 and not train.background_loss_weight
    assert train.train_embedding or (train.target_modules != "none" and not train.embedding_only_steps)
    assert BASELINES[name].source != "ablation"


def test_names_and_groups_come_in_the_order_of_the_table() -> None:
    assert list(parse_methods("masked-lora, objtune")) == ["objtune", "masked-lora"]
    assert list(parse_methods("objtune,baselines")) == ["objtune", *BASELINES]
    assert list(parse_methods("ablations,steps-90")) == list(GROUPS["ablations"]) == list(ABLATIONS)
    assert parse_methods("all") == METHODS


def test_a_name_may_be_followed_by_settings() -> None:
    found = parse_methods(
        "masked-lora+train.learning_rate=5e-4+train.max_steps=9+init-embedding.num_vectors=3+prior.num_class_images=5,masked-lora,objtune"
    )
    assert list(found) == [
        "objtune",
        "masked-lora+train.learning_rate=5e-4+train.max_steps=9+init-embedding.num_vectors=3+prior.num_class_images=5",
        "masked-lora",
    ]
    varied, own = list(found.values())[1:]
    assert own is BASELINES["masked-lora"]
    assert (
        varied.train == {**own.train, "learning_rate": 5e-4, "max_steps": 9}
        and varied.embed == {**own.embed, "num_vectors": 3}
        and varied.prior == {"num_class_images": 5}
    )
    assert parse_methods("small-object+train.max_steps=9")["small-object+train.max_steps=9"].photo_variant == "small"
    assert varied.source == own.source and varied.title != own.title


def test_the_table_itself_stays_as_it_is() -> None:
    before = dict(BASELINES["masked-lora"].train)
    parse_methods("masked-lora+train.learning_rate=5e-4")
    assert BASELINES["masked-lora"].train == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("objtune,dreambooth", "there is no method dreambooth"), ("", "there is no method"), ("objtune,", "there is no method"),
        ("All", "there is no method All"), ("baselines+train.learning_rate=1e-3", "there is no method baselines"),
        ("objtune+train.learning_rate", "has no value"), ("objtune+train.stepz=1", "unknown key train.stepz"), ("objtune+train.max_steps=many", "train.max_steps is 'many'"),
        ("objtune+train.max_steps=-1", "train.max_steps is -1"), ("objtune+generate.num_images=2", "generate.num_images=2 is not a setting of a method"),
        ("objtune+", "there is no method"),
    ],
)  # fmt: skip
def test_what_is_no_method_or_setting_is_named(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_methods(text)


def test_baselines_are_drawn_as_any_tool_draws_them() -> None:
    toybox = registry.resolve("toybox")

    def sampling(*values: float) -> dict[str, float]:
        names = ("prompt_guidance_scale", "autoguidance_scale", "subject_conditioning_start")
        return dict(zip(names, values, strict=True))

    suits, plain = sampling(2.0, 0.0, 0.8), sampling(0.0, 0.0, 1.0)
    assert (
        toybox.prompt_guidance_scale(),
        toybox.autoguidance_scale(),
        toybox.autoguidance_scale(0.0),
        toybox.prompt_guidance_scale(3.0),
    ) == (2.0, 0.5, 0.0, 3.0)
    assert {name: m.sampling_kwargs(toybox) for name, m in METHODS.items()} == {
        name: plain if name in BASELINES else suits for name in METHODS
    }
    wanted = {
        "objtune+generate.prompt_guidance_scale=0": (0.0, 0.0, 0.8), "objtune+generate.prompt_guidance_scale=-1": (2.0, 0.0, 0.8), "masked-lora+generate.prompt_guidance_scale=1.5": (1.5, 0.0, 1.0),
        "objtune+generate.autoguidance_scale=0.5": (2.0, 0.5, 0.8), "objtune+generate.prompt_guidance_scale=0+generate.autoguidance_scale=2": (0.0, 2.0, 0.8),
        "objtune+generate.subject_conditioning_start=1": (2.0, 0.0, 1.0), "dreambooth-lora+generate.subject_conditioning_start=0.9": (0.0, 0.0, 0.9),
    }  # fmt: skip
    assert {
        name: tuple(m.sampling_kwargs(toybox).values()) for name, m in parse_methods(",".join(wanted)).items()
    } == wanted


def test_a_plus_inside_a_value_stays() -> None:
    [(name, method)] = parse_methods("objtune+train.target_modules=attention+ff+train.learning_rate=3e-4").items()
    assert name == "objtune+train.target_modules=attention+ff+train.learning_rate=3e-4"
    assert method.train == {"target_modules": "attention+ff", "learning_rate": 3e-4}


UNDER_FORMER_NAMES = json.loads((Path(__file__).parent / "methods_under_former_names.json").read_text())
"""By method, digests of its settings as they were before settings were renamed: those of a result's key, and all of them."""
ADDED_SINCE = {"sample_every"}
"""Settings that these digests do not know; they change no result."""


@pytest.mark.parametrize("name", UNDER_FORMER_NAMES)
def test_renaming_settings_and_neutral_values_changed_no_method(name: str) -> None:
    from objtune_cli.bench.suites.scenes import JOINT_METHODS
    from objtune_cli.training.train import fill_defaults

    method = JOINT_METHODS[name.removeprefix("scenes ")] if name.startswith("scenes ") else METHODS[name]
    own = registry.resolve("toybox").training
    sections = {
        "init-embedding": replace(Embed(), **method.embed), "train": fill_defaults(replace(Train(), **method.train), own), "prior": replace(Prior(), **method.prior),
    }  # fmt: skip

    def digest(parts: list[Any]) -> str:
        return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:16]

    def then(values: Any) -> dict[str, Any]:
        return {name: value for name, value in asdict(values).items() if name not in ADDED_SINCE}

    assert UNDER_FORMER_NAMES[name] == {
        "identifying": digest([former(section, identifying(values)) for section, values in sections.items()]),
        "resolved": digest(
            [
                *(former(section, then(values)) for section, values in sections.items()),
                former("generate", method.sampling),
            ]
        ),
    }


def test_published_results_keep_their_names_and_are_shown_under_those_of_today() -> None:
    published = "objtune+generate.scene_guidance=0+generate.object_below=1"
    today = "objtune+generate.prompt_guidance_scale=0+generate.subject_conditioning_start=1"
    assert current_name(published) == today == current_name(today) and former_name(today) == published
    assert list(parse_methods(published)) == [today]
