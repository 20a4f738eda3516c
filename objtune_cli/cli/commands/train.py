"""`objtune train`: photos, masks or embeddings to adapters."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from objtune_cli.cli import completion, durations, launcher
from objtune_cli.cli.object_options import HintOptions, options_by_photo, parse_photo_request, parse_targets
from objtune_cli.cli.photo_options import (
    Boxes,
    ClassWords,
    Masks,
    Names,
    NegativePoints,
    PhotoRequest,
    Points,
    RefineMasks,
    Select,
    check_distinct_names,
    parse_photos,
    parse_steps,
    segment_photo,
)
from objtune_cli.cli.runner import CommandResult, CommandRun, require
from objtune_cli.cli.signals import TIME_LIMIT
from objtune_cli.cli.stdin import read_refs
from objtune_cli.config.sections import SEEDS, Embed, Prior, Train
from objtune_cli.errors import IncompatibleError, Stopped

if TYPE_CHECKING:
    from objtune_cli.store.refs import Ref
    from objtune_cli.store.store import Store
    from objtune_cli.workflow.context import StageContext, StageResult


def train(
    run: CommandRun,
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PHOTO… | REF…",
            help="A photo, or several with the options of each behind it; or masks or embeddings (- for stdin).",
            autocompletion=completion.trainable_ref,
        ),
    ] = None,
    class_: ClassWords = None,
    name: Names = None,
    mask: Masks = None,
    box: Boxes = None,
    point: Points = None,
    negative_point: NegativePoints = None,
    refine_mask: RefineMasks = None,
    select: Select = None,
    steps: Annotated[
        str | None,
        typer.Option(metavar="N", help="Optimizer steps; auto: until its loss stops falling.", show_default="auto"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help=f"Random seed, {SEEDS}; -1 is refused.", show_default=str(Train().seed))
    ] = None,
    preview: Annotated[bool, typer.Option("--preview/--no-preview", help="Draw a sheet of samples at the end.")] = True,
    no_scores: Annotated[
        bool,
        typer.Option(
            "--no-scores", help="Skip the adapter's self-evaluation at the end (train.self_evaluation=false)."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take a few steps on noise, say what a run needs, and write nothing.")
    ] = False,
    max_time: Annotated[
        str | None,
        typer.Option("--max-time", metavar="TIME", help="Save and stop after 45m, 2h, …; the same command goes on."),
    ] = None,
    num_processes: Annotated[
        int | None,
        typer.Option(
            "--num-processes",
            metavar="N",
            help="Share the work among N processes: one for each GPU.",
            show_default=False,
        ),
    ] = None,
) -> CommandResult:
    if launcher.accelerate_cpu_single_process():
        run.report.note(
            f"accelerate starts one process where it is told --cpu; `objtune train … {launcher.OPTION} N` starts several"
        )
    if max_time:
        run.stop.until = run.started + durations.parse_duration(max_time, "--max-time")
    most = None if steps is None else parse_steps(steps)
    if dry_run:
        return _dry(run, steps=most, seed=seed, objects=len(class_ or ()) or 1)
    given = read_refs(source)
    hinted = bool(class_ or name or mask or box or point or negative_point or refine_mask or select)
    photos = parse_photos(given, hinted=hinted)
    if len(photos) > 1:
        wanted = [
            (photo, *parse_photo_request(photo, said))
            for photo, said in zip(photos, options_by_photo(run.groups), strict=True)
        ]
        check_distinct_names(wanted)
    else:
        wanted = [
            (photo, parse_targets(class_, name, HintOptions(mask, box, point, negative_point, refine_mask)), select)
            for photo in photos
        ]
    require(
        photos or not hinted,
        "--class and the hints belong to a photo",
        "a ref already says what it shows",
    )
    ctx = run.context(create=bool(photos))
    config = ctx.settings.resolve(
        Train,
        max_steps=most,
        seed=seed,
        early_stopping="plateau" if steps == "auto" else None,
        self_evaluation=False if no_scores else None,
    )
    try:
        return CommandResult(_trained(ctx, wanted, given, config, preview), extra={"finished": True})
    except Stopped as stopped:
        if stopped.code != 128 + TIME_LIMIT:
            raise
        run.report.note(f"{stopped.message}; {stopped.hint}")
        return CommandResult(printed="nothing", extra={"finished": False, "message": stopped.message})


def _dry(run: CommandRun, steps: int | None, seed: int | None, objects: int) -> CommandResult:
    """What a run of these settings needs."""
    from objtune_cli.cli import console
    from objtune_cli.training import dry_run as dry

    ctx = run.context(create=False)
    config = ctx.settings.resolve(Train, max_steps=steps, seed=seed)
    found = dry.run(ctx, config, ctx.settings.resolve(Embed), objects)
    if not run.options["json"]:
        console.print_table(("what", "value"), [(key, str(value)) for key, value in found.items()])
    less = dry.suggest_savings(found, config)
    if less:
        run.report.note(f"that is more than the device has: {less}")
    return CommandResult(printed="nothing", extra={"finished": False, "message": "dry run", "dry_run": found})


def _trained(
    ctx: "StageContext", wanted: list[PhotoRequest], given: list[str], config: Train, preview: bool
) -> "list[StageResult]":
    """The stages of `train`, from photos or from refs."""
    from objtune_cli.training import many_stage, stage

    embedding, prior = ctx.settings.resolve(Embed), ctx.settings.resolve(Prior)
    with ctx.main_process_first():
        found = ctx.run_parallel([partial(segment_photo, ctx, *one) for one in wanted])
    if len(found) > 1:
        return many_stage.run(ctx, found, config, embedding, prior, preview=preview)
    sources = found[0] if found else [_trainable(ctx.store, text) for text in given]
    return [stage.run(ctx, sources, config, embedding, prior, preview=preview)]


def _trainable(store: "Store", text: str) -> "Ref":
    """An embedding of that name, else a mask.

    Raises:
        MissingError: Neither is there. IncompatibleError: It is an artifact of another kind.
    """
    if text.startswith("adapter/"):
        name = text.removeprefix("adapter/").partition("@")[0]
        raise IncompatibleError(
            f"{text} is finished, and training does not go on from an adapter",
            f"`objtune train {name} --steps N` makes the next version, from its embedding",
        )
    if "/" not in text and store.list_versions("embedding", text.split("@")[0]):
        return store.find(text, ("embedding",))
    return store.find(text, ("mask", "embedding") if "/" in text else ("mask",))
