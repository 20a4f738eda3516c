"""When a run has learned enough: its own loss under fixed noise has stopped falling. Knows no model and no picture."""

from collections.abc import Mapping

import torch
from torch import Tensor

CHECKS, FROM = 14, 6
"""Measurements in the most steps, and after how many of them the rate may begin to fall."""
SHARE = 0.07
"""It has stopped falling where the last quarter of the steps brought less than this share of the whole fall."""
TAIL = 3
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
        self.most, self.every = most, max(1, most // CHECKS)
        self.history: list[float] = []
        self.began: int | None = None

    def due(self, step: int) -> bool:
        """Whether the loss is wanted after this many steps."""
        return self.began is None and step < self._falls and step == self.every * len(self.history)

    def add(self, loss: float) -> None:
        """The next loss; the rate may begin to fall here."""
        self.history.append(loss)
        step = self.every * (len(self.history) - 1)
        if len(self.history) > FROM and self._flat():
            self.began = step

    def _flat(self) -> bool:
        whole, part = divmod(3 * (len(self.history) - 1), 4)
        before = self.history[whole] + part / 4 * (self.history[whole + 1] - self.history[whole])
        now = self.history[-1]
        return not before - now >= SHARE * (self.history[0] - now) > 0  # a loss that is no number is no fall

    @property
    def _falls(self) -> int:
        """The step at which the rate begins to fall, at the latest so that the most steps are enough."""
        return self.most - max(1, self.most // (TAIL + 1)) if self.began is None else self.began

    @property
    def total(self) -> int:
        """Steps of the whole run as far as is known: the most, until the rate begins to fall."""
        return self.most if self.began is None else min(self.most, self.began + max(1, self.began // TAIL))

    def rate(self, step: int) -> float:
        """Share of the peak rate at a step: 1, then falling in a line to 0.05 at the last step."""
        tail = max(1, self.total - self._falls)
        return 1 - 0.95 * min(1.0, max(0, step - self._falls + 1) / tail)

    def state(self) -> dict[str, Tensor]:
        """For a later process."""
        return {
            "plateau.history": torch.tensor(self.history, dtype=torch.float64),
            "plateau.began": torch.tensor([-1 if self.began is None else self.began]),
        }

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.history, began = kept["plateau.history"].tolist(), int(kept["plateau.began"])
        self.began = None if began < 0 else began
