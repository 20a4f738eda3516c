"""Settings: which layer wins, and what each layer refuses."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from objtune_cli.config.resolve import Settings
from objtune_cli.config.sections import SECTIONS, Common, Embed, Generate, Segment, Train
from objtune_cli.errors import UsageError

Make = Callable[..., Settings]


@pytest.fixture
def settings(tmp_path: Path) -> Make:
    """`settings(toml, environment, set_options)`."""

    def make(toml: str = "", environment: dict[str, str] | None = None, given: Sequence[str] = ()) -> Settings:
        file = tmp_path / "objtune.toml"
        file.write_text(toml)
        return Settings(file, environment or {}, given)

    return make


LAYERS: list[tuple[dict[str, Any], int]] = [
    ({}, 0),
    ({"toml": "[train]\nmax_steps = 1"}, 1),
    ({"toml": "[train]\nmax_steps = 1", "environment": {"OBJTUNE_TRAIN_MAX_STEPS": "2"}}, 2),
    (
        {
            "toml": "[train]\nmax_steps = 1",
            "environment": {"OBJTUNE_TRAIN_MAX_STEPS": "2"},
            "given": ["train.max_steps=3"],
        },
        3,
    ),
    ({"toml": "[train]\nmax_steps = 1", "given": ["train.max_steps=3"]}, 3),
]


@pytest.mark.parametrize(("layers", "steps"), LAYERS)
def test_the_upper_layer_wins(layers: dict[str, Any], steps: int, settings: Make) -> None:
    assert settings(**layers).resolve(Train).max_steps == steps
    assert settings(**layers).resolve(Train, max_steps=4).max_steps == 4
    assert settings(**layers).resolve(Train, max_steps=None).max_steps == steps


def test_top_level_settings_have_the_same_layers(settings: Make) -> None:
    assert settings().resolve(Common) == Common("toybox", "auto", "auto")
    assert settings("base = 'sd15'").resolve(Common).base == "sd15"
    assert settings("base = 'sd15'", {"OBJTUNE_BASE": "sd21"}).resolve(Common).base == "sd21"
    assert settings("base = 'sd15'", {"OBJTUNE_BASE": "sd21"}, ["base=sdxl"]).resolve(Common).base == "sdxl"
    assert settings("base = 'sd15'", {"OBJTUNE_BASE": "sd21"}, ["base=sdxl"]).resolve(Common, base="x/y").base == "x/y"


def test_layers_mix_key_by_key(settings: Make) -> None:
    found = settings(
        "[train]\nmax_steps = 1\nrank = 2", {"OBJTUNE_TRAIN_RANK": "3"}, ["train.learning_rate=1e-3"]
    ).resolve(Train, batch_size=7)
    assert found == Train(max_steps=1, rank=3, learning_rate=1e-3, batch_size=7)


def test_a_section_with_a_dash_has_a_variable_with_an_underscore(settings: Make) -> None:
    assert settings("[init-embedding]\nnum_vectors = 3").resolve(Embed).num_vectors == 3
    assert settings("", {"OBJTUNE_INIT_EMBEDDING_NUM_VECTORS": "4"}).resolve(Embed).num_vectors == 4
    assert settings("", {}, ["init-embedding.num_vectors=5"]).resolve(Embed).num_vectors == 5


def test_values_may_hold_equal_signs_and_spaces(settings: Make) -> None:
    assert settings("", {}, ["generate.negative_prompt = a=b, c"]).resolve(Generate).negative_prompt == "a=b, c"


def test_the_environment_of_the_process_is_read(
    settings: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OBJTUNE_TRAIN_SEED", "9")
    assert Settings(tmp_path / "none.toml").resolve(Train).seed == 9


def test_no_file_is_no_setting(tmp_path: Path) -> None:
    assert Settings(tmp_path / "none.toml", {}).resolve(Train) == Train()


@pytest.mark.parametrize(
    ("layers", "key", "known"),
    [
        (
            {"toml": "stepz = 1"},
            "stepz in objtune.toml",
            "base, base_parts, bench, clip_model, compose, device, generate, init-embedding, merge, place, precision, prediction_type, prior, segment, strict_base, train, vae",
        ),
        ({"toml": "[trian]\nsteps = 1"}, "trian in objtune.toml", "segment, strict_base, train, vae"),
        (
            {"toml": "[train]\nstepz = 1"},
            "stepz in [train] of objtune.toml",
            "similar keys: max_steps",
        ),
        ({"environment": {"OBJTUNE_STEPS": "1"}}, "OBJTUNE_STEPS in the environment", "OBJTUNE_TRAIN_MAX_STEPS"),
        (
            {"environment": {"OBJTUNE_TRAIN_STEPZ": "1"}},
            "OBJTUNE_TRAIN_STEPZ in the environment",
            "OBJTUNE_TRAIN_MAX_STEPS",
        ),
        ({"given": ["steps=1"]}, "steps in --set", "train.max_steps"),
        ({"given": ["train.stepz=1"]}, "train.stepz in --set", "train.max_steps"),
        ({"given": ["=1"]}, " in --set", "docs/reference/settings.md"),
    ],
)
def test_unknown_keys_are_answered_with_known_ones(
    layers: dict[str, Any], key: str, known: str, settings: Make
) -> None:
    with pytest.raises(UsageError, match="unknown key") as caught:
        settings(**layers)
    assert caught.value.message == f"unknown key {key}"
    assert known in caught.value.hint


def test_other_variables_are_nobodys_business(settings: Make) -> None:
    settings("", {"OBJTUNEX": "1", "_OBJTUNE_COMPLETE": "complete_bash", "HOME": "/", "OBJTUNE_PROJECT": "/tmp"})


@pytest.mark.parametrize("value", ["3", "'steps'", "true", "[[1]]", "[]"])
def test_a_section_must_be_a_section(value: str, settings: Make) -> None:
    with pytest.raises(UsageError, match=r"train in objtune\.toml is") as caught:
        settings(f"train = {value}")
    assert "[train]" in caught.value.hint


@pytest.mark.parametrize(
    ("section", "toml", "message", "hint"),
    [
        (Train, "[train]\nmax_steps = '9'", "max_steps in objtune.toml is '9'", "a whole number, or auto, is needed"),
        (Train, "[train]\nmax_steps = 9.5", "max_steps in objtune.toml is 9.5", "a whole number, or auto, is needed"),
        (Train, "[train]\nmax_steps = true", "max_steps in objtune.toml is True", "a whole number, or auto, is needed"),
        (
            Train,
            "[train]\nlearning_rate = true",
            "learning_rate in objtune.toml is True",
            "a number, or auto, is needed",
        ),
        (
            Train,
            "[train]\nlearning_rate = 'fast'",
            "learning_rate in objtune.toml is 'fast'",
            "a number, or auto, is needed",
        ),
        (
            Train,
            "[train]\ntarget_modules = 'some'",
            "target_modules in objtune.toml is 'some'",
            "one of auto, none, cross-kv, attention, attention+ff, all",
        ),
        (
            Train,
            "[train]\ntarget_modules = 1",
            "target_modules in objtune.toml is 1",
            "one of auto, none, cross-kv, attention, attention+ff, all",
        ),
        (
            Train,
            "[train]\ntarget_modules = [1]",
            r"target_modules in objtune.toml is [1]",
            "one of auto, none, cross-kv, attention, attention+ff, all",
        ),
        (Common, "base = 1", "base in objtune.toml is 1", "text is needed"),
        (Common, "[base]\nx = 1", "base in objtune.toml is {'x': 1}", "text is needed"),
        (Train, "[train]\nmax_steps = -1", "max_steps in objtune.toml is -1", "from 0 to 1000000"),
        (Train, "[train]\nmax_steps = 1000001", "max_steps in objtune.toml is 1000001", "from 0 to 1000000"),
        (Train, "[train]\nlearning_rate = -1e-9", "learning_rate in objtune.toml is -1e-09", "0 or more"),
        (Train, "[train]\nlearning_rate = nan", "learning_rate in objtune.toml is nan", "a finite number is needed"),
        (Train, "[train]\nlearning_rate = inf", "learning_rate in objtune.toml is inf", "a finite number is needed"),
        (
            Generate,
            "[generate]\nguidance_scale = nan",
            "guidance_scale in objtune.toml is nan",
            "a finite number is needed",
        ),
        (
            Generate,
            "[generate]\nguidance_scale = -inf",
            "guidance_scale in objtune.toml is -inf",
            "a finite number is needed",
        ),
        (
            Train,
            "[train]\nseed = 18446744073709551616",
            "seed in objtune.toml is 18446744073709551616",
            "from 0 to 18446744073709551615",
        ),
        (
            Generate,
            "[generate]\nseed = -1",
            "seed in objtune.toml is -1",
            "0 to 18446744073709551615; seeds are never random, so that the same command gives the same result",
        ),
        (
            Generate,
            "[generate]\nprompt_guidance_scale = 20.5",
            "prompt_guidance_scale in objtune.toml is 20.5",
            "20 or less",
        ),
        (Segment, "[segment]\nedge_softness = 0.11", "edge_softness in objtune.toml is 0.11", "from 0 to 0.1"),
    ],
)
def test_wrong_values_in_the_file(section: type, toml: str, message: str, hint: str, settings: Make) -> None:
    with pytest.raises(UsageError, match="is") as caught:
        settings(toml).resolve(section)
    assert caught.value.message == message
    assert caught.value.hint == hint


@pytest.mark.parametrize("text", ["", "many", "9.5", "1e3", "-1", "0x10", "9" * 5000])
def test_wrong_text_names_its_place(text: str, settings: Make) -> None:
    with pytest.raises(UsageError, match="^OBJTUNE_TRAIN_MAX_STEPS is"):
        settings("", {"OBJTUNE_TRAIN_MAX_STEPS": text}).resolve(Train)
    with pytest.raises(UsageError, match=r"^--set train\.max_steps is"):
        settings("", {}, [f"train.max_steps={text}"]).resolve(Train)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "NaN"])
def test_nan_is_refused_as_text_and_as_a_flag(text: str, settings: Make) -> None:
    with pytest.raises(UsageError, match=r"^--set train\.learning_rate is"):
        settings("", {}, [f"train.learning_rate={text}"]).resolve(Train)
    with pytest.raises(UsageError, match="^--embedding-lr is"):
        settings().resolve(Train, embedding_lr=float(text))


def test_whole_numbers_serve_as_numbers(settings: Make) -> None:
    found = settings("[train]\nlearning_rate = 1").resolve(Train, prior_loss_weight=2)
    assert (found.learning_rate, found.prior_loss_weight) == (1.0, 2.0)
    assert type(found.learning_rate) is type(found.prior_loss_weight) is float


def test_a_value_without_equals_is_refused(settings: Make) -> None:
    with pytest.raises(UsageError, match=r"--set train\.learning_rate has no value"):
        settings("", {}, ["train.learning_rate"])


@pytest.mark.parametrize(
    "data",
    [b"steps = ", b"\xff\xff", b"a = 1\na = 2", b"a = " + b"[" * 3000],
    ids=["half", "not UTF-8", "twice", "deep"],
)
def test_a_broken_file_is_named(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "objtune.toml"
    file.write_bytes(data)
    with pytest.raises(UsageError, match=r"objtune\.toml is not (valid TOML|UTF-8 text)") as caught:
        Settings(file, {})
    assert caught.value.hint


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "objtune.toml").mkdir()
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        Settings(tmp_path / "objtune.toml", {})


@pytest.mark.parametrize("section", [Common, *SECTIONS.values()])
def test_every_default_is_in_its_own_range_and_explained(section: type, settings: Make) -> None:
    defaults = {f.name: getattr(section(), f.name) for f in fields(section)}
    assert settings().resolve(section, **defaults) == section()
    assert all(f.metadata["help"].endswith(".") for f in fields(section))


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("train.learning_rat=1", "did you mean train.learning_rate? "),
        ("train.max_step=1", "did you mean train.max_steps? "),
        ("generate.step=1", "similar keys: generate.num_inference_steps, generate.style, generate.strength"),
        ("train.lrate=1", "similar keys: train.learning_rate"),
        ("trian.rank=1", "did you mean train.rank? "),
        ("quux=1", "all known keys are in docs/reference/settings.md"),
    ],
)
def test_an_unknown_key_is_answered_with_similar_ones_on_a_short_line(key: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"unknown key {key.partition('=')[0]} in --set") as refused:
        Settings(tmp_path / "objtune.toml", {}, [key])
    assert refused.value.hint.startswith(hint)
    assert refused.value.hint.endswith("all known keys are in docs/reference/settings.md")
    assert len(refused.value.hint) < 260
