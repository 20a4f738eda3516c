"""The frozen base as teacher: its predictions for noised views of the photo, computed once before the first step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from objtune_cli.models import finite_checks
from objtune_cli.numerics import ddpm
from objtune_cli.training.batches import TEMPLATES, BatchSampler, StepBatch

FIRST_STREAM = 1 << 31
"""Number of the first random stream of the cache; lower numbers are those of the steps."""
INTERVAL = 4
"""One photo sample in so many has a teacher prediction, on average: scenes are preserved with few."""


@dataclass(slots=True)
class TeacherBatch:
    """Noised views of one subset under one template, with the frozen base's predictions.

    Attributes:
        indices: Which views (N,). z_t, target, prediction: (N, C, h, w). t: (N,).
    """

    indices: Tensor
    z_t: Tensor
    t: Tensor
    target: Tensor
    prediction: Tensor


class TeacherCache:
    """Conditions and predictions of the frozen base; must be built before any layer learns.

    Attributes:
        conditions: Encoded prompts in class words, one sample each, by text.
        predictions: For each subset of the objects, a batch for each template; empty without a background term.
    """

    def __init__(self, batches: BatchSampler) -> None:
        self.batches, config = batches, batches.config
        texts = {template.format(v.prompt_phrase("class")) for v in batches.views for template in TEMPLATES}
        with torch.no_grad():
            self.conditions = {text: batches.model.encode_prompt([text]) for text in sorted(texts)}
        count = -(
            -config.num_teacher_samples // len(batches.views)
        )  # subsets share the predictions: each is shown less often
        templates = TEMPLATES if config.multiple_templates else TEMPLATES[:1]
        self.predictions: list[dict[str, TeacherBatch]] = []
        for subset in range(len(batches.views)) if config.background_loss_weight else ():
            streams = (FIRST_STREAM + subset * len(TEMPLATES) + k for k in range(len(templates)))
            self.predictions.append(
                {text: self._predict(subset, text, count, k) for text, k in zip(templates, streams, strict=True)}
            )

    def _predict(self, subset: int, template: str, count: int, stream: int) -> TeacherBatch:
        batches, model = self.batches, self.batches.model
        views, size = batches.views[subset], max(1, batches.config.batch_size)
        g = ddpm.step_generator(batches.config.seed, stream)
        indices = batches.sample_indices(views, count, g)
        z_t, t, target = batches.noise_views(views, indices, g)
        condition = self.conditions[template.format(views.prompt_phrase("class"))]
        with torch.no_grad():
            parts = [
                model.predict(z, s, condition.expand(len(z))).float()
                for z, s in zip(z_t.split(size), t.split(size), strict=True)
            ]
        prediction = finite_checks.checked("denoiser", model.dtype, torch.cat(parts))
        return TeacherBatch(indices, z_t, t, target, prediction)

    def insert_into(self, batch: StepBatch, g: torch.Generator) -> None:
        """Replace the first samples of a batch by cached ones, so that they have a teacher prediction."""
        count, pick = self.sample_cached(len(batch.indices), g)
        if not self.predictions or not count:
            return
        cached = self.predictions[batch.subset][batch.template]
        pick = pick % len(cached.indices)
        batch.indices[:count], batch.t[:count] = cached.indices[pick], cached.t[pick]
        batch.z_t[:count], batch.target[:count] = cached.z_t[pick], cached.target[pick]
        batch.teacher = cached.prediction[pick]

    def sample_cached(self, batch_size: int, g: torch.Generator) -> tuple[int, Tensor]:
        """How many samples of a step come from the cache, batch_size / INTERVAL on average, and which."""
        whole, rest = divmod(batch_size, INTERVAL)
        count = whole + int(torch.rand((), generator=g).item() * INTERVAL < rest)
        return count, torch.randint(self.batches.config.num_teacher_samples, (count,), generator=g)
