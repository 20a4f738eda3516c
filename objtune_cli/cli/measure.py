"""`objtune bench` and `evaluate`: how good a method, a base, or one trained object is."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from objtune_cli import paths
from objtune_cli.cli import complete, render, streams
from objtune_cli.cli.frame import Outcome, Run, need
from objtune_cli.cli.given import given_refs
from objtune_cli.config import SEEDS, Bench

if TYPE_CHECKING:
    from objtune_cli.bench.evaluate import Given
    from objtune_cli.stages.context import Context

QUICK: dict[str, Any] = {"objects": 2, "repeats": 1, "samples": 128}
QUICK_METHODS = "objtune,dreambooth-lora"


def bench(
    run: Run,
    objects: Annotated[int | None, typer.Option(help="Held-out objects.", show_default=str(Bench().objects))] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Methods with commas, +train.lr=… behind one changes it; baselines, ablations, robust, all.",
            show_default="objtune,baselines",
        ),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="KINDS", help="Kinds of prompts, with commas.", show_default=Bench().prompts)
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
            "leave the other options away; `--set bench.layouts=sdxl` says which layouts",
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
    given = {"objects": objects, "prompts": prompts, "seed": seed}
    return _objects(run, given, methods, out, quick=quick, base_only=base_only, published=from_)


def _asked(run: Run, **given: Any) -> tuple["Context", Bench]:
    ctx = run.context(create=False)
    return ctx, ctx.settings.resolve(Bench, **given)


def _whole(run: Run, **given: Any) -> tuple["Context", Bench]:
    """The settings of what one machine measures as a whole."""
    ctx, config = _asked(run, **given)
    need(
        config.shard == Bench().shard,
        f"bench.shard is {config.shard}",
        "only methods on drawn objects, and groups of scenes, are shared out: leave it away here",
    )
    return ctx, config


def _speed(run: Run, quick: bool, out: Path) -> Outcome:
    """A step beside others', here and at Stable Diffusion's size; of several objects."""
    from objtune_cli.bench import speed as stage

    ctx, config = _whole(run)
    beside = bool(config.script) and not quick
    if beside:
        from objtune_cli.bench import script

        script.check_there(Path(config.script))
    found = stage.run(ctx, config, stage.SIZES[:1] if quick else stage.SIZES)
    if beside:
        found += script.rows(ctx, config, out / "script", found)
    return _table(run, found + stage.objects(ctx, config.rounds), [])


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
    from objtune_cli.bench import run as stage
    from objtune_cli.bench.cases import KINDS
    from objtune_cli.bench.methods import named
    from objtune_cli.store.project import locate

    chosen = named(methods or (QUICK_METHODS if quick else "objtune,baselines"))
    ctx, config = (_whole if base_only else _asked)(run, **given)
    if quick:
        config = replace(config, **{k: v for k, v in QUICK.items() if getattr(config, k) == getattr(Bench(), k)})
    unknown = [kind for kind in config.kinds if kind not in KINDS]
    need(not unknown, f"there is no kind of prompt {', '.join(unknown)}", f"one or more of {', '.join(KINDS)}")
    _without_methods(ctx, "bench.")
    dial = stage.dial_of(ctx)
    ctx = replace(ctx, project=locate(out / "work", create=True))
    if base_only:
        from objtune_cli.bench import base

        rows, images = base.run(ctx, out, dial, config), [out / "base.png"]
    else:
        rows, images = stage.run(ctx, out, chosen, config, published), [out / "sheet.png"]
    return _table(run, rows, images)


def _held(run: Run, file: Path) -> Outcome:
    """What was found before, here or elsewhere."""
    from objtune_cli.bench import tables

    return _table(run, tables.tabled(tables.read(file)), [])


def _without_methods(ctx: "Context", *own: str) -> None:
    """Refuse settings that look as if they changed a method; `own`: what the settings of the bench begin with."""
    other = [key for key in ctx.settings.given if "." in key and not key.startswith(own)]
    need(
        not other,
        f"--set {', '.join(other)} would change no method",
        "put it behind a method's name: `--methods objtune+train.lr=5e-4`",
    )


def _photos(
    run: Run, folder: Path, objects: int | None, methods: str | None, seed: int | None, quick: bool, out: Path
) -> Outcome:
    """Methods on the subjects of a folder of photographs."""
    from objtune_cli.bench import dataset
    from objtune_cli.bench.methods import named
    from objtune_cli.store.project import locate

    chosen = named(methods or (QUICK_METHODS if quick else "objtune,baselines"))
    rough = [name for name, method in chosen.items() if method.given != "exact"]
    need(not rough, f"{', '.join(rough)} changes drawn photos", "--photos hands every method its photo as it is")
    ctx, config = _whole(run, objects=objects, seed=seed)
    _without_methods(ctx, "bench.", "segment.")
    count = config.objects if objects or config.objects != Bench().objects else QUICK["objects"] if quick else None
    asked = dataset.subjects(folder, count, config.photo, tuple(word.strip() for word in config.live.split(",")))
    from objtune_cli.bench import dreambench as stage

    rows = stage.run(replace(ctx, project=locate(out / "work", create=True)), out, asked, chosen, config)
    return _table(run, rows, [out / "sheet.png"])


def _scenes(run: Run, objects: int | None, methods: str | None, seed: int | None, quick: bool, out: Path) -> Outcome:
    from objtune_cli.bench import scenes as stage

    chosen = [part.strip() for part in methods.split(",")] if methods else list(stage.ASKED)
    unknown = [name for name in chosen if name not in stage.METHODS]
    need(
        not unknown,
        f"there is no way {', '.join(unknown)} to several objects",
        f"one or more of {', '.join(stage.METHODS)}",
    )
    ctx, config = _asked(run, objects=objects, seed=seed)
    if objects is None and config.objects == Bench().objects:
        config = replace(config, objects=1 if quick else stage.GROUPS)
    return _table(run, stage.run(ctx, out, chosen, replace(config, repeats=1) if quick else config), [])


def _many(run: Run, count: int, prompts: str | None, seed: int | None, out: Path) -> Outcome:
    from objtune_cli.bench import many as stage

    ctx, config = _whole(run, prompts=prompts, seed=seed)
    return _table(run, stage.run(ctx, out, count, replace(config, repeats=1)), [])


def _memory(run: Run) -> Outcome:
    from objtune_cli.bench import memory as stage

    return _table(run, stage.run(*_whole(run)), [])


def _masks(run: Run, others: list[Any], seed: int | None, quick: bool) -> Outcome:
    from objtune_cli.bench import masks as stage
    from objtune_cli.bench.run import dial_of

    need(len(others) == (seed is not None), "--masks draws scenes of its own", "`--set bench.scenes=N` says how many")
    ctx, config = _whole(run, seed=seed)
    if quick and config.scenes == Bench().scenes:
        config = replace(config, scenes=12)
    return _table(run, stage.run(ctx, dial_of(ctx), config), [])


def evaluate(
    run: Run,
    ref: Annotated[
        list[str],
        typer.Argument(help="Trained objects, or - to read refs from stdin.", autocompletion=complete.adapter_ref),
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Which one, of several in one adapter.", show_default=False),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="CLIP for photographs: name or folder.", show_default="openai/clip-vit-base-patch32"
        ),
    ] = None,
    dino: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="DINO for photographs: name or folder.", show_default="facebook/dino-vits16"
        ),
    ] = None,
    scene: Annotated[
        list[str] | None,
        typer.Option(metavar="WORDS", help='Where it is drawn, for example "on the beach"; repeat for more.'),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Pictures of each scene.")] = 2,
    seed: Annotated[
        int | None, typer.Option(help=f"Seed of the calibration, {SEEDS}.", show_default=str(Bench().seed))
    ] = None,
) -> Outcome:
    from objtune_cli.bench import evaluate as stage
    from objtune_cli.bench import measures
    from objtune_cli.bench.run import dial_of
    from objtune_cli.store import refs

    need(n >= 1, f"-n is {n}", "1 or more")
    ctx, config = _asked(run, seed=seed)
    rows = []
    for each in [refs.find(ctx.root, text, ("adapter",)) for text in given_refs(ref)]:
        subject = stage.given(ctx, each, name)
        if ctx.base.world and not (clip or dino):
            need(
                not scene,
                "--scene belongs to --clip and --dino",
                "the toybox's own evaluator asks for every background of its world",
            )
            found = stage.toybox(ctx, subject, dial_of(ctx), n, config.seed)
        else:
            found = _papers(
                ctx, subject, paths.to_model(clip or config.clip), paths.to_model(dino or config.dino), scene, n
            )
        rows += measures.rows(subject.name, [found])
    return _table(run, rows, [])


def _papers(
    ctx: "Context", subject: "Given", clip: str, dino: str, scene: list[str] | None, n: int
) -> dict[str, float]:
    from objtune_cli.bench import evaluate as stage
    from objtune_cli.bench import features

    judges = features.clip(clip or features.CLIP), features.dino(dino)
    return stage.papers(ctx, subject, scene or list(stage.SCENES), n, *judges)


def _table(run: Run, rows: list[dict[str, Any]], images: list[Path]) -> Outcome:
    """Rows as JSON, as a table for people, or as lines for programs."""
    from objtune_cli.bench import measures

    if not run.options["json"]:
        if streams.results().isatty():
            render.table(*measures.pivot(rows))
        else:  # a row a line: programs do not have to know the columns
            columns = measures.columns(rows)
            render.table(columns, [columns] + [["" if row[c] is None else row[c] for c in columns] for row in rows])
        for path in images:
            run.report.note(f"picture: {path}")
    return Outcome(shown="nothing", images=images, extra={"rows": rows})
