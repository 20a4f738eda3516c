"""`compose`: separately trained objects in one picture, each in its place."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.composition import layout, presence_report
from objtune_cli.composition.layout import Box, Layout
from objtune_cli.config.sections import Compose, Generate, identifying, seed_after
from objtune_cli.errors import InputError
from objtune_cli.generation import stage as generate
from objtune_cli.images import png as pictures
from objtune_cli.store.artifacts import Record
from objtune_cli.workflow import output_files, prompt_request, trained_objects
from objtune_cli.workflow.context import StageContext, StageResult, keep_picture

if TYPE_CHECKING:
    import numpy as np
    import torch

    from objtune_cli.composition.presence import Check
    from objtune_cli.models.base_model import BaseModel

    Drawn = tuple[list[dict[str, torch.Tensor]], torch.Tensor]
    """What each picture is made of, and the pictures, (N, 3, H, W) in [-1, 1]."""


CLOSE = "close."
"""Before an object's name: its refined region in a scene, as latents."""
MOST = 16
"""Objects of one scene: the picture grows with them."""


def run(
    ctx: StageContext,
    prompt: str,
    places: Mapping[str, Sequence[Box]],
    config: Generate,
    how: Compose,
    out: Path | None = None,
) -> list[StageResult]:
    """Draw the prompt with each of its objects in its place; an object that it names twice is drawn twice.

    Args:
        places: Name to places, one for each mention at most.

    Raises:
        InputError: No object in the prompt, or a place for an object that it does not name; see `request.read`.
        UsageError: One place for two objects, or more places than mentions. GateError: `how.strict`, and in a picture an object is missing or mixed for every seed.
    """
    if out is not None:
        output_files.check_folder(out)
    asked = prompt_request.read(ctx, [prompt], config.negative, strength=config.strength)
    weak, (prompt,), (named,) = " with a strength above 0" if "<" in prompt else "", asked.prompts, asked.named
    if not named:
        raise InputError(
            f"the prompt names no trained object{weak}",
            asked.advice
            or 'for example `objtune compose "<rex> and <cup> on the beach" --place rex=left --place cup=right`',
        )
    apart, found = name_apart(prompt, named, {o.name for o in asked.objects})
    names = [o.name for o in found]
    if len(names) > MOST:
        raise InputError(
            f"the prompt names {len(names)} objects; a scene has room for {MOST}", "name fewer, in several scenes"
        )
    given = layout.assign(places, {o.name: [m.name for m in found if m.key == o.key] for o in named})
    layout.check(given, names)
    _note_repeated(ctx, named, found)
    is_sized = bool(config.width or config.height)
    config = generate.suited(ctx, config)
    frame = (
        ((config.width or ctx.base.side) / ctx.base.side, (config.height or ctx.base.side) / ctx.base.side)
        if is_sized
        else None
    )
    laid = layout.proposed(apart, names, given, {o.name: trained_objects.shape(ctx, o) for o in found}, frame)
    largest = ctx.base.largest_side / ctx.base.side
    laid.wide, laid.high = (
        min(laid.wide, largest),
        min(laid.high, largest),
    )  # many objects in a row want more than a transformer knows places for
    free = [n for n in names if n not in given]
    if free:
        ctx.report.note(
            "placed by us: " + ", ".join(f"{n}={','.join(f'{v:.2f}' for v in laid.boxes[n])}" for n in free)
        )
    # where nothing is looked at closer and laid back, another scene it is not
    how = (
        replace(how, object_guidance=ctx.base.object_guidance(how.object_guidance))
        if how.detail
        else replace(how, laid="place", object_guidance=0.0)
    )
    config = replace(
        config,
        negative=asked.negative,
        strength=1.0,
        guidance_below=1.0,
        scene_guidance=0.0,
        object_guidance=0.0,
        object_below=1.0,
    )  # regions are drawn with and without prompt at every level
    generate.note_guidance(ctx, config)
    classes = {o.name: o.class_word for o in named}
    settings = (
        identifying(config)
        | generate.drawn_by(ctx, config)
        | identifying(how)
        | {"prompt": prompt, "places": {n: list(b) for n, b in laid.boxes.items()}}
        | generate.strengths(named)
    )
    if laid.order != names:
        settings["order"] = laid.order
    if frame is None and (laid.wide, laid.high) != (1.0, 1.0):
        settings["frame"] = [laid.wide, laid.high]
    own_words = [o.name for o in found if trained_objects.has_words(ctx, o)]
    if own_words:
        settings["text_encoders"] = own_words
    name = "-".join(classes)[:64].rstrip("-.")
    record = Record(
        "scene", name, classes, trained_objects.inputs(named, asked.avoided(0)), settings, ctx.base.record()
    )
    done = generate.reuse(ctx, record, config, prompt, decode_scene)
    if done:
        presence_report.judge(ctx, done.metrics, how)
    else:
        done = _draw(ctx, record, replace(asked, prompts=[apart], named=[found]), laid, config, how, prompt)
    return generate.copied([done], out, ctx)


