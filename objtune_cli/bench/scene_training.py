"""Training of the objects of a scene by the command `objtune train`, from one photo of all or one photo each."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from objtune_cli.bench import single_training
from objtune_cli.bench.methods import OURS, Method
from objtune_cli.evaluation import benchmark_objects
from objtune_cli.evaluation.benchmark_objects import Case
from objtune_cli.images import png
from objtune_cli.renamed_settings import as_text
from objtune_cli.store import artifacts
from objtune_cli.store.refs import Ref, parse
from objtune_cli.toybox import renderer, world
from objtune_cli.toybox.world import Dial
from objtune_cli.workflow.context import StageContext

RARE_TOKENS = ("sks", "zwx", "ucd", "hta")
"""Rare tokens, one for each object of a joint training that starts from them."""


def render_photo(members: Sequence[Case], dial: Dial, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Render one photo of all objects side by side, and the mask of each."""
    rng = np.random.default_rng((seed, 7))
    scene = world.sample_scene(
        rng, dial, instances=tuple(m.instance for m in members), background=members[0].photo_background
    )
    rgb, masks = renderer.render(scene, benchmark_objects.PHOTO_SIDE)
    return rgb, list(masks)


def train_objects(
    ctx: StageContext,
    members: Sequence[Case],
    rgb: np.ndarray,
    masks: Sequence[np.ndarray],
    method: Method = OURS["objtune"],
) -> tuple[Ref, float]:
    """Run `objtune train` with a method's settings in a process; the command reuses existing artifacts.

    Returns:
        The adapter, and the wall seconds; 0 if it existed.
    """
    folder = ctx.project.folder / "given" / "-".join(m.name for m in members)
    artifacts.write_file(folder / "photo.png", png.encode_png(rgb))
    given = [str(folder / "photo.png")]
    for member, mask in zip(members, masks, strict=True):
        artifacts.write_file(folder / f"{member.name}.png", png.encode_png(mask))
        given += [
            "--class",
            member.instance.kind,
            "--name",
            member.name,
            "--mask",
            f"{member.name}={folder / member.name}.png",
        ]
    embed, learning = (
        _set_options("init-embedding", method.embed),
        _set_options("train", {**method.train, "self_evaluation": False}) + _set_options("prior", method.prior),
    )
    seconds = 0.0
    if (
        len(members) > 1 and method.embed.get("init") == "rare-token"
    ):  # a word for each: two objects of one class would have the same token
        found, seconds, _ = _run_stage(ctx, members, "segment", *given)
        given = []
        for ref, word in zip(found, RARE_TOKENS, strict=False):
            (started,), took, _ = _run_stage(
                ctx, members, "init-embedding", ref, *embed, *_set_options("init-embedding", {"rare_token": word})
            )
            given, seconds = [*given, started], seconds + took
    refs, took, reused = _run_stage(ctx, members, "train", *given, "--no-preview", *embed, *learning)
    return parse(refs[-1]), 0.0 if reused else seconds + took


def _set_options(section: str, values: Mapping[str, Any]) -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{section}.{name}={as_text(value)}")]


def _run_stage(ctx: StageContext, members: Sequence[Case], *words: str) -> tuple[list[str], float, bool]:
    """Run one command in the project of `ctx`: its refs, wall seconds, and whether all artifacts existed."""
    shared = {
        "project": ctx.project.folder,
        "base": ctx.common.base,
        "device": ctx.common.device,
        "precision": ctx.common.precision,
    }
    command = [
        sys.executable,
        "-P",
        "-m",
        "objtune_cli",
        *words,
        "--json",
        *(w for k, v in shared.items() for w in (f"--{k}", str(v))),
    ]
    document, seconds, _ = single_training.run_command(ctx, command, f"{words[0]} of {members[0].name}")
    if "error" in document:
        error = document["error"]
        raise single_training.TrainingFailed(words[0], members[0], int(error["code"]), error["message"])
    return [each["ref"] for each in document["refs"]], seconds, all(each["reused"] for each in document["refs"])
