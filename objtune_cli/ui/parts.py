"""Parts of every screen: the frame with its navigation, headings, command lines to copy, and messages."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any, Literal, Self

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from objtune_cli.errors import ObjtuneError
from objtune_cli.ui import command_lines
from objtune_cli.ui.command_lines import clean_text
from objtune_cli.ui.workspace import Workspace

SCREENS = (
    ("/", "Find", "search"),
    ("/learn", "Learn", "model_training"),
    ("/draw", "Draw", "brush"),
    ("/compose", "Compose", "dashboard"),
    ("/library", "Library", "photo_library"),
)
"""Address, name and icon of each screen."""


class PlainText(TextElement):
    """An element with plain text on one line, such as a heading; characters that cannot be seen are left out."""

    def __init__(self, tag: str, content: object) -> None:
        super().__init__(tag=tag, text=clean_text(content))

    def set_text(self, text: object) -> Self:
        """Replace the text."""
        return super().set_text(clean_text(text))


def text(tag: str, content: object, classes: str = "") -> PlainText:
    """An element with plain text, such as a heading."""
    return PlainText(tag, content).classes(classes)


@contextlib.contextmanager
def frame(workspace: Workspace, address: str) -> Iterator[None]:
    """The frame of a screen: a link past the navigation, the navigation, and the main part."""
    name = next(title for each, title, _ in SCREENS if each == address)
    ui.page_title(f"{name} · objtune")
    ui.colors(primary="#1d4ed8", secondary="#475569", accent="#1d4ed8", positive="#15803d", negative="#b91c1c")
    with ui.header(wrap=False).classes("top"), ui.element("div").classes("top-inner"):
        text("a", "Skip to content", "skip").props('href="#content"')
        text("a", "objtune", "brand").props('href="/"')
        with ui.element("nav").props('aria-label="Screens"'):
            for each, title, icon in SCREENS:
                with ui.element("a").props(f'href="{each}"') as link:
                    if each == address:
                        link.props('aria-current="page"')
                    ui.icon(icon).props('aria-hidden="true"')
                    text("span", title)
        _show_activity(workspace)
    with (
        ui.element("div").classes("screen").props('id="content" tabindex="-1"')
    ):  # Quasar's page is the `main` around it
        yield


def _show_activity(workspace: Workspace) -> None:
    """How many commands run and wait, as a link to them."""
    with ui.element("span").classes("activity").props('role="status"'):
        link = text("a", "", "").props('href="/learn#queue"')

    def refresh() -> None:
        active = [task for task in workspace.queue.tasks if task.is_active]
        link.set_text(f"{len(active)} in the queue" if active else "")
        link.set_visibility(bool(active))

    refresh()
    ui.timer(2.0, refresh)


def describe_project(workspace: Workspace) -> str:
    """The project and its base model, for a line below a heading."""
    return f"{workspace.folder} · base {workspace.ctx.common.base}"


class CommandLine:
    """The command line of a screen, with a button that copies it."""

    def __init__(self, label: str = "The same on the command line") -> None:
        self.words: list[str] = []
        with ui.element("section").classes("command").props(f'aria-label="{label}"'):
            text("span", label, "command-label")
            with ui.element("div").classes("command-row"):
                self._code = ui.html("", tag="code", sanitize=False)  # words are escaped; lines break between them
                button("Copy", self._copy, "bare").props("dense")

    def show(self, words: Sequence[str]) -> None:
        """Show a command line, given by its words after `objtune`."""
        self.words = list(words)
        shown = (f'<span class="word">{escape(clean_text(word))}</span>' for word in command_lines.show_words(words))
        self._code.set_content(" ".join(shown))

    def _copy(self) -> None:
        ui.clipboard.write(command_lines.show(self.words))
        ui.notify("Copied")


def explain(error: ObjtuneError | str) -> None:
    """Show why something was refused, as the command line would."""
    message = error if isinstance(error, str) else ". ".join(part for part in (error.message, error.hint) if part)
    ui.notify(clean_text(message), type="negative", multi_line=True, timeout=10_000, close_button="Close")


def button(
    label: str, on_click: Callable[[], Any], kind: Literal["main", "plain", "bare", "danger"] = "plain"
) -> ui.button:
    """A button: filled for what the screen is for, framed, without a frame, or in the colour of what cannot be undone."""
    color = {"main": "primary", "danger": "negative"}.get(kind)
    shape = {"plain": "outline", "bare": "flat"}.get(kind, "unelevated")
    return ui.button(label, on_click=on_click, color=color).props(f"{shape} no-caps").classes(f"{kind}-button")


def dialog(name: str) -> ui.dialog:
    """A dialog with a name for those who do not see its heading."""
    element = ui.dialog()
    element.props["aria-label"] = clean_text(name)
    return element


def icon_button(icon: str, label: str, on_click: Callable[[], Any]) -> ui.button:
    """A button with a picture, and a label for those who do not see it."""
    element = ui.button(icon=icon, on_click=on_click, color=None).props("flat dense round").classes("bare-button")
    element.props["aria-label"] = label
    return element


def field(label: str, value: str = "", *, on_change: Callable[[], Any] | None = None) -> ui.input:
    """A field for one line of text."""
    return ui.input(label, value=value, on_change=on_change).props("outlined dense")


def number(
    label: str,
    value: float | None,
    *,
    low: float,
    high: float,
    step: float = 1,
    on_change: Callable[[], Any] | None = None,
) -> ui.number:
    """A field for a number; empty where the settings decide."""
    return ui.number(label, value=value, min=low, max=high, step=step, on_change=on_change).props("outlined dense")


def picture(address: str, description: str, classes: str = "") -> ui.element:
    """An image with its description, loaded when it comes into view."""
    element = ui.element("img").classes(classes)
    element.props["src"], element.props["alt"] = address, clean_text(description)
    return element.props('loading="lazy" decoding="async"')


def link(label: str, address: str, classes: str = "") -> PlainText:
    """A link to another screen or a file."""
    element = text("a", label, classes)
    element.props["href"] = address
    return element
