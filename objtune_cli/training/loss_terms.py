"""What a training step's losses are made of: L = L_OS + w_bg L_bg + w_cc L_CC, and the losses of others' methods.

Source: arXiv:2401.15708 sections 3.3 and 3.4 as formulated in docs/method.md. Knows the frozen base, the photo's views and
the class prior; no optimizer.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from objtune_cli.config.sections import Train
from objtune_cli.models import attention, finite_checks
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.placeholders import Placeholders
from objtune_cli.models.prompts import PROMPT, with_class_words
from objtune_cli.numerics import ddpm, losses
from objtune_cli.numerics.embeddings import lengths
from objtune_cli.store.kinds.prior import PriorArtifact
from objtune_cli.training.subjects import Subject, Views, encode_views, subsets

KNOWN_FROM = 1 << 31
"""Number of the first generator that is no step's."""
TEMPLATES = (PROMPT, "a picture of {}", "{}")
FIXED = 16
"""Rows of the loss that says how far the run has come."""
TEACHER_SHARE = 4
"""One in so many rows is held to the frozen base outside the mask: scenes are kept with few."""


@dataclass(slots=True)
class Known:
    """Noised views of one subset under one template, and the frozen base's word on them.

    Attributes:
        rows: Which views (N,). z_t, aim, pred: (N, C, h, w): noised, the regression target, the base's prediction. t: (N,).
    """

    rows: Tensor
    z_t: Tensor
    t: Tensor
    aim: Tensor
    pred: Tensor


@dataclass(slots=True)
class Seen:
    """What a step shows: views of the photo and which of them, the prompt, noised rows and what the denoiser is to say of them.

    Attributes:
        z_t, aim: (B, C, h, w). t: (B,). teacher: the frozen base's word on the first rows, or None.
        of_class: z_t, t, condition and aim of the class's rows where this step has some.
    """

    views: Views
    rows: Tensor
    prompt: str
    z_t: Tensor
    t: Tensor
    aim: Tensor
    teacher: Tensor | None
    of_class: tuple[Tensor, Tensor, Tensor, Tensor] | None


@dataclass(slots=True)
class Pass:
    """One pass of the denoiser: z_t, t, condition; and the terms of what it predicts and of where its words looked."""

    given: tuple[Tensor, Tensor, Tensor]
    terms: Callable[[Tensor, attention.Recorder | None], dict[str, Tensor]]


