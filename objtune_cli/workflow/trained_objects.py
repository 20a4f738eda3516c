"""Finds the trained objects of a project and loads them for sampling."""

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from objtune_cli.errors import DamagedError, IncompatibleError, InputError, MissingError
from objtune_cli.store import refs, safetensors_format
from objtune_cli.store.artifacts import Record
from objtune_cli.store.kinds import adapter, embedding, scene
from objtune_cli.store.kinds.adapter import AdapterArtifact
from objtune_cli.store.kinds.mask import MaskArtifact
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.models.placeholders import Placeholders


@dataclass(frozen=True, slots=True)
class PromptObject:
    """A `<name>` in a prompt and its adapter.

    Attributes:
        trained_name: Its name in the adapter, if that differs. strength: Factor of its LoRA.
    """

    name: str
    record: Record
    sha256: str
    trained_name: str = ""
    strength: float = 1.0

    @property
    def own_name(self) -> str:
        """Its name in the adapter."""
        return self.trained_name or self.name

    @property
    def key(self) -> tuple[Ref, str]:
        """Identifies the object, whatever its name in the scene."""
        return self.record.ref, self.own_name

    @property
    def class_word(self) -> str:
        return self.record.objects[self.own_name]


class TrainedObjects:
    """The trained objects of a project, from the records of its newest adapters, or of the adapter `source` only."""

    def __init__(self, ctx: StageContext, source: Ref | None = None) -> None:
        self.ctx, self.source = ctx, source
        self.in_source = ctx.store.read_record(source).objects if source else {}
        self._newest: dict[str, Record] | None = None
        self._found: dict[tuple[str, Ref], PromptObject] = {}

    @property
    def newest(self) -> dict[str, Record]:
        """Adapter name to the record of its newest version; read on first use."""
        if self._newest is None:
            store = self.ctx.store
            self._newest = {n: store.read_record(store.resolve(Ref("adapter", n))) for n in store.list_names("adapter")}
        return self._newest

    def has(self, name: str) -> bool:
        """Whether there is an object with this name."""
        return bool(self._in_source(name)) or any(_own_name(record, name) for record in self.newest.values())

    def of_base(self) -> dict[str, str]:
        """The objects that were trained on the command's base, name to class word."""
        objects: dict[str, str] = {}
        for record in self.newest.values():
            with contextlib.suppress(IncompatibleError):
                self.ctx.check_base(record)
                objects |= record.objects
        return objects

    def find(self, name: str, version: int = 0, *, elsewhere: bool = False) -> PromptObject:
        """Find the adapter of an object; with `elsewhere` also outside of the source.

        Raises:
            InputError: The source lacks it. MissingError: There is no adapter; the hint lists the objects.
            IncompatibleError: It has another base.
        """
        if self.source and not self._in_source(name) and not elsewhere:
            raise InputError(
                f"{self.source} has no <{name}>", f"it contains {', '.join(f'<{o}>' for o in self.in_source)}"
            )
        ref = (
            self.source
            if self.source and self._in_source(name)
            else _find_adapter(self.ctx.store, self.newest, name, version)
        )
        if (name, ref) not in self._found:
            record, digest = self.ctx.store.verify(ref)  # reads the complete file
            self.ctx.check_base(record, for_images=True)
            own = _own_name(record, name)
            self._found[name, ref] = PromptObject(name, record, digest, "" if own == name else own)
        return self._found[name, ref]

    def _in_source(self, name: str) -> str:
        """The name of an object in the source; "" if the source lacks it."""
        return _find_own_name(self.source.name, self.in_source, name) if self.source else ""


def _own_name(record: Record, name: str) -> str:
    return _find_own_name(record.name, record.objects, name)


def _find_own_name(adapter: str, objects: Mapping[str, str], name: str) -> str:
    """The name of an object in an adapter, "" if it lacks it; an adapter of one object is also found by its own name."""
    return name if name in objects else next(iter(objects)) if adapter == name and len(objects) == 1 else ""


def is_merged(record: Record) -> bool:
    """Whether an adapter was merged from others, which are the objects' own adapters."""
    return any(role.startswith(adapter.ADAPTER_ROLE) for role in record.inputs)


def _find_adapter(store: Store, newest: Mapping[str, Record], name: str, version: int) -> Ref:
    """Find the adapter of that name, or the joint adapter with the object.

    Raises:
        MissingError: There is none, or several joint adapters have it.
    """
    if name in newest and _own_name(newest[name], name):
        return store.resolve(Ref("adapter", name, version))
    joint = [record.ref for record in newest.values() if name in record.objects and not is_merged(record)]
    if len(joint) > 1:
        raise MissingError(
            f"<{name}> is ambiguous: {', '.join(map(str, joint))}", "train it under a name of its own with `--name`"
        )
    if joint and version in (0, joint[0].version):
        return joint[0]
    if name in newest:
        raise MissingError(
            f"{newest[name].ref} contains several objects",
            f"name them: {', '.join(f'<{o}>' for o in newest[name].objects)}",
        )
    names = ", ".join(sorted({f"<{o}>" for record in newest.values() for o in record.objects}))
    wanted = f"<{name}@{version}>" if version else f"<{name}>"
    hint = f"trained objects: {names}" if names else "train one first: `objtune train photo.jpg --class dog`"
    raise MissingError(f"no trained object {wanted}", hint)


