"""The stages as plain functions, for notebooks and programs: `from objtune_cli import train, generate`.

Every function takes a project as `project` gives it, does what the command of its name does, and raises
`errors.ObjtuneError` where the command would say one line. Settings are those of objtune.toml, by section and key.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import zip_longest
from pathlib import Path
from typing import Any

from objtune_cli.config.resolve import Settings
from objtune_cli.config.sections import Common, Compose, Embed, Place, Prior, Segment, Train
from objtune_cli.errors import ObjtuneError, UsageError
from objtune_cli.paths import to_path, to_place
from objtune_cli.store.project import find_project
from objtune_cli.store.refs import Ref
from objtune_cli.workflow.context import StageContext, StageResult
from objtune_cli.workflow.reporting import LogReporter

__all__ = [
    "ObjtuneError",
    "StageResult",
    "compose",
    "export",
    "generate",
    "import_files",
    "init_embedding",
    "place",
    "project",
    "segment",
    "train",
]


def project(
    folder: str | Path = ".",
    *,
    on_step: Callable[[str, int, int], None] | None = None,
    force: bool = False,
    **settings: Any,
) -> StageContext:
    """A project folder (made one where it is none) with settings above those of its objtune.toml.

    Args:
        folder: A folder, or the address of object storage: `s3://bucket/prefix`.
        settings: `base="sdxl"`, `device="cpu"`; sections as mappings: `train={"steps": 200}`, `generate={"n": 1}`.
        on_step: Called with stage, done and total. force: work that is done is made again.

    Raises:
        UsageError: An unknown key, or a value out of range.
    """
    current = find_project(to_place(folder), create=True)
    flags = [f"{k}={v}" for k, v in settings.items() if not isinstance(v, Mapping)]
    flags += [
        f"{section.replace('_', '-')}.{k}={v}"
        for section, values in settings.items()
        if isinstance(values, Mapping)
        for k, v in values.items()
    ]
    layers = Settings(current.settings, flags=flags)
    report = LogReporter(on_step) if on_step else LogReporter()
    for note in layers.notes:
        report.note(note)
    return StageContext(current, layers, layers.resolve(Common), report, force)


def _lock_project(ctx: StageContext) -> AbstractContextManager[None]:
    """As commands do: nobody removes artifacts meanwhile."""
    return ctx.project.lock()


def segment(
    ctx: StageContext,
    photo: str | Path,
    class_word: str,
    name: str = "",
    *,
    box: tuple[float, float, float, float] | None = None,
    mask: str | Path | None = None,
    refine_mask: str | Path | None = None,
) -> StageResult:
    """The object in a photo; `box` (x0, y0, x1, y1 in px), a `mask` image or a rough one to `refine_mask` say where it is."""
    from objtune_cli.segmentation import segment as stage
    from objtune_cli.segmentation.from_hints import Target
    from objtune_cli.workflow import class_words

    ((word, called),) = class_words.pair_with_names([class_word], [name] if name else [])
    target = Target(word, called, box, mask=_as_path(mask), rough_mask=_as_path(refine_mask))
    with _lock_project(ctx):
        return stage.run(ctx, to_path(photo), [target], ctx.settings.resolve(Segment))[0]


def init_embedding(ctx: StageContext, mask: str | Sequence[str]) -> StageResult:
    """The initial vectors of an object's token, from its mask by ref or name; several masks are photos of one object."""
    from objtune_cli.embedding import init_embedding as embed

    with _lock_project(ctx):
        masks = [ctx.store.find(text, ("mask",)) for text in ([mask] if isinstance(mask, str) else mask)]
        return embed.run(ctx, masks, ctx.settings.resolve(Embed))


