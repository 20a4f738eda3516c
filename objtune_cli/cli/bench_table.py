"""What `bench` and `evaluate` share: their context and the printed table."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.cli import console, streams
from objtune_cli.cli.runner import CommandResult, CommandRun, require
from objtune_cli.config.sections import Bench

if TYPE_CHECKING:
    from objtune_cli.workflow.context import StageContext


def resolve_bench_settings(run: CommandRun, **flags: Any) -> tuple["StageContext", Bench]:
    ctx = run.context(create=False)
    if run.name == "bench":
        ctx.project.require_folder("`bench`")
    return ctx, ctx.settings.resolve(Bench, **flags)


def resolve_unsharded(run: CommandRun, **flags: Any) -> tuple["StageContext", Bench]:
    """The settings of what one machine measures as a whole."""
    ctx, config = resolve_bench_settings(run, **flags)
    require(
        config.shard == Bench().shard,
        f"bench.shard is {config.shard}",
        "only `bench objects` and `bench scenes` can be sharded: leave the setting out",
    )
    return ctx, config


def print_rows(run: CommandRun, rows: list[dict[str, Any]], images: list[Path]) -> CommandResult:
    """Rows as JSON, as a table for people, or as lines for programs."""
    from objtune_cli.evaluation import statistics

    if not run.options["json"]:
        if streams.result_stream().isatty():
            console.print_table(*statistics.pivot(rows))
        else:  # a row a line: programs do not have to know the columns
            columns = statistics.column_names(rows)
            console.print_table(
                columns, [columns] + [["" if row[c] is None else row[c] for c in columns] for row in rows]
            )
        for path in images:
            run.report.note(f"picture: {path}")
    return CommandResult(printed="nothing", images=images, extra={"rows": rows})
