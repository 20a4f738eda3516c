"""A contact sheet of samples over classes, colours, patterns and backgrounds."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from objtune_cli.toybox.captions import PLACES, article, describe
from objtune_cli.toybox.world import Dial, sample_instance


def prompts(dial: Dial, count: int = 64, seed: int = 5) -> list[str]:
    """`count` fully described lone objects, classes and backgrounds in turn, none held out."""
    rng = np.random.default_rng(seed)
    texts = []
    for i in range(count):
        instance = sample_instance(rng, dial, kind=dial.classes[i % len(dial.classes)])
        turn = i // len(dial.classes) + i
        place = PLACES[dial.backgrounds[turn % len(dial.backgrounds)]][0]
        texts.append(f"a photo of {article(describe(instance, 3))} {place}")
    return texts


@torch.no_grad()
def draw(pipe, texts: list[str], size: int, steps: int, guidance: float, seed: int = 0) -> np.ndarray:
    """Sample images of the prompts, (N, size, size, 3) uint8; image i has the seed `seed` + i."""
    done = []
    for i in range(0, len(texts), 16):
        part = texts[i : i + 16]
        noise = [torch.Generator().manual_seed(seed + i + k) for k in range(len(part))]
        out = pipe(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=size,
            width=size,
            generator=noise,
            output_type="np",
        )
        done.append((out.images * 255).round().astype(np.uint8))
    return np.concatenate(done)


def sheet(pictures: np.ndarray, columns: int, file: Path, scale: int = 2) -> None:
    """Save images as an enlarged grid."""
    rows = [np.concatenate(list(pictures[i : i + columns]), 1) for i in range(0, len(pictures), columns)]
    image = Image.fromarray(np.concatenate(rows))
    file.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC).save(file)
