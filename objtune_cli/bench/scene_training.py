"""Training of the objects of a scene by the command `objtune train`, from one photo of all or one photo each."""

from collections.abc import Sequence

import numpy as np

from objtune_cli.bench import command_runner
from objtune_cli.bench.command_runner import set_options
from objtune_cli.bench.methods import OURS, Method
from objtune_cli.evaluation import benchmark_objects
from objtune_cli.evaluation.benchmark_objects import Case
from objtune_cli.images import png
from objtune_cli.store import atomic_files
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
    atomic_files.write_file(folder / "photo.png", png.encode_png(rgb))
    inputs = [str(folder / "photo.png")]
    for member, mask in zip(members, masks, strict=True):
        file = folder / f"{member.name}.png"
        atomic_files.write_file(file, png.encode_png(mask))
        inputs += ["--class", member.instance.kind, "--name", member.name, "--mask", f"{member.name}={file}"]
    embed_options = set_options(method.embed, "init-embedding")
    train_options = set_options({**method.train, "self_evaluation": False}, "train") + set_options(
        method.prior, "prior"
    )
    seconds = 0.0
    if len(members) > 1 and method.embed.get("init") == "rare-token":
        inputs, seconds = _start_from_rare_tokens(ctx, members, inputs, embed_options)
    refs, train_seconds, reused = _run_stage(
        ctx, members, "train", *inputs, "--no-preview", *embed_options, *train_options
    )
    return parse(refs[-1]), 0.0 if reused else seconds + train_seconds


def _start_from_rare_tokens(
    ctx: StageContext, members: Sequence[Case], inputs: Sequence[str], embed_options: Sequence[str]
) -> tuple[list[str], float]:
    """Make one embedding per object, each from another rare token, so that two objects of a class differ.

    Returns:
        The refs of the embeddings, and the wall seconds.
    """
    masks, seconds, _ = _run_stage(ctx, members, "segment", *inputs)
    embeddings = []
    for mask, token in zip(masks, RARE_TOKENS, strict=False):
        own = set_options({"rare_token": token}, "init-embedding")
        (embedding,), embed_seconds, _ = _run_stage(ctx, members, "init-embedding", mask, *embed_options, *own)
        embeddings.append(embedding)
        seconds += embed_seconds
    return embeddings, seconds


def _run_stage(ctx: StageContext, members: Sequence[Case], *words: str) -> tuple[list[str], float, bool]:
    """Run one command in the project of `ctx`: its refs, wall seconds, and whether all artifacts existed."""
    document, seconds, _ = command_runner.run_command(
        ctx, command_runner.command_line(ctx, *words), f"{words[0]} of {members[0].name}"
    )
    command_runner.raise_failure(document, words[0], members[0])
    return [each["ref"] for each in document["refs"]], seconds, all(each["reused"] for each in document["refs"])
