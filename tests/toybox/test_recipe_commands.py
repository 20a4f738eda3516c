"""The recipe's command line: parts that need trained states, and the sheet of samples."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from objtune_cli.models.registry import TOYBOX_FOLDER
from objtune_cli.toybox.recipe import __main__ as command
from objtune_cli.toybox.recipe import denoiser, samples, vae
from objtune_cli.toybox.recipe.presets import PRESETS


@pytest.mark.parametrize("part", ["publish", "compare"])
def test_parts_on_trained_states_name_what_is_missing(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.safetensors").touch()
    monkeypatch.setattr(sys, "argv", ["recipe", part, "--preset", "marked", "--work", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"contains no trained vae"):
        command.main()


def test_a_sheet_is_sampled_with_the_settings_of_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings' names are those that `generate` reads."""
    asked: list[tuple] = []

    def draw(pipe, texts: list[str], size: int, steps: int, guidance: float) -> np.ndarray:
        asked.append((len(texts), size, steps, guidance))
        return np.zeros((len(texts), 8, 8, 3), np.uint8)

    monkeypatch.setattr(samples, "draw", draw)
    command.sheet(TOYBOX_FOLDER, PRESETS["cpu"], tmp_path)
    assert asked == [(64, 128, 20, 2.5)] and (tmp_path / "samples.png").exists()


@pytest.mark.parametrize(("name", "steps"), [("cpu", 0), ("marked", PRESETS["marked"].vae_steps)])
def test_a_base_of_the_same_world_is_trained_further_with_its_latents(name: str, steps: int) -> None:
    preset = command.continued(replace(PRESETS[name], start=str(TOYBOX_FOLDER)))
    assert preset.vae_steps == steps and preset.denoiser_steps > 0
    assert command.continued(PRESETS[name]) == PRESETS[name]


def test_the_model_under_way_is_trained_further_as_it_is() -> None:
    """Its denoiser and its VAE have the preset's shapes, so that both start from it whole."""
    preset = command.continued(replace(PRESETS["marked"], start=str(Path(command.__file__).parent / "marked")))
    assert (preset.vae_steps, preset.text_steps) == (0, 0)
    for part, network in (("vae", vae.build(preset)), ("unet", denoiser.build(preset))):
        (file,) = (Path(preset.start) / part).glob("*.safetensors")
        tensors, own = load_file(file), network.state_dict()
        assert tensors.keys() == own.keys()
        assert all(torch.equal(own[name], value.float()) for name, value in tensors.items())
