"""The published base: small, open to plain diffusers, and a CLIP that knows its world."""

import json
import os
import subprocess
import sys
from pathlib import Path

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)

# isort: split
import numpy as np
import pytest
import torch

from objtune_cli.models import base_model, loading
from objtune_cli.models import clip as towers
from objtune_cli.models.registry import TOYBOX_FOLDER
from objtune_cli.toybox import world
from objtune_cli.toybox.captions import PLACES
from objtune_cli.toybox.renderer import render

RECORD = json.loads((TOYBOX_FOLDER / "toybox.json").read_text())
DIAL, SIZE = world.DIALS[RECORD["dial"]], RECORD["size"]

PLAIN = """
import sys
from objtune_cli.runtime import torchvision_compat  # repairs torchvision on machines whose torch cannot load it
torchvision_compat.complete()
own = {m for m in sys.modules if m.startswith("objtune_cli")}
repair = {"objtune_cli.runtime.lazy_modules", "objtune_cli.runtime.torchvision_compat"}
assert own == {"objtune_cli", "objtune_cli.runtime", "objtune_cli.version", *repair}, own
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPModel

pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None, local_files_only=True)
clip = CLIPModel.from_pretrained(sys.argv[1] + "/clip", local_files_only=True)
for part in (pipe.unet, pipe.vae, pipe.text_encoder, clip):
    kinds = {p.dtype for p in part.parameters()}
    assert kinds == {torch.float32}, (type(part).__name__, kinds)
image = pipe("a photo of a red dog on the beach", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
same = all(torch.equal(v, clip.text_model.state_dict()[k]) for k, v in pipe.text_encoder.state_dict().items())
print(image.size, same)
"""


def test_it_fits_into_the_package() -> None:
    files = [p for p in TOYBOX_FOLDER.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 48e6
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".txt"}
    assert not any("_name_or_path" in p.read_text() for p in files if p.name == "config.json")


def test_it_says_how_it_was_made() -> None:
    assert tuple(RECORD["classes"]) == DIAL.classes and tuple(RECORD["backgrounds"]) == DIAL.backgrounds
    assert set(RECORD["sampling"]) == {
        "steps",
        "guidance",
        "guidance_below",
        "scene_guidance",
        "object_guidance",
        "object_below",
    }


def test_plain_diffusers_opens_it(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("OBJTUNE_")}
    env |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(TOYBOX_FOLDER)], capture_output=True, text=True, env=env, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split("\n")[-2] == f"({SIZE}, {SIZE}) True"


@pytest.fixture(scope="module")
def drawn() -> tuple[torch.Tensor, list[str], list[str]]:
    """60 lone objects that no part of the base has seen: pictures in [0, 1], classes, backgrounds."""
    rng = np.random.default_rng(20_240_501)
    scenes = [world.sample_scene(rng, DIAL, instances=(world.sample_instance(rng, DIAL),)) for _ in range(60)]
    pictures = np.stack([render(s, SIZE)[0] for s in scenes])
    return (
        torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255,
        [s.objects[0][0].kind for s in scenes],
        [s.background for s in scenes],
    )


@pytest.fixture(scope="module")
def opened() -> tuple[base_model.BaseModel, towers.Clip]:
    model = loading.load(TOYBOX_FOLDER, torch.device("cpu"), torch.float32)
    return model, towers.load(TOYBOX_FOLDER / "clip", model)


def test_clip_names_the_class(opened, drawn) -> None:
    (model, clip), (pictures, kinds, _) = opened, drawn
    with torch.no_grad():
        words = clip.text_features(model, [f"a photo of a {kind}" for kind in DIAL.classes])
    nearest = (clip.image_features(pictures) @ words.T).argmax(1).tolist()
    assert sum(DIAL.classes[n] == k for n, k in zip(nearest, kinds, strict=True)) >= 0.9 * 60


def test_clip_names_the_background(opened, drawn) -> None:
    (model, clip), (pictures, kinds, backgrounds) = opened, drawn
    seen, right = clip.image_features(pictures), 0
    with torch.no_grad():
        words = {
            k: clip.text_features(model, [f"a photo of a {k} {PLACES[b][0]}" for b in DIAL.backgrounds])
            for k in DIAL.classes
        }
    for vector, kind, background in zip(seen, kinds, backgrounds, strict=True):
        right += DIAL.backgrounds[int((words[kind] @ vector).argmax())] == background
    assert right >= 0.9 * 60


def test_the_autoencoder_keeps_pictures(opened, drawn) -> None:
    (model, _), (pictures, _, _) = opened, drawn
    back = model.decode_latents(model.encode_image(pictures[:16] * 2 - 1)) / 2 + 0.5
    psnr = -10 * torch.log10((back - pictures[:16]).square().mean())
    assert float(psnr) > 25  # dB
    assert 0.7 < float(model.encode_image(pictures * 2 - 1).std()) < 1.4  # the scaling factor makes it 1
