"""Objects that the base sees beside the prompt: cut out of the photos of their masks, for bases that take pictures."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from objtune_cli.config.sections import Generate
from objtune_cli.errors import IncompatibleError
from objtune_cli.store.kinds.mask import MaskArtifact
from objtune_cli.store.refs import Ref
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    from torch import Tensor

    from objtune_cli.models.base_model import BaseModel

ROLE = "reference."
"""Prefix of the roles of masks in a scene's record."""
SHARE = 0.5
"""Side of a cut-out, fraction of the base's resolution: each adds a quarter of the image's tokens to every step (ours)."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The mask of an object, as a scene's record names it."""

    name: str
    ref: Ref
    sha256: str


def find(ctx: StageContext, config: Generate) -> list[Reference]:
    """The masks that `config.reference` names, each once, in their order.

    Raises:
        IncompatibleError: The base takes no pictures. MissingError: There is no such mask.
    """
    names = list(dict.fromkeys(name.strip() for name in config.reference.split(",") if name.strip()))
    if names and not ctx.base.family.takes_references:
        raise IncompatibleError(
            f"the base {ctx.base.id} takes no pictures beside the prompt",
            "leave `--reference` out, or use a base of FLUX.2: `--base klein`",
        )
    refs = [ctx.store.find(name, ("mask",)) for name in names]
    return [Reference(ref.name, ref, ctx.store.verify(ref)[1]) for ref in refs]


def scene_inputs(references: Sequence[Reference]) -> dict[str, dict[str, str]]:
    """The masks as inputs of a scene's record."""
    return {
        f"{ROLE}{i}.{each.name}": {"ref": str(each.ref), "sha256": each.sha256} for i, each in enumerate(references)
    }


@contextlib.contextmanager
def shown(ctx: StageContext, model: "BaseModel", references: Sequence[Reference]) -> Iterator[None]:
    """Inside, the denoiser sees the objects."""
    model.references = tuple(model.encode_image(cut_out(ctx, model, each)).to(model.device) for each in references)
    try:
        yield
    finally:
        model.references = ()


def cut_out(ctx: StageContext, model: "BaseModel", reference: Reference) -> "Tensor":
    """The object on white, (1, 3, s, s) in [-1, 1]."""
    import torch

    from objtune_cli.numerics.masks import crop

    artifact = MaskArtifact.from_tensors(ctx.store.read(reference.ref, reference.sha256)[1])
    rgb = torch.from_numpy(artifact.rgb.copy()).permute(2, 0, 1).float() / 255
    mask = torch.from_numpy(artifact.mask.copy()).float() / 255
    side = max(1, round(model.resolution * SHARE / model.size_multiple)) * model.size_multiple
    return crop(rgb, mask, torch.ones(3), side)[None].clamp(0, 1) * 2 - 1
