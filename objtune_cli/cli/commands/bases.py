"""`objtune bases`: the base models on this machine."""

from objtune_cli.cli import console
from objtune_cli.cli.runner import CommandResult, CommandRun
from objtune_cli.errors import ObjtuneError


def bases_(run: CommandRun) -> CommandResult:
    from objtune_cli.models import hub_cache, registry

    rows: list[tuple[str, str, str]] = []
    for name in ("toybox", *hub_cache.HUB_REPOSITORIES):
        try:
            rows.append((name, "here", str(registry.resolve(name).folder)))
        except ObjtuneError as error:
            rows.append((name, "not here", error.hint))
    if not run.options["json"]:
        console.print_table(("base", "state", "where"), rows)
    return CommandResult(
        printed="nothing", extra={"bases": [{"base": n, "state": s, "where": str(w)} for n, s, w in rows]}
    )