def train(
    ctx: StageContext,
    photo: str | Path | Sequence[str | Path],
    class_word: str,
    name: str = "",
    *,
    steps: int | None = None,
    box: tuple[float, float, float, float] | None = None,
    mask: str | Path | Sequence[str | Path] | None = None,
    refine_mask: str | Path | Sequence[str | Path] | None = None,
    preview: bool = True,
) -> StageResult:
    """An object learned from one photo, or from a list of its photos; runs the stages before it.

    Args:
        box: Of a single photo. mask, refine_mask: A file for each photo.

    Raises:
        UsageError: Another number of hints than of photos.
    """
    from objtune_cli.training import train as stage

    photos, masks, rough = (_as_list(value) for value in (photo, mask, refine_mask))
    refs = _segment_photos(ctx.without_force(), photos, class_word, name, box, masks, rough)
    config = ctx.settings.resolve(Train, max_steps=steps)
    with _lock_project(ctx):
        return stage.run(ctx, refs, config, ctx.settings.resolve(Embed), ctx.settings.resolve(Prior), preview=preview)


def _as_list(value: str | Path | Sequence[str | Path] | None) -> list[Path]:
    """One path or several as a list; empty for None."""
    values = [] if value is None else [value] if isinstance(value, str | Path) else value
    return [to_path(each) for each in values]


def _segment_photos(
    ctx: StageContext,
    photos: list[Path],
    class_word: str,
    name: str,
    box: tuple[float, float, float, float] | None,
    masks: list[Path],
    rough: list[Path],
) -> list[Ref]:
    """The masks of one object in its photos."""
    if len(photos) == 1 and max(len(masks), len(rough)) < 2:
        mask, refine_mask = next(iter(masks), None), next(iter(rough), None)
        return [segment(ctx, photos[0], class_word, name, box=box, mask=mask, refine_mask=refine_mask).ref]
    for option, hints in (("mask", masks), ("refine_mask", rough), ("box", [box] if box else [])):
        if hints and len(hints) != len(photos):
            raise UsageError(f"{len(photos)} photos and {len(hints)} of {option}", "give one for each photo")
    if not photos:
        raise UsageError("there is no photo", "give the path of a photo, or a list of paths")
    from objtune_cli.segmentation import several_photos
    from objtune_cli.segmentation.from_hints import Target
    from objtune_cli.workflow import class_words

    ((word, called),) = class_words.pair_with_names([class_word], [name] if name else [])
    config = ctx.settings.resolve(Segment)
    targets = [
        (photo, Target(word, called, mask=own_mask, rough_mask=own_rough))
        for photo, own_mask, own_rough in zip_longest(photos, masks, rough)
    ]
    with _lock_project(ctx):
        requests = [several_photos.PhotoOfObject(photo, target, config) for photo, target in targets]
        return [each.ref for each in several_photos.run(ctx, requests)]


def generate(
    ctx: StageContext,
    *prompts: str,
    n: int | None = None,
    seed: int | Sequence[int] | None = None,
    best: int | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    sheet: str | Path | None = None,
    adapter: str = "",
    out: str | Path | None = None,
    **settings: Any,
) -> list[StageResult]:
    """Images of prompts that name trained objects; `images` of a result are their paths.

    Args:
        n: Images per prompt. seed: Of the first image; of a list, one image of each.
        best: Keep so many of the images of each prompt; their scores are `metrics["best"]` of a result.
        grid: One or two settings with their values: `{"strength": [0.6, 1]}`. sheet: File of a contact sheet, or of the grid's.
        adapter: Takes all objects from this adapter. out: Folder of copies.
        settings: Other options of the command, or settings: `size="832x1216"`, `width=832`, `aspect="3:2"`, `strength=0.8`, `negative="blurry"`,
            `style="watercolor"`, `wildcards="lists"`, `lora="style.safetensors:0.7"`, `init_image="a.png"`, `steps=20`.
    """
    from objtune_cli.evaluation import image_choice
    from objtune_cli.generation import python_arguments

    axes = python_arguments.grid_axes(grid or {})
    with _lock_project(ctx):
        configs = python_arguments.resolve_variants(ctx, settings, n, seed, axes)
        choice = image_choice.Choice(best, axes, _as_path(sheet), _as_path(out))
        source = ctx.store.find(adapter, ("adapter",)) if adapter else None
        drawing = image_choice.draw_and_choose(ctx, list(prompts), configs, choice, source)
    scores = iter(drawing.scores)
    for result in drawing.results if best else ():
        result.metrics = {**result.metrics, "best": [next(scores) for _ in result.images]}
    return drawing.results


