"""What the bench makes of pictures that are none, of bases that give no numbers, and of measures that are none."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)

# isort: split
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from objtune_cli.bench.result_cache import ResultCache
from objtune_cli.errors import DamagedError, GateError, NonFiniteError
from objtune_cli.evaluation import features, rendering
from objtune_cli.models import loading
from tests.support import tiny_sd1

NAN = float("nan")
SHOWN = np.random.default_rng(0).integers(0, 255, (1, 8, 8, 3), np.uint8)


def _result(out: Path, said: list[str], measured: Any) -> dict:
    kept = ResultCache(out, SimpleNamespace(note=said.append), 1)  # type: ignore[arg-type]
    return kept.get_or_measure("ours", "dog-000", "key", measured, dict)


def _fails(error: Exception) -> Any:
    def measured() -> Any:
        raise error

    return measured


def test_a_base_without_numbers_ends_a_bench_an_adapter_is_a_result(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(NonFiniteError):
        _result(tmp_path, said, _fails(NonFiniteError("the denoiser gives NaN")))
    assert not list(tmp_path.iterdir()) and not said
    for error in (NonFiniteError("the adapter of <dog> gives NaN", of_base=False), GateError("training diverged")):
        assert _result(tmp_path / "one" / type(error).__name__, said, _fails(error))["measures"] == {}
    assert "the adapter of <dog> gives NaN" in said


def test_a_measure_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    said: list[str] = []
    found = _result(tmp_path, said, lambda: ({"identity": NAN, "prompt": 0.5, "drift": -float("inf")}, SHOWN))
    assert found["measures"] == {"prompt": 0.5} and "ours on dog-000: identity, drift not finite, left out" in said
    assert json.loads((tmp_path / "results/ours/dog-000.json").read_text(), parse_constant=pytest.fail) == found


def test_pictures_of_one_colour_are_not_measured(tmp_path: Path) -> None:
    model = loading.load(tiny_sd1.build(tmp_path / "tiny", clip=False), torch.device("cpu"), torch.float32)
    model.vae.decoder.conv_out.weight.zero_()
    model.vae.decoder.conv_out.bias.fill_(-1)
    sampling = {"num_inference_steps": 1, "guidance_scale": 1.0}
    ctx: Any = SimpleNamespace(
        progress=lambda label: lambda *args: None, base=SimpleNamespace(sampling_kwargs=lambda: sampling), force=False
    )
    with pytest.raises(GateError, match=r"2 of 2 images of a dog have one colour \(seed 3\) and are not measured"):
        rendering.sample_images(ctx, model, ["a dog", "a cat"], [3, 4], "a dog")
    ctx.force = True
    assert not rendering.sample_images(ctx, model, ["a dog"], [3], "a dog").any()


def test_models_that_measure_are_finite(tmp_path: Path) -> None:
    shape = {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": 48,
        "patch_size": 16,
    }
    ViTModel(ViTConfig(**shape)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights["layernorm.weight"][:] = 3e38
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match="CLIP or DINO that measures gives NaN or infinite values"):
        features.load_dino(str(tmp_path))(SHOWN)
    weights["layernorm.weight"][0] = NAN
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(DamagedError, match="contains NaN or infinite values, first in layernorm.weight"):
        features.load_dino(str(tmp_path))
