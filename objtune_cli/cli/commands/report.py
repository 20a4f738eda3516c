"""`objtune report`: the project, or some of its objects, as one HTML file."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from objtune_cli.cli import completion, console, report_file
from objtune_cli.cli.runner import CommandResult, CommandRun
from objtune_cli.cli.stdin import read_refs
from objtune_cli.errors import InputError, MissingError

Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="The HTML file.")]
Jobs = Annotated[Path | None, typer.Option("--jobs", metavar="FILE", help="Show the results in this run.jsonl, too.")]
Bench = Annotated[
    Path | None,
    typer.Option(
        "--bench",
        metavar="PATH",
        help="Show a benchmark, too: its folder, results.jsonl, or what `bench --json` printed.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is not a report.")]


def report(
    run: CommandRun,
    ref: Annotated[
        list[str] | None,
        typer.Argument(help="Trained objects; default: all.", autocompletion=completion.adapter_ref),
    ] = None,
    out: Out = Path(report_file.NAME),
    jobs: Jobs = None,
    bench: Bench = None,
    force: Force = False,
) -> CommandResult:
    from objtune_cli.report import bench_results, contents
    from objtune_cli.workflow.context import StageResult

    report_file.check_name(out)
    project = run.project()
    store = project.store
    refs = [store.find(text, ("adapter",)) for text in read_refs(ref)] if ref else []
    title = ", ".join(each.name for each in refs) or project.location.rstrip("/").rpartition("/")[2]
    lines = _read_jobs(jobs) if jobs else []
    results = bench_results.read(bench) if bench else None
    shown = contents.read_project(store, title, refs if ref else None, lines, results)
    if not (shown.objects or shown.scenes or shown.jobs or shown.bench):
        raise MissingError("there is nothing to report", "train an object first: `objtune train photo.jpg --class dog`")
    files = report_file.write(run, store, shown, out, force=force)
    if not run.options["json"]:
        console.print_lines(files)
    return CommandResult(
        [StageResult(each.record.ref, True) for each in shown.objects],
        printed="nothing",
        images=[],
        extra={"files": [str(path) for path in files], "problems": shown.problems},
    )


def _read_jobs(file: Path) -> list[dict[str, Any]]:
    """The last line of each job.

    Raises:
        InputError: The file cannot be read, or is not of `run`.
    """
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        return list({str(line["name"]): {"state": "", **line} for line in lines}.values())
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a line is no result of `objtune run`"
        raise InputError(f"{file} cannot be read: {reason}", "give the run.jsonl of a project") from None
