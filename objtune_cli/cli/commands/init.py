"""`objtune init`: make a folder a project."""

from objtune_cli import paths
from objtune_cli.cli.runner import CommandResult, CommandRun


def init(run: CommandRun) -> CommandResult:
    from objtune_cli.store.project import find_project

    project = find_project(run.requested_folder() or paths.current_folder(), create=True)
    run.report.note(f"project {project.location}")
    return CommandResult(printed="nothing", extra={"project": project.location})
