"""What `bench` and `evaluate` share: their context and the printed table."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from objtune_cli.cli import console, streams
from objtune_cli.cli.runner import Outcome, Run, need
from objtune_cli.config.sections import Bench

if TYPE_CHECKING:
    from objtune_cli.workflow.context import StageContext


def _asked(run: Run, **given: Any) -> tuple["StageContext", Bench]:
    ctx = run.context(create=False)
    return ctx, ctx.settings.resolve(Bench, **given)


def _whole(run: Run, **given: Any) -> tuple["StageContext", Bench]:
    """The settings of what one machine measures as a whole."""
    ctx, config = _asked(run, **given)
    need(
        config.shard == Bench().shard,
        f"bench.shard is {config.shard}",
        "only methods on drawn objects, and groups of scenes, are shared out: leave it away here",
    )
    return ctx, config


def _table(run: Run, rows: list[dict[str, Any]], images: list[Path]) -> Outcome:
    """Rows as JSON, as a table for people, or as lines for programs."""
    from objtune_cli.evaluation import statistics

    if not run.options["json"]:
        if streams.results().isatty():
            console.table(*statistics.pivot(rows))
        else:  # a row a line: programs do not have to know the columns
            columns = statistics.column_names(rows)
            console.table(columns, [columns] + [["" if row[c] is None else row[c] for c in columns] for row in rows])
        for path in images:
            run.report.note(f"picture: {path}")
    return Outcome(shown="nothing", images=images, extra={"rows": rows})
