"""Options and arguments of `segment` and `train`, which take photos."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from objtune_cli import paths
from objtune_cli.cli.object_options import PhotoRequest
from objtune_cli.cli.runner import require
from objtune_cli.config.sections import Segment
from objtune_cli.errors import UsageError

if TYPE_CHECKING:
    from objtune_cli.store.refs import Ref
    from objtune_cli.workflow.context import StageContext


ClassWords = Annotated[
    list[str] | None,
    typer.Option(
        "--class", "-c", metavar="WORD", help="Class of the object, for example dog. Repeat for several objects."
    ),
]


Names = Annotated[
    list[str] | None,
    typer.Option("--name", metavar="NAME", help="Name of the object; default: the class word.", show_default=False),
]


Masks = Annotated[
    list[str] | None,
    typer.Option(
        "--mask", metavar="FILE", help="Mask image, white or opaque on the object; dog=FILE for one of several."
    ),
]


Boxes = Annotated[
    list[str] | None,
    typer.Option(
        "--box", metavar="X0,Y0,X1,Y1", help="Box around the object, in pixels or fractions; dog=… for one of several."
    ),
]


Points = Annotated[
    list[str] | None,
    typer.Option("--point", metavar="X,Y", help="Point on the object, in pixels or fractions; repeat for more."),
]


NegativePoints = Annotated[
    list[str] | None,
    typer.Option("--negative-point", metavar="X,Y", help="Point outside the object; repeat for more."),
]


RefineMasks = Annotated[
    list[str] | None,
    typer.Option(
        "--refine-mask", metavar="FILE", help="Rough mask image, which is refined; dog=FILE for one of several."
    ),
]


Select = Annotated[
    Literal["best", "largest", "smallest", "left", "right", "top", "bottom"] | None,
    typer.Option("--select", help="Select one of several objects of the class.", show_default="best"),
]


SegmenterName = Annotated[
    Literal["auto", "sam", "sam2", "sam3", "salient", "grabcut"] | None,
    typer.Option("--segmenter", help="Segmenter; auto: the best on this machine.", show_default="auto"),
]


SamFile = Annotated[
    str | None,
    typer.Option(
        "--sam-checkpoint", metavar="FILE", help="segment-anything checkpoint.", show_default="the embedded one"
    ),
]


PHOTO: dict[str, tuple[Any, Any]] = {
    "class_": (ClassWords, None), "name": (Names, None), "mask": (Masks, None), "box": (Boxes, None), "point": (Points, None),
    "negative_point": (NegativePoints, None), "refine_mask": (RefineMasks, None), "select": (Select, None),
}  # fmt: skip
"""Options that describe the objects of a photo; `object_options` parses their values."""


def segment_photos(ctx: "StageContext", requests: list[PhotoRequest]) -> "list[Ref]":
    """Segment the objects of one photo, or one object in several photos; existing masks are reused."""
    from objtune_cli.segmentation import segment as stage
    from objtune_cli.segmentation import several_photos

    paths = [each.photo if isinstance(each.photo, Path) else locate_photo(ctx, each.photo) for each in requests]
    configs = [ctx.settings.resolve(Segment, select=each.select) for each in requests]
    if len(requests) == 1:
        results = stage.run(ctx.without_force(), paths[0], requests[0].targets, configs[0])
    else:
        targets = [each.targets[0] for each in requests]
        photos = map(several_photos.PhotoOfObject, paths, targets, configs)
        results = several_photos.run(ctx.without_force(), list(photos))
    return [each.ref for each in results]


def locate_photo(ctx: "StageContext", text: str) -> Path:
    """The file of a photo: a path, or what a web address or `-` (stdin) gives."""
    from objtune_cli.workflow import photo_sources

    if text == photo_sources.STDIN or photo_sources.is_address(text):
        return photo_sources.save_photo(ctx.project, text)
    return paths.to_path(text)


def parse_steps(steps: str) -> int | None:
    """A number of steps; none for auto, which leaves the most to the settings.

    Raises:
        UsageError: Neither.
    """
    require(steps == "auto" or steps.isdecimal(), f"--steps is {steps!r}", "a whole number, or auto")
    return None if steps == "auto" else int(steps)


def parse_photos(values: list[str], *, hinted: bool) -> list[Path | str]:
    """The arguments of `train` where they are photos.

    Args:
        hinted: Something was said of an object in a photo.

    Raises:
        UsageError: Some are photos and some are refs.
    """
    by_text = {text: _photo(text, hinted=hinted) for text in values}
    photos = [path for path in map(by_text.get, values) if path is not None]
    if photos and len(photos) < len(values):
        other = next(text for text in values if by_text[text] is None)
        raise UsageError(f"{other} is not a photo", "give photos, or refs of masks and embeddings")
    return photos


def _photo(text: str, *, hinted: bool) -> Path | str | None:
    """The photo that an argument names, there or not: a path, or a web address or `-` as it is; None where it is a ref."""
    from objtune_cli.images import formats
    from objtune_cli.store import KINDS
    from objtune_cli.workflow import photo_sources

    if photo_sources.is_address(text) or (hinted and text == photo_sources.STDIN):
        return text
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
    return path if hinted and is_folder(path) else None


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; False where it cannot be a path of this system."""
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a text too long for a file name
        return False
