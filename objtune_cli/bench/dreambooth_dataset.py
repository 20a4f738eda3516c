"""A folder in the layout of DreamBooth's data set: subjects with their photos, classes and prompts.

Source: `dataset/` of github.com/google/dreambooth, which arXiv:2208.12242 (section 4.1) describes. Loads no model.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from objtune_cli.errors import InputError, UsageError
from objtune_cli.images import mask_image as mask
from objtune_cli.images import photo
from objtune_cli.store.refs import check_name
from objtune_cli.store.regular_files import open_regular
from objtune_cli.workflow.prompt_text import clean_prompt

LISTING = "prompts_and_classes.txt"
"""File with the table of subjects and classes, and both lists of prompts."""
TOKEN_AND_CLASS = "{0} {1}"
"""Marks the position of placeholder and class word in a prompt."""
MASK_SUFFIX = ".mask.png"
"""Suffix of the mask of a photo, 00.mask.png beside 00.jpg; not part of the data set."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
HEADINGS = {"classes": "classes", "object prompts": "objects", "live subject prompts": "live"}
MAX_BYTES = 1 << 20
ADVICE = "give the folder `dataset` of DreamBooth's data set, or one in its layout: docs/how-to/evaluate.md"
_PROMPT = re.compile(r"""\s*(['"])(?P<text>.+)\1\s*(\.format\(.*\))?\s*,?\s*""")


@dataclass(frozen=True, slots=True)
class DreamBoothSubject:
    """One subject.

    Attributes:
        kind: Class word.
        photos: All its photos by name, each with the digest of its bytes.
        train_photo: The photo that is trained on.
        mask: Mask image of that photo, or None.
        prompts: With `TOKEN_AND_CLASS` for the object.
    """

    name: str
    kind: str
    photos: tuple[tuple[Path, str], ...]
    train_photo: Path
    mask: Path | None
    prompts: tuple[str, ...]

    def prompts_for(self, thing: str) -> list[str]:
        """The prompts with `thing` for the object."""
        return [text.replace(TOKEN_AND_CLASS, thing) for text in self.prompts]


def read_subjects(folder: Path, count: int | None, photo_name: str, live: tuple[str, ...]) -> list[DreamBoothSubject]:
    """Read the first `count` subjects of the table, or all, and decode each of their photos once.

    Args:
        photo_name: Name of the photo to train on, with or without suffix; "" for the first by name.
        live: Classes of live subjects.

    Raises:
        InputError: The folder has another layout, or a photo is unusable; names the file.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder", ADVICE)
    classes, prompts = _read_listing(folder / LISTING)
    strays = [
        p.name for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".") and p.name not in classes
    ]
    if strays:
        raise InputError(
            f"{folder / LISTING} has no class for {strays[0]}", f"add the line `{strays[0]},WORD` to its table"
        )
    subjects = [
        _read_subject(folder, name, kind, prompts, photo_name, live) for name, kind in list(classes.items())[:count]
    ]
    for subject in subjects:
        for path, _ in subject.photos:
            decoded = photo.read(path)
            if subject.mask and path == subject.train_photo:
                mask.read(subject.mask, decoded)
    return subjects


def _read_subject(
    folder: Path, name: str, kind: str, prompts: dict[str, list[str]], photo_name: str, live: tuple[str, ...]
) -> DreamBoothSubject:
    place = folder / name
    here = sorted(p for p in place.iterdir() if _is_photo(p)) if place.is_dir() else []
    if not here:
        raise InputError(f"{place} has no photo", f"put its photos there, or remove {name} from {folder / LISTING}")
    learned = next((p for p in here if not photo_name or photo_name in (p.name, p.stem)), None)
    if learned is None:
        raise InputError(f"{place} has no photo {photo_name}", f"it has {', '.join(p.name for p in here)}")
    way = "live" if kind in live else "objects"
    if not prompts[way]:
        heading = next(heading for heading, part in HEADINGS.items() if part == way)
        raise InputError(f"{folder / LISTING} has no prompt under `{heading.title()}` for {name}", ADVICE)
    mask = learned.with_name(learned.stem + MASK_SUFFIX)
    return DreamBoothSubject(
        name,
        kind,
        tuple((p, photo.hash_file(p)) for p in here),
        learned,
        mask if mask.is_file() else None,
        tuple(prompts[way]),
    )


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.name.endswith(MASK_SUFFIX)


def _read_listing(file: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Read the classes by subject, and the prompts of `objects` and of `live` subjects.

    Raises:
        InputError: The file does not exist or has another format.
    """
    classes: dict[str, str] = {}
    prompts: dict[str, list[str]] = {"objects": [], "live": []}
    part = ""
    for number, line in _read_lines(file):
        heading = line.strip().rstrip(":").lower()
        if heading in (*HEADINGS, "prompts"):
            part = HEADINGS.get(heading, "")
        elif part == "classes" and "," in line:
            name, kind = (text.strip() for text in line.split(",", 1))
            if (name, kind) != ("subject_name", "class"):
                classes[_check_subject_name(name, f"{file}, line {number}")] = _check_class_word(
                    kind, name, f"{file}, line {number}"
                )
        elif part in prompts and (match := _PROMPT.fullmatch(line)):
            if TOKEN_AND_CLASS not in match["text"]:
                raise InputError(
                    f"{file}, line {number}: no `{TOKEN_AND_CLASS}` in the prompt",
                    "every prompt contains token and class word",
                )
            prompts[part].append(clean_prompt(match["text"], f"the prompt in {file}, line {number},"))
    if not classes:
        raise InputError(f"{file} has no subject and class", "write a line such as `dog2,dog` for each below `Classes`")
    if not any(prompts.values()):
        raise InputError(f"{file} has no prompt", "below `Object Prompts` a line for each: `'a {0} {1} in the jungle'`")
    return classes, prompts


def _read_lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        with open_regular(file) as stream:
            text = stream.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise InputError(f"{file} has more than {MAX_BYTES >> 20} MiB", ADVICE)
        return iter(enumerate(text.decode("utf-8-sig").splitlines(), 1))
    except FileNotFoundError:
        raise InputError(f"there is no file {file}", ADVICE) from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or 'not a regular file'}", ADVICE) from None
    except UnicodeDecodeError:
        raise InputError(f"{file} is not UTF-8 text", ADVICE) from None


def _check_subject_name(name: str, where: str) -> str:
    try:
        return check_name(name)
    except UsageError as error:
        raise InputError(f"{where}: {error.message}", error.hint) from None


def _check_class_word(kind: str, name: str, where: str) -> str:
    if not kind or not kind.isprintable():
        raise InputError(f"{where}: {name} has no class", "a line is `dog2,dog`")
    return kind
