"""What a report shows: objects with their photo, training and lineage, and the scenes that were drawn."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from objtune_cli.errors import ObjtuneError
from objtune_cli.report import lineage, scene_layout
from objtune_cli.report.bench_results import BenchResults
from objtune_cli.report.lineage import Node
from objtune_cli.report.scene_layout import LabelledBox
from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import Ref, parse
from objtune_cli.store.store import Store
from objtune_cli.training.publish import WARN_COPY, WARN_DRIFT, WARN_IDENTITY, WARN_PROMPT


@dataclass(frozen=True, slots=True)
class Score:
    """A score of self-evaluation.

    Attributes:
        value: 0 to 1 for almost every image. limit: Where `train` warns. is_better_high: Whether high values are good.
    """

    name: str
    value: float
    meaning: str
    limit: float
    is_better_high: bool

    @property
    def is_good(self) -> bool:
        """Whether `train` has nothing to warn of."""
        return self.value >= self.limit if self.is_better_high else self.value <= self.limit


SCORES: dict[str, tuple[str, float, bool]] = {
    "identity": ("0: an ordinary one of its class; 1: the object of the photo", WARN_IDENTITY, True),
    "prompt": ("share of scenes that follow the prompt as well as the class alone does", WARN_PROMPT, True),
    "drift": ("0: the class is as before; 1: the class looks like the object", WARN_DRIFT, False),
    "copy": ("0: as unlike the photo as any image of the class; 1: the photo itself", WARN_COPY, False),
}
"""Meaning, limit and direction of each score by name."""
GATE = {
    "likeness": ("class probability", "min_class_probability"),
    "score": ("score", "min_score"),
    "margin": ("margin", "min_score_margin"),
}
"""Measures of a mask that its class word found, with their names and the settings that are their limits."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the store.

    Attributes:
        key: Its key. title: What it shows. node: The mask whose photo it is, or empty. note: More about it.
    """

    key: str
    title: str
    node: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class TrainedObject:
    """An adapter with all that led to it.

    Attributes:
        record: The adapter's. images: Photo with outline, samples and preview, where they exist.
        history: Content of its training.json, or None. lineage: From the photo to the scenes that show it.
        command: A command line that draws the object.
    """

    record: Record
    images: tuple[Image, ...]
    history: Mapping[str, Any] | None
    lineage: tuple[Node, ...]
    command: str

    @property
    def scores(self) -> list[Score]:
        """The scores that it has."""
        metrics = self.record.metrics
        return [Score(name, float(metrics[name]), *about) for name, about in SCORES.items() if name in metrics]


@dataclass(frozen=True, slots=True)
class Scene:
    """Images of one prompt.

    Attributes:
        boxes: Where its objects were placed, from back to front. problems: For each image, the objects that it lacks.
        command: A command line that draws them again; empty if it needs a file from outside the project.
    """

    record: Record
    images: tuple[Image, ...]
    boxes: tuple[LabelledBox, ...] = ()
    problems: tuple[str, ...] = ()
    command: str = ""

    @property
    def prompt(self) -> str:
        """The prompt, as it was given."""
        return str(self.record.config.get("prompt", ""))


@dataclass(slots=True)
class Contents:
    """All that a report shows; `problems` are artifacts that could not be read."""

    title: str
    objects: list[TrainedObject] = field(default_factory=list)
    scenes: list[Scene] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    bench: BenchResults | None = None


def read_project(
    store: Store,
    title: str,
    only: Sequence[Ref] | None = None,
    jobs: Iterable[Mapping[str, Any]] = (),
    bench: BenchResults | None = None,
) -> Contents:
    """Read the newest adapter of each object, and every scene.

    Args:
        only: Adapters to show, with the scenes that they are in; None: all. jobs: Lines of `run.jsonl`.
    """
    contents = Contents(title, jobs=[dict(job) for job in jobs], bench=bench)
    names = None if only is None else {(ref.name, ref.version) for ref in only}
    scenes_of: dict[str, list[Scene]] = {}
    for name in store.list_names("scene") if names is None or names else ():
        for version in store.list_versions("scene", name):
            try:
                scene = read_scene(store, Ref("scene", name, version))
            except ObjtuneError as error:
                contents.problems.append(error.message)
                continue
            adapters = lineage.adapters_of(scene.record)
            if names is None or names & {(ref.name, ref.version) for ref in adapters}:
                contents.scenes.append(scene)
                for ref in adapters:
                    scenes_of.setdefault(str(ref), []).append(scene)
    newest = (Ref("adapter", name, store.list_versions("adapter", name)[-1]) for name in store.list_names("adapter"))
    for ref in newest if only is None else only:
        try:
            contents.objects.append(read_object(store, ref, scenes_of.get(str(ref), [])))
        except ObjtuneError as error:
            contents.problems.append(error.message)
    return contents


def read_object(store: Store, ref: Ref, scenes: Sequence[Scene]) -> TrainedObject:
    """Read an adapter with its images, curves and lineage.

    Args:
        scenes: Those that it was used for.

    Raises:
        MissingError, DamagedError, IncompatibleError: It cannot be read.
    """
    record = store.read_record(ref)
    nodes = lineage.read_nodes(store, record, [(scene.record, len(scene.images)) for scene in scenes])
    masks = [parse(node.key) for node in nodes if node.kind == "mask" and not node.is_missing]
    images = [
        Image(
            f"{mask.images_key}overlay.png",
            f"the photo and its mask, {mask}",
            str(mask),
            _describe_gate(store.read_record(mask)),
        )
        for mask in masks
    ]
    images += [
        Image(
            f"{ref.images_key}preview.png", "photo, the object in four places, and its class as the base still draws it"
        ),
        Image(f"{ref.images_key}samples.png", "samples during training: a column for each step, a row for each prompt"),
    ]
    placeholders = " and ".join(f"<{name}>" for name in record.objects)
    command = shlex.join(["objtune", "generate", f"a photo of {placeholders} on the beach"])
    existing = tuple(image for image in images if store.has(image.key))
    return TrainedObject(record, existing, _read_history(store, ref), nodes, command)


def _describe_gate(mask: Record) -> str:
    """What the gate measured of a mask, and what it asked for; of a mask from a file or from hints only the area."""
    passed = [
        f"{name} {mask.metrics[metric]:.2f} of at least {mask.config[setting]:g}"
        for metric, (name, setting) in GATE.items()
        if metric in mask.metrics and setting in mask.config and "likeness" in mask.metrics
    ]
    parts = [f"gate: {', '.join(passed)}"] if passed else []
    if "area" in mask.metrics:
        parts.append(f"{mask.metrics['area']:.0%} of the photo")
    return "; ".join(parts)


def _read_history(store: Store, ref: Ref) -> Mapping[str, Any] | None:
    """The curves of an adapter; None where it has none, or they are damaged."""
    key = f"{ref.images_key}training.json"
    if not store.has(key):
        return None
    try:
        document = json.loads(store.backend.read(key))
    except ValueError:
        return None
    return document if isinstance(document, dict) and "curves" in document else None


def read_scene(store: Store, ref: Ref) -> Scene:
    """Read a scene with its images and the command that draws it again.

    Raises:
        MissingError, DamagedError, IncompatibleError: It cannot be read.
    """
    record = store.read_record(ref)
    keys = sorted(entry.key for entry in store.backend.list(ref.images_key) if entry.key.endswith(".png"))
    pictures = [key for key in keys if not key.endswith("layout.png")]
    seed, seeds = int(record.config.get("seed", 0)), record.metrics.get("seeds") or ()
    titles = [f"{ref}, seed {seeds[i] if i < len(seeds) else seed + i}" for i in range(len(pictures))]
    images = tuple(Image(key, title) for key, title in zip(pictures, titles, strict=True))
    boxes = scene_layout.read_boxes(store, record, pictures)
    problems = tuple(", ".join(f"<{name}>" for name in wrong) for wrong in record.metrics.get("wrong", ()))
    return Scene(record, images, boxes, problems, scene_layout.describe_command(record))
