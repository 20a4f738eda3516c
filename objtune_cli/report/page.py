"""Renders the contents of a report as one HTML file."""

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from objtune_cli.errors import ResourceError
from objtune_cli.report import charts
from objtune_cli.report.contents import Contents, Image, Scene, TrainedObject
from objtune_cli.store.store import Store
from objtune_cli.version import __version__

WIDE, SMALL = 1400, 320
"""Longest side of a sheet, and of an image in the gallery, px."""
QUALITY = 82
IMAGES_PER_PAGE = 96
"""Images of one page of the gallery; the browser makes the images of a page when it is opened."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """An image as a data address, with its size for the layout."""

    address: str
    width: int
    height: int
    title: str
    parameters: str = ""


def render(store: Store, contents: Contents) -> Iterator[str]:
    """Render the page in parts, in order.

    Raises:
        ResourceError: A package of the extra `report` is not installed.
    """
    try:
        import jinja2
    except ImportError:
        raise ResourceError("a report needs other packages", "`pip install 'objtune[report]'`") from None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("objtune_cli.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.get_template("report.html")
    pages = paginate(contents.scenes)
    texts = {name: _resource(name) for name in ("report.css", "report.js")}
    yield from template.generate(
        contents=contents,
        objects=(_describe_object(store, each) for each in contents.objects),
        pages=(_to_json([_describe_scene(store, scene) for scene in page]) for page in pages),
        num_pages=len(pages),
        num_images=sum(len(scene.images) for scene in contents.scenes),
        css=texts["report.css"],
        js=texts["report.js"],
        version=__version__,
    )


def paginate(scenes: Sequence[Scene]) -> list[list[Scene]]:
    """Distribute scenes over pages of at most `IMAGES_PER_PAGE`; a scene with more images is continued on the next page."""
    pages: list[list[Scene]] = []
    room = 0
    for scene in scenes:
        for start in range(0, max(1, len(scene.images)), IMAGES_PER_PAGE):
            part = replace(scene, images=scene.images[start : start + IMAGES_PER_PAGE])
            if len(part.images) > room or not pages:
                pages.append([])
                room = IMAGES_PER_PAGE
            pages[-1].append(part)
            room -= len(part.images)
    return pages


def _describe_object(store: Store, each: TrainedObject) -> dict[str, Any]:
    history = each.history
    return {
        "object": each,
        "images": [embed(store, image, WIDE) for image in each.images],
        "losses": charts.draw_losses(history) if history and history["steps"] > 1 else "",
        "seconds": history.get("seconds", {}) if history else {},
        "steps": history["steps"] if history else each.record.metrics.get("steps"),
        "decay_start": charts.decay_start(history) if history else 0,
        "settings": sorted(each.record.config.items()),
    }


def _describe_scene(store: Store, scene: Scene) -> dict[str, Any]:
    images = [embed(store, image, SMALL) for image in scene.images]
    layout = [embed(store, scene.layout, SMALL)] if scene.layout else []
    return {
        "ref": str(scene.record.ref),
        "prompt": scene.prompt,
        "command": scene.command,
        "images": [[e.address, e.width, e.height, e.title, e.parameters] for e in (*layout, *images)],
    }


def embed(store: Store, image: Image, side: int) -> Embedded:
    """Read an image of the store as WebP of at most `side` px."""
    from PIL import Image as Pillow

    with Pillow.open(io.BytesIO(store.backend.read(image.key))) as opened:
        parameters = str(opened.info.get("parameters", ""))
        picture = opened.convert("RGB")
    picture.thumbnail((side, side), Pillow.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=QUALITY)
    address = "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
    return Embedded(address, *picture.size, image.title, parameters)


def _to_json(value: Any) -> str:
    """JSON that is safe within a `<script>` element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")


def _resource(name: str) -> str:
    return (resources.files("objtune_cli.report") / "templates" / name).read_text(encoding="utf-8")
