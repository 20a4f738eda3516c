"""Checks whether an adapter fits another base: same family and prediction type, and layers and vectors of the same sizes."""

from collections.abc import Iterator

from objtune_cli.models import families
from objtune_cli.models.base_spec import BaseSpec
from objtune_cli.models.families import pipeline_folder as folders
from objtune_cli.store.artifacts import Record
from objtune_cli.store.kinds import adapter
from objtune_cli.store.store import Store


def explain_incompatible(base: BaseSpec, store: Store, record: Record) -> str:
    """The reason why an adapter does not fit a base; "" if it fits. Layers of a single-file base are compared on loading."""
    theirs = record.base.get("family", families.SD1.name)
    if theirs != base.family.name:
        return f"one is of the family {theirs}, the other of {base.family.name}"
    predicted = record.base.get("prediction"), base.record().get("prediction")
    if all(predicted) and predicted[0] != predicted[1]:
        return f"one predicts {predicted[0]}, the other {predicted[1]}"
    shapes = {name: shape for name, (_, shape) in store.read_tensor_specs(record.ref).items()}
    return next(_find_differences(base, shapes), "")


def _find_differences(base: BaseSpec, shapes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    for start, part in zip(adapter.TOKENS, base.family.encoders, strict=False):
        width = folders.read_json(base.folder, f"{part}/config.json").get("hidden_size")
        for name, shape in shapes.items():
            if name.startswith(start) and shape[-1:] != (width,):
                yield f"its words have {shape[-1]} numbers, those of this base {width}"
    if base.weights:
        return
    layers = {
        name: tuple(each["shape"])
        for path in folders.find_weights(base.folder, base.family.denoiser).files
        for name, each in folders.read_header(path).items()
        if name != "__metadata__"
    }
    for name, shape in shapes.items():
        if name.startswith(adapter.DENOISER) and name.endswith(adapter.LORA_A):
            layer = name.removeprefix(adapter.DENOISER).removesuffix(adapter.LORA_A)
            wanted = layers.get(f"{layer}.weight", ())
            if wanted[1:] != shape[1:]:
                yield f"no layer {layer} of its size is here"
