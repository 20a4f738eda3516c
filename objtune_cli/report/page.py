"""Renders the contents of a report as one HTML file."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib import resources
from typing import Any

from objtune_cli.errors import ResourceError
from objtune_cli.report import bench_section, charts, lineage, thumbnails
from objtune_cli.report.contents import Contents, Scene, TrainedObject
from objtune_cli.report.plain_text import clean_values, remove_unseen
from objtune_cli.report.thumbnails import Thumbnail
from objtune_cli.store.store import Store
from objtune_cli.version import __version__

IMAGES_PER_PAGE = 96
"""Images of one page of the gallery; the browser makes the images of a page when it is opened."""
MAX_JOBS = 1000
"""Jobs on the page that did not fail; all that failed are there."""


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
        loader=jinja2.PackageLoader("objtune_cli.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: remove_unseen(value) if type(value) is str else value,
    )
    environment.globals.update(node_width=lineage.WIDTH, node_height=lineage.HEIGHT)
    pages = paginate(contents.scenes)
    num_images = sum(len(scene.images) for scene in contents.scenes)
    failed_jobs = [job for job in contents.jobs if job.get("code")]
    other_jobs = [job for job in contents.jobs if not job.get("code")]
    yield from environment.get_template("report.html").generate(
        contents=contents,
        objects=(_describe_object(store, each) for each in contents.objects),
        bench=bench_section.describe(contents.bench) if contents.bench else None,
        pages=(_to_json(page) for page in _describe_pages(store, pages, num_images)),
        scene_index=_to_json([[number, scene.prompt] for number, page in enumerate(pages) for scene in page]),
        num_pages=len(pages),
        num_images=num_images,
        jobs=failed_jobs + other_jobs[:MAX_JOBS],
        job_states=Counter(str(job["state"]) for job in contents.jobs).most_common(),
        failed_jobs=len(failed_jobs),
        to_json=_to_json,
        css=_resource("report.css"),
        js=_resource("report.js"),
        version=__version__,
    )


def paginate(scenes: Sequence[Scene]) -> list[list[Scene]]:
    """Distribute scenes over pages of at most `IMAGES_PER_PAGE`; a scene with more images is continued on the next page."""
    pages: list[list[Scene]] = []
    room = 0
    for scene in scenes:
        for start in range(0, max(1, len(scene.images)), IMAGES_PER_PAGE):
            part = slice(start, start + IMAGES_PER_PAGE)
            piece = replace(scene, images=scene.images[part], problems=scene.problems[part])
            if len(piece.images) > room or not pages:
                pages.append([])
                room = IMAGES_PER_PAGE
            pages[-1].append(piece)
            room -= len(piece.images)
    return pages


def _describe_object(store: Store, each: TrainedObject) -> dict[str, Any]:
    history = each.history
    has_curves = history is not None and history["steps"] > 1
    sheets = [
        (image, thumbnails.make_thumbnail(partial(store.backend.read, image.key), thumbnails.SHEET))
        for image in each.images
    ]
    return {
        "object": each,
        "sheets": sheets,
        "charts": list(filter(None, (charts.draw_losses(history), charts.draw_sample_scores(history))))
        if history and has_curves
        else [],
        "seconds": history.get("seconds", {}) if history else {},
        "steps": history["steps"] if history else each.record.metrics.get("steps"),
        "decay_start": charts.decay_start(history) if history else 0,
        "settings": sorted(each.record.config.items()),
        "drawings": [(name, lineage.arrange(each.lineage, is_wide=name == "wide")) for name in ("wide", "tall")],
    }


def _describe_pages(store: Store, pages: Sequence[Sequence[Scene]], num_images: int) -> Iterator[list[dict[str, Any]]]:
    """The scenes of each page with their images."""
    side = thumbnails.MANY_IMAGE if num_images > thumbnails.MANY else thumbnails.IMAGE
    groups: Iterator[list[Callable[[], bytes]]] = (
        [partial(store.backend.read, image.key) for scene in page for image in scene.images] for page in pages
    )
    for page, made in zip(pages, thumbnails.make_thumbnails(groups, side), strict=True):
        rest = iter(made)
        yield [_describe_scene(scene, [next(rest) for _ in scene.images]) for scene in page]


def _describe_scene(scene: Scene, made: Sequence[Thumbnail]) -> dict[str, Any]:
    problems = scene.problems or ("",) * len(made)
    return {
        "ref": str(scene.record.ref),
        "prompt": scene.prompt,
        "command": scene.command,
        "objects": [str(ref) for ref in lineage.adapters_of(scene.record)],
        "boxes": [[each.name, each.colour, *(round(value, 4) for value in each.box)] for each in scene.boxes],
        "images": [
            [each.address, each.width, each.height, image.title, each.parameters, problem]
            for each, image, problem in zip(made, scene.images, problems, strict=True)
        ],
    }


def _to_json(value: Any) -> str:
    """JSON that is safe within a `<script>` element."""
    text = json.dumps(clean_values(value), separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("&", "\\u0026")


def _resource(name: str) -> str:
    return (resources.files("objtune_cli.report") / "templates" / name).read_text(encoding="utf-8")
