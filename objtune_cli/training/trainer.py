"""`train`: LoRA and token by L = L_OS + w_bg L_bg + w_cc L_CC, for one object or several together.

Source: arXiv:2401.15708 sections 3.3 and 3.4 as formulated in docs/method.md. The losses of others'
methods are settings of the same loop, so that a comparison compares nothing else.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from objtune_cli.config.sections import Train
from objtune_cli.errors import GateError
from objtune_cli.lora import layers
from objtune_cli.models import adapter_state, finite_checks, memory_savings
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.placeholders import Placeholders
from objtune_cli.models.prompts import PROMPT
from objtune_cli.numerics import ddpm
from objtune_cli.numerics.embeddings import keep_norm
from objtune_cli.runtime import cpu
from objtune_cli.store.kinds.prior import PriorArtifact
from objtune_cli.training import optimizer
from objtune_cli.training.early_stopping import Plateau
from objtune_cli.training.ema import WeightAverage, copy_values
from objtune_cli.training.loss_terms import Terms
from objtune_cli.training.subjects import Subject

WARMUP, WARMUP_SHARE = 20, 5
"""Steps in which the rates grow to their peaks; of a short run no more than one in so many (with 20 of 36, half of the run was spent below its rate)."""
STEADY = 0.98
"""Decay of the running mean whose loss says when to stop: single steps at a full rate jump about."""


class Trainer(Terms):
    """Everything one run keeps between steps; a step is a function of (state, seed, number)."""

    def __init__(
        self,
        model: BaseModel,
        subjects: list[Subject],
        priors: Mapping[str, PriorArtifact],
        config: Train,
        name: str = "default",
    ) -> None:
        """`name`: of its LoRA on the stack, which may hold others' too."""
        super().__init__(model, subjects, priors, config)
        self.name = name
        self.lora = layers.add(model, config.rank, config.modules, config.seed, name, config.blocks)
        scale = float(torch.stack([n.mean() for n in self.norms.values()]).mean())
        tokens = {"params": list(self.learned.values()), "lr": config.token_lr * scale, "weight_decay": 0.0}
        groups = [tokens, {"params": self.lora, "lr": config.lr, "weight_decay": 0.01}]
        self.optimizer = optimizer.build_optimizer(config.optimizer, groups, config.beta2)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.weights = {
            "object": 1.0,
            "background": config.background_weight,
            "class": config.class_weight * config.class_every,
            "attention": config.attention_weight,
        }
        self.plateau = Plateau(config.steps) if config.stop == "good" else None
        decay = config.average or (STEADY if self.plateau else 0.0)
        self.average = WeightAverage(self._params(), decay) if decay else None
        self.mean = {name: 0.0 for name, weight in self.weights.items() if weight}
        """Running means of the loss terms in use."""
        if config.idle == "leaves":
            model.rest()
        cpu.trim_malloc()

    def _rate(self) -> float:
        """Share of the peak rates at this step."""
        warm = min(1.0, (self.step + 1) / max(1, min(WARMUP, self.config.steps // WARMUP_SHARE)))
        if self.plateau is not None:
            return warm * self.plateau.rate(self.step)
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

    def train_step(self) -> None:
        """One optimizer step.

        Raises:
            GateError: The loss is no longer a finite number.
        """
        if self.plateau is not None and self.plateau.should_measure(self.step):
            self.plateau.record_loss(self._steady_loss())
        terms = memory_savings.retry_with_checkpointing(
            self.model, self._pulled, auto=self.config.checkpointing == "auto"
        )
        if self.model.team is not None:
            self.model.team.add_up(self._params())
        self.end(terms)

    def _pulled(self) -> dict[str, Tensor]:
        """A step's terms, their gradients taken; done again it is the same."""
        self.begin()
        terms: dict[str, Tensor] = {}
        for part in self._losses(ddpm.step_generator(self.config.seed, self.step)):
            loss = self.weighted_sum(part)
            if loss.requires_grad:  # a class pass of its own has nothing to learn from where the token learns alone
                loss.backward()
            terms |= {name: value.detach() for name, value in part.items()}
        return terms

    def begin(self) -> None:
        """What comes before a step's losses: rates, who learns, no gradients."""
        for group, peak in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = peak * self._rate()
        self._take_turns()
        self.optimizer.zero_grad(set_to_none=True)

    def weighted_sum(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss of some of the terms."""
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()

    def end(self, terms: Mapping[str, Tensor]) -> None:
        """What comes after the gradients of a step's losses are there.

        Raises:
            GateError: The loss, its gradients, or the loss that says when to stop are no longer finite. NonFiniteError: the base itself is at fault.
        """
        total = sum(self.weights[name] * float(value) for name, value in terms.items())
        if not math.isfinite(total):
            raise self.describe_failure(f"the loss is {total}")
        if self.plateau is not None and not all(map(math.isfinite, self.plateau.history[-1:])):
            raise self.describe_failure(f"the loss under fixed noise is {self.plateau.history[-1]}")
        norm = float(torch.nn.utils.clip_grad_norm_([*self.lora, *self.learned.values()], 1.0))
        if not math.isfinite(norm):  # a state with such weights must not be saved
            raise self.describe_failure("a gradient is not finite")
        self.optimizer.step()
        self._keep_norms()
        keep = 0.9 if self.step else 0.0
        for name, term in terms.items():
            self.mean[name] = keep * self.mean[name] + (1 - keep) * float(term)
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        if self.step == 1:
            cpu.trim_malloc()  # the optimizer's moments stand now among what the step took and left

    def describe_failure(self, what: str) -> GateError:
        """The error for values that are not finite: of the base, where it alone gives such values for this photo, else of what was learned."""
        model, fixed = self.model, self.validation_batch(0)
        words = self.teacher_conditions[PROMPT.format(fixed.views.words("class"))]
        with torch.no_grad(), adapter_state.disabled(model):
            alone = [model.predict(z[None], t[None], words) for z, t in zip(fixed.z_t, fixed.t, strict=True)]
        if not finite_checks.is_finite(torch.cat(alone)):
            return finite_checks.describe_failure("denoiser", model.dtype)
        half = next(model.denoiser.parameters()).dtype in finite_checks.HALF
        if self.step == 0:  # no rate has acted yet
            return GateError(
                f"training cannot begin: {what} before anything was learned",
                f"try {'`--precision fp32`, ' if half else ''}lower weights of the loss terms, or another photo",
            )
        rates = [f"`--set train.lr={self.config.lr / 4:g}`"] if self.lora else []
        rates += [f"`--set train.token_lr={self.config.token_lr / 4:g}`"] if self.config.token == "learned" else []
        precision = "`--precision fp32`, or " if half else ""
        return GateError(
            f"training diverged at step {self.step}: {what}", f"try {precision}a lower rate: {', '.join(rates)}"
        )

    def _steady_loss(self) -> float:
        """The loss under fixed noise of the running mean."""
        with self.ema_weights():
            return self.validation_loss()

    @contextlib.contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Inside, the weights are their running mean."""
        assert self.average is not None
        with self.average.in_place():
            self._keep_norms()
            yield

    @property
    def total(self) -> int:
        """Steps of the whole run as far as is known."""
        return self.config.steps if self.plateau is None else self.plateau.total

    @property
    def finished(self) -> bool:
        """Whether all steps are taken."""
        return self.step >= self.total

    def keep_ema(self) -> None:
        """Keep the running mean in place of the last step's, where the settings ask for it."""
        if self.config.average and self.average is not None:
            copy_values(self._params(), self.average.kept)
            self._keep_norms()

    @torch.no_grad()
    def _keep_norms(self) -> None:
        """The token's vectors at their first length; a mean of them is shorter than they are."""
        if self.config.token_norm == "kept" and self.config.token == "learned":
            for name, rows in self.learned.items():
                if rows.requires_grad:  # one that rests does not move by a rounding either
                    rows.copy_(keep_norm(rows, self.norms[name], self.model.widths))

    def said(self) -> Placeholders:
        """The words of prompts that say the tokens as they are now."""
        self.place()
        return self.words

    def tokens(self) -> dict[str, Tensor]:
        """Each object's vectors as they are now, (k + n, d)."""
        return {name: torch.cat([rows.detach(), self.fixed[name]]).cpu() for name, rows in self.learned.items()}

    def state(self) -> dict[str, Tensor]:
        """Everything that a later process needs to go on as if nothing had happened."""
        kept: dict[str, Tensor] = {
            "step": torch.tensor([self.step]),
            "mean": torch.tensor(list(self.mean.values()), dtype=torch.float64),
        }
        for i, p in enumerate(self._params()):
            kept[f"{i:04d}.value"] = p.detach().cpu()
            kept |= optimizer.pack_state(self.optimizer.state.get(p, {}), f"{i:04d}")
        for i, value in enumerate(self.average.kept if self.average is not None else []):
            kept[f"{i:04d}.mean"] = value.cpu()
        return kept | (self.plateau.state() if self.plateau is not None else {})

    def size(self) -> int:
        """Bytes of a state at its largest: parameters, both moments, and their mean where one is kept."""
        return sum(p.numel() * p.element_size() for p in self._params()) * (3 + (self.average is not None))

    def restore(self, kept: Mapping[str, Tensor]) -> None:
        """Take over a state made by the same settings."""
        self.step = int(kept["step"])
        self.mean = dict(zip(self.mean, kept["mean"].tolist(), strict=True))
        with torch.no_grad():
            for i, p in enumerate(self._params()):
                p.copy_(kept[f"{i:04d}.value"])
                slots = optimizer.unpack_state(kept, f"{i:04d}", p.device)
                if slots:
                    self.optimizer.state[p] = slots
                if self.average is not None:
                    self.average.kept[i] = kept[f"{i:04d}.mean"].to(p.device)
        if self.plateau is not None:
            self.plateau.restore(kept)

    def _params(self) -> list[Tensor]:
        return [*self.learned.values(), *self.lora]


def run(trainer: Trainer, on_step: Callable[[int], None]) -> None:
    """Take the remaining steps; `on_step` sees each one's number and may raise to stop."""
    while not trainer.finished:
        trainer.train_step()
        on_step(trainer.step)
    trainer.keep_ema()
