"""Several trainers in step: those on one base model share its calls; each further base model has a thread of its own.

A small model on a CPU does not use more than one processor, so that models in several threads are faster.
"""

from collections.abc import Sequence
from functools import partial

from objtune_cli.errors import GateError
from objtune_cli.runtime import cpu
from objtune_cli.training import step
from objtune_cli.training.trainer import Trainer


def train_step(trainers: Sequence[Trainer]) -> dict[Trainer, GateError]:
    """One step of each; all are at the same step and have the same settings.

    Returns:
        The trainers whose loss or gradient is not finite: they have taken no step.
    """
    by_model: dict[int, list[Trainer]] = {}
    for t in trainers:
        by_model.setdefault(id(t.model), []).append(t)
    failed: dict[Trainer, GateError] = {}
    for errors in cpu.run_parallel([partial(step.train_step, group) for group in by_model.values()]):
        failed |= errors
    return failed
