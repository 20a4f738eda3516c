"""`segment` for several photos of one object: each is segmented for itself, and equal photos count once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from objtune_cli.config.sections import Segment
from objtune_cli.errors import GateError, InputError, UsageError
from objtune_cli.images import formats, photo
from objtune_cli.segmentation import segment as stage
from objtune_cli.segmentation.from_hints import Target
from objtune_cli.workflow.context import StageContext, StageResult


@dataclass(frozen=True, slots=True)
class PhotoOfObject:
    """A photo, the object in it with its hints, and the settings of `segment`."""

    path: Path
    target: Target
    config: Segment


def run(ctx: StageContext, photos: Sequence[PhotoOfObject]) -> list[StageResult]:
    """Segment the object in each photo; the masks are versions of one name.

    Raises:
        UsageError: One photo is named twice with different hints.
        InputError: As `stage.run`. GateError: A mask is unusable for training; names the photo.
    """
    results = []
    for each in drop_equal_photos(photos, ctx.report.note):
        try:
            results += stage.run(ctx, each.path, [each.target], each.config)
        except GateError as error:
            raise GateError(f"{each.path.name}: {error.message}", error.hint) from None
    return results


def drop_equal_photos(photos: Sequence[PhotoOfObject], note: Callable[[str], None]) -> list[PhotoOfObject]:
    """The photos without those whose files are equal to an earlier one, each of which is noted.

    Raises:
        UsageError: Equal photos have different hints.
    """
    by_digest: dict[str, PhotoOfObject] = {}
    for each in photos:
        first = by_digest.setdefault(photo.hash_file(each.path), each)
        if first is each:
            continue
        if (first.target, first.config) != (each.target, each.config):
            raise UsageError(
                f"{first.path} and {each.path} are the same photo with different hints", "give it once, with its hints"
            )
        note(f"{each.path} is the same photo as {first.path} and counts once")
    return list(by_digest.values())


def list_photos(folder: Path, note: Callable[[str], None]) -> list[Path]:
    """The photos in a folder by name, recognised by their suffixes; one note names other files. Hidden files are ignored.

    Raises:
        InputError: It contains no photo.
    """
    try:
        files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}", "check its owner and mode") from None
    photos = [path for path in files if path.suffix.lower() in formats.SUFFIXES and path.is_file()]
    others = [path.name for path in files if path not in photos]
    if not photos:
        raise InputError(f"{folder} is a folder without photos", f"give a folder of photos; {formats.READ_NAMES}")
    if others:
        listed = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        note(f"{folder}: {len(others)} of {len(files)} files are no photos and are skipped: {listed}")
    return photos
