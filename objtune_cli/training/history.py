"""What a run has shown so far: a value per step of each curve, and images at some steps. It does not influence the run."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

FILE = "training.json"
"""The curves of a run, beside its adapter; docs/schemas/training.json describes it."""
PREFIX = "history."
"""Start of the names of its tensors in a checkpoint."""
DIGITS = 6
"""Significant digits of a value in the file."""


@dataclass(slots=True)
class TrainingHistory:
    """Curves and samples of one run.

    Attributes:
        curves: Name to one value per step, the first of step 1; NaN where a step has none.
        validation: Loss under fixed noise by step, as early stopping measures it.
        samples: Images (N, H, W, 3) uint8 by step. scores: Their scores by step.
        seconds: Seconds by activity: train, samples, save.
    """

    curves: dict[str, list[float]] = field(default_factory=dict)
    validation: dict[int, float] = field(default_factory=dict)
    samples: "dict[int, np.ndarray]" = field(default_factory=dict)
    scores: dict[int, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def record_step(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of a step, counted from 1."""
        for name in {*self.curves, *values}:
            curve = self.curves.setdefault(name, [])
            curve += [float("nan")] * (step - 1 - len(curve))
            curve.append(float(values.get(name, float("nan"))))

    def record_seconds(self, activity: str, seconds: float) -> None:
        """Add the time that an activity took."""
        self.seconds[activity] = self.seconds.get(activity, 0.0) + seconds

    def state(self) -> "dict[str, Tensor]":
        """For a checkpoint: curves as float64, images as uint8."""
        import numpy as np
        import torch

        about = {
            "curves": list(self.curves),
            "validation": list(self.validation.items()),
            "scores": list(self.scores.items()),
            "seconds": self.seconds,
            "samples": list(self.samples),
        }
        text = json.dumps(about).encode()
        tensors = {f"{PREFIX}about": torch.frombuffer(bytearray(text), dtype=torch.uint8)}
        if self.curves:
            tensors[f"{PREFIX}curves"] = torch.tensor(list(self.curves.values()), dtype=torch.float64)
        if self.samples:
            tensors[f"{PREFIX}samples"] = torch.from_numpy(np.stack(list(self.samples.values())))
        return tensors

    def restore(self, tensors: "Mapping[str, Tensor]") -> None:
        """Continue from a `state`; a checkpoint of an earlier version has none."""
        if f"{PREFIX}about" not in tensors:
            return
        about: dict[str, Any] = json.loads(bytes(tensors[f"{PREFIX}about"].tolist()))
        curves = tensors.get(f"{PREFIX}curves")
        self.curves = dict(zip(about["curves"], [] if curves is None else curves.tolist(), strict=True))
        samples = tensors.get(f"{PREFIX}samples")
        self.samples = dict(zip(about["samples"], [] if samples is None else samples.numpy(), strict=True))
        self.validation, self.scores = dict(about["validation"]), dict(about["scores"])
        self.seconds = about["seconds"]

    def document(self, prompts: list[str]) -> dict[str, Any]:
        """The content of `FILE`.

        Args:
            prompts: Of the images of a step.
        """
        return {
            "steps": max(map(len, self.curves.values()), default=0),
            "curves": {name: [_round(value) for value in curve] for name, curve in sorted(self.curves.items())},
            "validation": [{"step": step, "loss": _round(loss)} for step, loss in sorted(self.validation.items())],
            "samples": [{"step": step, **self.scores.get(step, {})} for step in sorted(self.samples)],
            "prompts": prompts if self.samples else [],
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }


def _round(value: float) -> float | None:
    """A value with `DIGITS` digits; None where it is not finite, which JSON cannot hold."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