def scene_inputs(objects: list[PromptObject], avoided: Sequence[PromptObject] = ()) -> dict[str, dict[str, str]]:
    """The adapters as `inputs` of a scene's record; `avoided`: objects that only the negative prompt names."""
    roles = [(f"{scene.ADAPTER_ROLE}{o.name}", o) for o in objects] + [
        (f"{scene.NEGATIVE_ROLE}{o.name}", o) for o in avoided
    ]
    return {role: {"ref": str(o.record.ref), "sha256": o.sha256} for role, o in roles}


def list_scene_objects(ctx: StageContext, record: Record) -> list[PromptObject]:
    """The objects of a scene's prompt, as its record names them."""
    strengths = record.config.get("strengths", {})
    objects = []
    for role, source in record.inputs.items():
        if not role.startswith(scene.ADAPTER_ROLE):
            continue
        name = role.removeprefix(scene.ADAPTER_ROLE)
        origin = ctx.store.read_record(refs.parse(source["ref"]))
        own = _own_name(origin, name)
        trained_name = "" if own == name else own
        objects.append(PromptObject(name, origin, source["sha256"], trained_name, strengths.get(name, 1.0)))
    return objects


def load_tensors(ctx: StageContext, item: PromptObject) -> dict[str, Any]:
    """Load an object's adapter as torch tensors.

    Raises:
        DamagedError: It contains NaN or infinity, which would give black images.
    """
    import torch

    ctx.store.require_finite(item.record.ref)
    _, arrays = ctx.store.read(item.record.ref, item.sha256)
    return {k: torch.from_numpy(v.copy()) for k, v in arrays.items()}


def scale_lora(weights: dict[str, Any], strength: float) -> dict[str, Any]:
    """Scale the LoRA of an adapter's tensors, with its biases, by a strength; token vectors stay. At 1 nothing changes."""
    return weights if strength == 1 else {k: v * strength if ".lora_B." in k else v for k, v in weights.items()}


def has_lora(ctx: StageContext, item: PromptObject) -> bool:
    """Whether an object's adapter has a LoRA; only the header is read."""
    return adapter.has_lora(ctx.store.read_tensor_specs(item.record.ref))


def has_text_encoder_lora(ctx: StageContext, item: PromptObject) -> bool:
    """Whether an object's adapter has layers of a text encoder; only the header is read."""
    return adapter.has_text_encoder_lora(ctx.store.read_tensor_specs(item.record.ref))


def load_sources(ctx: StageContext, item: PromptObject) -> list[MaskArtifact]:
    """The photos and masks that an object was trained on; empty if they were removed."""
    for role, source in item.record.inputs.items():
        if not role.startswith((adapter.EMBEDDING_ROLE, adapter.ADAPTER_ROLE)):
            continue
        with contextlib.suppress(MissingError):
            origin = ctx.store.read_record(ctx.store.resolve(refs.parse(source["ref"])))
            if item.own_name not in origin.objects:
                continue
            if origin.kind == "adapter":
                return load_sources(ctx, replace(item, record=origin))
            masks = [(refs.parse(own["ref"]), own["sha256"]) for own in embedding.mask_inputs(origin.inputs)]
            stored = [ctx.store.read(ctx.store.resolve(ref), sha256)[1] for ref, sha256 in masks]
            if stored:
                return [MaskArtifact.from_tensors(tensors) for tensors in stored]
    return []


def aspect_ratio(ctx: StageContext, item: PromptObject) -> float:
    """Width over height of an object, the geometric mean over its photos; 1 if they were removed."""
    ratios = []
    for source in load_sources(ctx, item):
        ys, xs = (source.mask > 127).nonzero()
        if len(ys):
            ratios.append(float((xs.max() - xs.min() + 1) / (ys.max() - ys.min() + 1)))
    return statistics.geometric_mean(ratios) if len(ratios) > 1 else next(iter(ratios), 1.0)


def add_placeholders(
    model: "BaseModel", objects: list[PromptObject], weights: dict[str, dict[str, Any]]
) -> "Placeholders":
    """Add the objects' placeholders to the base's tokenizers and text encoders.

    Raises:
        DamagedError: An adapter lacks the vectors of its object.
    """
    from objtune_cli.models.placeholders import Placeholders, from_encoders

    words = Placeholders(model)
    for item in objects:
        vectors = AdapterArtifact.from_tensors(weights[item.name]).vectors.get(item.own_name)
        if not vectors:
            raise DamagedError(
                f"{item.record.ref} contains no token of <{item.own_name}>", safetensors_format.RESTORE_HINT
            )
        words.add(item.name, from_encoders(vectors), item.class_word)
    return words
