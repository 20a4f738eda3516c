"""`objtune init`: make a folder a project."""

from objtune_cli import paths
from objtune_cli.cli.runner import Outcome, Run


def init(run: Run) -> Outcome:
    from objtune_cli.store.project import find_project

    project = find_project(run.asked_folder() or paths.current_folder(), create=True)
    run.report.note(f"project {project.folder}")
    return Outcome(shown="nothing", extra={"project": str(project.folder)})