class Terms:
    """The words, views, priors and kept predictions of one run, and the loss terms of a step."""

    def __init__(
        self, model: BaseModel, subjects: list[Subject], priors: Mapping[str, PriorArtifact], config: Train
    ) -> None:
        self.model, self.subjects, self.config = model, subjects, config
        self.words = Placeholders(model)
        for s in subjects:
            self.words.add(s.name, s.token_embeddings, s.class_word)
        self.classes = {s.name: s.class_word for s in subjects}
        self.fixed = {s.name: s.token_embeddings[s.num_trainable :].to(model.device) for s in subjects}
        self.norms = {
            s.name: lengths(s.token_embeddings[: s.num_trainable], model.widths).to(model.device) for s in subjects
        }
        self.learned = {
            s.name: s.token_embeddings[: s.num_trainable]
            .to(model.device)
            .clone()
            .requires_grad_(config.token == "learned")
            for s in subjects
        }
        self.views = [encode_views(model, members, config) for members in subsets(subjects)]
        self.priors = {word: _on_device(prior, model) for word, prior in priors.items()}
        self.teacher_conditions = self._teacher_conditions()
        self.known = self._known() if config.background_weight else []
        self.step = 0

    def _teacher_conditions(self) -> dict[str, Tensor]:
        """What the frozen base is told: the same words with the class in the token's place."""
        texts = {template.format(v.words("class")) for v in self.views for template in TEMPLATES}
        with torch.no_grad():
            return {text: self.model.encode([text]) for text in sorted(texts)}

    def _known(self) -> list[dict[str, Known]]:
        """For each subset of the objects and each template, what the frozen base sees in noised views; before any layer learns.

        Subsets share the number asked for: each is shown as much less often.
        """
        found, size = [], max(1, self.config.batch)
        each = -(-self.config.known // len(self.views))
        for i, v in enumerate(self.views):
            known = {}
            for k, template in enumerate(TEMPLATES if self.config.templates == "several" else TEMPLATES[:1]):
                g = ddpm.step_generator(self.config.seed, KNOWN_FROM + i * len(TEMPLATES) + k)
                rows = self._rows(v, each, g)
                z_t, t, aim = self._noised(v.latents[rows], g, v.spread if v.spread is None else v.spread[rows])
                words = self.teacher_conditions[template.format(v.words("class"))]
                with torch.no_grad():
                    parts = [
                        self.model.predict(z, s, words.expand(len(z), -1, -1)).float()
                        for z, s in zip(z_t.split(size), t.split(size), strict=True)
                    ]
                known[template] = Known(
                    rows, z_t, t, aim, finite_checks.checked("denoiser", self.model.dtype, torch.cat(parts))
                )
            found.append(known)
        return found

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean L_OS of the objects, each alone on FIXED rows, half of them the photo's own placement, noise and noise levels always the same."""
        size, found = max(1, self.config.batch), []
        for k in range(len(self.subjects)):
            fixed = self.validation_batch(k)
            words = self.condition(fixed.prompt)
            parts = [
                self.model.predict(a, b, words.expand(len(a), -1, -1)).float()
                for a, b in zip(fixed.z_t.split(size), fixed.t.split(size), strict=True)
            ]
            found.append(self.object_loss(fixed, torch.cat(parts)))
        return sum(found) / len(found)

    def validation_batch(self, k: int) -> Seen:
        """What `fixed_loss` looks at of the k-th object."""
        v, g, model = self.views[k], torch.Generator().manual_seed(0), self.model
        rows = torch.arange(FIXED) % len(v.latents)
        rows[FIXED // 2 :] = 0
        z = v.latents[rows]
        eps = torch.randn(z.shape, generator=g).to(z)
        t = ((torch.arange(FIXED) * 7 % FIXED + 0.5) / FIXED * model.levels).long()
        z_t, aim = model.noised(z, eps, t)
        return Seen(v, rows, PROMPT.format(v.words("token")), z_t, t, aim, None, None)

    def object_loss(self, seen: Seen, pred: Tensor) -> float:
        """L_OS of a prediction of these rows."""
        return float(losses.masked_mse(pred, seen.aim, seen.views.masks[seen.rows]).mean())

    def _losses(self, g: torch.Generator) -> Iterator[dict[str, Tensor]]:
        """The terms in use, by passes of the denoiser; each is to be done with, its gradients taken, before the next is asked for."""
        seen = self.drawn(g)
        for one in self.passes(seen, self.condition(seen.prompt)):
            with self.record_attention(
                self.config.batch
            ) as recorder:  # the backward pass too: it may compute the same layers again
                pred = self.model.predict(*one.given).float()
                if recorder is not None:
                    recorder.over = True
                yield one.terms(pred, recorder)

    def drawn(self, g: torch.Generator) -> Seen:
        """What one step shows; what the frozen base says was asked before the first step."""
        config, count = self.config, self.config.batch
        chosen = self._chosen(g)
        views = self.views[chosen]
        template = (
            TEMPLATES[int(torch.randint(len(TEMPLATES), (), generator=g))] if config.templates == "several" else PROMPT
        )
        subject = views.members[int(torch.randint(len(views.members), (), generator=g))]
        rows = self._rows(views, count, g)
        z_t, t, aim = self._noised(views.latents[rows], g, views.spread if views.spread is None else views.spread[rows])
        teacher: Tensor | None = None
        asked, pick = self._asked(g)
        if self.known and asked:
            known = self.known[chosen][template]
            pick = pick % len(known.rows)
            rows[:asked], z_t[:asked], t[:asked], aim[:asked] = (
                known.rows[pick],
                known.z_t[pick],
                known.t[pick],
                known.aim[pick],
            )
            teacher = known.pred[pick]
        held = config.class_weight and self.step % config.class_every == 0
        of_class = self._class_rows(subject, max(1, count // 2), g) if held else None
        return Seen(views, rows, template.format(views.words("token")), z_t, t, aim, teacher, of_class)

    def _chosen(self, g: torch.Generator) -> int:
        """Which combination of the objects: any, and more often one alone, which is how pictures are drawn of it; singles come first."""
        singles = (
            self.config.singles and len(self.subjects) > 1 and float(torch.rand((), generator=g)) < self.config.singles
        )
        return int(torch.randint(len(self.subjects) if singles else len(self.views), (), generator=g))

    def passes(self, seen: Seen, condition: Tensor) -> Iterator[Pass]:
        """A step's passes of the denoiser under the encoded prompt (1, L, d)."""
        count = len(seen.rows)
        photo = (seen.z_t, seen.t, condition.expand(count, -1, -1))
        if seen.of_class is None:
            yield Pass(photo, lambda pred, looked: self._photo_terms(pred, looked, seen))
            return
        *of_class, aim = seen.of_class
        if self.config.passes == "apart":
            yield Pass(photo, lambda pred, looked: self._photo_terms(pred, looked, seen))
            yield Pass(
                (of_class[0], of_class[1], of_class[2]), lambda pred, looked: {"class": losses.mse(pred, aim).mean()}
            )
            return
        z_t, t, words = (torch.cat(column) for column in zip(photo, of_class, strict=True))
        yield Pass(
            (z_t, t, words),
            lambda pred, looked: (
                self._photo_terms(pred, looked, seen) | {"class": losses.mse(pred[count:], aim).mean()}
            ),
        )

    def record_attention(self, rows: int) -> contextlib.AbstractContextManager[attention.Recorder | None]:
        """Inside, where words look is recorded for the first rows, if a term needs it."""
        return (
            attention.record_cross_attention(self.model, rows)
            if self.config.attention_weight
            else contextlib.nullcontext()
        )

    def _rows(self, views: Views, count: int, g: torch.Generator) -> Tensor:
        """Which placements: any, and more often the first, which is the photo's own."""
        rows = torch.randint(len(views.latents), (count,), generator=g)
        if self.config.as_taken:
            rows[torch.rand(count, generator=g) < self.config.as_taken] = 0
        return rows

    def _photo_terms(self, pred: Tensor, looked: attention.Recorder | None, seen: Seen) -> dict[str, Tensor]:
        """The terms of the photo's rows, which come first in the prediction."""
        config, count, mask = self.config, len(seen.rows), seen.views.masks[seen.rows]
        terms = {"object": losses.photo(pred[:count], seen.aim, mask, config.photo_loss).mean()}
        if seen.teacher is not None:
            asked = len(seen.teacher)
            terms["background"] = losses.masked_mse(pred[:asked], seen.teacher, 1 - mask[:asked]).mean()
        if looked is not None and config.attention_weight:
            terms["attention"] = self._attention(looked, seen.prompt, seen.views, seen.rows)
        return terms

    def _asked(self, g: torch.Generator) -> tuple[int, Tensor]:
        """How many rows of this step the frozen base has spoken on, and which of its words; one row in `TEACHER_SHARE` on average."""
        whole, rest = divmod(self.config.batch, TEACHER_SHARE)
        asked = whole + int(torch.rand((), generator=g).item() * TEACHER_SHARE < rest)
        return asked, torch.randint(self.config.known, (asked,), generator=g)

    def _noised(self, z: Tensor, g: torch.Generator, spread: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """z_t, t and the regression target of clean latents, or of latents drawn around them with a standard deviation of `spread`."""
        if spread is not None:
            z = z + spread * torch.randn(z.shape, generator=g).to(z)
        eps = torch.randn(z.shape, generator=g).to(z)
        levels = max(1, round(self.config.highest * self.model.levels))
        if self.config.timesteps == "uniform":
            t = torch.randint(levels, (len(z),), generator=g)
        else:
            t = self.model.family.timesteps(len(z), levels, g)
        z_t, aim = self.model.noised(z, eps, t)
        return z_t, t, aim

    def _class_rows(self, subject: Subject, count: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noised class samples, their timesteps and conditions, and what the denoiser is to say of them."""
        prior = self.priors[subject.class_word]
        if self.config.class_term == "noise":  # DreamBooth: the samples are pictures like any other
            spread = self.views[0].spread  # as wide as the photo's: class samples were never pictures
            z = prior.latents[torch.randint(len(prior.latents), (count,), generator=g)]
            z_t, t, aim = self._noised(z, g, spread if spread is None else spread[:1])
            return z_t, t, prior.conditions[:1].expand(count, -1, -1), aim
        pick = torch.randint(len(prior.timesteps), (count,), generator=g)
        return (
            prior.noisy_latents[pick],
            prior.timesteps[pick].cpu(),
            prior.conditions[prior.prompt_index[pick]],
            prior.predictions[pick],
        )

    def _attention(self, seen: attention.Recorder, prompt: str, views: Views, rows: Tensor) -> Tensor:
        """Each object's token looks at the object (Break-A-Scene, arXiv:2305.16311, eq. 2)."""
        text, terms = self.words.expand(prompt), []
        for i, s in enumerate(views.members):
            maps = seen.seen(self.words.rows(text, s.name))
            own = torch.nn.functional.adaptive_avg_pool2d(views.parts[rows, i], maps.shape[-1])
            terms.append((maps - own).square().mean())
        return torch.stack(terms).mean()

    def condition(self, prompt: str, own: Tensor | None = None) -> Tensor:
        """A prompt's condition (1, rows, d) with the tokens as they are now; `own`: what the text encoder says of it, where it was asked."""
        self.place()
        if self.config.context == "own":
            return self.model.encode([self.words.expand(prompt)]) if own is None else own
        return self.words.in_context(
            prompt, self.classes, own, self.teacher_conditions[with_class_words(prompt, self.classes)]
        )

    def place(self) -> None:
        """Let the prompts say the tokens as they are now."""
        for name, rows in self.learned.items():
            self.words.replace(name, torch.cat([rows, self.fixed[name]]))


def _on_device(prior: PriorArtifact, model: BaseModel) -> PriorArtifact:
    """A prior on the model's device, its conditions in the number format that the denoiser reads."""
    moved = prior.map(lambda tensor: tensor.to(model.device))
    return replace(moved, conditions=moved.conditions.to(model.dtype))
