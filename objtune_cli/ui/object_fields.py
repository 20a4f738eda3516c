"""The fields of the objects that one training learns: for each its photos, class and name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from nicegui import ui

from objtune_cli.store import refs
from objtune_cli.ui import parts
from objtune_cli.ui.command_lines import TrainingObject, TrainingPhoto, clean_text
from objtune_cli.ui.workspace import Workspace


@dataclass(slots=True)
class Wanted:
    """An object as an address of the screen names it.

    Attributes:
        masks: Photo to the mask that was made for it, "" for none.
    """

    class_word: str = ""
    name: str = ""
    masks: dict[str, str] = field(default_factory=dict)


def group_wanted(
    photos: Sequence[str], masks: Sequence[str], classes: Sequence[str], names: Sequence[str]
) -> list[Wanted]:
    """The objects of an address: photos of one class and name are of one object; a missing class or name is the last."""
    objects: dict[tuple[str, str], Wanted] = {}
    for i, photo in enumerate(photos):
        class_word, name = (clean_text(each[min(i, len(each) - 1)]) if each else "" for each in (classes, names))
        wanted = objects.setdefault((class_word, name), Wanted(class_word, name))
        wanted.masks[photo] = masks[i] if i < len(masks) else ""
    class_word, name = (clean_text(each[0]) if each else "" for each in (classes, names))
    return list(objects.values()) or [Wanted(class_word, name)]


class ObjectFields:
    """Fields of one object."""

    def __init__(self, known: list[str], wanted: Wanted, on_change: Callable[[], None]) -> None:
        self.masks = {photo: mask for photo, mask in wanted.masks.items() if photo in known}
        options = {name: clean_text(name) for name in known}
        self.photos = ui.select(options, multiple=True, label="Photos", value=list(self.masks), on_change=on_change)
        self.photos.props("outlined dense use-chips").classes("grow")
        self.word = parts.field("Class, for example dog", wanted.class_word, on_change=on_change)
        self.name = parts.field("Name (optional)", wanted.name, on_change=on_change)

    @property
    def class_word(self) -> str:
        return clean_text(self.word.value or "")

    @property
    def object_name(self) -> str:
        """The typed name, else the one that the command makes of the class."""
        return clean_text(self.name.value or "") or refs.make_name(self.class_word or "object")

    @property
    def is_complete(self) -> bool:
        return bool(self.photos.value and self.class_word)

    def read(self, workspace: Workspace) -> TrainingObject:
        """The object for the command line.

        Raises:
            InputError: A photo or mask is not there any more.
        """
        photos = [
            TrainingPhoto(
                workspace.shorten(workspace.locate_photo(photo)),
                workspace.shorten(workspace.locate_mask(mask)) if (mask := self.masks.get(photo, "")) else "",
            )
            for photo in self.photos.value
        ]
        return TrainingObject(photos, self.class_word, clean_text(self.name.value or ""))


class ObjectList:
    """The objects of one training; the first is always there."""

    def __init__(self, known: list[str], wanted: Sequence[Wanted], on_change: Callable[[], None]) -> None:
        self.known, self.on_change = known, on_change
        self.objects: list[ObjectFields] = []
        self.place = ui.element("div").classes("objects")
        for each in wanted:
            self.add(each)
        parts.button("Add an object", lambda: self._change(self.add), "bare").props("dense")

    def add(self, wanted: Wanted | None = None) -> None:
        """Add the fields of an object."""
        number = len(self.objects) + 1
        with self.place, ui.element("div").classes("object-fields").props('role="group"') as group:
            group.props["aria-label"] = f"Object {number}"
            fields = ObjectFields(self.known, wanted or Wanted(), self.on_change)
            self.objects.append(fields)
            if number > 1:
                remove = partial(self._change, lambda: self._remove(fields, group))
                parts.icon_button("close", f"Leave out object {number}", remove)

    def _remove(self, fields: ObjectFields, group: ui.element) -> None:
        self.objects.remove(fields)
        group.delete()

    def _change(self, change: Callable[[], None]) -> None:
        change()
        self.on_change()

    def find_problem(self) -> str:
        """What is missing, in words; "" where the objects are complete."""
        if not all(each.is_complete for each in self.objects):
            return "Choose a photo and type the class of the object in it."
        names = [each.object_name for each in self.objects]
        twice = next((name for name in names if names.count(name) > 1), "")
        return f"Two objects have the name {twice}: type a name for each." if twice else ""

    def describe_masks(self) -> str:
        """How the objects are found in the photos, in words."""
        photos = [each.masks.get(photo, "") for each in self.objects for photo in each.photos.value]
        masked = sum(map(bool, photos))
        if masked == len(photos):
            return "The masks are those of the screen Find."
        by_class = "The class word finds the object" + (" in the photo" if len(photos) == 1 else "")
        if not masked:
            return f"{by_class}."
        return f"{masked} of {len(photos)} photos have a mask of the screen Find; {by_class.lower()} in the others."
