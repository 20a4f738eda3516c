"""The rendered training set, cached in the work folder: images, masks, captions, labels.

Drawn in shards by seed, so that any number of processes gives the same set.
"""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from objtune_cli.toybox import captions, renderer, world
from objtune_cli.toybox.recipe.presets import Preset

SHARD = 2_000
LABELS = ("class", "background", "colour", "second", "pattern", "accessory", "third")
HELD_BACK = 1_000
"""Images at the end of the set for validation, which no part trains on."""


@dataclass(frozen=True, slots=True)
class ToyboxDataset:
    """The training set.

    Attributes:
        pictures: (N, S, S, 3) uint8. masks: (N, 16, 16) uint8, all objects together.
        captions: N lists of strings.
        labels: (N, 2, 7) int8 in the order of `LABELS` for up to two objects, -1 where there is none.
    """

    pictures: np.ndarray
    masks: np.ndarray
    captions: list[list[str]]
    labels: np.ndarray


def scenes(seed: int, index: int, dial: world.Dial, count: int) -> Iterator[tuple[world.Scene, list[str]]]:
    """The scenes of shard `index`, each with `count` captions, from the shard's own seed."""
    rng = np.random.default_rng((seed, index))
    for _ in range(SHARD):
        scene = world.sample_scene(rng, dial)
        yield scene, [captions.caption(scene, rng) for _ in range(count)]


def draw_shard(preset: Preset, index: int) -> tuple[np.ndarray, np.ndarray, list[list[str]], np.ndarray]:
    """Render shard `index`: `SHARD` scenes from the shard's own seed."""
    cv2.setNumThreads(1)
    pictures = np.empty((SHARD, preset.size, preset.size, 3), np.uint8)
    masks = np.empty((SHARD, 16, 16), np.uint8)
    labels = np.full((SHARD, 2, len(LABELS)), -1, np.int8)
    texts = []
    for i, (scene, text) in enumerate(scenes(preset.seed, index, preset.world, preset.captions)):
        pictures[i], covers = renderer.render(scene, preset.size)
        masks[i] = cv2.resize(np.maximum.reduce(covers), (16, 16), interpolation=cv2.INTER_AREA)
        texts.append(text)
        for slot, (instance, _) in enumerate(scene.objects):
            labels[i, slot] = captions.label(instance, scene.background)
    return pictures, masks, texts, labels


Shard = TypeVar("Shard")


def map_shards(shard: Callable[[Preset, int], Shard], preset: Preset, count: int, processes: int = 2) -> list[Shard]:
    """Compute shards 0 to `count` - 1 in parallel processes; in order."""
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(shard, [preset] * count, range(count)))


def load_or_render(work: Path, preset: Preset, processes: int = 2) -> ToyboxDataset:
    """The training set of a preset, rendered on first use and read from `work` afterwards."""
    folder = work / "data"
    done = folder / "captions.json"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shards = -(-preset.pictures // SHARD)
        start_time = time.monotonic()
        parts = map_shards(draw_shard, preset, shards, processes)
        np.save(folder / "pictures.npy", np.concatenate([p[0] for p in parts]))
        np.save(folder / "masks.npy", np.concatenate([p[1] for p in parts]))
        np.save(folder / "labels.npy", np.concatenate([p[3] for p in parts]))
        partial = done.with_suffix(".partial")
        partial.write_text(json.dumps([text for p in parts for text in p[2]]))
        partial.replace(done)
        print(f"data: {shards * SHARD} pictures in {time.monotonic() - start_time:.0f} s", flush=True)
    return ToyboxDataset(
        pictures=np.load(folder / "pictures.npy", mmap_mode="r"),
        masks=np.load(folder / "masks.npy"),
        captions=json.loads(done.read_bytes()),
        labels=np.load(folder / "labels.npy"),
    )
