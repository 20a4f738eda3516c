"""Former names of settings: read from every layer with a note, and reversible where results were stored under them."""

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from objtune_cli import renamed_settings
from objtune_cli.config.resolve import Settings
from objtune_cli.config.sections import SECTIONS, Common, Compose, Embed, Generate, Merge, Train
from objtune_cli.errors import UsageError
from objtune_cli.renamed_settings import RENAMED

KNOWN = {
    renamed_settings.join(section, f.name): f
    for section, kind in {"": Common, **SECTIONS}.items()
    for f in fields(kind)
}


def settings(tmp_path: Path, toml: str = "", environment: dict[str, str] | None = None, *given: str) -> Settings:
    (tmp_path / "objtune.toml").write_text(toml)
    return Settings(tmp_path / "objtune.toml", environment or {}, given)


def test_every_former_name_leads_to_a_setting() -> None:
    assert {renamed.key for renamed in RENAMED.values()} <= KNOWN.keys()
    assert len({renamed.key for renamed in RENAMED.values()}) == len(RENAMED)


def test_no_name_of_today_was_the_name_of_another_setting() -> None:
    """So a table can be read twice, and an old record is never mistaken for a new one."""
    assert not [key for key, renamed in RENAMED.items() if key in KNOWN and renamed.key != key]


@pytest.mark.parametrize("key", RENAMED)
def test_former_values_become_values_that_the_setting_takes(key: str) -> None:
    setting = KNOWN[RENAMED[key].key]
    for value in RENAMED[key].values.values():
        if "read" in setting.metadata:
            assert setting.metadata["read"](value) == value
        elif isinstance(value, str):
            assert value in get_args(setting.type)
        else:
            assert isinstance(value, bool) and setting.type in (bool, bool | None)


@pytest.mark.parametrize(
    ("section", "name", "former", "value"),
    [
        (Train, "learning_rate", "train.lr=0.5", 0.5),
        (Train, "fix_embedding_norm", "train.token_norm=free", False),
        (Train, "single_forward", "train.passes=apart", False),
        (Train, "single_forward", "train.passes=auto", None),
        (Train, "early_stopping", "train.stop=good", "plateau"),
        (Train, "loss_region", "train.photo_loss=frame", "image"),
        (Embed, "init", "init-embedding.init=rare", "rare-token"),
        (Generate, "scheduler", "generate.scheduler=base", "auto"),
        (Compose, "strict", "compose.strict=1", True),
        (Compose, "paste", "compose.laid=place", "box"),
        (Merge, "method", "merge.method=sum", "linear"),
        (Common, "clip_model", "tower=openai/clip", "openai/clip"),
        (Common, "clip_model", "base.tower=openai/clip", "openai/clip"),
        (Common, "strict_base", "base.strict=1", True),
    ],
)
def test_a_former_name_is_read_with_a_note(section: type, name: str, former: str, value: Any, tmp_path: Path) -> None:
    key, _, text = former.partition("=")
    part, _, word = key.rpartition(".")
    layers = [settings(tmp_path, "", {}, former)]
    if part != "base":
        variable = "_".join(["OBJTUNE", *([part] if part else []), word]).replace("-", "_").upper()
        written = text if text.replace(".", "").isdigit() else f'"{text}"'
        layers.append(settings(tmp_path, f"[{part}]\n{word} = {written}" if part else f"{word} = {written}"))
        layers.append(settings(tmp_path, "", {variable: text}))
    for found in layers:
        assert getattr(found.resolve(section), name) == value
        assert len(found.notes) == 1 and f"is now {renamed_settings.present_key(KEYS.get(key, key))}" in found.notes[0]


KEYS = {"base.tower": "tower", "base.strict": "strict_base"}


def test_names_of_today_give_no_note(tmp_path: Path) -> None:
    found = settings(
        tmp_path,
        "[train]\nlearning_rate = 0.5\ntrain_embedding = false",
        {"OBJTUNE_TRAIN_MAX_STEPS": "auto"},
        "compose.strict=true",
    )
    assert found.notes == [] and found.resolve(Compose).strict is True
    assert found.resolve(Train) == Train(learning_rate=0.5, train_embedding=False)


