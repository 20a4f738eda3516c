"""A running mean of the weights (EMA), and the best of it: a state that needs no falling rate to be good."""

import contextlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class Average:
    """Exponential mean of parameters, mean <- d mean + (1 - d) p, with d = min(decay, (1 + n) / (10 + n)) at step n."""

    def __init__(self, params: list[Tensor], decay: float) -> None:
        self.params, self.decay = params, decay
        self.kept = [p.detach().clone() for p in params]

    @torch.no_grad()
    def update(self, step: int) -> None:
        d = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.kept, [p.detach() for p in self.params], 1 - d)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the parameters are their means; afterwards they are as before."""
        own = [p.detach().clone() for p in self.params]
        write(self.params, self.kept)
        try:
            yield
        finally:
            write(self.params, own)


@torch.no_grad()
def write(params: list[Tensor], values: list[Tensor]) -> None:
    """Set parameters to values."""
    for p, value in zip(params, values, strict=True):
        p.copy_(value)


class Best:
    """The best state so far by a score, and whether it is time to stop: no better one for `patience` scores.

    Attributes:
        history: Scores in order. values: of the best state, empty before the first score. at: its step.
    """

    def __init__(self, patience: int, margin: float) -> None:
        self.patience, self.margin = patience, margin
        self.history: list[float] = []
        self.values: list[Tensor] = []
        self.at = 0

    def add(self, score: float, step: int, values: list[Tensor]) -> None:
        """A new score; its state is kept where it is the best by more than the margin. One that is no number is the worst."""
        score = score if math.isfinite(score) else -math.inf
        if not self.history or score > self.top + self.margin:
            self.values, self.at = [v.detach().clone() for v in values], step
        self.history.append(score)

    @property
    def top(self) -> float:
        """The kept state's score."""
        best = self.history[0]
        for score in self.history[1:]:
            best = score if score > best + self.margin else best
        return best

    @property
    def done(self) -> bool:
        """Whether the last `patience` scores were no better."""
        before = Best(self.patience, self.margin)
        before.history = self.history[: -self.patience]
        return len(self.history) > self.patience and self.top <= before.top

    def state(self) -> dict[str, Tensor]:
        """For a later process."""
        kept = {"best.history": torch.tensor(self.history, dtype=torch.float64), "best.at": torch.tensor([self.at])}
        return kept | {f"best.{i:04d}": v.cpu() for i, v in enumerate(self.values)}

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.history, self.at = kept["best.history"].tolist(), int(kept["best.at"])
        names = sorted(n for n in kept if n.startswith("best.") and n.removeprefix("best.").isdigit())
        self.values = [kept[n] for n in names]
