"""`objtune show`: all fields of one artifact, and its image."""

from dataclasses import asdict
from typing import Any

from objtune_cli.cli import console
from objtune_cli.cli.ref_arguments import AnyRefs
from objtune_cli.cli.runner import CommandResult, CommandRun, pick_image
from objtune_cli.cli.stdin import read_refs


def show(run: CommandRun, ref: AnyRefs = None) -> CommandResult:
    from objtune_cli.workflow.context import StageResult

    store = run.project().store
    refs = [store.find(text) for text in read_refs(ref)]
    records = [store.read_record(each) for each in refs]
    images = [store.list_images(each) for each in refs]
    if not run.options["json"]:
        rows: list[tuple[str, Any]] = []
        for each, record, here in zip(refs, records, images, strict=True):
            rows += [("ref", each), ("path", store.locate(each)), ("class", record.class_word)]
            rows += [*_flat(asdict(record)), *(("picture", store.backend.locate_path(p)) for p in here)]
        console.print_table(("key", "value"), rows)
        if images[-1]:
            run.progress.show_image(pick_image(images[-1]))
    single = {"artifact": asdict(records[0]), "path": store.locate(refs[0])} if len(refs) == 1 else {}
    return CommandResult(
        [StageResult(each, True) for each in refs],
        printed="nothing",
        images=[p for here in images for p in here],
        extra={"artifacts": [asdict(record) for record in records], **single},
    )


def _flat(record: dict[str, Any]) -> list[tuple[str, Any]]:
    """Nested settings as dotted keys."""
    rows: list[tuple[str, Any]] = []
    for key in ("objects", "inputs", "config", "base", "metrics", "tools"):
        for inner, value in record[key].items():
            if isinstance(value, dict):
                rows += [(f"{key}.{inner}.{k}", v) for k, v in value.items() if v]
            else:
                rows.append((f"{key}.{inner}", value))
    return rows
