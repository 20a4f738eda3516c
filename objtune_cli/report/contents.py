"""What a report shows: objects with their photo, training and lineage, and the scenes that were drawn."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from objtune_cli.errors import DamagedError, MissingError
from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import Ref, parse
from objtune_cli.store.store import Store

SCORES = {
    "identity": "0: an ordinary one of its class; 1: the object of the photo",
    "prompt": "share of scenes that follow the prompt as well as the class alone does",
    "drift": "0: the class is as before; 1: the class looks like the object",
    "copy": "0: as unlike the photo as any image of the class; 1: the photo itself",
}
"""Scores of self-evaluation, and what they mean."""
REPEATED_SETTINGS = ("guidance_scale", "num_inference_steps", "scheduler", "negative_prompt")
"""Settings of a scene that its command line repeats."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image of the store: its key, and what it shows."""

    key: str
    title: str


@dataclass(frozen=True, slots=True)
class Step:
    """An artifact that an object came from.

    Attributes:
        ref: Its reference. is_missing: Whether it is no longer in the store. inputs: References of what it came from.
    """

    ref: str
    is_missing: bool = False
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainedObject:
    """An adapter with all that led to it.

    Attributes:
        record: The adapter's. images: Photo with outline, samples and preview, where they exist.
        history: Content of its training.json, or None. lineage: Artifacts from the photo to the adapter.
        command: A command line that draws the object.
    """

    record: Record
    images: tuple[Image, ...]
    history: Mapping[str, Any] | None
    lineage: tuple[Step, ...]
    command: str

    @property
    def scores(self) -> list[tuple[str, float, str]]:
        """Name, value and meaning of each score."""
        return [
            (name, float(self.record.metrics[name]), text)
            for name, text in SCORES.items()
            if name in self.record.metrics
        ]


@dataclass(frozen=True, slots=True)
class Scene:
    """Images of one prompt, with the command line that draws them again."""

    record: Record
    images: tuple[Image, ...]
    layout: Image | None
    command: str

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


def read_project(
    store: Store, title: str, only: Sequence[Ref] = (), jobs: Iterable[Mapping[str, Any]] = ()
) -> Contents:
    """Read the newest adapter of each object, and every scene.

    Args:
        only: Adapters to show, with the scenes that they are in; empty: all. jobs: Lines of `run.jsonl`.
    """
    contents = Contents(title, jobs=[dict(job) for job in jobs])
    adapters = list(only) or [
        Ref("adapter", name, store.list_versions("adapter", name)[-1]) for name in store.list_names("adapter")
    ]
    for ref in adapters:
        try:
            contents.objects.append(_read_object(store, ref))
        except (DamagedError, MissingError) as error:
            contents.problems.append(error.message)
    names = {(ref.name, ref.version) for ref in only}
    for name in store.list_names("scene"):
        for version in store.list_versions("scene", name):
            try:
                scene = _read_scene(store, Ref("scene", name, version))
            except (DamagedError, MissingError) as error:
                contents.problems.append(error.message)
                continue
            if not names or names & _adapters_of(scene.record):
                contents.scenes.append(scene)
    return contents


def _adapters_of(record: Record) -> set[tuple[str, int]]:
    refs = [parse(source["ref"]) for source in record.inputs.values() if source.get("ref", "").startswith("adapter/")]
    return {(ref.name, ref.version) for ref in refs}


def _read_object(store: Store, ref: Ref) -> TrainedObject:
    record = store.read_record(ref)
    lineage = _lineage(store, record)
    masks = [parse(step.ref) for step in lineage if step.ref.startswith("mask/") and not step.is_missing]
    images = [Image(f"{mask.images_key}overlay.png", f"the photo and its mask, {mask}") for mask in masks]
    images += [
        Image(
            f"{ref.images_key}preview.png", "photo, the object in four places, and its class as the base still draws it"
        ),
        Image(f"{ref.images_key}samples.png", "samples during training: a column for each step, a row for each prompt"),
    ]
    placeholders = " and ".join(f"<{name}>" for name in record.objects)
    command = shlex.join(["objtune", "generate", f"a photo of {placeholders} on the beach"])
    return TrainedObject(
        record, tuple(image for image in images if store.has(image.key)), _read_history(store, ref), lineage, command
    )


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


def _lineage(store: Store, record: Record) -> tuple[Step, ...]:
    """The artifacts that an artifact came from, nearest first, and itself."""
    steps: dict[str, Step] = {}
    waiting = [record]
    while waiting:
        current = waiting.pop(0)
        refs = tuple(source["ref"] for source in current.inputs.values() if source.get("ref"))
        steps[str(current.ref)] = Step(str(current.ref), inputs=refs)
        for text in refs:
            if text in steps:
                continue
            try:
                waiting.append(store.read_record(parse(text)))
            except (DamagedError, MissingError):
                steps[text] = Step(text, is_missing=True)
    return tuple(steps.values())


def _read_scene(store: Store, ref: Ref) -> Scene:
    record = store.read_record(ref)
    keys = sorted(entry.key for entry in store.backend.list(ref.images_key) if entry.key.endswith(".png"))
    pictures = [key for key in keys if not key.endswith("layout.png")]
    layout = next((Image(key, f"layout of {ref}") for key in keys if key.endswith("layout.png")), None)
    prompt = str(record.config.get("prompt", ""))
    seed = int(record.config.get("seed", 0))
    images = tuple(Image(key, f"{ref}, seed {seed + i}") for i, key in enumerate(pictures))
    return Scene(record, images, layout, _command(record, prompt, seed) if prompt and not layout else "")


def _command(record: Record, prompt: str, seed: int) -> str:
    """The command line that draws a scene of `generate` again."""
    words = ["objtune", "generate", prompt, "--seed", str(seed), "-n", str(record.config.get("num_images", 1))]
    for name in REPEATED_SETTINGS:
        if record.config.get(name) not in (None, "", "auto"):
            words += ["--set", f"generate.{name}={record.config[name]}"]
    return shlex.join(words)
