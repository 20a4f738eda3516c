"""The class prior as an artifact: computed once per base and class, and reused for every object of the class."""

from dataclasses import asdict, replace

from objtune_cli.config.sections import Prior
from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import name_of_class
from objtune_cli.workflow.context import StageContext, StageResult

COMMON_CLASSES = ("person", "dog", "car", "tree", "chair", "cup")
"""Other classes that a prior preserves, for a base that does not list the words it knows."""


def exists(ctx: StageContext, class_word: str, config: Prior) -> bool:
    """Whether the prior is stored already; loads no model."""
    return ctx.find(_record(ctx, class_word, config), computed=True) is not None


def _record(ctx: StageContext, class_word: str, config: Prior) -> Record:
    name = name_of_class(class_word)
    return Record("prior", name, {name: class_word}, {}, asdict(config), ctx.base.record())


def run(ctx: StageContext, class_word: str, config: Prior) -> StageResult:
    """Compute the prior of a class on this base, or reuse it; `--force` of another stage does not recompute it."""
    record = _record(ctx, class_word, config)
    ref = ctx.find(record, computed=True)
    if ref:
        return StageResult(ref, True)
    ctx.store.check_writable(record.kind, record.name)
    from objtune_cli.training import class_prior

    model = ctx.load_base_model()
    step = ctx.progress(f"prior of {class_word}")
    prior = class_prior.compute(
        model, class_word, config, ctx.base.sampling["guidance_scale"], step, ctx.base.known_classes or COMMON_CLASSES
    )
    record = replace(record, tools=ctx.tools(model))
    return StageResult(ctx.without_force().publish(record, prior.to_tensors()))
