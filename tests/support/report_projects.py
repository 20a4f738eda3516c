"""Projects for reports without a model: records and images made by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from objtune_cli.images import png
from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store

PLACES = {"cup": [0.5, 0.3, 0.98, 0.95], "rex": [0.02, 0.25, 0.5, 0.95]}
SCORES = {"identity": 0.82, "prompt": 0.95, "drift": 0.31, "copy": 0.1, "steps": 40}


def draw_picture(seed: int, height: int, width: int) -> bytes:
    """A PNG of a coarse random pattern, which WebP shrinks like a photo."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return png.encode_png(np.kron(coarse, np.ones((height // 4, width // 4, 1), np.uint8)))


def add_object(store: Store, name: str) -> Ref:
    """An adapter with its photo's mask, token and class prior, curves and images."""
    tensors = {"weight": np.zeros(1, np.float32)}
    photo = {"photo": {"ref": "", "sha256": "ab" * 32}}
    refs = {}
    for kind, inputs in (("mask", photo), ("prior", {}), ("embedding", {"mask": "mask"}), ("adapter", {})):
        sources: Any = {
            role: _source(refs[source]) if isinstance(source, str) else source for role, source in inputs.items()
        }
        if kind == "adapter":
            sources = {role: _source(refs[role]) for role in ("embedding", "prior")}
        config, metrics = ({"rank": 4}, SCORES) if kind == "adapter" else ({}, {})
        refs[kind] = store.create(Record(kind, name, {name: "dog"}, sources, config, {}, metrics), tensors)
    store.write_image(refs["mask"], "overlay.png", draw_picture(1, 256, 256))
    for number, file in enumerate(("preview.png", "samples.png")):
        store.write_image(refs["adapter"], file, draw_picture(number, 256, 512))
    curve = [1 / step for step in range(1, 41)]
    history = {
        "steps": 40,
        "curves": {"loss": curve, "object": curve, "learning_rate": [1e-3] * 25 + [5e-4] * 15},
        "validation": [{"step": 20, "loss": 0.05}, {"step": 40, "loss": 0.03}],
        "samples": [{"step": step, "identity": step / 50, "copy": 0.1} for step in (20, 40)],
        "seconds": {"train": 12.0, "samples": 0.5},
    }
    store.write(f"{refs['adapter'].images_key}training.json", json.dumps(history).encode())
    return refs["adapter"]


def add_scene(
    store: Store, prompt: str, adapters: list[Ref], count: int, *, composed: bool = False, size: int = 64
) -> Ref:
    """A scene of some images."""
    inputs = {f"adapter.{ref.name}": _source(ref) for ref in adapters}
    config = {"prompt": prompt, "seed": 0, "num_images": count, **({"places": PLACES} if composed else {})}
    metrics = {"wrong": [["cup"], *[[]] * (count - 1)]} if composed else {}
    objects = {ref.name: "dog" for ref in adapters}
    ref = store.create(
        Record("scene", "-".join(objects), objects, inputs, config, {}, metrics), {"latents": np.zeros(1)}
    )
    for number in range(count):
        store.write_image(ref, f"{number + 1:03d}.png", draw_picture(number, size, size))
    return ref


def add_bench(folder: Path) -> Path:
    """A results folder of three methods on two objects."""
    rows = [
        f"{method},{measure},{0.6 + number / 10},{0.5 + number / 10},{0.7 + number / 10},6"
        for number, method in enumerate(("truth", "objtune", "dreambooth-lora", "objtune - dreambooth-lora"))
        for measure in ("identity", "seconds")
    ]
    folder.mkdir()
    (folder / "table.csv").write_text("\n".join(["method,measure,mean,low,high,n", *rows, ""]))
    for number, method in enumerate(("truth", "objtune", "dreambooth-lora")):
        for case in ("dog-000", "cup-001"):
            file = folder / "results" / method / f"{case}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(draw_picture(number, 64, 256))
            file.with_suffix(".json").write_text("{}")
    return folder


def _source(ref: Ref) -> dict[str, str]:
    return {"ref": str(ref), "sha256": "0" * 64}
