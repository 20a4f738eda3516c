"""A picture that takes clicks, strokes and boxes from mouse, pen and finger, and shows shapes above itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nicegui import ui

NO_ALT = "() => document.querySelectorAll('.nicegui-content img:not([alt])').forEach((image) => { image.alt = '' })"
"""NiceGUI's pictures have no text of their own."""
FORWARD = "(e) => { if (e.mouse_event_type !== 'pointermove' || e.buttons) emit(e) }"
"""Moves without a pressed button stay in the browser."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """One report of the pointer, in pixels of the picture.

    Attributes:
        is_second: Whether it was the right button, or the Shift key was held.
    """

    kind: Literal["down", "move", "up"]
    x: float
    y: float
    is_second: bool


class Canvas:
    """A picture of a fixed size in pixels, with a layer of SVG shapes."""

    def __init__(
        self, size: tuple[int, int], handle: Callable[[Pointer], Any], *, source: str = "", label: str
    ) -> None:
        self.size = size
        self.element = ui.interactive_image(
            source, size=None if source else size, events=["pointerdown", "pointermove", "pointerup"]
        ).classes("canvas")
        describe(self.element, label)

        def receive(event: Any) -> Any:
            args = event.args
            kind = str(args.get("mouse_event_type", "")).removeprefix("pointer")
            if kind in ("down", "move", "up"):
                x, y = (
                    min(max(float(args[key]), 0.0), side)
                    for key, side in zip(("image_x", "image_y"), self.size, strict=True)
                )
                is_second = bool(args.get("shiftKey")) or args.get("button") == 2 or args.get("buttons") == 2
                return handle(Pointer(kind, x, y, is_second))  # type: ignore[arg-type]
            return None

        self.element.on("mouse", receive, js_handler=FORWARD)
        self.element.on("contextmenu", js_handler="(e) => e.preventDefault()")

    def resize(self, size: tuple[int, int]) -> None:
        """Change the size of a canvas without a picture."""
        self.size = size
        self.element.props["size"] = size
        self.element.update()

    def show(self, source: str, size: tuple[int, int], label: str) -> None:
        """Replace the picture, and take its shapes away."""
        self.size = size
        self.element.props["aria-label"] = label
        self.element.set_content("")
        self.element.set_source(source)

    def draw(self, shapes: str) -> None:
        """Show shapes: SVG elements in pixels of the picture."""
        self.element.set_content(shapes)


def describe(element: ui.interactive_image, label: str) -> None:
    """Name a picture for those who do not see it; the image inside it is a part of it."""
    element.props["aria-label"] = label
    element.props('role="img"')
    element.on("loaded", js_handler=NO_ALT)
    ui.run_javascript(f"(({NO_ALT}))()")


def rectangle(box: tuple[float, float, float, float], colour: str, width: float, *, fill: float = 0.0) -> str:
    """A box x0, y0, x1, y1 as SVG."""
    x0, y0, x1, y1 = box
    return (
        f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" fill="{colour}" fill-opacity="{fill:g}" '
        f'stroke="{colour}" stroke-width="{width:.1f}" />'
    )


def dot(x: float, y: float, colour: str, radius: float) -> str:
    """A point with a white rim, as SVG."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}" stroke="white" stroke-width="{radius / 3:.1f}" />'


def path(points: Sequence[tuple[float, float]], colour: str, width: float) -> str:
    """A brush stroke as SVG."""
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-opacity="0.6" stroke-width="{width:.1f}" '
        'stroke-linecap="round" stroke-linejoin="round" />'
    )
