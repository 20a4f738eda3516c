"""`train`: LoRA and token by L = L_OS + w_bg L_bg + w_cc L_CC, for one object or several together.

Source: arXiv:2401.15708 sections 3.3 and 3.4 as formulated in docs/method.md. The losses of others'
methods are settings of the same loop, so that a comparison compares nothing else.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from objtune_cli.config import Train
from objtune_cli.errors import GateError
from objtune_cli.method.prototype import PROMPT
from objtune_cli.method.subjects import Subject, Views, subsets, views
from objtune_cli.models import adapter, attention
from objtune_cli.models.stack import Stack
from objtune_cli.models.tokens import Placeholders
from objtune_cli.numerics import losses, noise
from objtune_cli.numerics.prototype import keep_norm

KNOWN_FROM = 1 << 31
"""Number of the first generator that is no step's."""
TEMPLATES = (PROMPT, "a picture of {}", "{}")
WARMUP = 20
TEACHER_SHARE = 4
"""One in so many rows is held to the frozen base outside the mask: scenes are kept with few."""
KEPT = 24
"""Predictions of the frozen base per template, made before the first step: none is needed later."""


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


class Trainer:
    """Everything one run keeps between steps; a step is a function of (state, seed, number)."""

    def __init__(self, stack: Stack, subjects: list[Subject], priors: Mapping[str, Mapping[str, Tensor]], config: Train) -> None:
        self.stack, self.subjects, self.config = stack, subjects, config
        self.words = Placeholders(stack)
        for s in subjects:
            self.words.add(s.name, s.rows)
        self.fixed = {s.name: s.rows[s.learned :].to(stack.device) for s in subjects}
        self.norms = {s.name: s.rows[: s.learned].norm(dim=1).to(stack.device) for s in subjects}
        self.learned = {s.name: s.rows[: s.learned].to(stack.device).clone().requires_grad_(config.token == "learned") for s in subjects}
        self.views = [views(stack, members, config) for members in subsets(subjects)]
        self.priors = {word: {k: v.to(stack.device) for k, v in prior.items()} for word, prior in priors.items()}
        for prior in self.priors.values():
            prior["conditions"] = prior["conditions"].to(stack.dtype)
        self.teacher_conditions = self._teacher_conditions()
        self.known = self._known() if config.background_weight else []
        self.lora = adapter.add(stack, config.rank, config.modules, config.seed, blocks=config.blocks)
        scale = float(torch.stack([n.mean() for n in self.norms.values()]).mean())
        tokens = {"params": list(self.learned.values()), "lr": config.token_lr * scale, "weight_decay": 0.0}
        self.optimizer = torch.optim.AdamW(
            [tokens, {"params": self.lora, "lr": config.lr, "weight_decay": 0.01}], betas=(0.9, config.beta2), fused=True
        )
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.weights = {
            "object": 1.0,
            "background": config.background_weight,
            "class": config.class_weight * config.class_every,
            "attention": config.attention_weight,
        }
        self.step = 0
        self.mean = {name: 0.0 for name, weight in self.weights.items() if weight}
        """Running means of the loss terms in use."""

    def _teacher_conditions(self) -> dict[str, Tensor]:
        """What the frozen base is told: the same words with the class in the token's place."""
        texts = {template.format(v.words("class")) for v in self.views for template in TEMPLATES}
        with torch.no_grad():
            return {text: self.stack.encode([text]) for text in sorted(texts)}

    def _known(self) -> list[dict[str, Known]]:
        """For each subset of the objects and each template, what the frozen base sees in noised views; before any layer learns."""
        found = []
        for i, v in enumerate(self.views):
            known = {}
            for k, template in enumerate(TEMPLATES if self.config.templates == "several" else TEMPLATES[:1]):
                g = noise.step_generator(self.config.seed, KNOWN_FROM + i * len(TEMPLATES) + k)
                rows = torch.randint(len(v.latents), (KEPT,), generator=g)
                z_t, t, aim = self._noised(v.latents[rows], g, v.spread if v.spread is None else v.spread[rows])
                words = self.teacher_conditions[template.format(v.words("class"))]
                with torch.no_grad():
                    parts = [self.stack.predict(z, s, words.expand(len(z), -1, -1)).float() for z, s in zip(z_t.split(8), t.split(8), strict=True)]
                known[template] = Known(rows, z_t, t, aim, torch.cat(parts))
            found.append(known)
        return found

    def _rate(self) -> float:
        """Share of the peak rates at this step."""
        warm = min(1.0, (self.step + 1) / WARMUP)
        if self.config.schedule == "constant":
            return warm
        return warm * 0.5 * (1 + math.cos(math.pi * self.step / self.config.steps)) * 0.95 + 0.05

    def _take_turns(self) -> None:
        """Who learns at this step: both, or the token first and then the layers (`token_first`)."""
        first, alone = self.config.token_first, self.step < self.config.token_first
        for p in self.learned.values():
            p.requires_grad_(self.config.token == "learned" and (alone or not first))
        for p in self.lora:
            p.requires_grad_(not alone)

    def advance(self) -> None:
        """One optimizer step.

        Raises:
            GateError: The loss is no longer a finite number.
        """
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self._rate()
        self._take_turns()
        terms = self._losses(noise.step_generator(self.config.seed, self.step))
        total = torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()
        if not math.isfinite(float(total.detach())):
            value = float(total.detach())
            raise GateError(f"training diverged at step {self.step}: the loss is {value}", "try a lower rate: `--set train.lr=5e-4`")
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_([*self.lora, *self.learned.values()], 1.0)
        self.optimizer.step()
        if self.config.token_norm == "kept" and self.config.token == "learned":
            with torch.no_grad():
                for name, rows in self.learned.items():
                    rows.copy_(keep_norm(rows, self.norms[name]))
        keep = 0.9 if self.step else 0.0
        for name, term in terms.items():
            self.mean[name] = keep * self.mean[name] + (1 - keep) * float(term.detach())
        self.step += 1

    def _losses(self, g: torch.Generator) -> dict[str, Tensor]:
        """The terms in use, from one pass of the denoiser; what the frozen base says was asked before the first step."""
        stack, config, count = self.stack, self.config, self.config.batch
        chosen = int(torch.randint(len(self.views), (), generator=g))
        views = self.views[chosen]
        template = TEMPLATES[int(torch.randint(len(TEMPLATES), (), generator=g))] if config.templates == "several" else PROMPT
        subject = views.members[int(torch.randint(len(views.members), (), generator=g))]
        rows = torch.randint(len(views.latents), (count,), generator=g)
        z_t, t, aim = self._noised(views.latents[rows], g, views.spread if views.spread is None else views.spread[rows])
        teacher: Tensor | None = None
        asked, pick = self._asked(g)
        if self.known and asked:
            known = self.known[chosen][template]
            rows[:asked], z_t[:asked], t[:asked], aim[:asked] = known.rows[pick], known.z_t[pick], known.t[pick], known.aim[pick]
            teacher = known.pred[pick]
        mask = views.masks[rows]
        prompt = self.words.expand(template.format(views.words("token")))
        parts = [(z_t, t, self._condition(prompt).expand(count, -1, -1))]
        of_class: Tensor | None = None
        if config.class_weight and self.step % config.class_every == 0:
            z_c, t_c, condition, of_class = self._class_rows(subject, max(1, count // 2), g)
            parts.append((z_c, t_c, condition))
        joined = [torch.cat(column) for column in zip(*parts, strict=True)]
        with attention.recorded(stack, count) if config.attention_weight else contextlib.nullcontext() as seen:
            pred = stack.predict(*joined).float()
        terms = {"object": losses.photo(pred[:count], aim, mask, config.photo_loss).mean()}
        if teacher is not None:
            terms["background"] = losses.masked_mse(pred[: len(teacher)], teacher, 1 - mask[: len(teacher)]).mean()
        if of_class is not None:
            terms["class"] = losses.mse(pred[count:], of_class).mean()
        if seen is not None:
            terms["attention"] = self._attention(seen, prompt, views, rows)
        return terms

    def _asked(self, g: torch.Generator) -> tuple[int, Tensor]:
        """How many rows of this step the frozen base has spoken on, and which of its words; one row in `TEACHER_SHARE` on average."""
        whole, rest = divmod(self.config.batch, TEACHER_SHARE)
        asked = whole + int(torch.rand((), generator=g).item() * TEACHER_SHARE < rest)
        return asked, torch.randint(KEPT, (asked,), generator=g)

    def _noised(self, z: Tensor, g: torch.Generator, spread: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """z_t, t and the regression target of clean latents, or of latents drawn around them with a standard deviation of `spread`."""
        bar = self.stack.alpha_bar
        if spread is not None:
            z = z + spread * torch.randn(z.shape, generator=g).to(z)
        eps = torch.randn(z.shape, generator=g).to(z)
        if self.config.timesteps == "uniform":
            t = torch.randint(len(bar), (len(z),), generator=g)
        else:
            t = noise.timesteps(len(z), len(bar), g)
        return noise.add_noise(z, eps, bar, t), t, noise.target(z, eps, bar, t, self.stack.prediction)

    def _class_rows(self, subject: Subject, count: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noised class samples, their timesteps and conditions, and what the denoiser is to say of them."""
        prior = self.priors[subject.class_word]
        if self.config.class_term == "noise":  # DreamBooth: the samples are pictures like any other
            spread = self.views[0].spread  # as wide as the photo's: class samples were never pictures
            z = prior["latents"][torch.randint(len(prior["latents"]), (count,), generator=g)]
            z_t, t, aim = self._noised(z, g, spread if spread is None else spread[:1])
            return z_t, t, prior["conditions"][:1].expand(count, -1, -1), aim
        pick = torch.randint(len(prior["t"]), (count,), generator=g)
        return prior["z_t"][pick], prior["t"][pick].cpu(), prior["conditions"][prior["asked"][pick]], prior["pred"][pick]

    def _attention(self, seen: attention.Recorder, prompt: str, views: Views, rows: Tensor) -> Tensor:
        """Each object's token looks at the object (Break-A-Scene, arXiv:2305.16311, eq. 2)."""
        ids = self.stack.token_ids([prompt])
        terms = []
        for i, s in enumerate(views.members):
            maps = seen.seen(self.words.positions(ids, s.name)[0])
            own = torch.nn.functional.adaptive_avg_pool2d(views.parts[rows, i], maps.shape[-1])
            terms.append((maps - own).square().mean())
        return torch.stack(terms).mean()

    def _condition(self, prompt: str) -> Tensor:
        """An expanded prompt through the tokens as they are now."""
        for name, rows in self.learned.items():
            self.words.replace(name, torch.cat([rows, self.fixed[name]]))
        return self.stack.encode([prompt])

    def tokens(self) -> dict[str, Tensor]:
        """Each object's vectors as they are now, (k + n, d)."""
        return {name: torch.cat([rows.detach(), self.fixed[name]]).cpu() for name, rows in self.learned.items()}

    def state(self) -> dict[str, Tensor]:
        """Everything that a later process needs to go on as if nothing had happened."""
        kept: dict[str, Tensor] = {"step": torch.tensor([self.step]), "mean": torch.tensor(list(self.mean.values()), dtype=torch.float64)}
        for i, p in enumerate(self._params()):
            slots: Any = self.optimizer.state.get(p, {})
            kept[f"{i:04d}.value"] = p.detach().cpu()
            if slots:
                taken = torch.tensor([int(slots["step"])])  # less than the run's where it rested
                kept |= {f"{i:04d}.m": slots["exp_avg"].cpu(), f"{i:04d}.v": slots["exp_avg_sq"].cpu(), f"{i:04d}.n": taken}
        return kept

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Take over a state made by the same settings."""
        self.step = int(kept["step"])
        self.mean = dict(zip(self.mean, kept["mean"].tolist(), strict=True))
        with torch.no_grad():
            for i, p in enumerate(self._params()):
                p.copy_(kept[f"{i:04d}.value"])
                if f"{i:04d}.m" in kept:
                    self.optimizer.state[p] = {
                        "step": torch.tensor(float(kept[f"{i:04d}.n"]), device=p.device),  # where the fused kernel reads it
                        "exp_avg": kept[f"{i:04d}.m"].to(p.device),
                        "exp_avg_sq": kept[f"{i:04d}.v"].to(p.device),
                    }

    def _params(self) -> list[Tensor]:
        return [*self.learned.values(), *self.lora]


def run(trainer: Trainer, on_step: Callable[[int], None]) -> None:
    """Take the remaining steps; `on_step` sees each one's number and may raise to stop."""
    while trainer.step < trainer.config.steps:
        trainer.advance()
        on_step(trainer.step)
