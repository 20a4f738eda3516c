"""`objtune segment`, `init-embedding` and `train`: from a photo to a trained object."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from objtune_cli import paths
from objtune_cli.cli import complete, processes, spans
from objtune_cli.cli.frame import Outcome, Run, need
from objtune_cli.cli.given import given_refs
from objtune_cli.cli.hints import Said, of_each, of_photo, targets
from objtune_cli.cli.signals import TIME_UP
from objtune_cli.config import SEEDS, Embed, Prior, Segment, Train
from objtune_cli.errors import IncompatibleError, Stopped, UsageError

if TYPE_CHECKING:
    from objtune_cli.stages.context import Context, Done
    from objtune_cli.stages.sight import Target
    from objtune_cli.store.refs import Ref

ClassWords = Annotated[
    list[str] | None,
    typer.Option("--class", "-c", metavar="WORD", help="What the object is: dog. Repeat for several objects."),
]
Names = Annotated[
    list[str] | None,
    typer.Option("--name", metavar="NAME", help="What to call it; default: the class word.", show_default=False),
]
Masks = Annotated[
    list[str] | None,
    typer.Option(
        "--mask", metavar="FILE", help="Mask picture, white or opaque on the object; dog=FILE for one of several."
    ),
]
Boxes = Annotated[
    list[str] | None,
    typer.Option(
        "--box", metavar="X0,Y0,X1,Y1", help="Box around it, in photo pixels or fractions; dog=… for one of several."
    ),
]
Points = Annotated[
    list[str] | None,
    typer.Option("--point", metavar="X,Y", help="A point on it, in photo pixels or fractions; repeat for more."),
]
Beside = Annotated[
    list[str] | None, typer.Option("--not-point", metavar="X,Y", help="A point that is not on it; repeat for more.")
]
Rough = Annotated[
    list[str] | None,
    typer.Option(
        "--rough", metavar="FILE", help="A rough mask picture, to be made exact; dog=FILE for one of several."
    ),
]
Which = Annotated[
    Literal["best", "largest", "smallest", "left", "right", "top", "bottom"] | None,
    typer.Option(help="Which of several objects of the class.", show_default="best"),
]
Finder = Annotated[
    Literal["sam", "grabcut"] | None, typer.Option("--segmenter", help="What finds outlines.", show_default="sam")
]
SamFile = Annotated[
    str | None,
    typer.Option(
        "--sam-checkpoint", metavar="FILE", help="segment-anything checkpoint.", show_default="the embedded one"
    ),
]


Wanted = tuple[Path, list["Target"], str | None]
"""A photo, its objects, and which of several things is meant."""


def segment(
    run: Run,
    photo: Annotated[Path, typer.Argument(help="The photo.")],
    class_: ClassWords = None,
    name: Names = None,
    mask: Masks = None,
    box: Boxes = None,
    point: Points = None,
    not_point: Beside = None,
    rough: Rough = None,
    which: Which = None,
    segmenter: Finder = None,
    sam_checkpoint: SamFile = None,
) -> Outcome:
    from objtune_cli.stages import segment as stage

    wanted = targets(class_, name, Said(mask, box, point, not_point, rough))
    ctx = run.context()
    config = ctx.settings.resolve(Segment, sam_checkpoint=sam_checkpoint, which=which, segmenter=segmenter)
    return Outcome(stage.run(ctx, photo, wanted, config))


def init_embedding(
    run: Run,
    ref: Annotated[
        list[str] | None, typer.Argument(help="Masks, or - to read refs from stdin.", autocompletion=complete.mask_ref)
    ] = None,
    init: Annotated[
        Literal["auto", "prototype", "class", "random"] | None,
        typer.Option(help="Where the token starts.", show_default="auto"),
    ] = None,
    vectors: Annotated[int | None, typer.Option(help="Learned vectors.", show_default=str(Embed().vectors))] = None,
) -> Outcome:
    from objtune_cli.stages import embed as stage
    from objtune_cli.store import refs

    given = given_refs(ref)
    ctx = run.context(create=False)
    config = ctx.settings.resolve(Embed, init=init, vectors=vectors)
    found = [refs.find(ctx.root, text, ("mask",)) for text in given]
    return Outcome([stage.run(ctx, mask, config) for mask in found])


def train(
    run: Run,
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PHOTO… | REF…",
            help="A photo, or several with the options of each behind it; or masks or embeddings (- for stdin).",
            autocompletion=complete.trainable_ref,
        ),
    ] = None,
    class_: ClassWords = None,
    name: Names = None,
    mask: Masks = None,
    box: Boxes = None,
    point: Points = None,
    not_point: Beside = None,
    rough: Rough = None,
    which: Which = None,
    steps: Annotated[
        str | None,
        typer.Option(metavar="N", help="Optimizer steps; auto: until its loss stops falling.", show_default="auto"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help=f"Random seed, {SEEDS}; -1 is refused.", show_default=str(Train().seed))
    ] = None,
    preview: Annotated[bool, typer.Option("--preview/--no-preview", help="Draw a sheet of samples at the end.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take a few steps on noise, say what a run needs, and write nothing.")
    ] = False,
    max_time: Annotated[
        str | None,
        typer.Option("--max-time", metavar="TIME", help="Save and stop after 45m, 2h, …; the same command goes on."),
    ] = None,
    num_processes: Annotated[
        int | None,
        typer.Option(
            "--num-processes",
            metavar="N",
            help="Share the work among N processes: one for each GPU.",
            show_default=False,
        ),
    ] = None,
) -> Outcome:
    if processes.left_alone():
        run.report.note(
            f"accelerate starts one process where it is told --cpu; `objtune train … {processes.OPTION} N` starts several"
        )
    if max_time:
        run.stop.until = run.started + spans.seconds(max_time, "--max-time")
    most = None if steps is None else counted(steps)
    if dry_run:
        return _dry(run, steps=most, seed=seed, objects=len(class_ or ()) or 1)
    given = given_refs(source)
    hinted = bool(class_ or name or mask or box or point or not_point or rough or which)
    photos = _photos(given, hinted=hinted)
    if len(photos) > 1:
        wanted = [(photo, *of_photo(photo, said)) for photo, said in zip(photos, of_each(run.parts), strict=True)]
        _distinct(wanted)
    else:
        wanted = [(photo, targets(class_, name, Said(mask, box, point, not_point, rough)), which) for photo in photos]
    need(
        photos or not hinted,
        "--class and the hints belong to a photo",
        "a ref already says what it shows",
    )
    ctx = run.context(create=bool(photos))
    config = ctx.settings.resolve(Train, steps=most, seed=seed, stop="good" if steps == "auto" else None)
    try:
        return Outcome(_trained(ctx, wanted, given, config, preview), extra={"finished": True})
    except Stopped as stopped:
        if stopped.code != 128 + TIME_UP:
            raise
        run.report.note(f"{stopped.message}; {stopped.hint}")
        return Outcome(shown="nothing", extra={"finished": False, "message": stopped.message})


def _dry(run: Run, steps: int | None, seed: int | None, objects: int) -> Outcome:
    """What a run of these settings needs."""
    from objtune_cli.cli import render
    from objtune_cli.stages import dry

    ctx = run.context(create=False)
    config = ctx.settings.resolve(Train, steps=steps, seed=seed)
    found = dry.run(ctx, config, ctx.settings.resolve(Embed), objects)
    if not run.options["json"]:
        render.table(("what", "value"), [(key, str(value)) for key, value in found.items()])
    less = dry.advice(found, config)
    if less:
        run.report.note(f"that is more than the device has: {less}")
    return Outcome(shown="nothing", extra={"finished": False, "message": "dry run", "dry_run": found})


def _trained(ctx: "Context", wanted: list[Wanted], given: list[str], config: Train, preview: bool) -> "list[Done]":
    """The stages of `train`, from photos or from refs."""
    from objtune_cli.stages import beside
    from objtune_cli.stages import train as stage

    embedding, prior = ctx.settings.resolve(Embed), ctx.settings.resolve(Prior)
    with ctx.first():
        found = ctx.side_by_side([partial(_found, ctx, *one) for one in wanted])
    if len(found) > 1:
        return beside.run(ctx, found, config, embedding, prior, preview=preview)
    sources = found[0] if found else [_trainable(ctx.root, text) for text in given]
    return [stage.run(ctx, sources, config, embedding, prior, preview=preview)]


def _found(ctx: "Context", photo: Path, targets: "list[Target]", which: str | None) -> "list[Ref]":
    """The masks of one photo's objects."""
    from objtune_cli.stages import segment as segment_stage

    return [
        d.ref for d in segment_stage.run(ctx.unforced(), photo, targets, ctx.settings.resolve(Segment, which=which))
    ]


