"""A sheet of samples over classes, colours, patterns and backgrounds: what an onlooker judges."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from objtune_cli.toybox.captions import PLACES, article, describe
from objtune_cli.toybox.recipe.autoencoder import to_unit
from objtune_cli.toybox.recipe.vision import normalised, text_vectors
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
    """Pictures of the prompts, (N, size, size, 3) uint8; picture i has the seed `seed` + i."""
    done = []
    for i in range(0, len(texts), 16):
        part = texts[i : i + 16]
        noise = [torch.Generator().manual_seed(seed + i + k) for k in range(len(part))]
        out = pipe(part, num_inference_steps=steps, guidance_scale=guidance, height=size, width=size, generator=noise, output_type="np")
        done.append((out.images * 255).round().astype(np.uint8))
    return np.concatenate(done)


def sheet(pictures: np.ndarray, columns: int, file: Path, scale: int = 2) -> None:
    """Save pictures as a grid, enlarged smoothly."""
    rows = [np.concatenate(list(pictures[i : i + columns]), 1) for i in range(0, len(pictures), columns)]
    image = Image.fromarray(np.concatenate(rows))
    file.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC).save(file)


@torch.no_grad()
def judged(folder: Path, pictures: np.ndarray, dial: Dial, seed: int = 5) -> dict[str, float]:
    """Share of samples whose class, background and main colour the base's own CLIP names right.

    CLIP's image tower has seen drawn pictures only; it stands in for an onlooker and is lenient.
    """
    from transformers import CLIPModel, CLIPTokenizer

    clip = CLIPModel.from_pretrained(folder / "clip", local_files_only=True).eval()
    words = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    rng = np.random.default_rng(seed)
    wanted = [sample_instance(rng, dial, kind=dial.classes[i % len(dial.classes)]) for i in range(len(pictures))]
    places = [dial.backgrounds[(i // len(dial.classes) + i) % len(dial.backgrounds)] for i in range(len(pictures))]
    seen = F.normalize(clip.visual_projection(clip.vision_model(pixel_values=normalised(to_unit(pictures))).pooler_output), dim=-1)

    def right(options: list[list[str]], answers: list[int]) -> float:
        """Each picture has its own list of sentences; the nearest one is its answer."""
        hits = 0
        for vector, sentences, answer in zip(seen, options, answers, strict=True):
            hits += int((text_vectors(clip, words, sentences, words.model_max_length) @ vector).argmax()) == answer
        return hits / len(options)

    kinds = [[f"a photo of {article(c)}" for c in dial.classes]] * len(wanted)
    grounds = [[f"a photo of {article(i.kind)} {PLACES[b][0]}" for b in dial.backgrounds] for i in wanted]
    colours = [[f"a photo of {article(describe(replace(i, colour=c), 3))}" for c in dial.colours] for i in wanted]
    return {
        "class": right(kinds, [dial.classes.index(i.kind) for i in wanted]),
        "background": right(grounds, [dial.backgrounds.index(b) for b in places]),
        "colour": right(colours, [dial.colours.index(i.colour) for i in wanted]),
    }
