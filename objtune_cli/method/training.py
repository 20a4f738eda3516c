"""`train`: LoRA and token by L = L_OS + w_bg L_bg + w_cc L_CC, for one object or several together.

Source: arXiv:2401.15708 sections 3.3 and 3.4 as formulated in docs/method.md. The losses of others'
methods are settings of the same loop, so that a comparison compares nothing else.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from objtune_cli.config import Train
from objtune_cli.errors import GateError
from objtune_cli.method.averaging import Average, Best, write
from objtune_cli.method.judging import Judge
from objtune_cli.method.subjects import Subject
from objtune_cli.method.terms import Terms
from objtune_cli.models import adapter
from objtune_cli.models.stack import Stack
from objtune_cli.numerics import noise
from objtune_cli.numerics.prototype import keep_norm

WARMUP = 20
CHECK_FROM, CHECK_EVERY = 100, 25
"""Steps at which a run that stops when it is good is judged."""
PATIENCE, MARGIN = 4, 0.02
"""Judgements without a better one after which it stops; better is by more than the margin, less is noise."""


class Trainer(Terms):
    """Everything one run keeps between steps; a step is a function of (state, seed, number)."""

    def __init__(
        self, stack: Stack, subjects: list[Subject], priors: Mapping[str, Mapping[str, Tensor]], config: Train, judge: Judge | None = None
    ) -> None:
        super().__init__(stack, subjects, priors, config)
        self.judge = judge
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
        self.average = Average(self._params(), config.average) if config.average else None
        self.best = Best(PATIENCE, MARGIN) if judge is not None and config.stop == "good" else None
        self.mean = {name: 0.0 for name, weight in self.weights.items() if weight}
        """Running means of the loss terms in use."""

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
        self.optimizer.zero_grad(set_to_none=True)
        terms: dict[str, Tensor] = {}
        for part in self._losses(noise.step_generator(self.config.seed, self.step)):
            loss = torch.stack([self.weights[name] * value for name, value in part.items()]).sum()
            if loss.requires_grad:  # a class pass of its own has nothing to learn from where the token learns alone
                loss.backward()
            terms |= {name: value.detach() for name, value in part.items()}
        total = sum(self.weights[name] * float(value) for name, value in terms.items())
        if not math.isfinite(total):
            raise GateError(f"training diverged at step {self.step}: the loss is {total}", "try a lower rate: `--set train.lr=5e-4`")
        torch.nn.utils.clip_grad_norm_([*self.lora, *self.learned.values()], 1.0)
        self.optimizer.step()
        self._keep_norms()
        keep = 0.9 if self.step else 0.0
        for name, term in terms.items():
            self.mean[name] = keep * self.mean[name] + (1 - keep) * float(term)
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        if self.best is not None and self.step >= CHECK_FROM and self.step % CHECK_EVERY == 0:
            with self.average.in_place() if self.average is not None else contextlib.nullcontext():
                self._keep_norms()
                found = self.scores()
                self.best.add(found["identity"] + found["prompt"] - max(0.0, found["copy"]), self.step, self._params())

    @property
    def finished(self) -> bool:
        """Whether all steps are taken, or it has been good for long enough."""
        return self.step >= self.config.steps or (self.best is not None and self.best.done)

    def settle(self) -> None:
        """Keep the best state seen, or the running mean, in place of the last step's."""
        if self.best is not None and self.best.values:
            write(self._params(), self.best.values)
        elif self.average is not None:
            write(self._params(), self.average.kept)
        self._keep_norms()

    @torch.no_grad()
    def _keep_norms(self) -> None:
        """The token's vectors at their first length; a mean of them is shorter than they are."""
        if self.config.token_norm == "kept" and self.config.token == "learned":
            for name, rows in self.learned.items():
                rows.copy_(keep_norm(rows, self.norms[name]))

    def scores(self) -> dict[str, float]:
        """What the judge says of the parameters as they are; nothing without a judge."""
        self._place()
        return self.judge.scores(self.words) if self.judge is not None else {}

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
        for i, value in enumerate(self.average.kept if self.average is not None else []):
            kept[f"{i:04d}.mean"] = value.cpu()
        return kept | (self.best.state() if self.best is not None else {})

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
                if self.average is not None:
                    self.average.kept[i] = kept[f"{i:04d}.mean"].to(p.device)
        if self.best is not None:
            self.best.restore(kept)

    def _params(self) -> list[Tensor]:
        return [*self.learned.values(), *self.lora]


def run(trainer: Trainer, on_step: Callable[[int], None]) -> None:
    """Take the remaining steps; `on_step` sees each one's number and may raise to stop."""
    while not trainer.finished:
        trainer.advance()
        on_step(trainer.step)
    trainer.settle()