def counted(steps: str) -> int | None:
    """A number of steps; none for auto, which leaves the most to the settings.

    Raises:
        UsageError: Neither.
    """
    need(steps == "auto" or steps.isdecimal(), f"--steps is {steps!r}", "a whole number, or auto")
    return None if steps == "auto" else int(steps)


def _photos(given: list[str], *, hinted: bool) -> list[Path]:
    """The arguments of `train` where they are photos.

    Args:
        hinted: Something was said of an object in a photo.

    Raises:
        UsageError: Some are photos and some are refs.
    """
    read = {text: _photo(text, hinted=hinted) for text in given}
    found = [path for path in map(read.get, given) if path is not None]
    if found and len(found) < len(given):
        other = next(text for text in given if read[text] is None)
        raise UsageError(f"{other} is no photo", "photos, or masks and embeddings that are there already")
    return found


def _photo(text: str, *, hinted: bool) -> Path | None:
    """The photo that an argument names, there or not; None where it is a ref."""
    from objtune_cli.store import KINDS, formats

    looks = Path(text.strip("\"' ")).suffix.lower() in (*formats.SUFFIXES, *formats.OTHER_SUFFIXES)
    try:
        path = paths.to_path(text)
    except UsageError:
        if looks:
            raise
        return None
    if (
        looks
        or paths.is_file(path)
        or path.is_absolute()
        or text.startswith((".", "~"))
        or text.endswith("/")
        or "\\" in text
    ):
        return path
    if "/" in text and text.split("/")[0] not in KINDS and "@" not in text:
        return path
    return path if hinted and _is_folder(path) else None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a text too long for a file name
        return False


def _distinct(wanted: list[Wanted]) -> None:
    """Refuse two photos that would give an object the same name, before anything is looked at."""
    names = [target.name for _, found, _ in wanted for target in found]
    twice = next((name for name in names if names.count(name) > 1), "")
    need(not twice, f"two photos would give an object the name {twice}", "tell them apart with `--name`")


def _trainable(root: Path, text: str) -> "Ref":
    """An embedding of that name, else a mask.

    Raises:
        MissingError: Neither is there. IncompatibleError: It is an artifact of another kind.
    """
    from objtune_cli.store import refs

    if text.startswith("adapter/"):
        name = text.removeprefix("adapter/").partition("@")[0]
        raise IncompatibleError(
            f"{text} is finished, and training does not go on from an adapter",
            f"`objtune train {name} --steps N` makes the next version, from its embedding",
        )
    if "/" not in text and refs.versions(root, "embedding", text.split("@")[0]):
        return refs.find(root, text, ("embedding",))
    return refs.find(root, text, ("mask", "embedding") if "/" in text else ("mask",))
