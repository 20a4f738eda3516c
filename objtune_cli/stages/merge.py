"""`merge`: several adapters as one, for tools that take one file; `compose` keeps objects apart better."""

from dataclasses import replace
from typing import Any

from objtune_cli.config import Merge, identifying
from objtune_cli.errors import IncompatibleError, UsageError
from objtune_cli.stages.context import Context, Done, tools
from objtune_cli.store import artifact
from objtune_cli.store.artifact import Record
from objtune_cli.store.refs import Ref, check_name


def run(ctx: Context, given: list[tuple[Ref, float]], name: str | None, config: Merge) -> Done:
    """One adapter of several, each with its weight; all their objects' tokens come along.

    Raises:
        UsageError: Fewer than two, or an object in two of them. IncompatibleError: They were made with different bases.
    """
    if len({ref for ref, _ in given}) < 2:
        raise UsageError("there is nothing to merge", "give two adapters or more: `objtune merge rex cup`")
    records = [artifact.read_record(ctx.root, ref) for ref, _ in given]
    _check(records)
    weights = {str(ref): weight for ref, weight in given}
    settings = identifying(config) | {"weights": [weights[str(r.ref)] for r in records]}
    inputs = {f"adapter.{r.name}": ctx.input(r.ref) for r in records}
    called = check_name(name) if name else "-".join(r.name for r in records)[:64].rstrip("-.")
    record = Record("adapter", called, {n: word for r in records for n, word in r.objects.items()}, inputs, settings, records[0].base)
    return ctx.reuse(record) or _merge(ctx, record, [r.ref for r in records], config)


def _check(records: list[Record]) -> None:
    """Refuse adapters that cannot be one, before any is opened."""
    first = records[0]
    for record in records[1:]:
        if record.base.get("fingerprint") != first.base.get("fingerprint"):
            raise IncompatibleError(
                f"{first.ref} was made with the base {first.base.get('id', '?')}, {record.ref} with {record.base.get('id', '?')}",
                "train them on one base",
            )
    held: dict[str, Ref] = {}
    for record in records:
        for name in record.objects:
            if name in held:
                raise UsageError(f"{held[name]} and {record.ref} both hold <{name}>", "train one under a name of its own with `--name`")
            held[name] = record.ref


def _merge(ctx: Context, record: Record, sources: list[Ref], config: Merge) -> Done:
    import torch

    from objtune_cli.models import merging

    ctx.check_stopped()
    for ref in sources:
        artifact.require_finite(ctx.root, ref)
    digests = {i["ref"]: i["sha256"] for i in record.inputs.values()}
    opened = [{k: torch.from_numpy(v.copy()) for k, v in artifact.load(ctx.root, ref, digests[str(ref)])[1].items()} for ref in sources]
    tensors: dict[str, Any] = {k: v for adapter in opened for k, v in adapter.items() if k.startswith(("token.", "token_2."))}
    tensors |= merging.merged(opened, record.config["weights"], config.method, config.rank, config.density, config.seed)
    ranks = {v.shape[0] for k, v in tensors.items() if k.endswith("lora_A.weight")}
    metrics = {"rank": max(ranks, default=0)}
    return Done(artifact.publish(ctx.root, replace(record, metrics=metrics, tools=tools()), tensors), metrics=metrics)
