"""`train`: LoRA and token by L = L_OS + w_bg L_bg + w_cc L_CC, for one object or several together.

Source: arXiv:2401.15708 sections 3.3 and 3.4 as formulated in docs/method.md.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from objtune_cli.config import Train
from objtune_cli.errors import GateError
from objtune_cli.method.prototype import PROMPT, with_article
from objtune_cli.models import adapter
from objtune_cli.models.stack import Stack
from objtune_cli.models.tokens import Placeholders
from objtune_cli.numerics import losses, noise, placement
from objtune_cli.numerics.masks import to_latent
from objtune_cli.numerics.prototype import keep_norm

TEMPLATES = (PROMPT, "a picture of {}", "{}")
WARMUP = 20


@dataclass(frozen=True, slots=True)
class Subject:
    """One object to learn.

    Attributes:
        name, class_word: `<name>` and "dog".
        rows: Its token's first vectors (k + n, d). learned: k, how many of them may change.
        picture: The photo (3, H, W) in [-1, 1]. ground: the photo without the object.
        mask: Coverage (H, W) in [0, 1].
    """

    name: str
    class_word: str
    rows: Tensor
    learned: int
    picture: Tensor
    ground: Tensor
    mask: Tensor


@dataclass(slots=True)
class Views:
    """The placements of one subset of the objects: latents (V, C, h, w), masks (V, 1, h, w)."""

    members: tuple[Subject, ...]
    latents: Tensor
    masks: Tensor


class Trainer:
    """Everything one run keeps between steps; a step is a function of (state, seed, number)."""

    def __init__(self, stack: Stack, subjects: list[Subject], priors: Mapping[str, Mapping[str, Tensor]], config: Train) -> None:
        self.stack, self.subjects, self.config = stack, subjects, config
        self.words = Placeholders(stack)
        for s in subjects:
            self.words.add(s.name, s.rows)
        self.fixed = {s.name: s.rows[s.learned :].to(stack.device) for s in subjects}
        self.norms = {s.name: s.rows[: s.learned].norm(dim=1).to(stack.device) for s in subjects}
        self.learned = {s.name: s.rows[: s.learned].to(stack.device).clone().requires_grad_(True) for s in subjects}
        self.views = [_views(stack, members, config) for members in _subsets(subjects)]
        self.priors = {word: {k: v.to(stack.device) for k, v in prior.items()} for word, prior in priors.items()}
        self.teacher_conditions = self._teacher_conditions()
        self.lora = adapter.add(stack, config.rank, config.modules, config.seed)
        scale = float(torch.stack([n.mean() for n in self.norms.values()]).mean())
        tokens = {"params": list(self.learned.values()), "lr": config.token_lr * scale, "weight_decay": 0.0}
        self.optimizer = torch.optim.AdamW(
            [tokens, {"params": self.lora, "lr": config.lr, "weight_decay": 0.01}], betas=(0.9, 0.99), foreach=True
        )
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.step = 0
        self.mean = {"object": 0.0, "background": 0.0, "class": 0.0}
        """Running means of the loss terms."""

    def _teacher_conditions(self) -> dict[str, Tensor]:
        """What the frozen base is told: the same words with the class in the token's place."""
        texts = {template.format(_words(v.members, "class")) for v in self.views for template in TEMPLATES}
        texts |= {PROMPT.format(with_article(s.class_word)) for s in self.subjects}
        with torch.no_grad():
            return {text: self.stack.encode([text]) for text in sorted(texts)}

    def advance(self) -> None:
        """One optimizer step.

        Raises:
            GateError: The loss is no longer a finite number.
        """
        rate = min(1.0, (self.step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * self.step / self.config.steps)) * 0.95 + 0.05
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * rate
        terms = self._losses(noise.step_generator(self.config.seed, self.step))
        weights = {"object": 1.0, "background": self.config.background_weight, "class": self.config.class_weight}
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        if not math.isfinite(float(total.detach())):
            value = float(total.detach())
            raise GateError(f"training diverged at step {self.step}: the loss is {value}", "try a lower rate: `--set train.lr=5e-4`")
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_([*self.lora, *self.learned.values()], 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for name, rows in self.learned.items():
                rows.copy_(keep_norm(rows, self.norms[name]))
        keep = 0.9 if self.step else 0.0
        for name, term in terms.items():
            self.mean[name] = keep * self.mean[name] + (1 - keep) * float(term.detach())
        self.step += 1

    def _losses(self, g: torch.Generator) -> dict[str, Tensor]:
        stack, count = self.stack, self.config.batch
        views = self.views[int(torch.randint(len(self.views), (), generator=g))]
        template = TEMPLATES[int(torch.randint(len(TEMPLATES), (), generator=g))]
        subject = views.members[int(torch.randint(len(views.members), (), generator=g))]
        rows = torch.randint(len(views.latents), (count,), generator=g)
        z, mask = views.latents[rows], views.masks[rows]
        eps = torch.randn(z.shape, generator=g).to(z)
        t = noise.timesteps(count, len(stack.alpha_bar), g)
        z_t = noise.add_noise(z, eps, stack.alpha_bar, t)
        aim = noise.target(z, eps, stack.alpha_bar, t, stack.prediction)
        known = self.teacher_conditions[template.format(_words(views.members, "class"))].expand(count, -1, -1)
        with torch.no_grad(), adapter.switched_off(stack):
            teacher = stack.predict(z_t, t, known).float()

        prior, kept = self.priors[subject.class_word], max(1, count // 2)
        pick = torch.randint(len(prior["t"]), (kept,), generator=g)
        own = self._condition(template.format(_words(views.members, "token"))).expand(count, -1, -1)
        of_class = self.teacher_conditions[PROMPT.format(with_article(subject.class_word))].expand(kept, -1, -1)
        pred = stack.predict(
            torch.cat([z_t, prior["z_t"][pick]]), torch.cat([t, prior["t"][pick].cpu()]), torch.cat([own, of_class])
        ).float()
        return {
            "object": losses.masked_mse(pred[:count], aim, mask).mean(),
            "background": losses.masked_mse(pred[:count], teacher, 1 - mask).mean(),
            "class": losses.mse(pred[count:], prior["pred"][pick]).mean(),
        }

    def _condition(self, prompt: str) -> Tensor:
        for name, rows in self.learned.items():
            self.words.replace(name, torch.cat([rows, self.fixed[name]]))
        return self.stack.encode([self.words.expand(prompt)])

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
                kept |= {f"{i:04d}.m": slots["exp_avg"].cpu(), f"{i:04d}.v": slots["exp_avg_sq"].cpu()}
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
                        "step": torch.tensor(float(self.step)),
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


def _subsets(subjects: list[Subject]) -> list[tuple[Subject, ...]]:
    """Every non-empty subset: singles and combinations are both trained (union sampling)."""
    return [c for n in range(1, len(subjects) + 1) for c in itertools.combinations(subjects, n)]


def _words(members: tuple[Subject, ...], kind: str) -> str:
    parts = [f"<{s.name}>" if kind == "token" else with_article(s.class_word) for s in members]
    return " and ".join(parts)


def _views(stack: Stack, members: tuple[Subject, ...], config: Train) -> Views:
    """Draw the placements of a subset and encode them once."""
    union = torch.stack([s.mask for s in members]).amax(0)
    g = noise.step_generator(config.seed, 0xFFFFFFFF)
    pictures, masks = placement.views(members[0].picture, union, members[0].ground, config.views, stack.size, g)
    latents = stack.to_latent(pictures).to(stack.device)
    return Views(members, latents, to_latent(masks, (latents.shape[-2], latents.shape[-1])).to(stack.device))
