"""What all screens share: the project, its photos, the queue, and the models that find objects."""

import contextlib
import io
import itertools
import os
import re
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.errors import InputError, MissingError
from objtune_cli.images import formats, photo
from objtune_cli.segmentation.interactive import InteractivePhoto, ModelPool
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store
from objtune_cli.ui.command_lines import clean_text
from objtune_cli.ui.tasks import TaskQueue
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    import numpy as np

PHOTOS = "photos"
"""Folder of a project in which the page keeps uploaded photos, and masks that were made there."""
MASK_SUFFIX = ".mask.png"
OPEN_PHOTOS = 4
"""Photos whose pixels and embeddings stay in memory."""
_UNUSUAL = re.compile(r"[^\w.-]+")


@dataclass(slots=True)
class Workspace:
    """One running page.

    Attributes:
        ctx: Project, settings and base, as the command line resolves them.
        folder: The project's folder. shared: Words that every command line of a model ends with, such as `--base sd15`.
        project_words: Those of them that name the project, which every command takes.
        opened: Photos that the command line named, by the name under which the page shows them.
    """

    ctx: StageContext
    folder: Path
    queue: TaskQueue
    shared: tuple[str, ...] = ()
    project_words: tuple[str, ...] = ()
    opened: dict[str, Path] = field(default_factory=dict)
    _pool: ModelPool = field(default_factory=ModelPool)
    _opening: threading.Lock = field(default_factory=threading.Lock)
    _photos: dict[str, InteractivePhoto] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        """The project's artifacts."""
        return self.ctx.store

    @property
    def photos(self) -> Path:
        """The folder of uploaded photos; it need not exist yet."""
        return self.folder / PHOTOS

    def list_photos(self) -> list[str]:
        """Names of the photos, those of the command line first, the others by time, the newest first."""
        found: list[tuple[float, str]] = []
        with contextlib.suppress(OSError):
            for path in self.photos.iterdir():
                is_plain = path.name == clean_text(path.name)  # others cannot be told apart on the page
                if is_plain and path.suffix.lower() in formats.SUFFIXES and not path.name.endswith(MASK_SUFFIX):
                    with contextlib.suppress(InputError, OSError):
                        found.append((-self.locate_photo(path.name).stat().st_mtime, path.name))
        return [*self.opened, *(name for _, name in sorted(found) if name not in self.opened)]

    def locate_photo(self, name: str) -> Path:
        """The file of a photo that the command line named, or of one in the folder of photos.

        Raises:
            InputError: There is no such photo, or the name leads elsewhere.
        """
        if name in self.opened:
            return self.opened[name]
        path = self.photos / name
        if not name or name != path.name or name.startswith(".") or path.is_symlink() or not path.is_file():
            raise InputError(f"there is no photo {name!r}", "drop it on the page")
        return path

    def shorten(self, path: Path) -> str:
        """A path as a command line in the current folder names it."""
        text = os.path.relpath(path)
        text = text if not text.startswith("..") else str(path)
        return f"./{text}" if text.startswith("-") else text

    def add_photo(self, name: str, data: bytes) -> str:
        """Keep an uploaded photo if it is one; its name in the folder. Equal bytes of one name are kept once.

        Raises:
            InputError: As for a photo on the command line.
        """
        clean = _name_upload(name)
        self.photos.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.photos, prefix=".upload-") as file:
            file.write(data)
            file.flush()
            try:
                photo.read(Path(file.name))
            except InputError as error:
                raise InputError(error.message.replace(file.name, clean), error.hint) from None
        for number in range(1, 1000):
            parts = Path(clean)
            candidate = self.photos / (clean if number == 1 else f"{parts.stem}-{number}{parts.suffix}")
            try:
                with candidate.open("xb") as target:
                    target.write(data)
                return candidate.name
            except FileExistsError:
                if candidate.is_file() and candidate.stat().st_size == len(data) and candidate.read_bytes() == data:
                    return candidate.name
        raise InputError(f"there are too many photos called {clean}", "rename the file")

    def open_photo(self, name: str) -> InteractivePhoto:
        """A photo with its models; the last few stay in memory.

        Raises:
            InputError: There is no such photo.
        """
        path = self.locate_photo(name)
        with self._opening:
            opened = self._photos.pop(name, None)
            if opened is None or opened.path != path:
                opened = InteractivePhoto.open(self.ctx, path, self._pool)
            self._photos[name] = opened
            while len(self._photos) > OPEN_PHOTOS:
                del self._photos[next(iter(self._photos))]
            return opened

    def mask_path(self, name: str, object_name: str) -> Path:
        """The file of the mask of an object in a photo."""
        return self.photos / f"{_clean_name(Path(name).stem)}-{_clean_name(object_name)}{MASK_SUFFIX}"

    def locate_mask(self, name: str) -> Path:
        """The file of a mask that the page saved.

        Raises:
            InputError: There is no such mask, or the name leads elsewhere.
        """
        path = self.photos / name
        if name != path.name or not name.endswith(MASK_SUFFIX) or path.is_symlink() or not path.is_file():
            raise InputError(f"there is no mask {name!r}", "find the object again")
        return path

    def save_mask(self, name: str, object_name: str, mask: "np.ndarray") -> Path:
        """Write the mask (H, W) uint8 of an object in a photo; a later one replaces it."""
        from PIL import Image

        self.photos.mkdir(parents=True, exist_ok=True)
        path = self.mask_path(name, object_name)
        out = io.BytesIO()
        Image.fromarray(mask).save(out, "PNG")
        unfinished = path.with_name(f".{path.name}.unfinished")
        unfinished.write_bytes(out.getvalue())
        unfinished.replace(path)
        return path

    def find_image(self, ref: Ref, name: str) -> Path:
        """The file of an image beside an artifact.

        Raises:
            MissingError: There is none.
        """
        path = next((path for path in self.store.list_images(ref) if path.name == name), None)
        if path is None:
            raise MissingError(f"{ref} has no image {name!r}", f"`objtune show {ref}` lists them")
        return path


def name_opened(paths: Sequence[Path]) -> dict[str, Path]:
    """Photos of the command line by the names under which the page shows them.

    A name is what a reader sees of the file's name, with a number behind it where that is not the only one.
    """
    opened: dict[str, Path] = {}
    for path in paths:
        clean = Path(clean_text(path.name) or "photo")
        names = (f"{clean.stem}-{number}{clean.suffix}" for number in itertools.count(2))
        opened[next(name for name in itertools.chain([clean.name], names) if name not in opened)] = path
    return opened


def _clean_name(name: str) -> str:
    """A file name of letters, digits, dots and dashes; the last part of what a browser sends."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return _UNUSUAL.sub("-", last).strip(".-")[-100:] or "photo"


def _name_upload(name: str) -> str:
    """The name of an uploaded file; one without an ending of photos gets one, since programs read photos by content."""
    clean = _clean_name(name)
    return clean if Path(clean).suffix.lower() in formats.SUFFIXES else f"{clean}.jpg"


def share_options(options: Sequence[tuple[str, object]]) -> tuple[str, ...]:
    """The words of options that the user gave to `objtune ui` and that every command line repeats."""
    return tuple(
        word for option, value in options if value for word in ([option] if value is True else [option, str(value)])
    )
