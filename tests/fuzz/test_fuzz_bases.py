"""Random damage to a base's folder: it draws with exactly the weights of its files, or it is refused in one line."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from objtune_cli.models import (
    loading,
)

# isort: split
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.support import tiny_sd1
from tests.support.fuzzing import Entrance, entrance, figures, tries  # noqa: F401  (a fixture)

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    *(f"{part}/config.json" for part in WEIGHTS),
    *(f"{part}/{file}" for part, file in WEIGHTS.items()),
)
EDITS: tuple[tuple[str, str, Any], ...] = (
    ("unet/config.json", "in_channels", 9), ("unet/config.json", "out_channels", 8), ("unet/config.json", "cross_attention_dim", 24), ("unet/config.json", "time_cond_proj_dim", 8),
    ("unet/config.json", "_class_name", "UNet2DModel"), ("unet/config.json", "layers_per_block", 2), ("unet/config.json", "class_embed_type", "timestep"),
    ("unet/config.json", "sample_size", 0), ("unet/config.json", "sample_size", None), ("unet/config.json", "block_out_channels", []),
    ("scheduler/scheduler_config.json", "prediction_type", "v_prediction"), ("scheduler/scheduler_config.json", "prediction_type", "sample"),
    ("scheduler/scheduler_config.json", "prediction_type", "magic"), ("scheduler/scheduler_config.json", "beta_schedule", "magic"), ("scheduler/scheduler_config.json", "beta_end", "much"),
    ("scheduler/scheduler_config.json", "beta_start", -1.0), ("scheduler/scheduler_config.json", "num_train_timesteps", 0), ("scheduler/scheduler_config.json", "num_train_timesteps", 500),
    ("scheduler/scheduler_config.json", "rescale_betas_zero_snr", True), ("scheduler/scheduler_config.json", "timestep_spacing", "trailing"), ("scheduler/scheduler_config.json", "timestep_spacing", "magic"),
    ("scheduler/scheduler_config.json", "_class_name", "EulerAncestralDiscreteScheduler"), ("scheduler/scheduler_config.json", "_class_name", "LCMScheduler"),
    ("scheduler/scheduler_config.json", "_class_name", "EulerDiscreteScheduler"), ("scheduler/scheduler_config.json", "_class_name", "DPMSolverMultistepScheduler"),
    ("scheduler/scheduler_config.json", "_class_name", "UniPCMultistepScheduler"), ("scheduler/scheduler_config.json", "_class_name", "HeunDiscreteScheduler"),
    ("scheduler/scheduler_config.json", "_class_name", "MagicScheduler"), ("scheduler/scheduler_config.json", "_class_name", 7), ("scheduler/scheduler_config.json", "trained_betas", [0.1, 0.2]),
    ("vae/config.json", "latent_channels", 8), ("vae/config.json", "scaling_factor", 0.5), ("vae/config.json", "scaling_factor", None), ("vae/config.json", "scaling_factor", 0),
    ("vae/config.json", "_class_name", "AutoencoderTiny"), ("vae/config.json", "norm_num_groups", 3), ("text_encoder/config.json", "num_hidden_layers", 3),
    ("text_encoder/config.json", "hidden_size", 24), ("text_encoder/config.json", "vocab_size", 10), ("text_encoder/config.json", "hidden_act", "magic"), ("text_encoder/config.json", "eos_token_id", "last"),
    ("tokenizer/tokenizer_config.json", "model_max_length", 10**30), ("tokenizer/tokenizer_config.json", "model_max_length", 0), ("tokenizer/tokenizer_config.json", "model_max_length", "many"), ("tokenizer/tokenizer_config.json", "pad_token", None), ("tokenizer/tokenizer_config.json", "eos_token", 7), ("tokenizer/tokenizer_config.json", "tokenizer_class", "MagicTokenizer"),
    ("model_index.json", "_class_name", "StableDiffusionInpaintPipeline"), ("model_index.json", "_class_name", "MagicPipeline"), ("model_index.json", "unet", None), ("model_index.json", "vae", ["diffusers", "AutoencoderTiny"]),
)  # fmt: skip
WRONG = (
    "",
    "{",
    "[]",
    "null",
    '"text"',
    "{}",
    "\ufeff{}",
    "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
)
VALUES = (None, "text", "", 0, -1, 1, 0.5, 1e30, 10**30, True, [], [1], {}, {"a": 1})
"""Values of which most are none for any one key of a config."""
HOWS = (
    "whole",
    "value",
    "value",
    "value",
    "edit",
    "edit",
    "edit",
    "key gone",
    "key more",
    "not finite",
    "file gone",
    "file wrong",
    "cut",
    "flip",
    "variant",
    "bin",
    "half",
    "shape",
)


@dataclass(frozen=True)
class Damage:
    """What is done to a folder."""

    how: str
    part: str
    number: int
    prompt: int


damages = st.builds(
    Damage, st.sampled_from(HOWS), st.sampled_from(sorted(WEIGHTS)), st.integers(0, 10**6), st.integers(0, 10**6)
)


def inflict(folder: Path, damage: Damage) -> None:
    """Do it."""
    weights = folder / damage.part / WEIGHTS[damage.part]
    path = folder / FILES[damage.number % len(FILES)]
    if damage.how == "edit":
        name, key, value = EDITS[damage.number % len(EDITS)]
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | {key: value}))
    elif damage.how == "value":
        configs = [name for name in FILES if name.endswith("config.json") or name == "model_index.json"]
        path = folder / configs[damage.number % len(configs)]
        values = json.loads(path.read_text())
        key = sorted(values)[damage.number // len(configs) % len(values)]
        path.write_text(json.dumps(values | {key: VALUES[damage.prompt % len(VALUES)]}))
    elif damage.how == "file gone":
        path.unlink()
    elif damage.how == "file wrong":
        path.write_text(WRONG[damage.number // len(FILES) % len(WRONG)])
    elif damage.how in ("cut", "flip"):
        data = path.read_bytes()
        at = damage.number % len(data)
        path.write_bytes(
            data[:at]
            if damage.how == "cut"
            else data[:at] + bytes([data[at] ^ 1 + damage.number % 255]) + data[at + 1 :]
        )
    elif damage.how == "variant":
        weights.rename(weights.with_name(weights.name.replace(".safetensors", ".fp16.safetensors")))
    elif damage.how == "bin":
        torch.save(
            load_file(weights),
            weights.with_name(
                {"model.safetensors": "pytorch_model.bin"}.get(weights.name, "diffusion_pytorch_model.bin")
            ),
        )
        weights.unlink()
    elif damage.how != "whole":
        save_file(changed(load_file(weights), damage), weights, metadata={"format": "pt"})


def changed(weights: dict[str, torch.Tensor], damage: Damage) -> dict[str, torch.Tensor]:
    """Weights of one part with one of them changed."""
    key = sorted(weights)[damage.number % len(weights)]
    value = weights[key]
    if damage.how == "key gone":
        return {k: v for k, v in weights.items() if k != key}
    if damage.how == "half":
        return {k: v.half() for k, v in weights.items()}
    bad = value.clone()
    bad.view(-1)[damage.number % value.numel()] = [torch.nan, torch.inf, -torch.inf][damage.number % 3]
    return (
        weights
        | {
            "key more": {"extra.weight": torch.zeros(3)},
            "not finite": {key: bad},
            "shape": {key: torch.zeros(value.shape[0] + 1, *value.shape[1:])},
        }[damage.how]
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd1.build(tmp_path_factory.mktemp("fuzz") / "tiny", clip=False)


@pytest.fixture(scope="module")
def opened() -> Iterator[list[dict[str, dict[str, torch.Tensor]]]]:
    """The weights of every base as it was when it had been opened."""
    found: list[dict[str, dict[str, torch.Tensor]]] = []
    load = loading.load

    def spy(*args: Any, **options: Any) -> Any:
        model = load(*args, **options)
        parts = {"unet": model.denoiser, "vae": model.vae, "text_encoder": model.text_encoder}
        found.append(
            {part: {k: v.detach().clone() for k, v in module.named_parameters()} for part, module in parts.items()}
        )
        return model

    loading.load = spy
    yield found
    loading.load = load


def in_file(folder: Path, part: str) -> dict[str, torch.Tensor]:
    """A part's weights as any of its files has them."""
    found: dict[str, torch.Tensor] = {}
    for file in (folder / part).iterdir():
        if file.suffix == ".safetensors":
            found |= load_file(file)
        elif file.suffix == ".bin":
            found |= torch.load(file, weights_only=True)
    return found


