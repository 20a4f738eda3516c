"""The presence check of `compose`: build it, apply it to candidate images, and report its results."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from objtune_cli.composition.layout import Box
from objtune_cli.config.sections import Compose, Place
from objtune_cli.errors import GateError
from objtune_cli.workflow import trained_objects
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    import torch

    from objtune_cli.composition.presence import PresenceCheck
    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.models.placeholders import Placeholders


@dataclass(frozen=True, slots=True)
class SceneCandidate:
    """One sampled image of a scene and the result of its check.

    Attributes:
        tensors: `latents` (C, h, w), and the latents of each refined object.
        matrix: Leakage matrix, rows: boxes, columns: objects; empty without a check.
        failed: Indices of the objects that are missing or mixed.
        margin: Above 0 if no object failed; the larger, the clearer.
    """

    tensors: Mapping[str, "torch.Tensor"]
    seed: int
    matrix: list[list[float]] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    margin: float = 0.0


def build_check(
    model: "BaseModel",
    objects: list[trained_objects.PromptObject],
    weights: "Mapping[str, Mapping[str, torch.Tensor]]",
    placeholders: "Placeholders",
) -> "PresenceCheck":
    """The presence check of these objects."""
    from objtune_cli.composition.presence import PresenceCheck, SceneObject
    from objtune_cli.models.prompts import PROMPT

    prompts = {o.name: placeholders.expand(PROMPT.format(f"<{o.name}>")) for o in objects}
    return PresenceCheck(
        model,
        [
            SceneObject(o.name, weights[o.name], prompts[o.name], model.with_class_words(prompts[o.name]), o.own_name)
            for o in objects
        ],
    )


def check_candidates(
    check: "PresenceCheck | None",
    tensors: list[dict[str, "torch.Tensor"]],
    images: "torch.Tensor",
    seeds: list[int],
    boxes: list[Box],
) -> list[SceneCandidate]:
    """Check sampled images.

    Args:
        check: None: nothing is checked.
        tensors: Tensors of each image.
        images: (N, 3, H, W) in [-1, 1].
        boxes: In the order of the check's objects.
    """
    if check is None:
        return [SceneCandidate(each, seed) for each, seed in zip(tensors, seeds, strict=True)]
    from objtune_cli.composition.presence import failed_objects, margin

    return [
        SceneCandidate(
            each,
            seed,
            [[round(float(v), 4) for v in row] for row in matrix],
            failed_objects(matrix, check.own_names),
            round(margin(matrix, check.own_names), 4),
        )
        for each, seed, matrix in zip(tensors, seeds, check.matrices(images, boxes), strict=True)
    ]


def summarize(check: "PresenceCheck | None", candidates: list[SceneCandidate]) -> dict[str, Any]:
    """The metrics of a scene: seeds, and with a check each image's leakage matrix, its failed objects and the fraction of images without any."""
    values: dict[str, Any] = {"seeds": [each.seed for each in candidates]}
    if check is None:
        return values
    names = check.names
    return values | {
        "objects": names,
        "leakage": [each.matrix for each in candidates],
        "wrong": [[names[i] for i in each.failed] for each in candidates],
        "presence": round(sum(not each.failed for each in candidates) / len(candidates), 4),
    }


def report_presence(ctx: StageContext, metrics: Mapping[str, Any], how: Compose | Place) -> None:
    """Report the leakage matrix, averaged over the images, and the failed objects.

    Raises:
        GateError: `how.strict` is set, and an object is missing or mixed in an image.
    """
    if "leakage" not in metrics or not how.presence_check:
        return
    names, count = list(metrics["objects"]), len(metrics["leakage"])
    width = max(8, *(len(n) + 2 for n in names))
    ctx.report.note(
        "likeness of each place (rows) to each object (columns), mean of the pictures: 0 as its class, 1 as it was learned"
    )
    ctx.report.note(" " * width + "".join(n.rjust(width) for n in names))
    for i, name in enumerate(names):
        row = [sum(matrix[i][j] for matrix in metrics["leakage"]) / count for j in range(len(names))]
        ctx.report.note(name.ljust(width) + "".join(f"{v:.2f}".rjust(width) for v in row))
    bad = [
        f"picture {k + 1}: {', '.join(f'<{n}>' for n in wrong)}" for k, wrong in enumerate(metrics["wrong"]) if wrong
    ]
    if not bad:
        return
    other = "another place (`--at`)" if isinstance(how, Place) else "other places (`--place`)"
    message = f"missing or mixed in {len(bad)} of {count} pictures ({'; '.join(bad)})"
    if how.strict:
        raise GateError(
            f"{message}, for every seed",
            f"more `--retries` than {how.max_retries}, {other}, or without `--strict` to see them",
        )
    ctx.report.note(f"{message}: more `--retries`, or {other}")
