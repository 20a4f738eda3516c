"""Notes of `train` on earlier runs of an object, unfinished or finished, that it does not continue."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from objtune_cli import renamed_settings
from objtune_cli.config.sections import Train
from objtune_cli.store import safetensors_format
from objtune_cli.store.artifacts import Record
from objtune_cli.store.checkpoints import UnfinishedRun, list_checkpoints
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    from objtune_cli.training.trainer import Trainer

MAX_DIFFERENCES = 4
"""Differences that one line names."""


def checkpoint_header(ctx: StageContext, runs: "Iterable[tuple[Record, Trainer]]", computed: str) -> dict[str, Any]:
    """The header of a checkpoint: what its runs are made of and what resumes them, so that another command can say so."""
    states = [(record, trainer.step, trainer.total) for record, trainer in runs]
    progress: dict[str, Any] = {
        r.name: {"step": step, "total": total, "inputs": _inputs_digest(r)} for r, step, total in states
    }
    record = states[0][0] if states else None
    return {
        "runs": progress,
        "config": record.config if record else {},
        "base": record.base if record else {},
        "computed": computed,
        **({"command": asdict(ctx.command)} if ctx.command else {}),
    }


def report_earlier_runs(ctx: StageContext, record: Record) -> None:
    """Note, before the base model is loaded, which earlier runs of this object are not continued, and why."""
    for state in list_checkpoints(ctx.store):
        if why := _restart_reason(state, record):
            _report(ctx, state, record, why)
    versions = ctx.store.list_versions(record.kind, record.name)
    if versions and not ctx.force:
        newest = ctx.store.read_record(Ref(record.kind, record.name, versions[-1]))
        changed = changed_settings(newest.config, record.config)
        if changed and (newest.inputs, newest.base) == (record.inputs, record.base):
            steps = f" of {newest.metrics['steps']} steps" if "steps" in newest.metrics else ""
            ctx.report.note(
                f"{newest.ref}{steps} has other settings ({changed}); this run starts from the beginning and makes another version"
            )


def report_restart(ctx: StageContext, record: Record, key: str, computed: str) -> None:
    """Note that a run of the same settings and inputs begins anew, because its steps would differ in the last digits.

    Args:
        key: Of the run's own checkpoint. computed: Device, number format and threads, as in the header.
    """
    for state in list_checkpoints(ctx.store):
        if record.name not in state.runs or state.key == key or _restart_reason(state, record):
            continue
        other = f"the device, number format or number of threads differs ({state.computed}, now {computed})"
        _report(
            ctx,
            state,
            record,
            other
            if state.computed != computed
            else "a run of several photos and a run of one photo cannot resume each other",
        )


def _report(ctx: StageContext, state: UnfinishedRun, record: Record, why: str) -> None:
    run = state.runs[record.name]
    ctx.note_once(
        f"{record.kind}/{record.name}: a run of {run['total']} steps stopped at {run['step']} and is not resumed: {why}; the command that started it resumes it"
    )


def list_unfinished(store: Store) -> list[dict[str, Any]]:
    """Every unfinished run, for programs: adapter, step, total, and the state's file below the project."""
    return [
        {
            "adapter": name,
            "step": run["step"],
            "total": run["total"],
            "file": state.file,
        }
        for state in list_checkpoints(store)
        for name, run in state.runs.items()
    ]


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The settings of training that differ, such as "max_steps 160, now 200"; a record without a setting has its `absent` value."""
    changes = []
    configs = [renamed_settings.current("train", config) for config in (old, new)]
    for each in fields(Train):
        before, now = (config.get(each.name, each.metadata["absent"]) for config in configs)
        if before != now:
            changes.append(f"{each.name} {before}, now {now}")
    more = [f"{len(changes) - MAX_DIFFERENCES} more"] if len(changes) > MAX_DIFFERENCES else []
    return "; ".join(changes[:MAX_DIFFERENCES] + more)


def _restart_reason(state: UnfinishedRun, record: Record) -> str:
    """Why a checkpoint of this object does not fit a run; empty for the same work, or another object."""
    if record.name not in state.runs:
        return ""
    if state.base.get("fingerprint") != record.base.get("fingerprint"):
        return f"the base differs ({state.base.get('id', 'unknown')}, now {record.base.get('id', 'unknown')})"
    if changed := changed_settings(state.config, record.config):
        return f"the settings differ ({changed})"
    return (
        "the photo, mask, embedding or prior differs"
        if state.runs[record.name]["inputs"] != _inputs_digest(record)
        else ""
    )


def _inputs_digest(record: Record) -> str:
    """What a run is made from, in 16 digits."""
    return hashlib.sha256(safetensors_format.canonical_json(record.inputs).encode()).hexdigest()[:16]