def test_bases(entrance: Entrance, record_property: Any, base: Path, opened: list[Any]) -> None:  # noqa: F811
    @tries(500, 12)
    @given(damage=damages)
    def check(damage: Damage) -> None:
        folder = entrance.empty()
        shutil.copytree(base, folder / "base")
        inflict(folder / "base", damage)
        opened.clear()
        done = entrance.run("generate", f"a dog {damage.prompt}", "-n", 1, "--steps", 2, "--base", "./base")
        assert done.code == 0 or damage.how not in ("whole", "half", "key more", "variant"), (damage, done.err)
        if done.code:
            return
        unused = (
            damage.how == "not finite" and damage.part == "vae"
        )  # drawing needs no encoder; a decoder that gives no picture is refused
        assert unused or damage.how not in ("key gone", "not finite", "shape"), damage
        for part, weights in opened[-1].items():
            file = in_file(folder / "base", part)
            for key, value in weights.items():
                stored = next(
                    (file[k] for k in (key, "text_model." + key, key.removeprefix("text_model.")) if k in file), None
                )
                assert stored is not None, f"{part}: {key} is in no file"
                assert torch.equal(stored.float().nan_to_num(), value.float().nan_to_num()), (
                    f"{part}: {key} is not as in its file"
                )
        picture = np.asarray(Image.open(folder / done.out.strip()))
        assert picture.std() > 0.5, f"a picture of one colour after {damage}"
        entrance.load("scene", "scene")

    check()
    figures(entrance, record_property, "base folders")
