"""What `report` and `run` share: the HTML file of a report, and its packages."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from objtune_cli.cli import failures
from objtune_cli.cli.runner import CommandRun, relative_to_cwd, require
from objtune_cli.errors import ResourceError

if TYPE_CHECKING:
    from objtune_cli.report.contents import Contents
    from objtune_cli.store.project import Project
    from objtune_cli.store.store import Store
    from objtune_cli.workflow.job_results import JobResult

MARK = b"objtune report</title>"
"""Text of every report, near its start."""
NAME = "report.html"
PACKAGES = ("jinja2", "matplotlib")
"""Of the extra `report`."""


def check_name(out: Path) -> None:
    """Refuse a file that is not named as HTML (UsageError)."""
    require(out.suffix.lower() in (".html", ".htm"), f"{out} is not named as HTML", f"for example `{NAME}`")


def has_packages() -> bool:
    """Whether the extra `report` is installed."""
    return all(find_spec(name) is not None for name in PACKAGES)


def write(run: CommandRun, store: "Store", contents: "Contents", out: Path, *, force: bool = False) -> list[Path]:
    """Write a report and return its path; an existing file is replaced only if it is a report.

    Args:
        force: Replace any file.

    Raises:
        UsageError: The file is no report. ResourceError: A package is not installed, or the file cannot be written.
    """
    from objtune_cli.report import page
    from objtune_cli.workflow import output_files

    text = "".join(page.render(store, contents))
    file = output_files.OutputFile(relative_to_cwd(out), text.encode(), lambda data: MARK in data[:4096], "a report")
    return output_files.write_files([file], force=force, note=run.report.note if force else lambda text: None)


def choose_after_run(project: "Project", out: Path | None, *, is_wanted: bool) -> Path | None:
    """The file of the report of a `run`: the one that the user named, else one in the project if the packages are there.

    Args:
        is_wanted: Whether to write a report that the user did not ask for.

    Raises:
        UsageError: The user's file is not named as HTML. ResourceError: A package for it is not installed.
    """
    if out is not None:
        check_name(out)
        if not has_packages():
            raise ResourceError("a report needs other packages", "`pip install 'objtune[report]'`")
        return out
    return project.local_folder / NAME if is_wanted and has_packages() else None


def write_after_run(
    run: CommandRun, project: "Project", out: Path, title: str, results: "Sequence[JobResult]"
) -> list[Path]:
    """Write the report of a `run`: its jobs, the objects that they made, and all scenes of these.

    The run has ended, so that an error is a note.
    """
    from objtune_cli.store.refs import parse

    try:
        from objtune_cli.report.contents import read_project

        made = dict.fromkeys(ref for result in results for ref in result.refs if ref.startswith("adapter/"))
        contents = read_project(project.store, title, list(map(parse, made)), [asdict(each) for each in results])
        files = write(run, project.store, contents, out)
    except Exception as error:
        run.report.note(f"no report: {failures.explain(error).message}")
        return []
    run.report.note(f"report: {relative_to_cwd(out)}")
    return files
