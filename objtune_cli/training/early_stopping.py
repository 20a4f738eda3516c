"""Early stopping: a run ends when its validation loss under fixed noise stops falling."""

from collections.abc import Mapping

import torch
from torch import Tensor

NUM_MEASUREMENTS, MIN_MEASUREMENTS = 14, 6
"""Measurements in the most steps, and after how many of them the rate may begin to fall."""
MIN_FALL_SHARE = 0.07
"""It has stopped falling where the last quarter of the steps brought less than this share of the whole fall."""
DECAY_DIVISOR = 3
"""The rate then falls to its end within a third of the steps taken so far."""


class Plateau:
    """A constant rate until the loss stops falling, then a falling one (warm-up, stable, decay: arXiv:2404.06395).

    The loss is measured on fixed pictures under fixed noise (as arXiv:2302.04841 does for textual inversion): between two
    measurements only the weights differ, so that a few pictures tell what running means of the training loss do not.

    Attributes:
        history: Losses after 0, `every`, 2 `every`, ... steps. began: the step at which the rate began to fall, or None.
        most: Steps that it never goes beyond.
    """

    def __init__(self, most: int) -> None:
        self.max_steps, self.every = most, max(1, most // NUM_MEASUREMENTS)
        self.history: list[float] = []
        self.decay_start: int | None = None

    def should_measure(self, step: int) -> bool:
        """Whether the loss is wanted after this many steps."""
        return self.decay_start is None and step < self._decay_start and step == self.every * len(self.history)

    def record_loss(self, loss: float) -> None:
        """The next loss; the rate may begin to fall here."""
        self.history.append(loss)
        step = self.every * (len(self.history) - 1)
        if len(self.history) > MIN_MEASUREMENTS and self._is_flat():
            self.decay_start = step

    def _is_flat(self) -> bool:
        whole, part = divmod(3 * (len(self.history) - 1), 4)
        before = self.history[whole] + part / 4 * (self.history[whole + 1] - self.history[whole])
        now = self.history[-1]
        return not before - now >= MIN_FALL_SHARE * (self.history[0] - now) > 0  # a loss that is no number is no fall

    @property
    def _decay_start(self) -> int:
        """The step at which the rate begins to fall, at the latest so that the most steps are enough."""
        return (
            self.max_steps - max(1, self.max_steps // (DECAY_DIVISOR + 1))
            if self.decay_start is None
            else self.decay_start
        )

    @property
    def total(self) -> int:
        """Steps of the whole run as far as is known: the most, until the rate begins to fall."""
        return (
            self.max_steps
            if self.decay_start is None
            else min(self.max_steps, self.decay_start + max(1, self.decay_start // DECAY_DIVISOR))
        )

    def rate(self, step: int) -> float:
        """Share of the peak rate at a step: 1, then falling in a line to 0.05 at the last step."""
        tail = max(1, self.total - self._decay_start)
        return 1 - 0.95 * min(1.0, max(0, step - self._decay_start + 1) / tail)

    def state(self) -> dict[str, Tensor]:
        """For a later process."""
        return {
            "plateau.history": torch.tensor(self.history, dtype=torch.float64),
            "plateau.began": torch.tensor([-1 if self.decay_start is None else self.decay_start]),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a `state`."""
        self.history, decay_start = state["plateau.history"].tolist(), int(state["plateau.began"])
        self.decay_start = None if decay_start < 0 else decay_start
