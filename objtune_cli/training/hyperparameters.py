"""The settings of a training run as experiment trackers show them."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from objtune_cli.config.sections import Embed, Prior, Train
from objtune_cli.store.refs import Ref
from objtune_cli.workflow.context import StageContext
from objtune_cli.workflow.metric_loggers import Hyperparameter


def describe(
    ctx: StageContext, sources: Sequence[Sequence[Ref]], config: Train, embedding: Embed, prior: Prior
) -> dict[str, Hyperparameter]:
    """All settings of the stages by the names that `--set` takes, with the objects, the base and the device.

    Args:
        sources: Masks or embeddings of each adapter.
        config: With the defaults of the base.
    """
    names = dict.fromkeys(ref.name for group in sources for ref in group)
    values: dict[str, Any] = {
        "objects": ", ".join(names),
        "base": ctx.base.id,
        "device": ctx.common.device,
        "precision": ctx.common.precision,
    }
    for section, settings in (("train", config), ("init-embedding", embedding), ("prior", prior)):
        values |= {f"{section}.{name}": value for name, value in asdict(settings).items()}
    return {name: "auto" if value is None else value for name, value in values.items()}
