"""`objtune evaluate`: measure one trained object."""

from typing import TYPE_CHECKING, Annotated

import typer

from objtune_cli import paths
from objtune_cli.cli import completion
from objtune_cli.cli.bench_table import print_rows, resolve_bench_settings
from objtune_cli.cli.runner import CommandResult, CommandRun, require
from objtune_cli.cli.stdin import read_refs
from objtune_cli.config.sections import SEEDS, Bench

if TYPE_CHECKING:
    from objtune_cli.evaluation.evaluate import TrainedSubject
    from objtune_cli.workflow.context import StageContext


ClipModel = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="CLIP model for photographs: hub id or folder.",
        show_default="openai/clip-vit-base-patch32",
    ),
]
DinoModel = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL", help="DINO model for photographs: hub id or folder.", show_default="facebook/dino-vits16"
    ),
]


def evaluate(
    run: CommandRun,
    ref: Annotated[
        list[str],
        typer.Argument(help="Trained objects, or - to read refs from stdin.", autocompletion=completion.adapter_ref),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="Name of the object, if the adapter has several.", show_default=False
        ),
    ] = None,
    clip: ClipModel = None,
    dino: DinoModel = None,
    scene: Annotated[
        list[str] | None,
        typer.Option(metavar="WORDS", help='Scene to generate, for example "on the beach"; repeat for more.'),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Images per scene.")] = 2,
    seed: Annotated[
        int | None, typer.Option(help=f"Seed of the calibration, {SEEDS}.", show_default=str(Bench().seed))
    ] = None,
) -> CommandResult:
    from objtune_cli.bench.suites.objects import find_dial
    from objtune_cli.evaluation import evaluate as stage
    from objtune_cli.evaluation import statistics

    require(n >= 1, f"-n is {n}", "1 or more")
    ctx, config = resolve_bench_settings(run, seed=seed)
    rows = []
    for each in [ctx.store.find(text, ("adapter",)) for text in read_refs(ref)]:
        subject = stage.load_subject(ctx, each, name)
        if ctx.base.toybox_dial and not (clip or dino):
            require(
                not scene,
                "--scene needs --clip or --dino",
                "the toybox's evaluator uses every background of its world",
            )
            evaluation = stage.score_on_toybox(ctx, subject, find_dial(ctx), n, config.seed)
        else:
            evaluation = _papers(
                ctx,
                subject,
                paths.to_model(clip or config.clip_model),
                paths.to_model(dino or config.dino_model),
                scene,
                n,
            )
        rows += statistics.table_rows(subject.name, [evaluation])
    return print_rows(run, rows, [])


def _papers(
    ctx: "StageContext", subject: "TrainedSubject", clip: str, dino: str, scene: list[str] | None, n: int
) -> dict[str, float]:
    from objtune_cli.evaluation import evaluate as stage
    from objtune_cli.evaluation import features

    judges = features.load_clip(clip or features.CLIP), features.load_dino(dino)
    return stage.score_with_clip_dino(ctx, subject, scene or list(stage.SCENES), n, *judges)
