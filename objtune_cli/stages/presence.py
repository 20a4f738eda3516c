"""Whether the objects of a scene are there: what `compose` knows them by, and what it says of its pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from objtune_cli.config import Compose
from objtune_cli.errors import GateError, MissingError
from objtune_cli.stages import embed, objects
from objtune_cli.stages.context import Context
from objtune_cli.stages.layout import Box
from objtune_cli.store import artifact, refs

if TYPE_CHECKING:
    import torch

    from objtune_cli.method.presence import Check, Seen
    from objtune_cli.models.stack import Stack

PLAIN = 6
"""Ordinary pictures of a class that are looked at."""


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


def suited(ctx: Context, how: Compose) -> Compose:
    """The settings as this base can follow them: nobody looks where its CLIP has no image tower."""
    if how.check == "none" or ctx.base.image_tower is None:
        if how.check != "none":
            ctx.report.note(f"the base {ctx.base.id} has no image tower (clip/): whether every object is there is not checked")
        return replace(how, retries=0, check="none", strict=0)
    return how


def opened(ctx: Context, stack: "Stack", found: list[objects.Named]) -> "Check | None":
    """What the objects are known by, from the photos that they were learned from; None where one is not there any more, or nobody looks."""
    if ctx.base.image_tower is None:
        return None
    from objtune_cli.method.presence import Check
    from objtune_cli.models import towers

    known = [_seen(ctx, stack, item) for item in found]
    missing = [item.name for item, seen in zip(found, known, strict=True) if seen is None]
    if missing:
        ctx.report.note(f"the photo of {missing[0]} is not in this project any more: whether every object is there is not checked")
        return None
    return Check(stack, towers.load(ctx.base.image_tower, stack), [seen for seen in known if seen is not None])


def _seen(ctx: Context, stack: "Stack", item: objects.Named) -> "Seen | None":
    from objtune_cli.method.presence import Seen

    arrays = objects.photo(ctx, item)
    if arrays is None:
        return None
    picture, mask = embed.photo_tensors(arrays)
    return Seen(item.name, picture, mask, _plain(ctx, stack, item))


def _plain(ctx: Context, stack: "Stack", item: objects.Named) -> "torch.Tensor | None":
    """Pictures of the object's class as the frozen base drew them, from the class prior that it was trained with."""
    import torch

    word = item.record.objects[item.name]
    for source in item.record.inputs.values():
        if not source["ref"].startswith("prior/"):
            continue
        try:
            record, arrays = artifact.load(ctx.root, refs.resolve(ctx.root, refs.parse(source["ref"])), source["sha256"])
        except MissingError:
            continue
        if record.class_word == word:
            latents = torch.from_numpy(arrays["latents"][:PLAIN].copy()).float()
            return ((stack.to_picture(latents) + 1) / 2).clamp(0, 1).cpu()
    return None


def looks(check: "Check | None", parts: list[dict[str, "torch.Tensor"]], pictures: "torch.Tensor", seeds: list[int], boxes: list[Box]) -> list[Look]:
    """Each picture and what stands in its places; `parts`: what each picture is made of."""
    if check is None:
        return [Look(part, seed) for part, seed in zip(parts, seeds, strict=True)]
    from objtune_cli.method.presence import margin, wrong

    matrices = check.matrices(pictures, boxes)
    return [
        Look(part, seed, [[round(float(v), 4) for v in row] for row in matrix], wrong(matrix), round(margin(matrix), 4))
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


def judge(ctx: Context, found: Mapping[str, Any], how: Compose) -> None:
    """Say what was found in a scene.

    Raises:
        GateError: `how.strict`, and an object is missing or mixed in a picture.
    """
    if "leakage" not in found or how.check == "none":
        return
    names, count = list(found["objects"]), len(found["leakage"])
    width = max(8, *(len(n) + 2 for n in names))
    ctx.report.note("likeness of each place (rows) to each object (columns), mean of the pictures: 0 as its class, 1 as its photo")
    ctx.report.note(" " * width + "".join(n.rjust(width) for n in names))
    for i, name in enumerate(names):
        row = [sum(matrix[i][j] for matrix in found["leakage"]) / count for j in range(len(names))]
        ctx.report.note(name.ljust(width) + "".join(f"{v:.2f}".rjust(width) for v in row))
    bad = [f"picture {k + 1}: {', '.join(f'<{n}>' for n in wrong)}" for k, wrong in enumerate(found["wrong"]) if wrong]
    if not bad:
        return
    message = f"missing or mixed in {len(bad)} of {count} pictures ({'; '.join(bad)})"
    if how.strict:
        raise GateError(f"{message}, for every seed", f"more `--retries` than {how.retries}, other places (`--place`), or without `--strict` to see them")
    ctx.report.note(f"{message}: more `--retries`, or other places (`--place`)")
