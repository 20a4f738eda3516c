"""The picture's parameter chunk, read as A1111 reads it."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from objtune_cli.config.sections import Generate
from objtune_cli.generation import lora_hashes
from objtune_cli.generation.image_metadata import infotext
from tests.support import quick_runs

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

PAIR = re.compile(r"\s*(\w[\w \-/]+):\s*(\"(?:\\.|[^\\\"])+\"|[^,]*)(?:,|$)")
"""A1111's own expression (`modules/infotext_utils.py`, `re_param_code`)."""
CONFIG = Generate(
    num_inference_steps=30,
    guidance_scale=7.5,
    negative_prompt="blurry: very",
    scheduler="dpm++",
    guidance_interval_high=0.8,
    prompt_guidance_scale=2.0,
    autoguidance_scale=0.5,
    subject_conditioning_start=0.8,
)


def read(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and pairs, as A1111 takes them apart: the last line if it has three pairs or more."""
    *lines, last = text.strip().split("\n")
    pairs = PAIR.findall(last)
    assert len(pairs) >= 3
    negative = next(
        (line.removeprefix("Negative prompt: ") for line in lines if line.startswith("Negative prompt:")), ""
    )
    values = {key: json.loads(value) if value.startswith('"') else value for key, value in pairs}
    return "\n".join(line for line in lines if not line.startswith("Negative prompt:")), negative, values


@pytest.mark.parametrize("model", ["sd15", "me/odd, name", "C:\\models\\a"])
def test_every_value_comes_back(model: str) -> None:
    prompt, negative, values = read(infotext("a photo of <rex>, wet", CONFIG, 12, (512, 768), model))
    assert (prompt, negative) == ("a photo of <rex>, wet", "blurry: very")
    wanted = {
        "Steps": "30",
        "Sampler": "DPM++ 2M",
        "CFG scale": "7.5",
        "Seed": "12",
        "Size": "512x768",
        "Model": model,
        "Guidance interval high": "0.8",
        "Prompt guidance": "2",
        "Autoguidance": "0.5",
        "Subject conditioning start": "0.8",
    }
    assert values.items() >= wanted.items()


def test_without_a_negative_prompt_there_is_no_line_of_it() -> None:
    text = infotext(
        "a dog",
        replace(
            CONFIG,
            negative_prompt="",
            guidance_interval_high=1.0,
            prompt_guidance_scale=0.0,
            autoguidance_scale=0.0,
            subject_conditioning_start=1.0,
        ),
        0,
        (32, 32),
        "toybox",
    )
    assert text.count("\n") == 1 and "Guidance interval high" not in text and "guidance" not in text


SETTINGS = (
    "train.max_steps=1",
    "train.batch_size=1",
    "train.num_augmentations=1",
    "train.rank=2",
    "train.prior_loss_weight=0",
    "train.self_evaluation=false",
    "init-embedding.steps=0",
)
FEW = (*(word for setting in SETTINGS for word in ("--set", setting)), *quick_runs.NO_GATE, "--no-preview")


def of_lora(file: Path) -> str:
    """As A1111 (and kohya's addnet hash) has it: of what follows the header."""
    data = file.read_bytes()
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()[:12]


def test_hashes_are_those_of_the_exported_files(
    cli, base: Path, dog_photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("objtune.toml").write_text(f'base = "{base}"\n')
    for name, photo in {"rex": dog_photo, "cup": dog_photo.with_name("mug.jpg")}.items():
        assert cli("train", photo, "--class", "mug" if name == "cup" else "dog", "--name", name, *FEW).code == 0
    done = cli("generate", "<rex> at night", "<rex> and <cup>", "a dog", "-n", "1", "--steps", "1")
    chunks = [Image.open(path).text["parameters"] for path in done.out.splitlines()]
    for name in ("rex", "cup"):
        for form in ("kohya", "embedding"):
            assert cli("export", name, "--format", form, "--out", f"{form}/{name}").code == 0
    loras = {name: of_lora(Path(f"kohya/{name}/{name}.safetensors")) for name in ("rex", "cup")}
    words = {
        name: hashlib.sha256(Path(f"embedding/{name}/{name}-objtune.safetensors").read_bytes()).hexdigest()[:12]
        for name in loras
    }
    assert len({*loras.values(), *words.values()}) == 4
    values = [read(chunk)[2] for chunk in chunks]
    assert (values[0]["Lora hashes"], values[0]["TI hashes"]) == (
        f"rex: {loras['rex']}",
        f"rex-objtune: {words['rex']}",
    )
    assert values[1]["Lora hashes"] == f"rex: {loras['rex']}, cup: {loras['cup']}" and "Lora hashes" not in values[2]
    assert f'Lora hashes: "rex: {loras["rex"]}", TI hashes: "rex-objtune: {words["rex"]}"' in chunks[0]
    monkeypatch.setattr(lora_hashes, "compute_hashes", lambda *_: pytest.fail("made again"))
    again = cli("generate", "<rex> in the snow", "-n", "1", "--steps", "1")
    assert read(Image.open(again.out.strip()).text["parameters"])[2]["Lora hashes"] == values[0]["Lora hashes"]
    (Path(".objtune") / "hashes").rename("elsewhere")  # and the notes may go
    assert cli("verify").code == 0
