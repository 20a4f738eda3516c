"""A training loop without a store, for tests of the trainer."""

from collections.abc import Callable

import torch

from objtune_cli.numerics.ddpm import step_generator
from objtune_cli.training import step as training_step
from objtune_cli.training.trainer import Trainer


def train_to_end(trainer: Trainer, on_step: Callable[[int], None] = lambda number: None) -> None:
    """Take the remaining steps."""
    while not trainer.finished:
        trainer.train_step()
        on_step(trainer.step)
    trainer.keep_ema()


def step_losses(trainer: Trainer, step: int = 0) -> dict[str, float]:
    """The loss terms of one step, without taking it."""
    with torch.no_grad():
        parts = training_step.compute_losses([trainer], [step_generator(trainer.config.seed, step)])
        return {name: float(value) for (terms,) in parts for name, value in terms.items()}
