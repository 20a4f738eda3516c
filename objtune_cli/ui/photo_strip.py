"""Small pictures of photos, which open them."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import quote

from nicegui import ui

from objtune_cli.ui import parts
from objtune_cli.ui.command_lines import clean_text
from objtune_cli.ui.hints import PhotoHints

MAX_KNOWN = 24
"""Photos of a project that are offered, the newest."""


def address_of(name: str) -> str:
    """The address of a photo."""
    return f"/files/photo/{quote(name, safe='')}"


def thumbnail(name: str, open_photo: Callable[[str], Awaitable[None]]) -> ui.element:
    """A button with a small picture, which opens a photo."""
    with ui.element("button").classes("thumb").props('type="button"').on("click", lambda: open_photo(name)) as button:
        button.props["aria-label"] = f"Open {clean_text(name)}"
        parts.picture(address_of(name), "")
    return button


def show_known_photos(names: Sequence[str], open_photo: Callable[[str], Awaitable[None]]) -> None:
    """Show the newest photos of a project behind a heading."""
    if not names:
        return
    heading = ui.expansion(f"Photos of this project ({len(names)})").classes("faint-box")
    with heading, ui.element("div").classes("strip"):
        for name in names[:MAX_KNOWN]:
            thumbnail(name, open_photo)


class PhotoStrip:
    """The photos of a screen, once there are several: which is shown, and which have a mask that is usable."""

    def __init__(self, photos: Mapping[str, PhotoHints], open_photo: Callable[[str], Awaitable[None]]) -> None:
        self.photos, self.open_photo = photos, open_photo
        self.place = ui.element("div").classes("strip")
        self.buttons: dict[str, ui.element] = {}

    def show(self, current: str) -> None:
        """Show the photos as they are now; buttons stay, so that the keyboard's focus does too."""
        for name, each in self.photos.items() if len(self.photos) > 1 else ():
            if name not in self.buttons:
                with self.place:
                    self.buttons[name] = thumbnail(name, self.open_photo)
            button = self.buttons[name]
            button.classes(replace=f"thumb {'usable' if each.is_usable else ''} {'current' if name == current else ''}")
            button.props["aria-label"] = f"Open {clean_text(name)}" + (": the mask is usable" if each.is_usable else "")
            button.update()
