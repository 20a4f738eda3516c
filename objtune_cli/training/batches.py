"""What a training step shows the denoiser: noised views of the photo and noised samples of the class prior."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from objtune_cli.config.sections import Train
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.conditioning import Conditioning
from objtune_cli.models.prompts import PROMPT
from objtune_cli.store.kinds.prior import PriorArtifact
from objtune_cli.training.subjects import Subject, Views, encode_views, subsets

TEMPLATES = (PROMPT, "a picture of {}", "{}")
VALIDATION_SAMPLES = 16
"""Samples of the loss that tells when to stop."""


@dataclass(frozen=True, slots=True)
class PriorBatch:
    """Samples of the class prior.

    Attributes:
        z_t, target: (B, C, h, w). t: (B,). condition: Of B samples.
    """

    z_t: Tensor
    t: Tensor
    condition: Conditioning
    target: Tensor


@dataclass(slots=True)
class StepBatch:
    """The samples of one step.

    Attributes:
        settings: Settings of the run, for the loss terms.
        subset: Number of the subset of objects in `views`. subject: the object whose class prior the step uses.
        template: The sentence, with {} for the objects.
        indices: Which views (B,). z_t, target: (B, C, h, w): noised latents and regression target. t: (B,).
        teacher: Predictions of the frozen base for the first samples, (n, C, h, w), or None.
        prior: Samples of the class prior, or None in a step without them.
    """

    settings: Train
    subset: int
    subject: Subject
    views: Views
    template: str
    indices: Tensor
    z_t: Tensor
    t: Tensor
    target: Tensor
    teacher: Tensor | None = None
    prior: PriorBatch | None = None

    @property
    def prompt(self) -> str:
        """The sentence with placeholder tokens."""
        return self.template.format(self.views.prompt_phrase("token"))

    @property
    def masks(self) -> Tensor:
        """Coverage of the objects in latent cells, (B, 1, h, w)."""
        return self.views.masks[self.indices]

    def forward_passes(self, condition: Conditioning, single_forward: bool) -> "list[ForwardPass]":
        """The calls of the denoiser for this step.

        Args:
            condition: The encoded prompt. single_forward: photo and class prior share one call.
        """
        count = len(self.indices)
        photo = (self.z_t, self.t, condition.expand(count))
        if self.prior is None:
            return [ForwardPass(*photo, count)]
        prior = (self.prior.z_t, self.prior.t, self.prior.condition)
        if not single_forward:
            return [ForwardPass(*photo, count), ForwardPass(*prior, 0)]
        z_t, t = (torch.cat(pair) for pair in zip(photo[:2], prior[:2], strict=True))
        return [ForwardPass(z_t, t, Conditioning.concat([photo[2], prior[2]]), count)]


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """The inputs of one call of the denoiser; the first `num_photo` samples are of the photo, the rest of the class prior."""

    z_t: Tensor
    t: Tensor
    condition: Conditioning
    num_photo: int


class BatchSampler:
    """Draws the samples of the steps of one run; all randomness comes from the generators passed in.

    Attributes:
        views: Augmented views of each subset of the objects; single objects come first.
        priors: Class priors by class word. prior_conditions: Their encoded prompts, one sample per prompt.
    """

    def __init__(
        self, model: BaseModel, subjects: list[Subject], priors: Mapping[str, PriorArtifact], config: Train
    ) -> None:
        self.model, self.subjects, self.config = model, subjects, config
        self.views = [encode_views(model, members, config) for members in subsets(subjects)]
        self.priors = {word: prior.map(lambda tensor: tensor.to(model.device)) for word, prior in priors.items()}
        self.prior_conditions = {
            word: model.unpack_conditioning(prior.conditions.to(model.dtype)) for word, prior in self.priors.items()
        }

    def sample_photo(self, g: torch.Generator) -> StepBatch:
        """The photo's samples of a step, without teacher predictions and without the class prior."""
        config = self.config
        subset = self._sample_subset(g)
        views, template = self.views[subset], PROMPT
        if config.multiple_templates:
            template = TEMPLATES[int(torch.randint(len(TEMPLATES), (), generator=g))]
        subject = views.members[int(torch.randint(len(views.members), (), generator=g))]
        indices = self.sample_indices(views, config.batch_size, g)
        z_t, t, target = self.noise_views(views, indices, g)
        return StepBatch(config, subset, subject, views, template, indices, z_t, t, target)

    def _sample_subset(self, g: torch.Generator) -> int:
        """One object alone with the probability `singles`, because images usually show one; else any subset."""
        config = self.config
        is_single = (
            config.single_object_prob
            and len(self.subjects) > 1
            and float(torch.rand((), generator=g)) < config.single_object_prob
        )
        return int(torch.randint(len(self.subjects) if is_single else len(self.views), (), generator=g))

    def sample_indices(self, views: Views, count: int, g: torch.Generator) -> Tensor:
        """Indices of `count` views: uniform, but with the probability `original_view_prob` an original view, the first ones."""
        indices = torch.randint(len(views.latents), (count,), generator=g)
        if self.config.original_view_prob:
            is_original = torch.rand(count, generator=g) < self.config.original_view_prob
            if views.num_originals == 1:  # no random number is drawn, so that runs of one photo keep their samples
                indices[is_original] = 0
            else:
                originals = torch.randint(views.num_originals, (count,), generator=g)
                indices[is_original] = originals[is_original]
        return indices

    def noise_views(self, views: Views, indices: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """z_t, t and regression target of some views."""
        return self.add_noise(
            views.latents[indices], g, None if views.latent_std is None else views.latent_std[indices]
        )

    def add_noise(self, z: Tensor, g: torch.Generator, std: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """z_t, t and regression target of clean latents, or of latents sampled around them with standard deviation `std`."""
        if std is not None:
            z = z + std * torch.randn(z.shape, generator=g).to(z)
        eps = torch.randn(z.shape, generator=g).to(z)
        levels = max(1, round(self.config.max_timestep * self.model.num_train_timesteps))
        if self.config.timestep_sampling == "uniform":
            t = torch.randint(levels, (len(z),), generator=g)
        else:
            t = self.model.family.timesteps(len(z), levels, g)
        z_t, target = self.model.add_noise_and_target(z, eps, t)
        return z_t, t, target

    def sample_prior(self, class_word: str, count: int, g: torch.Generator) -> PriorBatch:
        """Samples of a class prior: with stored predictions of the frozen base, or with plain noise targets (DreamBooth)."""
        prior, conditions = self.priors[class_word], self.prior_conditions[class_word]
        if self.config.prior_target == "noise":
            std = self.views[0].latent_std  # the photo's: class samples were never encoded, so they have none
            z = prior.latents[torch.randint(len(prior.latents), (count,), generator=g)]
            z_t, t, target = self.add_noise(z, g, None if std is None else std[:1])
            return PriorBatch(z_t, t, conditions[:1].expand(count), target)
        pick = torch.randint(len(prior.timesteps), (count,), generator=g)
        condition = conditions[prior.prompt_index[pick]]
        return PriorBatch(prior.noisy_latents[pick], prior.timesteps[pick].cpu(), condition, prior.predictions[pick])

    def validation_batch(self, k: int) -> StepBatch:
        """Fixed samples of the k-th object: half augmented views, half original ones, over all noise levels."""
        views, g = self.views[k], torch.Generator().manual_seed(0)
        indices = torch.arange(VALIDATION_SAMPLES) % len(views.latents)
        half = VALIDATION_SAMPLES // 2
        indices[half:] = torch.arange(half) % views.num_originals
        z = views.latents[indices]
        eps = torch.randn(z.shape, generator=g).to(z)
        shuffled = torch.arange(VALIDATION_SAMPLES) * 7 % VALIDATION_SAMPLES
        t = ((shuffled + 0.5) / VALIDATION_SAMPLES * self.model.num_train_timesteps).long()
        z_t, target = self.model.add_noise_and_target(z, eps, t)
        return StepBatch(self.config, k, views.members[0], views, PROMPT, indices, z_t, t, target)
