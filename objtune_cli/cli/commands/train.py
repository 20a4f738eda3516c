"""`objtune train`: photos, masks or embeddings to adapters."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from objtune_cli.cli import completion, console, durations, launcher
from objtune_cli.cli.object_options import PhotoRequest
from objtune_cli.cli.options import with_options
from objtune_cli.cli.photo_groups import parse_requests
from objtune_cli.cli.photo_options import PHOTO, parse_photos, parse_steps, segment_photos
from objtune_cli.cli.runner import CommandResult, CommandRun, require
from objtune_cli.cli.signals import TIME_LIMIT
from objtune_cli.cli.stdin import read_refs
from objtune_cli.config.sections import SEEDS, Embed, Prior, Train
from objtune_cli.errors import IncompatibleError, Stopped

if TYPE_CHECKING:
    from objtune_cli.store.refs import Ref
    from objtune_cli.store.store import Store
    from objtune_cli.workflow.context import StageContext, StageResult


Seed = Annotated[int | None, typer.Option(help=f"Random seed, {SEEDS}; -1 is refused.", show_default=str(Train().seed))]
Preview = Annotated[bool, typer.Option("--preview/--no-preview", help="Generate a grid of samples at the end.")]
NoScores = Annotated[
    bool,
    typer.Option("--no-scores", help="Skip the adapter's self-evaluation at the end (train.self_evaluation=false)."),
]
SampleEvery = Annotated[
    int | None,
    typer.Option(
        "--sample-every",
        metavar="N",
        min=0,
        help="Draw samples every N steps; 0: never.",
        show_default="about six times a run",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Measure the memory and time of a run on noise, and write nothing.")
]
MaxTime = Annotated[
    str | None,
    typer.Option("--max-time", metavar="TIME", help="Save and stop after 45m, 2h, …; the same command resumes."),
]
NumProcesses = Annotated[
    int | None,
    typer.Option(
        "--num-processes",
        metavar="N",
        help="Number of processes: one for each GPU.",
        show_default=False,
    ),
]


@with_options(PHOTO, before="steps")
def train(
    run: CommandRun,
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PHOTO… | REF…",
            help="Photos (files, folders or web addresses), each followed by its options; one --class for all is one object. Or masks or embeddings. -: stdin.",
            autocompletion=completion.trainable_ref,
        ),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Number of optimizer steps; auto: until the loss stops falling.", show_default="auto"
        ),
    ] = None,
    seed: Seed = None,
    preview: Preview = True,
    no_scores: NoScores = False,
    sample_every: SampleEvery = None,
    dry_run: DryRun = False,
    max_time: MaxTime = None,
    num_processes: NumProcesses = None,
    **objects: Any,
) -> CommandResult:
    if launcher.accelerate_cpu_single_process():
        run.report.note(
            f"`accelerate launch --cpu` starts one process; `objtune train … {launcher.OPTION} N` starts several"
        )
    if max_time:
        run.stop.until = run.started + durations.parse_duration(max_time, "--max-time")
    max_steps = None if steps is None else parse_steps(steps)
    if dry_run:
        return _dry_run(run, steps=max_steps, seed=seed, objects=len(objects["class_"] or ()) or 1)
    sources = list(source) if source and any(objects.values()) else read_refs(source)
    requests = _parse_requests(run, sources, objects)
    ctx = run.context(create=bool(requests))
    config = ctx.settings.resolve(
        Train,
        max_steps=max_steps,
        seed=seed,
        early_stopping="plateau" if steps == "auto" else None,
        self_evaluation=False if no_scores else None,
        sample_every=sample_every,
    )
    try:
        return CommandResult(_train(ctx, requests, sources, config, preview), extra={"finished": True})
    except Stopped as stopped:
        return _report_time_limit(run, stopped)


def _parse_requests(run: CommandRun, sources: list[str], objects: dict[str, Any]) -> list[list[PhotoRequest]]:
    """The photos of each adapter with their objects; empty where the arguments are refs.

    Raises:
        UsageError: Options do not fit the photos, or describe objects of refs.
    """
    has_options = any(objects.values())
    photos = parse_photos(sources, hinted=has_options)
    require(photos or not has_options, "--class and the hints belong to a photo", "leave them out: a ref has its own")
    return parse_requests(photos, objects, run.groups, run.report.note) if photos else []


def _report_time_limit(run: CommandRun, stopped: Stopped) -> CommandResult:
    """The result of a run that reached `--max-time`.

    Raises:
        Stopped: Something else stopped it.
    """
    if stopped.code != 128 + TIME_LIMIT:
        raise stopped
    run.report.note(f"{stopped.message}; {stopped.hint}")
    return CommandResult(printed="nothing", extra={"finished": False, "message": stopped.message})


def _dry_run(run: CommandRun, steps: int | None, seed: int | None, objects: int) -> CommandResult:
    """Measure what a run with these settings needs."""
    from objtune_cli.training import dry_run

    ctx = run.context(create=False)
    config = ctx.settings.resolve(Train, max_steps=steps, seed=seed)
    needs = dry_run.run(ctx, config, ctx.settings.resolve(Embed), objects)
    if not run.options["json"]:
        console.print_table(("what", "value"), [(key, str(value)) for key, value in needs.items()])
    savings = dry_run.suggest_savings(needs, config)
    if savings:
        run.report.note(f"the device has less memory than that: {savings}")
    return CommandResult(printed="nothing", extra={"finished": False, "message": "dry run", "dry_run": needs})


def _train(
    ctx: "StageContext", requests: list[list[PhotoRequest]], sources: list[str], config: Train, preview: bool
) -> "list[StageResult]":
    """Run the stages of `train`, from photos or from refs."""
    from objtune_cli.training import train as stage
    from objtune_cli.training import train_many

    stage.require_trainable_base(ctx)
    embedding, prior = ctx.settings.resolve(Embed), ctx.settings.resolve(Prior)
    with ctx.main_process_first():
        masks = ctx.run_parallel([partial(segment_photos, ctx, each) for each in requests])
    if len(masks) > 1:
        return train_many.run(ctx, masks, config, embedding, prior, preview=preview)
    inputs = masks[0] if masks else [_find_trainable(ctx.store, text) for text in sources]
    return [stage.run(ctx, inputs, config, embedding, prior, preview=preview)]


def _find_trainable(store: "Store", text: str) -> "Ref":
    """Find the embedding of that name, else its mask.

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
