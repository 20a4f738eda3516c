"""`compose`: separately trained objects in one picture, each in its place."""

from dataclasses import replace
from pathlib import Path

from objtune_cli.config import Compose, Generate, identifying
from objtune_cli.errors import InputError
from objtune_cli.stages import generate, layout, objects
from objtune_cli.stages.context import Context, Done, keep_picture, tools
from objtune_cli.stages.layout import Box, Layout
from objtune_cli.store import pictures
from objtune_cli.store.artifact import Record


def run(ctx: Context, prompt: str, places: dict[str, Box], config: Generate, how: Compose, out: Path | None = None) -> list[Done]:
    """Draw the prompt with each of its objects in its place.

    Raises:
        InputError: No object in the prompt, or a place for an object that it does not name.
        UsageError: One place for two objects.
    """
    found = objects.named(ctx, [prompt])
    if not found:
        raise InputError("the prompt names no trained object", 'for example `objtune compose "<rex> and <cup> on the beach" --place rex=left --place cup=right`')
    names = [o.name for o in found]
    layout.check(places, names)
    laid = layout.proposed(prompt, names, places, {o.name: objects.shape(ctx, o) for o in found})
    free = [n for n in names if n not in places]
    if free:
        ctx.report.note("placed by us: " + ", ".join(f"{n}={','.join(f'{v:.2f}' for v in laid.boxes[n])}" for n in free))
    config = replace(generate.suited(ctx, config), guidance_below=1.0)  # regions are drawn with and without prompt at every level
    classes = {o.name: o.record.objects[o.name] for o in found}
    settings = identifying(config) | identifying(how) | {"prompt": prompt, "places": {n: list(b) for n, b in laid.boxes.items()}}
    if laid.order != names:
        settings["order"] = laid.order
    if (laid.wide, laid.high) != (1.0, 1.0):
        settings["frame"] = [laid.wide, laid.high]
    name = "-".join(classes)[:64].rstrip("-.")
    record = Record("scene", name, classes, objects.inputs(found), settings, ctx.base.record())
    done = generate.reuse(ctx, record, config, prompt) or _draw(ctx, record, found, laid, config, how, prompt)
    return generate.copied([done], out, ctx)


def _draw(ctx: Context, record: Record, found: list[objects.Named], laid: Layout, config: Generate, how: Compose, prompt: str) -> Done:
    import torch

    from objtune_cli.method import composition
    from objtune_cli.method.sampling import sample

    stack = ctx.stack()
    weights = {o.name: objects.tensors(ctx, o) for o in found}
    words = objects.add_words(stack, found, weights)
    text = words.expand(prompt)
    objects.check_length(ctx, stack, text)
    ids = stack.token_ids([text])
    placed = [composition.Placed(name, weights[name], laid.boxes[name], words.positions(ids, name)[0]) for name in laid.order]
    step = ctx.progress("compose")
    parts = []
    high, wide = (round(stack.size * side / stack.unit) * stack.unit for side in (laid.high, laid.wide))
    size = (high, wide)
    with composition.regional(stack, placed, how.edge, aspect=size[1] / size[0], bounded=how.attention == "bounded"):
        guidance = max(config.guidance, 1.001)  # the regions need the half of the batch without prompt
        for seeds, on_step in generate.batches(config, step):
            parts.append(sample(stack, text, config.negative, seeds, config.steps, guidance, config.scheduler, on_step, size=size))
    done = generate.keep(ctx, stack, replace(record, tools=tools()), torch.cat(parts), config, prompt)
    keep_picture(ctx.root, done.ref, "layout.png", pictures.png(layout.drawn(laid, size)))
    return done
