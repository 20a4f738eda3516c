"""`objtune bench`: compare methods on objects with known truth."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from objtune_cli.cli.bench_table import _asked, _table, _whole
from objtune_cli.cli.runner import Outcome, Run, need
from objtune_cli.config.sections import SEEDS, Bench

if TYPE_CHECKING:
    from objtune_cli.workflow.context import StageContext


QUICK: dict[str, Any] = {"num_objects": 2, "prompt_rounds": 1, "num_base_samples": 128}


QUICK_METHODS = "objtune,dreambooth-lora"


def bench(
    run: Run,
    objects: Annotated[
        int | None, typer.Option(help="Held-out objects.", show_default=str(Bench().num_objects))
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Methods with commas, +train.learning_rate=… behind one changes it; baselines, ablations, robust, all.",
            show_default="objtune,baselines",
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(metavar="KINDS", help="Kinds of prompts, with commas.", show_default=Bench().prompt_kinds),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help=f"Seed of objects and prompts, {SEEDS}.", show_default=str(Bench().seed))
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two objects, two methods, a round of prompts.")] = False,
    base_only: Annotated[bool, typer.Option("--base-only", help="Measure what the base itself draws.")] = False,
    speed: Annotated[
        bool,
        typer.Option(
            "--speed", help="Measure a training step beside DreamBooth-LoRA's, here and at Stable Diffusion's size."
        ),
    ] = False,
    memory: Annotated[
        bool,
        typer.Option(
            "--memory", help="Count a GPU's memory through a run of Stable Diffusion's sizes, on any machine."
        ),
    ] = False,
    scenes: Annotated[
        bool,
        typer.Option(
            "--scenes", help="Measure two and three objects in one picture: composed, added, learned together."
        ),
    ] = False,
    many: Annotated[
        int | None,
        typer.Option(
            "--many",
            metavar="N",
            help="Measure N photos by one command against a command each: time and quality.",
            show_default=False,
        ),
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(
            "--photos",
            metavar="DIR",
            help="Measure on photographs: DreamBooth's data set, or a folder in its layout.",
            show_default=False,
        ),
    ] = None,
    masks: Annotated[
        bool, typer.Option("--masks", help="Measure `segment` on held-out scenes: by class word, box and point.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Results, kept and gone on from.")] = Path("bench"),
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="A results.jsonl: what it holds is not measured again.", show_default=False
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--table", metavar="FILE", help="Print what a results.jsonl holds; measures nothing.", show_default=False
        ),
    ] = None,
) -> Outcome:
    others = [value for value in (objects, methods, prompts, seed) if value is not None]
    if table is not None:
        kinds = speed or memory or scenes or masks or base_only or many is not None or photos is not None
        need(not (kinds or from_ or others or quick), "--table measures nothing", "leave the other options away")
        return _held(run, table)
    need(
        not (speed and (base_only or others)),
        "--speed compares objtune with dreambooth-lora on noise",
        "leave the other options away, but --quick",
    )
    need(
        from_ is None or not (speed or scenes or masks or base_only or many),
        "--from holds results of methods on objects",
        "leave it away here",
    )
    if photos is not None:
        need(
            not (memory or speed or scenes or masks or base_only or many is not None or from_ or prompts),
            "--photos has subjects and prompts of its own",
            "leave --scenes, --masks, --speed, --many, --base-only, --from and --prompts away",
        )
        return _photos(run, photos, objects, methods, seed, quick, out)
    if memory:
        need(
            not (speed or scenes or masks or base_only or many is not None or from_ or others or quick),
            "--memory takes steps on noise",
            "leave the other options away; `--set bench.memory_models=sdxl` says which layouts",
        )
        return _memory(run)
    if speed:
        return _speed(run, quick, out)
    if scenes:
        return _scenes(run, objects, methods, seed, quick, out)
    if masks:
        return _masks(run, others, seed, quick)
    if many is not None:
        need(
            objects is None and methods is None,
            "--many is the number of objects, and compares one method with itself",
            "leave --objects and --methods away",
        )
        return _many(run, many, prompts, seed, out)
    given = {"num_objects": objects, "prompt_kinds": prompts, "seed": seed}
    return _objects(run, given, methods, out, quick=quick, base_only=base_only, published=from_)


def _speed(run: Run, quick: bool, out: Path) -> Outcome:
    """A step beside others', here and at Stable Diffusion's size; of several objects."""
    from objtune_cli.bench.suites import speed as stage

    ctx, config = _whole(run)
    beside = bool(config.diffusers_script) and not quick
    if beside:
        from objtune_cli.bench.suites import diffusers_script

        diffusers_script.check_script(Path(config.diffusers_script))
    found = stage.run(ctx, config, stage.SIZES[:1] if quick else stage.SIZES)
    if beside:
        found += diffusers_script.measure(ctx, config, out / "script", found)
    return _table(run, found + stage.measure_joint_training(ctx, config.timing_rounds), [])


def _objects(
    run: Run,
    given: dict[str, Any],
    methods: str | None,
    out: Path,
    *,
    quick: bool,
    base_only: bool,
    published: Path | None,
) -> Outcome:
    """Methods on held-out objects, or the base alone."""
    from objtune_cli.bench.methods import parse_methods
    from objtune_cli.bench.suites import objects as stage
    from objtune_cli.evaluation.benchmark_objects import KINDS
    from objtune_cli.store.project import find_project

    chosen = parse_methods(methods or (QUICK_METHODS if quick else "objtune,baselines"))
    ctx, config = (_whole if base_only else _asked)(run, **given)
    if quick:
        config = replace(config, **{k: v for k, v in QUICK.items() if getattr(config, k) == getattr(Bench(), k)})
    unknown = [kind for kind in config.kinds if kind not in KINDS]
    need(not unknown, f"there is no kind of prompt {', '.join(unknown)}", f"one or more of {', '.join(KINDS)}")
    _without_methods(ctx, "bench.")
    dial = stage.find_dial(ctx)
    ctx = replace(ctx, project=find_project(out / "work", create=True))
    if base_only:
        from objtune_cli.bench.suites import base_model

        rows, images = base_model.run(ctx, out, dial, config), [out / "base.png"]
    else:
        rows, images = stage.run(ctx, out, chosen, config, published), [out / "sheet.png"]
    return _table(run, rows, images)


def _held(run: Run, file: Path) -> Outcome:
    """What was found before, here or elsewhere."""
    from objtune_cli.bench import tables

    return _table(run, tables.build_table(tables.read_results(file)), [])


def _without_methods(ctx: "StageContext", *own: str) -> None:
    """Refuse settings that look as if they changed a method; `own`: what the settings of the bench begin with."""
    other = [key for key in ctx.settings.given if "." in key and not key.startswith(own)]
    need(
        not other,
        f"--set {', '.join(other)} would change no method",
        "put it behind a method's name: `--methods objtune+train.learning_rate=5e-4`",
    )


def _photos(
    run: Run, folder: Path, objects: int | None, methods: str | None, seed: int | None, quick: bool, out: Path
) -> Outcome:
    """Methods on the subjects of a folder of photographs."""
    from objtune_cli.bench import dreambooth_dataset
    from objtune_cli.bench.methods import parse_methods
    from objtune_cli.store.project import find_project

    chosen = parse_methods(methods or (QUICK_METHODS if quick else "objtune,baselines"))
    rough = [name for name, method in chosen.items() if method.photo_variant != "exact"]
    need(not rough, f"{', '.join(rough)} changes drawn photos", "--photos hands every method its photo as it is")
    ctx, config = _whole(run, num_objects=objects, seed=seed)
    _without_methods(ctx, "bench.", "segment.")
    count = (
        config.num_objects
        if objects or config.num_objects != Bench().num_objects
        else QUICK["num_objects"]
        if quick
        else None
    )
    asked = dreambooth_dataset.read_subjects(
        folder, count, config.train_photo, tuple(word.strip() for word in config.live_classes.split(","))
    )
    from objtune_cli.bench.suites import dreambooth as stage

    rows = stage.run(replace(ctx, project=find_project(out / "work", create=True)), out, asked, chosen, config)
    return _table(run, rows, [out / "sheet.png"])


def _scenes(run: Run, objects: int | None, methods: str | None, seed: int | None, quick: bool, out: Path) -> Outcome:
    from objtune_cli.bench.suites import scenes as stage

    chosen = [part.strip() for part in methods.split(",")] if methods else list(stage.DEFAULT_METHODS)
    unknown = [name for name in chosen if name not in stage.METHODS]
    need(
        not unknown,
        f"there is no way {', '.join(unknown)} to several objects",
        f"one or more of {', '.join(stage.METHODS)}",
    )
    ctx, config = _asked(run, num_objects=objects, seed=seed)
    if objects is None and config.num_objects == Bench().num_objects:
        config = replace(config, num_objects=1 if quick else stage.DEFAULT_GROUPS)
    return _table(run, stage.run(ctx, out, chosen, replace(config, prompt_rounds=1) if quick else config), [])


def _many(run: Run, count: int, prompts: str | None, seed: int | None, out: Path) -> Outcome:
    from objtune_cli.bench.suites import throughput as stage

    ctx, config = _whole(run, prompt_kinds=prompts, seed=seed)
    return _table(run, stage.run(ctx, out, count, replace(config, prompt_rounds=1)), [])


def _memory(run: Run) -> Outcome:
    from objtune_cli.bench.suites import memory as stage

    return _table(run, stage.run(*_whole(run)), [])


def _masks(run: Run, others: list[Any], seed: int | None, quick: bool) -> Outcome:
    from objtune_cli.bench.suites import masks as stage
    from objtune_cli.bench.suites.objects import find_dial

    need(
        len(others) == (seed is not None),
        "--masks draws scenes of its own",
        "`--set bench.num_mask_scenes=N` says how many",
    )
    ctx, config = _whole(run, seed=seed)
    if quick and config.num_mask_scenes == Bench().num_mask_scenes:
        config = replace(config, num_mask_scenes=12)
    return _table(run, stage.run(ctx, find_dial(ctx), config), [])
