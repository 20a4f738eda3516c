"""The terms of the training loss: L = L_OS + w_bg L_bg + w_cc L_CC + w_attn L_attn.

Source: arXiv:2401.15708 sections 3.3 and 3.4, arXiv:2305.16311; formulas in docs/explanation/method.md. To add a term, write
a class and append an object of it to `LOSS_TERMS`: steps, logs, checkpoints and metrics follow.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from objtune_cli.config.sections import Train
from objtune_cli.numerics import losses
from objtune_cli.training.batches import StepBatch


@dataclass(frozen=True, slots=True)
class Prediction:
    """The denoiser's output for one call, split by what the samples are of.

    Attributes:
        photo: (B, C, h, w), or None if the call had no photo samples. prior: (B', C, h, w), or None likewise.
        attention: For each object of the batch its token's attention map (B, s, s), largest value 1; None if not recorded.
    """

    photo: Tensor | None
    prior: Tensor | None
    attention: Sequence[Tensor] | None = None


class LossTerm(ABC):
    """One term of the loss. It may read the run's settings from `batch.settings`."""

    name: ClassVar[str]
    """Under which the term is logged and stored in metrics and checkpoints."""

    @abstractmethod
    def weight(self, settings: Train) -> float:
        """The factor of the term; 0 leaves it out."""

    def applies(self, batch: StepBatch, prediction: Prediction) -> bool:
        """Whether this call of the denoiser has what the term needs."""
        return prediction.photo is not None

    @abstractmethod
    def compute(self, batch: StepBatch, prediction: Prediction) -> Tensor:
        """The mean over the samples, a scalar."""


class ObjectTerm(LossTerm):
    """L_OS: the regression loss inside the object's mask."""

    name = "object"

    def weight(self, settings: Train) -> float:
        return 1.0

    def compute(self, batch: StepBatch, prediction: Prediction) -> Tensor:
        assert prediction.photo is not None
        return losses.photo(prediction.photo, batch.target, batch.masks, batch.settings.loss_region).mean()


class BackgroundTerm(LossTerm):
    """L_bg: outside the mask the frozen base's prediction is the target."""

    name = "background"

    def weight(self, settings: Train) -> float:
        return settings.background_loss_weight

    def applies(self, batch: StepBatch, prediction: Prediction) -> bool:
        return prediction.photo is not None and batch.teacher is not None

    def compute(self, batch: StepBatch, prediction: Prediction) -> Tensor:
        assert prediction.photo is not None and batch.teacher is not None
        count = len(batch.teacher)
        return losses.masked_mse(prediction.photo[:count], batch.teacher, 1 - batch.masks[:count]).mean()


class ClassTerm(LossTerm):
    """L_CC: samples of the class prior keep their predictions."""

    name = "class"

    def weight(self, settings: Train) -> float:
        return (
            settings.prior_loss_weight * settings.prior_loss_interval
        )  # the term is there in one step of `prior_loss_interval`

    def applies(self, batch: StepBatch, prediction: Prediction) -> bool:
        return prediction.prior is not None

    def compute(self, batch: StepBatch, prediction: Prediction) -> Tensor:
        assert prediction.prior is not None and batch.prior is not None
        return losses.mse(prediction.prior, batch.prior.target).mean()


class AttentionTerm(LossTerm):
    """Each object's token attends to the object (Break-A-Scene, arXiv:2305.16311, eq. 2)."""

    name = "attention"

    def weight(self, settings: Train) -> float:
        return settings.attention_loss_weight

    def applies(self, batch: StepBatch, prediction: Prediction) -> bool:
        return prediction.photo is not None and prediction.attention is not None

    def compute(self, batch: StepBatch, prediction: Prediction) -> Tensor:
        assert prediction.attention is not None
        terms = []
        for i, maps in enumerate(prediction.attention):
            mask = F.adaptive_avg_pool2d(batch.views.object_masks[batch.indices, i], maps.shape[-1])
            terms.append((maps - mask).square().mean())
        return torch.stack(terms).mean()


LOSS_TERMS: tuple[LossTerm, ...] = (ObjectTerm(), BackgroundTerm(), ClassTerm(), AttentionTerm())
"""In the order in which checkpoints store their running means: append only."""


def compute_terms(batch: StepBatch, prediction: Prediction) -> dict[str, Tensor]:
    """The values of the terms that apply to one call of the denoiser, by name."""
    return {term.name: term.compute(batch, prediction) for term in LOSS_TERMS if term.applies(batch, prediction)}


def term_weights(settings: Train) -> dict[str, float]:
    """The factor of each term, by name."""
    return {term.name: term.weight(settings) for term in LOSS_TERMS}
