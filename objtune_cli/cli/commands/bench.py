"""`objtune bench`: compare methods on objects with known ground truth, and other benchmarks; one function per subcommand."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from objtune_cli.cli.bench_table import print_rows, resolve_bench_settings, resolve_unsharded
from objtune_cli.cli.runner import CommandResult, CommandRun, Subcommand, require
from objtune_cli.config.sections import SEEDS, Bench

if TYPE_CHECKING:
    from objtune_cli.bench.methods import Method
    from objtune_cli.workflow.context import StageContext

QUICK: dict[str, Any] = {"num_objects": 2, "prompt_rounds": 1, "num_base_samples": 128}
"""Settings of `--quick`, where they have their defaults."""
QUICK_MASK_SCENES = 12
METHODS, QUICK_METHODS = "objtune,baselines", "objtune,dreambooth-lora"

Objects = Annotated[
    int | None, typer.Option("--objects", help="Number of held-out objects.", show_default=str(Bench().num_objects))
]
Subjects = Annotated[int | None, typer.Option("--objects", help="Number of subjects.", show_default="all")]
Groups = Annotated[int | None, typer.Option("--objects", help="Number of groups of objects.", show_default="6")]
Methods = Annotated[
    str | None,
    typer.Option(
        "--methods",
        metavar="NAMES",
        help="Methods, separated by commas; +train.learning_rate=… after a name changes it; baselines, ablations, robust, photos, all.",
        show_default=METHODS,
    ),
]
SceneMethods = Annotated[
    str | None, typer.Option("--methods", metavar="NAMES", help="Methods for several objects, separated by commas.")
]
Prompts = Annotated[
    str | None,
    typer.Option(
        "--prompts", metavar="KINDS", help="Kinds of prompts, separated by commas.", show_default=Bench().prompt_kinds
    ),
]
Seed = Annotated[
    int | None, typer.Option("--seed", help=f"Seed of objects and prompts, {SEEDS}.", show_default=str(Bench().seed))
]
Quick = Annotated[bool, typer.Option("--quick", help="Run a short trial: fewer objects and steps, ready in minutes.")]
OutDir = Annotated[Path, typer.Option("--out", metavar="DIR", help="Results folder; a benchmark there is resumed.")]
OUT = Path("bench")


def objects(
    run: CommandRun,
    objects: Objects = None,
    methods: Methods = None,
    prompts: Prompts = None,
    seed: Seed = None,
    quick: Quick = False,
    out: OutDir = OUT,
    reuse: Annotated[
        Path | None,
        typer.Option("--reuse", metavar="FILE", help="A results.jsonl whose results are reused.", show_default=False),
    ] = None,
) -> CommandResult:
    from objtune_cli.bench.suites import objects as suite
    from objtune_cli.evaluation.benchmark_objects import KINDS

    selected_methods = _parse_methods(methods, quick=quick)
    ctx, config = resolve_bench_settings(run, num_objects=objects, prompt_kinds=prompts, seed=seed)
    config = _reduce(config, quick=quick)
    unknown = [kind for kind in config.kinds if kind not in KINDS]
    require(not unknown, f"there is no kind of prompt {', '.join(unknown)}", f"one or more of {', '.join(KINDS)}")
    _require_bench_settings(ctx, "bench.")
    suite.find_dial(ctx)
    return print_rows(run, suite.run(_work_in(ctx, out), out, selected_methods, config, reuse), [out / "sheet.png"])


def base(run: CommandRun, seed: Seed = None, quick: Quick = False, out: OutDir = OUT) -> CommandResult:
    from objtune_cli.bench.suites import base_model as suite
    from objtune_cli.bench.suites.objects import find_dial

    ctx, config = resolve_unsharded(run, seed=seed)
    _require_bench_settings(ctx, "bench.")
    dial = find_dial(ctx, suite.evaluator_file(config))
    return print_rows(run, suite.run(_work_in(ctx, out), out, dial, _reduce(config, quick=quick)), [out / "base.png"])


def speed(
    run: CommandRun,
    start: Annotated[
        bool, typer.Option("--start", help="Time what each command imports, instead of a training step.")
    ] = False,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Time `generate` against a script of diffusers, as whole processes.")
    ] = False,
    quick: Quick = False,
    out: OutDir = OUT,
) -> CommandResult:
    from objtune_cli.bench.suites import speed as suite

    ctx, config = resolve_unsharded(run)
    if start:
        from objtune_cli.bench.suites import start as start_suite

        return print_rows(run, start_suite.run(ctx, config), [])
    if pictures:
        from objtune_cli.bench.suites import pictures as picture_suite

        return print_rows(run, picture_suite.run(ctx, config), [])
    runs_script = bool(config.diffusers_script) and not quick
    if runs_script:
        from objtune_cli.bench.suites import diffusers_script

        diffusers_script.check_script(Path(config.diffusers_script))
    rows = suite.run(ctx, config, suite.SIZES[:1] if quick else suite.SIZES)
    if runs_script:
        rows += diffusers_script.measure(ctx, config, out / "script", rows)
    return print_rows(run, rows + suite.measure_joint_training(ctx, config.timing_rounds), [])


def memory(run: CommandRun) -> CommandResult:
    from objtune_cli.bench.suites import memory as suite

    return print_rows(run, suite.run(*resolve_unsharded(run)), [])


def scenes(
    run: CommandRun,
    objects: Groups = None,
    methods: SceneMethods = None,
    seed: Seed = None,
    quick: Quick = False,
    out: OutDir = OUT,
) -> CommandResult:
    from objtune_cli.bench.suites import scenes as suite

    method_names = [part.strip() for part in methods.split(",")] if methods else list(suite.DEFAULT_METHODS)
    unknown = [name for name in method_names if name not in suite.METHODS]
    require(
        not unknown,
        f"there is no method {', '.join(unknown)} for several objects",
        f"one or more of {', '.join(suite.METHODS)}",
    )
    ctx, config = resolve_bench_settings(run, num_objects=objects, seed=seed)
    if objects is None and config.num_objects == Bench().num_objects:
        config = replace(config, num_objects=1 if quick else suite.DEFAULT_GROUPS)
    return print_rows(run, suite.run(ctx, out, method_names, replace(config, prompt_rounds=1) if quick else config), [])


def place(
    run: CommandRun,
    objects: Annotated[
        int | None, typer.Option("--objects", help="Number of held-out objects.", show_default="6")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option("--methods", metavar="NAMES", help="Methods of placing an object, separated by commas."),
    ] = None,
    seed: Seed = None,
    quick: Quick = False,
    out: OutDir = OUT,
) -> CommandResult:
    from objtune_cli.bench.suites import placements as suite

    method_names = [part.strip() for part in methods.split(",")] if methods else list(suite.METHODS)
    unknown = [name for name in method_names if name not in suite.METHODS]
    require(
        not unknown,
        f"there is no method {', '.join(unknown)} for pictures",
        f"one or more of {', '.join(suite.METHODS)}",
    )
    ctx, config = resolve_bench_settings(run, num_objects=objects, seed=seed)
    if objects is None and config.num_objects == Bench().num_objects:
        config = replace(config, num_objects=1 if quick else suite.DEFAULT_OBJECTS)
    return print_rows(run, suite.run(ctx, out, method_names, config), [])


def throughput(
    run: CommandRun,
    photos: Annotated[int, typer.Argument(metavar="N", help="Number of photos.")],
    prompts: Prompts = None,
    seed: Seed = None,
    out: OutDir = OUT,
) -> CommandResult:
    from objtune_cli.bench.suites import throughput as suite

    ctx, config = resolve_unsharded(run, prompt_kinds=prompts, seed=seed)
    return print_rows(run, suite.run(ctx, out, photos, replace(config, prompt_rounds=1)), [])


def jobs(
    run: CommandRun,
    photos: Annotated[int, typer.Argument(metavar="N", help="Number of jobs.")],
    steps: Annotated[int, typer.Option("--steps", min=0, help="Number of training steps; 0: the base model's.")] = 0,
    seed: Seed = None,
    out: OutDir = OUT,
) -> CommandResult:
    from objtune_cli.bench.suites import jobs as suite

    ctx, config = resolve_unsharded(run, seed=seed)
    return print_rows(run, suite.run(ctx, out, photos, config, steps), [])


def dreambooth(
    run: CommandRun,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="DreamBooth's data set, or a folder with the same layout.")
    ],
    objects: Subjects = None,
    methods: Methods = None,
    seed: Seed = None,
    quick: Quick = False,
    out: OutDir = OUT,
) -> CommandResult:
    from objtune_cli.bench import dreambooth_dataset

    selected_methods = _parse_methods(methods, quick=quick)
    with_synthetic_photos = [
        name for name, method in selected_methods.items() if method.photo_variant != "exact" or method.num_photos > 1
    ]
    require(
        not with_synthetic_photos,
        f"{', '.join(with_synthetic_photos)} needs drawn photos",
        "`bench dreambooth` leaves every photo as it is",
    )
    ctx, config = resolve_unsharded(run, num_objects=objects, seed=seed)
    _require_bench_settings(ctx, "bench.", "segment.")
    count = QUICK["num_objects"] if quick else None
    if objects or config.num_objects != Bench().num_objects:
        count = config.num_objects
    live_classes = tuple(word.strip() for word in config.live_classes.split(","))
    subjects = dreambooth_dataset.read_subjects(folder, count, config.dreambooth_photo, live_classes)
    from objtune_cli.bench.suites import dreambooth as suite

    return print_rows(run, suite.run(_work_in(ctx, out), out, subjects, selected_methods, config), [out / "sheet.png"])


def masks(run: CommandRun, seed: Seed = None, quick: Quick = False) -> CommandResult:
    from objtune_cli.bench.suites import masks as suite
    from objtune_cli.bench.suites.objects import find_dial

    ctx, config = resolve_unsharded(run, seed=seed)
    if quick and config.num_mask_scenes == Bench().num_mask_scenes:
        config = replace(config, num_mask_scenes=QUICK_MASK_SCENES)
    return print_rows(run, suite.run(ctx, find_dial(ctx), config), [])


def show(
    run: CommandRun, file: Annotated[Path, typer.Argument(metavar="FILE", help="A results.jsonl.")]
) -> CommandResult:
    from objtune_cli.bench import tables

    return print_rows(run, tables.build_table(tables.read_results(file)), [])


SUITES = {
    "objects": Subcommand(objects, "Compare methods on held-out objects of the toybox; the default."),
    "base": Subcommand(base, "Measure what the base model itself draws."),
    "speed": Subcommand(speed, "Time a training step against DreamBooth-LoRA, here and at Stable Diffusion's size."),
    "memory": Subcommand(memory, "Count the GPU memory of a run at Stable Diffusion's sizes, on any machine."),
    "scenes": Subcommand(scenes, "Compare ways to draw two and three objects in one image."),
    "place": Subcommand(place, "Compare ways to draw an object into a picture with known ground truth."),
    "throughput": Subcommand(throughput, "Train N photos by one command and by N commands: time and quality."),
    "jobs": Subcommand(jobs, "Run a jobs file of N objects by two commands a job and by `run`: time."),
    "dreambooth": Subcommand(dreambooth, "Compare methods on photographs, with the papers' measures."),
    "masks": Subcommand(masks, "Measure `segment` on held-out scenes, by class word, box and point."),
    "show": Subcommand(show, "Print the table of a results.jsonl; measures nothing.", model={}),
}
"""Subcommands in the order of `objtune bench --help`; the first is the default."""


def _parse_methods(names: str | None, *, quick: bool) -> "dict[str, Method]":
    from objtune_cli.bench.methods import parse_methods

    return parse_methods(names or (QUICK_METHODS if quick else METHODS))


def _reduce(config: Bench, *, quick: bool) -> Bench:
    """With `--quick`, replace settings that have their defaults by smaller ones."""
    smaller = {key: value for key, value in QUICK.items() if getattr(config, key) == getattr(Bench(), key)}
    return replace(config, **smaller) if quick else config


def _work_in(ctx: "StageContext", out: Path) -> "StageContext":
    """The context with a project of its own below the results folder."""
    from objtune_cli.store.project import find_project

    return replace(ctx, project=find_project(out / "work", create=True))


def _require_bench_settings(ctx: "StageContext", *prefixes: str) -> None:
    """Refuse settings that look as if they changed a method: those that begin with none of the prefixes."""
    other = [key for key in ctx.settings.given if "." in key and not key.startswith(prefixes)]
    require(
        not other,
        f"--set {', '.join(other)} would change no method",
        "put it behind a method's name: `--methods objtune+train.learning_rate=5e-4`",
    )