def compose(
    ctx: StageContext,
    prompt: str,
    places: Mapping[str, str | Sequence[str]] | None = None,
    *,
    n: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> StageResult:
    """Objects together in one image.

    Args:
        places: Name to "left" or "0.5,0.4,0.9,0.9", or to a list of such where the prompt names it more than once.
        out, settings: As of `generate`; without a size the image has as many pixels as the objects need.
    """
    from objtune_cli.composition import compose as stage
    from objtune_cli.composition import layout
    from objtune_cli.generation import python_arguments

    with _lock_project(ctx):
        config = python_arguments.resolve(ctx, {"num_images": n, "seed": seed} | settings)
        boxes = layout.parse_mapping(places or {})
        return stage.run(ctx, prompt, boxes, config, ctx.settings.resolve(Compose), _as_path(out))[0]


def place(
    ctx: StageContext,
    prompt: str,
    into: str | Path,
    at: str = "",
    *,
    mask: str | Path | None = None,
    replace: str = "",
    n: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    **settings: Any,
) -> StageResult:
    """An object drawn into the photo `into`, the rest of which stays.

    Args:
        at: "left" or "0.5,0.4,0.9,0.9". mask: White where it goes. replace: Class word of what it replaces.
        out, settings: As of `generate`, without a size; and `change`: how much the region changes, 0.05 to 1.
    """
    from objtune_cli.generation import python_arguments
    from objtune_cli.placement import place as stage
    from objtune_cli.placement import regions

    with _lock_project(ctx):
        location = stage.Location(regions.parse_box(at) if at else None, _as_path(mask), replace)
        options = ctx.settings.resolve(Place, change=settings.pop("change", None))
        config = python_arguments.resolve(ctx, {"num_images": n, "seed": seed} | settings)
        return stage.run(ctx, prompt, to_path(into), location, config, options, _as_path(out))[0]


def _as_path(value: str | Path | None) -> Path | None:
    return to_path(value) if value else None


def export(
    ctx: StageContext,
    name: str,
    form: str = "diffusers",
    out: str | Path = ".",
    *,
    dtype: str = "fp32",
    trigger: str = "",
    force: bool = False,
) -> list[Path]:
    """An object as files of other tools: "diffusers", "kohya", "embedding", "bundle" or "hub".

    Args:
        dtype: "fp32", "fp16" or "bf16". trigger: the name of the embedding file, which is the object's word in A1111 and ComfyUI.
        force: files that are not exports of the same object are replaced.
    """
    from objtune_cli.interchange import export as stage

    with _lock_project(ctx):
        return stage.run(
            ctx.store,
            ctx.store.find(name, ("adapter",)),
            form,
            to_path(out),
            dtype=dtype,
            trigger=[trigger] if trigger else [],
            force=force,
            note=ctx.report.note,
        )


def import_files(
    ctx: StageContext,
    files: Sequence[str | Path],
    class_word: str,
    name: str = "",
    *,
    word: str = "",
    allow_pickle: bool = False,
) -> StageResult:
    """A LoRA, an embedding, or both of one object, trained elsewhere."""
    from objtune_cli.interchange import import_ as imported
    from objtune_cli.workflow import class_words

    ((class_word, name),) = class_words.pair_with_names([class_word], [name] if name else [])
    with _lock_project(ctx):
        return imported.run(ctx, [to_path(f) for f in files], name, class_word, word, allow_pickle=allow_pickle)
