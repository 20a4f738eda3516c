"""`objtune run`: many photos from one file."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from objtune_cli.cli import console
from objtune_cli.cli.runner import CommandResult, CommandRun


def run_(
    run: CommandRun,
    file: Annotated[Path, typer.Argument(help="A TOML file of [[job]] tables: photo, class, name, prompts, …")],
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", "-j", min=1, max=64, metavar="N", help="Number of parallel jobs, each in its own process."
        ),
    ] = 1,
) -> CommandResult:
    from objtune_cli.config.sections import Generate
    from objtune_cli.store.disk_errors import translate_os_errors
    from objtune_cli.workflow import job_file as reader
    from objtune_cli.workflow import job_pool

    listed = reader.read_jobs(file, run.report.note)
    project = run.project(create=True)
    reader.check_prompts(listed, project.store, run.settings(project).resolve(Generate).prompt_syntax)
    run.stop.install()
    with translate_os_errors(project.folder):
        results = job_pool.run(listed, project, jobs, run.report, run.stop.stop_signal)
    if not run.options["json"]:
        rows = [(r.name, r.state, r.code, f"{r.seconds:.0f}", " ".join(r.refs), r.message) for r in results]
        console.print_table(("job", "state", "code", "seconds", "made", "message"), rows)
    images = [Path(p) for r in results for p in r.images]
    code = job_pool.exit_code(results)
    if code:
        run.report.note(
            f"{sum(bool(r.code) for r in results)} of {len(results)} jobs failed; the same command runs only the rest"
        )
    return CommandResult(printed="nothing", images=images, extra={"jobs": [asdict(r) for r in results]}, code=code)
