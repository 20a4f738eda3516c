"""Training of LoRA layers and placeholder tokens for one object, or for several of one photo together.

Source: arXiv:2401.15708 sections 3.3 and 3.4. Other methods' losses are settings of the same trainer, so that a comparison
compares nothing else.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from objtune_cli.config.sections import Train
from objtune_cli.errors import GateError
from objtune_cli.lora import layers
from objtune_cli.models import adapter_state, finite_checks
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.prompts import PROMPT
from objtune_cli.runtime import cpu
from objtune_cli.store.kinds.prior import PriorArtifact
from objtune_cli.training import optimizer
from objtune_cli.training.batches import BatchSampler, StepBatch
from objtune_cli.training.early_stopping import Plateau
from objtune_cli.training.ema import WeightAverage, copy_values
from objtune_cli.training.loss_terms import term_weights
from objtune_cli.training.step import train_step
from objtune_cli.training.subjects import Subject
from objtune_cli.training.teacher import TeacherCache
from objtune_cli.training.tokens import TokenEmbeddings

WARMUP, WARMUP_SHARE = 20, 5
"""Steps in which the learning rates grow to their peaks, and the largest part of a run that this may be: 1 / WARMUP_SHARE."""
STOPPING_EMA_DECAY = 0.98
"""Decay of the running means whose validation loss tells when to stop: single steps at a full rate vary too much."""


class Trainer:
    """Everything one run keeps between steps; a step is a function of (state, seed, number).

    Attributes:
        batches, teacher, tokens: What steps show, what the frozen base predicts, and the objects' tokens.
        lora: Parameters of the LoRA layers. weights: factor of each loss term by name.
        running_losses: Running means of the loss terms in use. step: optimizer steps taken.
        measured: Values of the last step: the loss, its terms, both learning rates and the norm of the gradients.
    """

    def __init__(
        self,
        model: BaseModel,
        subjects: list[Subject],
        priors: Mapping[str, PriorArtifact],
        config: Train,
        name: str = "default",
    ) -> None:
        """`name`: of the LoRA; any other than the default shares the model with the LoRAs of other trainers."""
        self.model, self.subjects, self.config, self.name, self.step = model, subjects, config, name, 0
        self.tokens = TokenEmbeddings(model, subjects, config)
        self.batches = BatchSampler(model, subjects, priors, config)
        self.teacher = TeacherCache(self.batches)
        self.lora = layers.add(model, config.rank, config.target_modules, config.seed, name, config.target_blocks)
        scale = float(torch.stack([n.mean() for n in self.tokens.norms.values()]).mean())
        tokens = {
            "params": list(self.tokens.trainable.values()),
            "lr": config.embedding_lr * scale,
            "weight_decay": 0.0,
        }
        groups = [tokens, {"params": self.lora, "lr": config.learning_rate, "weight_decay": 0.01}]
        self.optimizer = optimizer.build_optimizer(config.optimizer, groups, config.adam_beta2)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.plateau = Plateau(config.max_steps) if config.early_stopping == "plateau" else None
        decay = config.ema_decay or (STOPPING_EMA_DECAY if self.plateau else 0.0)
        self.average = WeightAverage(self.params(), decay) if decay else None
        self.weights, self.running_losses = dict[str, float](), dict[str, float]()
        self.measured = dict[str, float]()
        self.reconfigure(config)
        if config.offload_vae:
            model.offload_vae()
        cpu.trim_malloc()

    def reconfigure(self, config: Train) -> None:
        """Use other settings from the next step on; views, teacher predictions and layers stay as they were built."""
        self.config = self.batches.config = self.tokens.config = config
        self.weights = term_weights(config)
        for name, weight in self.weights.items():
            if weight:
                self.running_losses.setdefault(name, 0.0)

    @property
    def shares_model(self) -> bool:
        """Whether LoRAs of other trainers are in the model too."""
        return self.name != "default"

    def _rate(self) -> float:
        """Share of the peak rates at this step."""
        warm = min(1.0, (self.step + 1) / max(1, min(WARMUP, self.config.max_steps // WARMUP_SHARE)))
        if self.plateau is not None:
            return warm * self.plateau.rate(self.step)
        if self.config.lr_scheduler == "constant":
            return warm
        return warm * 0.5 * (1 + math.cos(math.pi * self.step / self.config.max_steps)) * 0.95 + 0.05

    def _set_trainable(self) -> None:
        """Let token and layers learn, or first the token alone and then the layers alone (`token_first`)."""
        token_steps, only_token = self.config.embedding_only_steps, self.step < self.config.embedding_only_steps
        for p in self.tokens.trainable.values():
            p.requires_grad_(self.config.train_embedding and (only_token or not token_steps))
        for p in self.lora:
            p.requires_grad_(not only_token)

    def train_step(self) -> None:
        """One optimizer step.

        Raises:
            GateError: The loss is not finite.
        """
        for error in train_step([self]).values():
            raise error

    def sample_batch(self, g: torch.Generator) -> StepBatch:
        """The samples of the coming step."""
        batch = self.batches.sample_photo(g)
        self.teacher.insert_into(batch, g)
        if self.config.prior_loss_weight and self.step % self.config.prior_loss_interval == 0:
            batch.prior = self.batches.sample_prior(batch.subject.class_word, max(1, self.config.batch_size // 2), g)
        return batch

    def begin_step(self) -> None:
        """Set learning rates and what learns, and clear the gradients."""
        for group, peak in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = peak * self._rate()
        self._set_trainable()
        self.optimizer.zero_grad(set_to_none=True)

    def weighted_sum(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The loss of some of the terms."""
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()

    @property
    def running_loss(self) -> float:
        """The weighted sum of the running means."""
        return sum(self.weights[name] * value for name, value in self.running_losses.items())

    def finish_step(self, terms: Mapping[str, Tensor]) -> None:
        """Update the parameters from their gradients.

        Args:
            terms: The step's loss terms.

        Raises:
            GateError: The loss, its gradients, or the validation loss is not finite. NonFiniteError: so is the base's own prediction.
        """
        values = {name: float(term) for name, term in terms.items()}
        total = sum(self.weights[name] * value for name, value in values.items())
        if not math.isfinite(total):
            raise self.describe_failure(f"the loss is {total}")
        if self.plateau is not None and not all(map(math.isfinite, self.plateau.history[-1:])):
            raise self.describe_failure(f"the loss under fixed noise is {self.plateau.history[-1]}")
        norm = float(torch.nn.utils.clip_grad_norm_([*self.lora, *self.tokens.trainable.values()], 1.0))
        if not math.isfinite(norm):  # a checkpoint with such weights must not be saved
            raise self.describe_failure("a gradient is not finite")
        self.optimizer.step()
        self.tokens.restore_norms()
        keep = 0.9 if self.step else 0.0
        token_rate, layer_rate = (group["lr"] for group in self.optimizer.param_groups)
        self.measured = {
            **values,
            "loss": total,
            "learning_rate": layer_rate,
            "embedding_lr": token_rate,
            "gradient_norm": norm,
        }
        for name, value in values.items():
            self.running_losses[name] = keep * self.running_losses[name] + (1 - keep) * value
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        if self.step == 1:
            cpu.trim_malloc()  # the optimizer's moments now lie between blocks that the step has freed

    def describe_failure(self, what: str) -> GateError:
        """The error for values that are not finite: it blames the base if its own predictions for this photo are not finite."""
        model, batch = self.model, self.batches.validation_batch(0)
        condition = self.teacher.conditions[PROMPT.format(batch.views.prompt_phrase("class"))]
        with torch.no_grad(), adapter_state.disabled(model):
            outputs = [model.predict(z[None], t[None], condition) for z, t in zip(batch.z_t, batch.t, strict=True)]
        if not finite_checks.is_finite(torch.cat(outputs)):
            return finite_checks.describe_failure("denoiser", model.dtype)
        half = next(model.denoiser.parameters()).dtype in finite_checks.HALF
        if self.step == 0:  # no rate has acted yet
            return GateError(
                f"training cannot start: {what} before anything was learned",
                f"try {'`--precision fp32`, ' if half else ''}lower weights of the loss terms, or another photo",
            )
        rates = [f"`--set train.learning_rate={self.config.learning_rate / 4:g}`"] if self.lora else []
        rates += [f"`--set train.embedding_lr={self.config.embedding_lr / 4:g}`"] if self.config.train_embedding else []
        precision = "`--precision fp32`, or " if half else ""
        return GateError(
            f"training diverged at step {self.step}: {what}", f"try {precision}a lower rate: {', '.join(rates)}"
        )

    @contextlib.contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Inside, the parameters are their running means."""
        assert self.average is not None
        with self.average.in_place():
            self.tokens.restore_norms()
            yield

    @property
    def total(self) -> int:
        """Steps of the whole run as far as is known."""
        return self.config.max_steps if self.plateau is None else self.plateau.total

    @property
    def finished(self) -> bool:
        """Whether all steps are taken."""
        return self.step >= self.total

    def keep_ema(self) -> None:
        """After the last step: the running means replace the parameters if the settings ask for it."""
        if self.config.ema_decay and self.average is not None:
            copy_values(self.params(), self.average.kept)
            self.tokens.restore_norms()

    def state(self) -> dict[str, Tensor]:
        """Everything that another process needs to continue to the same bits."""
        tensors: dict[str, Tensor] = {
            "step": torch.tensor([self.step]),
            "mean": torch.tensor(list(self.running_losses.values()), dtype=torch.float64),
        }
        for i, p in enumerate(self.params()):
            tensors[f"{i:04d}.value"] = p.detach().cpu()
            tensors |= optimizer.pack_state(self.optimizer.state.get(p, {}), f"{i:04d}")
        for i, value in enumerate(self.average.kept if self.average is not None else []):
            tensors[f"{i:04d}.mean"] = value.cpu()
        return tensors | (self.plateau.state() if self.plateau is not None else {})

    def checkpoint_bytes(self) -> int:
        """Size of a state at its largest: parameters, both moments, and running means where there are any."""
        return sum(p.numel() * p.element_size() for p in self.params()) * (3 + (self.average is not None))

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from the `state` of a run with the same settings."""
        self.step = int(tensors["step"])
        self.running_losses = dict(zip(self.running_losses, tensors["mean"].tolist(), strict=True))
        with torch.no_grad():
            for i, p in enumerate(self.params()):
                p.copy_(tensors[f"{i:04d}.value"])
                slots = optimizer.unpack_state(tensors, f"{i:04d}", p.device)
                if slots:
                    self.optimizer.state[p] = slots
                if self.average is not None:
                    self.average.kept[i] = tensors[f"{i:04d}.mean"].to(p.device)
        if self.plateau is not None:
            self.plateau.restore(tensors)

    def params(self) -> list[Tensor]:
        """What the optimizer updates, in the order of checkpoints."""
        return [*self.tokens.trainable.values(), *self.lora]