def test_a_flag_with_a_former_value_is_read(tmp_path: Path) -> None:
    assert settings(tmp_path).resolve(Merge, method="sum").method == "linear"


def test_a_setting_under_both_of_its_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"sets train\.learning_rate twice, once as lr") as caught:
        settings(tmp_path, "[train]\nlr = 1\nlearning_rate = 2")
    assert caught.value.hint == "keep learning_rate alone"


def test_of_two_variables_the_one_of_today_counts(tmp_path: Path) -> None:
    found = settings(tmp_path, "", {"OBJTUNE_TRAIN_LR": "1", "OBJTUNE_TRAIN_LEARNING_RATE": "2"})
    assert found.resolve(Train).learning_rate == 2


@pytest.mark.parametrize("text", ["true", "True", "yes", "on", "1", "false", "no", "off", "0"])
def test_yes_or_no_settings_take_the_usual_words(text: str, tmp_path: Path) -> None:
    wanted = text.lower() in ("true", "yes", "on", "1")
    assert settings(tmp_path, "", {}, f"train.offload_vae={text}").resolve(Train).offload_vae is wanted


@pytest.mark.parametrize("toml", ["1", '"true"', '"auto"', "0.0"])
def test_in_a_file_yes_or_no_is_a_boolean(toml: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="offload_vae in objtune.toml is") as caught:
        settings(tmp_path, f"[train]\noffload_vae = {toml}").resolve(Train)
    assert caught.value.hint == "true or false is needed"


@pytest.mark.parametrize(
    ("section", "name", "word", "value"),
    [(Train, "max_steps", "auto", 0), (Train, "single_forward", "auto", None), (Generate, "guidance_scale", "auto", -1.0), (Common, "prediction_type", "auto", "")],
)  # fmt: skip
def test_auto_is_the_default_in_every_layer(section: type, name: str, word: str, value: Any, tmp_path: Path) -> None:
    key = next(key for key in KNOWN if key.rpartition(".")[2] == name and KNOWN[key] in fields(section))
    part, _, own = key.rpartition(".")
    toml = f'[{part}]\n{own} = "{word}"' if part else f'{own} = "{word}"'
    for found in (settings(tmp_path, toml), settings(tmp_path, "", {}, f"{key}={word}")):
        assert getattr(found.resolve(section), name) == value


def test_former_is_the_reverse_of_current() -> None:
    for section, kind in SECTIONS.items():
        values = {f.name: f.default for f in fields(kind)}
        before = renamed_settings.former(section, values)
        assert renamed_settings.current(section, before) == values
        assert not [name for name in before if renamed_settings.join(section, name) not in {*RENAMED, *KNOWN}]


@pytest.mark.parametrize(
    ("former", "today"),
    [
        ("train.latents=sample", "train.sample_vae_latents=true"),
        ("train.lr=5e-4", "train.learning_rate=5e-4"),
        ("train.rank=4", "train.rank=4"),
    ],
)
def test_a_setting_as_text_goes_both_ways(former: str, today: str) -> None:
    assert renamed_settings.current_text(former) == today == renamed_settings.current_text(today)
    assert renamed_settings.former_spelling(today) == former


def test_a_composed_scene_keeps_the_object_guidance_of_its_refinement() -> None:
    found = renamed_settings.of_record(
        "scene", {"n": 2, "object_guidance": 0.5, "laid": "place", "places": {}, "prompt": "x"}
    )
    assert found == {"num_images": 2, "refine_autoguidance_scale": 0.5, "paste": "box", "places": {}, "prompt": "x"}
    assert renamed_settings.of_record("scene", {"n": 2, "object_guidance": 0.5, "prompt": "x"}) == {
        "num_images": 2, "autoguidance_scale": 0.5, "prompt": "x",
    }  # fmt: skip
