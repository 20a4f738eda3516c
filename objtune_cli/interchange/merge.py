"""`merge`: combine adapters into one, for tools that take one file; `compose` separates objects better."""

from dataclasses import replace
from typing import Any

from objtune_cli.config.sections import Merge, identifying
from objtune_cli.errors import IncompatibleError, UsageError
from objtune_cli.store.artifacts import Record
from objtune_cli.store.kinds import adapter
from objtune_cli.store.refs import Ref, check_name
from objtune_cli.workflow.context import StageContext, StageResult, tool_versions
from objtune_cli.workflow.trained_objects import is_merged


def run(ctx: StageContext, adapters: list[tuple[Ref, float]], name: str | None, config: Merge) -> StageResult:
    """Merge several weighted adapters, or rescale one or lower its rank; the result has the tokens of all their objects.

    Raises:
        UsageError: Two adapters have the same object, one adapter is listed twice, or a single one has no new name or a weight of 0.
        IncompatibleError: The adapters have different bases, or a single one has no LoRA.
    """
    records = [ctx.store.read_record(ref) for ref, _ in adapters]
    if len({ref for ref, _ in adapters}) < len(adapters):
        twice = next(ref for i, (ref, _) in enumerate(adapters) if ref in [other for other, _ in adapters[:i]])
        raise UsageError(
            f"{twice} is given twice", f"its weight once is enough: `objtune merge {records[0].name}=0.8 cup`"
        )
    if len(adapters) == 1:
        _check_single(ctx, records[0], adapters[0][1], name)
    _check_compatible(records)
    weights = {str(ref): weight for ref, weight in adapters}
    settings = identifying(config) | {"weights": [weights[str(r.ref)] for r in records]}
    inputs = {f"{adapter.ADAPTER_ROLE}{r.name}": ctx.input_record(r.ref) for r in records}
    called = check_name(name) if name else "-".join(r.name for r in records)[:64].rstrip("-.")
    record = Record(
        "adapter",
        called,
        {n: word for r in records for n, word in r.objects.items()},
        inputs,
        settings,
        records[0].base,
    )
    return ctx.find_existing(record) or _merge(ctx, record, [r.ref for r in records], config)


def _check_single(ctx: StageContext, record: Record, weight: float, name: str | None) -> None:
    """Refuse a single adapter whose merge would change nothing or replace a trained object."""
    example = f"`objtune merge {record.name}=0.7 --name {record.name}-07`"
    if not name:
        raise UsageError(
            f"{record.ref} alone cannot be merged",
            f"give two adapters or more, or a weight and a new name: {example}",
        )
    is_taken = name in ctx.store.list_names("adapter") and not is_merged(
        ctx.store.read_record(ctx.store.resolve(Ref("adapter", name)))
    )
    if is_taken or name in (record.name, *record.objects):
        raise UsageError(
            f"{name} is the name of a trained object, and the merge would become its next version",
            f"give a new name: {example}",
        )
    if weight == 0:
        raise UsageError(f"a weight of 0 removes {record.ref}", f"a number that is not 0: {example}")
    if not adapter.has_lora(ctx.store.read_tensor_specs(record.ref)):
        raise IncompatibleError(
            f"{record.ref} contains only a token and no LoRA, so a weight has no effect",
            "it can be merged with others",
        )


def _check_compatible(records: list[Record]) -> None:
    """Refuse adapters with different bases or a common object, before any is opened."""
    first = records[0]
    for record in records[1:]:
        if record.base.get("fingerprint") != first.base.get("fingerprint"):
            raise IncompatibleError(
                f"{first.ref} was made with the base {first.base.get('id', '?')}, {record.ref} with {record.base.get('id', '?')}",
                "train both on one base, or import both with the same `--base`",
            )
    owners: dict[str, Ref] = {}
    for record in records:
        for name in record.objects:
            if name in owners:
                raise UsageError(
                    f"{owners[name]} and {record.ref} both contain <{name}>",
                    "train one under another name with `--name`",
                )
            owners[name] = record.ref


def _merge(ctx: StageContext, record: Record, sources: list[Ref], config: Merge) -> StageResult:
    import torch

    from objtune_cli.lora import merging

    ctx.check_stopped()
    for ref in sources:
        ctx.store.require_finite(ref)
    digests = {i["ref"]: i["sha256"] for i in record.inputs.values()}
    tensor_maps = [
        {k: torch.from_numpy(v.copy()) for k, v in ctx.store.read(ref, digests[str(ref)])[1].items()} for ref in sources
    ]
    tensors: dict[str, Any] = {k: v for tensors in tensor_maps for k, v in tensors.items() if adapter.is_token(k)}
    tensors |= merging.merge_adapters(
        tensor_maps, record.config["weights"], config.method, config.rank, config.density, config.seed
    )
    large = next((k for k, v in tensors.items() if not bool(torch.isfinite(v).all())), "")
    if large:
        raise UsageError(f"with these weights {large} is infinite", "give smaller weights")
    ranks = {v.shape[0] for k, v in tensors.items() if k.endswith(adapter.LORA_A)}
    metrics = {"rank": max(ranks, default=0)}
    return StageResult(ctx.publish(replace(record, metrics=metrics, tools=tool_versions()), tensors), metrics=metrics)
