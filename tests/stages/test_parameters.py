"""The picture's parameter chunk, read as A1111 reads it."""

import json
import re
from dataclasses import replace

import pytest

from objtune_cli.config import Generate
from objtune_cli.stages.generate import parameters

PAIR = re.compile(r"\s*(\w[\w \-/]+):\s*(\"(?:\\.|[^\\\"])+\"|[^,]*)(?:,|$)")
"""A1111's own expression (`modules/infotext_utils.py`, `re_param_code`)."""
CONFIG = Generate(steps=30, guidance=7.5, negative="blurry: very", scheduler="dpm++", guidance_below=0.8)


def read(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and pairs, as A1111 takes them apart: the last line if it has three pairs or more."""
    *lines, last = text.strip().split("\n")
    pairs = PAIR.findall(last)
    assert len(pairs) >= 3
    negative = next((line.removeprefix("Negative prompt: ") for line in lines if line.startswith("Negative prompt:")), "")
    values = {key: json.loads(value) if value.startswith('"') else value for key, value in pairs}
    return "\n".join(line for line in lines if not line.startswith("Negative prompt:")), negative, values


@pytest.mark.parametrize("model", ["sd15", "me/odd, name", "C:\\models\\a"])
def test_every_value_comes_back(model: str) -> None:
    prompt, negative, values = read(parameters("a photo of <rex>, wet", CONFIG, 12, (512, 768), model))
    assert (prompt, negative) == ("a photo of <rex>, wet", "blurry: very")
    wanted = {"Steps": "30", "Sampler": "DPM++ 2M", "CFG scale": "7.5", "Seed": "12", "Size": "512x768", "Model": model, "CFG below": "0.8"}
    assert values.items() >= wanted.items()


def test_without_a_negative_prompt_there_is_no_line_of_it() -> None:
    text = parameters("a dog", replace(CONFIG, negative="", guidance_below=1.0), 0, (32, 32), "toybox")
    assert text.count("\n") == 1 and "CFG below" not in text