def name_apart(
    prompt: str, named: Sequence[trained_objects.Named], taken: Set[str] = frozenset()
) -> tuple[str, list[trained_objects.Named]]:
    """Give every mention of an object a name of its own: `<dog> and <dog>` becomes `<dog> and <dog-2>`; versions are dropped. `taken`: names of other objects."""
    from objtune_cli.models.prompts import PLACEHOLDER

    known, found = {o.name: o for o in named}, dict[str, trained_objects.Named]()

    def rename(match: re.Match[str]) -> str:
        own = known[match[1]]
        free = (own.name if i == 1 else f"{own.name}-{i}" for i in itertools.count(1))
        name = next(n for n in free if n not in found and (n == own.name or n not in taken | known.keys()))
        found[name] = own if name == own.name else replace(own, name=name, trained_name=own.own_name)
        return f"<{name}>"

    return PLACEHOLDER.sub(rename, prompt), list(found.values())


def _note_repeated(
    ctx: StageContext, named: Sequence[trained_objects.Named], found: Sequence[trained_objects.Named]
) -> None:
    """Say which objects are drawn more than once."""
    for item in named:
        own = [o.name for o in found if o.key == item.key]
        if len(own) > 1:
            ctx.report.note(
                f"the prompt names <{item.name}> {len(own)} times, so the scene has {len(own)}: {', '.join(own)}; name it once to draw one"
            )


