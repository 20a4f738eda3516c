"""`objtune segment`, `init-embedding` and `train`: from a photo to a trained object."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from objtune_cli.cli import complete, processes, spans
from objtune_cli.cli.frame import Outcome, Run, need
from objtune_cli.cli.given import given_refs
from objtune_cli.cli.signals import TIME_UP
from objtune_cli.config import Embed, Prior, Segment, Train
from objtune_cli.errors import InputError, Stopped, UsageError

if TYPE_CHECKING:
    from objtune_cli.stages.context import Context, Done
    from objtune_cli.stages.sight import Target
    from objtune_cli.store.refs import Ref

    Parts = list[tuple[str, dict[str, Any]]]

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")

ClassWords = Annotated[
    list[str] | None, typer.Option("--class", "-c", metavar="WORD", help="What the object is: dog. Repeat for several objects.")
]
Names = Annotated[
    list[str] | None, typer.Option("--name", metavar="NAME", help="What to call it; default: the class word.", show_default=False)
]
Masks = Annotated[
    list[str] | None,
    typer.Option("--mask", metavar="FILE", help="Mask picture, white or opaque on the object; dog=FILE for one of several."),
]
Boxes = Annotated[
    list[str] | None, typer.Option("--box", metavar="X0,Y0,X1,Y1", help="Box around it, photo pixels; dog=… for one of several.")
]
Points = Annotated[list[str] | None, typer.Option("--point", metavar="X,Y", help="A point on it, photo pixels; repeat for more.")]
Beside = Annotated[list[str] | None, typer.Option("--not-point", metavar="X,Y", help="A point that is not on it; repeat for more.")]
Rough = Annotated[
    list[str] | None, typer.Option("--rough", metavar="FILE", help="A rough mask picture, to be made exact; dog=FILE for one of several.")
]
Which = Annotated[
    Literal["best", "largest", "smallest", "left", "right", "top", "bottom"] | None,
    typer.Option(help="Which of several objects of the class.", show_default="best"),
]
Finder = Annotated[Literal["sam", "grabcut"] | None, typer.Option("--segmenter", help="What finds outlines.", show_default="sam")]
SamFile = Annotated[
    str | None, typer.Option("--sam-checkpoint", metavar="FILE", help="segment-anything checkpoint.", show_default="the embedded one")
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
    ref: Annotated[list[str] | None, typer.Argument(help="Masks, or - to read refs from stdin.", autocompletion=complete.mask_ref)] = None,
    init: Annotated[
        Literal["auto", "prototype", "class", "random"] | None, typer.Option(help="Where the token starts.", show_default="auto")
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
            metavar="PHOTO… | REF…", help="A photo, or several with the options of each behind it; or masks or embeddings (- for stdin).", autocompletion=complete.trainable_ref
        ),
    ] = None,
    class_: ClassWords = None,
    name: Names = None,
    mask: Masks = None,
    box: Boxes = None,
    point: Points = None,
    not_point: Beside = None,
    which: Which = None,
    steps: Annotated[
        str | None, typer.Option(metavar="N", help="Optimizer steps; auto: until its loss stops falling.", show_default="auto")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.", show_default=str(Train().seed))] = None,
    preview: Annotated[bool, typer.Option("--preview/--no-preview", help="Draw a sheet of samples at the end.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Take a few steps on noise, say what a run needs, and write nothing.")] = False,
    max_time: Annotated[
        str | None, typer.Option("--max-time", metavar="TIME", help="Save and stop after 45m, 2h, …; the same command goes on.")
    ] = None,
    num_processes: Annotated[
        int | None, typer.Option("--num-processes", metavar="N", help="Share the work among N processes: one for each GPU.", show_default=False)
    ] = None,
) -> Outcome:
    if processes.left_alone():
        run.report.note(f"accelerate starts one process where it is told --cpu; `objtune train … {processes.OPTION} N` starts several")
    if max_time:
        run.stop.until = run.started + spans.seconds(max_time, "--max-time")
    most = None if steps is None else counted(steps)
    if dry_run:
        return _dry(run, steps=most, seed=seed, objects=len(class_ or ()) or 1)
    given = given_refs(source)
    photos = _photos(given)
    if len(photos) > 1:
        wanted = [(photo, *_of_photo(photo, said)) for photo, said in zip(photos, _said(run.parts), strict=True)]
        _distinct(wanted)
    else:
        wanted = [(photo, targets(class_, name, Said(mask, box, point, not_point)), which) for photo in photos]
    need(
        photos or not (class_ or name or mask or box or point or not_point or which),
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

    return [d.ref for d in segment_stage.run(ctx.unforced(), photo, targets, ctx.settings.resolve(Segment, which=which))]


def counted(steps: str) -> int | None:
    """A number of steps; none for auto, which leaves the most to the settings.

    Raises:
        UsageError: Neither.
    """
    need(steps == "auto" or steps.isdecimal(), f"--steps is {steps!r}", "a whole number, or auto")
    return None if steps == "auto" else int(steps)


def _photos(given: list[str]) -> list[Path]:
    """The arguments of `train` where they are photos.

    Raises:
        UsageError: Some are photos and some are refs.
    """
    found = [Path(text) for text in given if _is_file(Path(text)) or Path(text).suffix.lower() in PHOTO_SUFFIXES]
    if found and len(found) < len(given):
        other = next(text for text in given if Path(text) not in found)
        raise UsageError(f"{other} is no photo", "photos, or masks and embeddings that are there already")
    return found


HINTS = {"class_": "--class", "name": "--name", "mask": "--mask", "box": "--box", "point": "--point", "not_point": "--not-point", "which": "--which"}
"""Parameters that say something of one photo."""


def _said(parts: "Parts") -> list[dict[str, Any]]:
    """What is said of each of several photos: the options behind it.

    Raises:
        UsageError: Something is said before the first.
    """
    early = [option for key, option in HINTS.items() if any(not photo and said.get(key) for photo, said in parts)]
    need(not early, f"{', '.join(early)} before the first photo", "with several photos, each one's options stand behind it: `a.jpg --class dog b.jpg --class mug`")
    return [said for photo, said in parts if photo]


def _of_photo(photo: Path, said: dict[str, Any]) -> tuple[list["Target"], str | None]:
    """The objects of one of several photos, and which of several things is meant."""
    need(said.get("class_"), f"what the object in {photo} is was not said", "give its class behind it: `a.jpg --class dog b.jpg --class mug`")
    values = (said.get(key) for key in ("mask", "box", "point", "not_point"))
    return targets(said["class_"], said.get("name"), Said(*values)), said.get("which")


def _distinct(wanted: list[Wanted]) -> None:
    """Refuse two photos that would give an object the same name, before anything is looked at."""
    names = [target.name for _, found, _ in wanted for target in found]
    twice = next((name for name in names if names.count(name) > 1), "")
    need(not twice, f"two photos would give an object the name {twice}", "tell them apart with `--name`")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a text too long for a file name
        return False


def _trainable(root: Path, text: str) -> "Ref":
    """An embedding of that name, else a mask."""
    from objtune_cli.store import refs

    if "/" not in text and refs.versions(root, "embedding", text.split("@")[0]):
        return refs.find(root, text, ("embedding",))
    return refs.find(root, text, ("mask", "embedding") if "/" in text else ("mask",))


@dataclass(frozen=True, slots=True)
class Said:
    """Values of the options that say where objects are."""

    mask: list[str] | None = None
    box: list[str] | None = None
    point: list[str] | None = None
    not_point: list[str] | None = None
    rough: list[str] | None = None


def targets(classes: list[str] | None, names: list[str] | None, said: Said) -> list["Target"]:
    """The objects that the options describe, in the order of `--class`.

    Raises:
        UsageError: Options that do not fit together; names the option.
    """
    from objtune_cli.stages.sight import Target
    from objtune_cli.store import refs

    words = [word.strip() for word in classes or []]
    need(words and all(words), "what the object is was not said", "give its class: `--class dog`")
    need(all(word.isprintable() for word in words), "a class word has characters that cannot be printed", "for example `--class dog`")
    given = list(names or [])
    need(len(given) <= len(words), f"{len(given)} names for {len(words)} classes", "give one `--name` for each `--class`")
    called = [refs.check_name(n) for n in given] + [refs.slug(w) for w in words[len(given) :]]
    need(len(set(called)) == len(called), "two objects would have the same name", "tell them apart with `--name`")
    keys = {word: i for i, word in enumerate(words) if words.count(word) == 1} | {name: i for i, name in enumerate(called)}

    def owned(values: list[str] | None, option: str) -> list[tuple[int, str]]:
        """Each value with the number of the object it belongs to."""
        found = []
        for text in values or []:
            key, equals, value = text.partition("=")
            known = bool(equals) and key in keys
            need(known or len(words) == 1, f"{option} {text} does not say whose it is", f"for example `{option} {called[0]}={text}`")
            found.append((keys[key], value) if known else (0, text))
        return found

    def one_each(values: list[str] | None, option: str) -> dict[int, str]:
        found: dict[int, str] = {}
        for index, value in owned(values, option):
            need(index not in found, f"two values of {option} for {called[index]}", "give one")
            found[index] = value
        return found

    boxes = {i: numbers(v, 4, "--box", "x0,y0,x1,y1") for i, v in one_each(said.box, "--box").items()}
    masks, rough = (
        {i: _existing(v, o) for i, v in one_each(values, o).items()} for values, o in ((said.mask, "--mask"), (said.rough, "--rough"))
    )
    on, beside = (
        [(i, numbers(v, 2, o, "x,y")) for i, v in owned(values, o)]
        for values, o in ((said.point, "--point"), (said.not_point, "--not-point"))
    )
    found = []
    for i, (word, name) in enumerate(zip(words, called, strict=True)):
        box: Any = boxes.get(i)
        mine, others = (tuple((d[0], d[1]) for k, d in dots if k == i) for dots in (on, beside))
        need(
            i not in masks or not (box or mine or others or i in rough),
            f"a mask of {name} is all there is to say",
            "hints belong to `--rough`",
        )
        need(
            not others or box or mine or i in rough,
            f"{name} has only points that are not on it",
            "add `--point x,y` or `--box x0,y0,x1,y1`",
        )
        found.append(Target(word, name, box, mine, others, masks.get(i), rough.get(i)))
    return found


def _existing(text: str, option: str) -> Path:
    if not _is_file(Path(text)):
        raise InputError(f"there is no mask {text}", f"give `{option}` a picture of the photo's size, white on the object")
    return Path(text)


def numbers(text: str, count: int, option: str, form: str) -> tuple[float, ...]:
    """Comma-separated numbers.

    Raises:
        UsageError: Not that many numbers.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    need(
        len(values) == count and all(abs(v) < 1e6 for v in values),
        f"{option} {text} is not {form}",
        f"for example `{option} {','.join('10' for _ in range(count))}`",
    )
    return values
