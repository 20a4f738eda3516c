"""Writes the finished base as a folder for diffusers and transformers.

The weights are in half precision; the configs have float32, so that loading gives float32.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from objtune_cli.toybox.recipe import denoiser
from objtune_cli.toybox.recipe.presets import Preset

SAMPLING = {
    "num_inference_steps": 20,
    "guidance_scale": 2.5,
    "guidance_interval_high": 0.6,
    "prompt_guidance_scale": 2.0,
    "autoguidance_scale": 0.5,
    "subject_conditioning_start": 0.8,
}
"""Sampling settings of this base, which `generate` reads from its folder. With guidance at every level the diversity of poses is a quarter lower."""

TRAINING = {
    "max_steps": 350, "learning_rate": 2e-3, "embedding_lr": 1e-2, "target_modules": "all", "batch_size": 4, "target_blocks": "decoder", "prior_loss_interval": 1, "single_forward": True,
}  # fmt: skip
"""Training settings of this base, which `train` reads from its folder; they train an object in about a minute."""


def build_pipeline(tokenizer, clip, vae, unet):
    """`StableDiffusionPipeline` of the parts; its text encoder is a copy of CLIP's."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    text_encoder = CLIPTextModel(clip.config.text_config)
    text_encoder.load_state_dict(clip.text_model.state_dict())
    pipe: Any = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder.eval(), tokenizer=tokenizer, unet=unet,
        scheduler=denoiser.scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def publish(folder: Path, name: str, preset: Preset, tokenizer, clip, vae, unet, commit: str) -> None:
    """Write the whole base into `folder`, replacing an older base.

    Raises:
        SystemExit: The folder has other contents.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "model_index.json").exists():
        raise SystemExit(f"error: {folder} contains no base; give an empty folder")
    shutil.rmtree(folder, ignore_errors=True)
    pipe = build_pipeline(tokenizer, clip, vae, unet)
    pipe.to(torch.float16).save_pretrained(folder)
    clip.half().save_pretrained(folder / "clip")
    record = {
        "name": name, "dial": preset.dial, "size": preset.size, "seed": preset.seed, "pictures": preset.pictures,
        "captions": preset.captions, "commit": commit,
        "sampling": SAMPLING, "training": TRAINING, "classes": preset.world.classes, "backgrounds": preset.world.backgrounds,
    }  # fmt: skip
    (folder / "toybox.json").write_text(json.dumps(record, indent=1) + "\n")
    for config in (folder / "text_encoder" / "config.json", folder / "clip" / "config.json"):
        config.write_text(config.read_text().replace('"float16"', '"float32"'))
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)  # the library makes them readable for the owner only
    for config in folder.rglob("config.json"):
        values = json.loads(config.read_bytes())
        values.pop("_name_or_path", None)
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