def _draw(
    ctx: StageContext,
    record: Record,
    asked: prompt_request.Request,
    laid: Layout,
    config: Generate,
    how: Compose,
    prompt: str,
) -> StageResult:
    """Draw a scene; `asked`: with a name for every mention, `prompt`: as it is recorded."""
    import torch

    from objtune_cli.composition import refinement, regional
    from objtune_cli.generation.sampling import sample

    model = ctx.load_base_model()
    (apart,), (found,) = asked.prompts, asked.named
    weights = {o.name: trained_objects.scale(trained_objects.tensors(ctx, o), o.strength) for o in asked.objects}
    words = trained_objects.add_words(model, asked.objects, weights)
    told = layout.spoken(apart) if how.context == "class" else apart
    prompt_request.check_lengths(ctx, model, words, replace(asked, prompts=[told]))
    text, negative = words.expand(told), words.expand(config.negative)
    placed = [regional.Placed(name, weights[name], laid.boxes[name], words.rows(text, name)) for name in laid.order]
    classes = {o.name: o.class_word for o in found}
    heard = (
        words.in_context(told, classes, model.encode([text])) if how.context == "class" else None
    )  # all of it, as with layers of a text encoder
    heard = regional.spoken(model, text, placed, heard)
    conditions = {} if heard is None else {text: heard}
    closer = [
        refinement.Object(name, weights[name], laid.boxes[name], words.expand(layout.alone(told, name)))
        for name in laid.order
    ]
    high, wide = (round(model.size * side / model.unit) * model.unit for side in (laid.high, laid.wide))
    size = (high, wide)
    guidance = max(config.guidance, 1.001)  # the regions need the half of the batch without prompt

    def draw(seeds: list[int], on_step: Callable[[int, int], None]) -> "Drawn":
        with regional.regional(model, placed, how.edge, aspect=wide / high, bounded=how.attention == "bounded"):
            latents = sample(
                model,
                text,
                negative,
                seeds,
                config.steps,
                guidance,
                config.scheduler,
                on_step,
                size=size,
                conditions=conditions,
            )
        if not how.detail:
            return [{"latents": z} for z in latents], model.to_picture(latents).cpu()
        again = refinement.Sampling(
            how.detail, config.steps, guidance, config.scheduler, negative, how.laid == "place", how.object_guidance
        )
        steps = {name: ctx.progress(f"closer look at {name}") for name in laid.order}
        close, pictures = refinement.looked(
            model, latents, closer, seeds, again, lambda name, done, total: steps[name](done, total)
        )
        return [
            {"latents": z} | {f"{CLOSE}{name}": each[i] for name, each in close.items()} for i, z in enumerate(latents)
        ], pictures

    check = presence_report.opened(model, found, weights, words) if how.check == "shown" else None
    looks, metrics = _kept(ctx, check, laid, [o.name for o in found], config, how, draw)
    presence_report.judge(ctx, metrics, how)  # a scene that is refused is not published
    tensors = {name: torch.stack([look.tensors[name] for look in looks]) for name in looks[0].tensors}
    done = generate.keep(
        ctx, model, replace(record, metrics=metrics, tools=ctx.tools(model)), tensors, config, prompt, decode_scene
    )
    keep_picture(ctx.root, done.ref, "layout.png", pictures.encode_png(layout.drawn(laid, size)))
    return done


def _kept(
    ctx: StageContext,
    check: "Check | None",
    laid: Layout,
    names: list[str],
    config: Generate,
    how: Compose,
    draw: "Callable[..., Drawn]",
) -> tuple[list[presence_report.Look], dict[str, object]]:
    """Each picture's best seed, and what was found in them: all in the first round, then those that are wrong again."""
    best: dict[int, presence_report.Look] = {}
    waiting = list(range(config.n))
    for attempt in range(how.retries + 1 if check else 1):
        label = f"compose, attempt {attempt + 1}" if attempt else "compose"
        for start in range(0, len(waiting), generate.BATCH):
            part = waiting[start : start + generate.BATCH]
            step, rounds, before = ctx.progress(label), -(-len(waiting) // generate.BATCH), start // generate.BATCH
            seeds = [seed_after(config.seed, i + attempt * config.n) for i in part]
            made, shown = draw(seeds, lambda done, total, b=before, r=rounds, s=step: s(b * total + done, r * total))
            for i, look in zip(
                part,
                presence_report.looks(check, made, shown, seeds, [laid.boxes[name] for name in names]),
                strict=True,
            ):
                best[i] = max(best.get(i, look), look, key=lambda seen: seen.margin)
        waiting = [i for i in range(config.n) if best[i].wrong]
        if not waiting:
            break
    chosen = [best[i] for i in range(config.n)]
    return chosen, presence_report.metrics(check, chosen)


def decode_scene(model: "BaseModel", record: Record, tensors: "Mapping[str, torch.Tensor]") -> "np.ndarray":
    """The images (N, H, W, 3) uint8 of a composed scene, with its refined regions pasted in."""
    from objtune_cli.composition import refinement
    from objtune_cli.generation.sampling import to_uint8

    refined = {name.removeprefix(CLOSE): part for name, part in tensors.items() if name.startswith(CLOSE)}
    places = record.config["places"] if refined else {}
    boxes = {name: tuple(places[name]) for name in record.config.get("order", places) if refined}
    whole = record.config.get("laid", "place") == "place"
    return to_uint8(refinement.scenes(model, tensors["latents"], refined, boxes, whole=whole)).numpy()
