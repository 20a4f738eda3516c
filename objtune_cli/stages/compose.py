"""`compose`: separately trained objects in one picture, each in its place."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.config import Generate, identifying
from objtune_cli.errors import InputError, UsageError
from objtune_cli.stages import generate, objects
from objtune_cli.stages.context import Context, Done, keep_picture, tools
from objtune_cli.store import pictures
from objtune_cli.store.artifact import Record

if TYPE_CHECKING:
    import numpy as np

Box = tuple[float, float, float, float]

PLACES: dict[str, Box] = {
    "left": (0.02, 0.25, 0.5, 0.95),
    "right": (0.5, 0.25, 0.98, 0.95),
    "center": (0.22, 0.25, 0.78, 0.9),
    "top": (0.2, 0.02, 0.8, 0.5),
    "bottom": (0.2, 0.5, 0.8, 0.98),
    "top-left": (0.02, 0.02, 0.5, 0.5),
    "top-right": (0.5, 0.02, 0.98, 0.5),
    "bottom-left": (0.02, 0.5, 0.5, 0.98),
    "bottom-right": (0.5, 0.5, 0.98, 0.98),
}
"""Named places as x0, y0, x1, y1, fractions of the picture."""


def place(text: str) -> tuple[str, Box]:
    """`rex=left` or `cup=0.55,0.4,0.95,0.9`.

    Raises:
        UsageError: Neither a named place nor a box inside the picture.
    """
    name, _, where = text.partition("=")
    if where in PLACES:
        return name, PLACES[where]
    try:
        box = tuple(float(v) for v in where.split(","))
    except ValueError:
        box = ()
    if not name or len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise UsageError(f"{text!r} is no place", f"`name=PLACE` with {', '.join(PLACES)}, or `name=x0,y0,x1,y1` in fractions of the picture")
    return name, (box[0], box[1], box[2], box[3])


def layout(file: Path) -> dict[str, Box]:
    """Places from a TOML file: `rex = "left"` or `cup = [0.55, 0.4, 0.95, 0.9]`, one a line.

    Raises:
        InputError: Not readable. UsageError: no place.
    """
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{file} is no readable layout: {error}", 'one line an object: `rex = "left"` or `cup = [0.55, 0.4, 0.95, 0.9]`') from None
    texts = [f"{k}={','.join(map(str, v)) if isinstance(v, list) else v}" for k, v in table.items()]
    return dict(place(text) for text in texts)


def proposed(names: list[str], given: dict[str, Box]) -> dict[str, Box]:
    """Places for the names that have none: side by side in the order of mention, where it is freest."""
    width = 1 / len(names)
    slots = [(i * width + 0.01, 0.25, (i + 1) * width - 0.01, 0.95) for i in range(len(names))]
    taken, found = list(given.values()), {}
    for name in (n for n in names if n not in given):
        best = min(slots, key=lambda slot: (sum(_overlap(slot, box) for box in taken), slot))
        slots.remove(best)
        taken.append(best)
        found[name] = best
    return found


def _overlap(a: Box, b: Box) -> float:
    """Shared area of two boxes."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def run(ctx: Context, prompt: str, places: dict[str, Box], config: Generate, out: Path | None = None) -> list[Done]:
    """Draw the prompt with each of its objects in its place.

    Raises:
        InputError: No object in the prompt, or a place for an object that it does not name.
    """
    found = objects.named(ctx, [prompt])
    if not found:
        raise InputError("the prompt names no trained object", 'for example `objtune compose "<rex> and <cup> on the beach" --place rex=left --place cup=right`')
    strangers = [name for name in places if name not in {o.name for o in found}]
    if strangers:
        raise InputError(f"the prompt does not mention <{strangers[0]}>", f"it mentions {', '.join(f'<{o.name}>' for o in found)}")
    free = proposed([o.name for o in found], places)
    if free:
        places = places | free
        ctx.report.note("placed by us: " + ", ".join(f"{n}={','.join(f'{v:.2f}' for v in box)}" for n, box in free.items()))
    config = replace(generate.suited(ctx, config), guidance_below=1.0)  # regions are drawn with and without prompt at every level
    classes = {o.name: o.record.objects[o.name] for o in found}
    settings = identifying(config) | {"prompt": prompt, "places": {n: list(b) for n, b in places.items()}}
    name = "-".join(classes)[:64].rstrip("-.")
    record = Record("scene", name, classes, objects.inputs(found), settings, ctx.base.record())
    done = generate.reuse(ctx, record, config, prompt) or _draw(ctx, record, found, places, config, prompt)
    return generate.copied([done], out, ctx)


def _draw(ctx: Context, record: Record, found: list[objects.Named], places: dict[str, Box], config: Generate, prompt: str) -> Done:
    import torch

    from objtune_cli.method import composition
    from objtune_cli.method.sampling import sample

    stack = ctx.stack()
    weights = {o.name: objects.tensors(ctx, o) for o in found}
    words = objects.add_words(stack, found, weights)
    text = words.expand(prompt)
    objects.check_length(ctx, stack, text)
    ids = stack.token_ids([text])
    placed = [composition.Placed(o.name, weights[o.name], places[o.name], words.positions(ids, o.name)[0]) for o in found]
    step = ctx.progress("compose")
    parts = []
    with composition.regional(stack, placed):
        guidance = max(config.guidance, 1.001)  # the regions need the half of the batch without prompt
        for seeds, on_step in generate.batches(config, step):
            parts.append(sample(stack, text, config.negative, seeds, config.steps, guidance, config.scheduler, on_step))
    done = generate.keep(ctx, stack, replace(record, tools=tools()), torch.cat(parts), config, prompt)
    keep_picture(ctx.root, done.ref, "layout.png", pictures.png(drawn_layout(places, stack.size)))
    return done


def drawn_layout(places: dict[str, Box], size: int) -> "np.ndarray":
    """The regions as coloured frames with their names, a square of at least 256 px, uint8."""
    import numpy as np
    from PIL import Image, ImageDraw

    side = max(256, size)
    image = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(image)
    for i, (name, box) in enumerate(places.items()):
        colour = ("#d62828", "#2a6fdb", "#2a9d4b", "#b8860b", "#7b3fb0")[i % 5]
        x0, y0, x1, y1 = (round(v * (side - 1)) for v in box)
        pen.rectangle((x0, y0, x1, y1), outline=colour, width=3)
        pen.text((x0 + 8, y0 + 8), name, fill=colour)
    return np.asarray(image)
