"""Whether the objects of a scene are there: what `compose` knows them by, and what it says of its pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from objtune_cli.composition.layout import Box
from objtune_cli.config.sections import Compose
from objtune_cli.errors import GateError
from objtune_cli.workflow import trained_objects
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    import torch

    from objtune_cli.composition.presence import Check
    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.models.placeholders import Placeholders


@dataclass(frozen=True, slots=True)
class Look:
    """One picture of a scene.

    Attributes:
        tensors: What the picture is made of: `latents` (C, h, w), and each object's own. matrix: rows: places, columns: objects; empty where nobody looked.
        wrong: Numbers of the objects that are missing or mixed. margin: above 0 none is; the larger the surer.
    """

    tensors: Mapping[str, "torch.Tensor"]
    seed: int
    matrix: list[list[float]] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    margin: float = 0.0


def opened(
    model: "BaseModel",
    found: list[trained_objects.Named],
    weights: "Mapping[str, Mapping[str, torch.Tensor]]",
    words: "Placeholders",
) -> "Check":
    """What the objects are known by: their own adapters, beside the frozen base told their classes."""
    from objtune_cli.composition.presence import Check, Known
    from objtune_cli.models.prompts import PROMPT

    told = {o.name: words.expand(PROMPT.format(f"<{o.name}>")) for o in found}
    return Check(
        model,
        [Known(o.name, weights[o.name], told[o.name], model.in_class_words(told[o.name]), o.own_name) for o in found],
    )


def looks(
    check: "Check | None",
    parts: list[dict[str, "torch.Tensor"]],
    pictures: "torch.Tensor",
    seeds: list[int],
    boxes: list[Box],
) -> list[Look]:
    """Each picture and what stands in its places; `parts`: what each picture is made of."""
    if check is None:
        return [Look(part, seed) for part, seed in zip(parts, seeds, strict=True)]
    from objtune_cli.composition.presence import margin, wrong

    matrices = check.matrices(pictures, boxes)
    return [
        Look(
            part,
            seed,
            [[round(float(v), 4) for v in row] for row in matrix],
            wrong(matrix, check.own_names),
            round(margin(matrix, check.own_names), 4),
        )
        for part, seed, matrix in zip(parts, seeds, matrices, strict=True)
    ]


def metrics(check: "Check | None", chosen: list[Look]) -> dict[str, Any]:
    """What a scene's record keeps: the seeds, each picture's leakage matrix, what is wrong in it, and the share in which all is right."""
    found: dict[str, Any] = {"seeds": [look.seed for look in chosen]}
    if check is None:
        return found
    names = check.names
    return found | {
        "objects": names,
        "leakage": [look.matrix for look in chosen],
        "wrong": [[names[i] for i in look.wrong] for look in chosen],
        "presence": round(sum(not look.wrong for look in chosen) / len(chosen), 4),
    }


def judge(ctx: StageContext, found: Mapping[str, Any], how: Compose) -> None:
    """Say what was found in a scene.

    Raises:
        GateError: `how.strict`, and an object is missing or mixed in a picture.
    """
    if "leakage" not in found or how.check == "none":
        return
    names, count = list(found["objects"]), len(found["leakage"])
    width = max(8, *(len(n) + 2 for n in names))
    ctx.report.note(
        "likeness of each place (rows) to each object (columns), mean of the pictures: 0 as its class, 1 as it was learned"
    )
    ctx.report.note(" " * width + "".join(n.rjust(width) for n in names))
    for i, name in enumerate(names):
        row = [sum(matrix[i][j] for matrix in found["leakage"]) / count for j in range(len(names))]
        ctx.report.note(name.ljust(width) + "".join(f"{v:.2f}".rjust(width) for v in row))
    bad = [f"picture {k + 1}: {', '.join(f'<{n}>' for n in wrong)}" for k, wrong in enumerate(found["wrong"]) if wrong]
    if not bad:
        return
    message = f"missing or mixed in {len(bad)} of {count} pictures ({'; '.join(bad)})"
    if how.strict:
        raise GateError(
            f"{message}, for every seed",
            f"more `--retries` than {how.retries}, other places (`--place`), or without `--strict` to see them",
        )
    ctx.report.note(f"{message}: more `--retries`, or other places (`--place`)")
