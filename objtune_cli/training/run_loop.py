"""The training loop: steps of one run, or of several in step, with progress, samples, checkpoints and signals."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from objtune_cli.errors import GateError, Stopped
from objtune_cli.store.checkpoints import Checkpoint
from objtune_cli.store.disk_reservation import EXTRA_BYTES, DiskReservation
from objtune_cli.training import progress_samples, unfinished_runs
from objtune_cli.training.history import TrainingHistory
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    from torch import Tensor

    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.runtime.distributed import ProcessGroup
    from objtune_cli.training.self_evaluation import SelfEvaluation
    from objtune_cli.training.train import TrainingPlan
    from objtune_cli.training.trainer import Trainer

LOGGED_VALUES = ("learning_rate", "embedding_lr", "gradient_norm")
"""Values of a step for metric loggers; a terminal shows the losses alone."""
SAVE_INTERVAL = 30.0
"""Seconds between checkpoints; a signal saves at once."""


@dataclass(eq=False, slots=True)
class TrainingRun:
    """One adapter in training, the self-evaluation that scores it, and its curves and samples so far."""

    number: int
    plan: "TrainingPlan"
    trainer: "Trainer"
    judge: "SelfEvaluation | None"
    history: TrainingHistory = field(default_factory=TrainingHistory)

    @property
    def log_prefix(self) -> str:
        """What stands before the names of its scores in metric loggers: empty for a run alone, else the object and `/`."""
        return f"{self.plan.record.name}/" if self.trainer.shares_model else ""

    def restore(self, tensors: "Mapping[str, Tensor]") -> None:
        """Continue from a checkpoint."""
        self.trainer.restore(tensors)
        self.history.restore(tensors)


class TrainingLoop:
    """Steps of several runs until each has come to its own end.

    Attributes:
        active: The runs that have steps left. failed: those that diverged, with their errors.
    """

    def __init__(
        self,
        ctx: StageContext,
        runs: Sequence[TrainingRun],
        checkpoint: Checkpoint,
        reservation: DiskReservation,
        *,
        shared: bool,
    ) -> None:
        """`shared`: the checkpoint is of several runs, so that names of its tensors start with the run's number."""
        self.ctx, self.checkpoint, self.reservation, self.shared = ctx, checkpoint, reservation, shared
        self.active = list(runs)
        self.failed: list[tuple[TrainingRun, GateError]] = []
        self._saved_at = time.monotonic()

    def run(self, on_end: Callable[[list[TrainingRun]], None]) -> list[tuple[TrainingRun, GateError]]:
        """Take all steps; `on_end` gets runs that have ended while the others go on.

        Returns:
            The runs that diverged.

        Raises:
            Stopped: A signal came; the checkpoint is saved.
        """
        while self.active:
            finished_runs = [run for run in self.active if run.trainer.finished]
            if finished_runs:
                self.active = [run for run in self.active if run not in finished_runs]
                for run in finished_runs:
                    run.trainer.keep_ema()
                on_end(finished_runs)
                if self.active:
                    self.save()
            else:
                self._step()
        return self.failed

    def _step(self) -> None:
        """One step of each run; a run that diverges leaves the loop."""
        from objtune_cli.runtime import memory
        from objtune_cli.training import parallel_trainers

        start_time = time.monotonic()
        errors = parallel_trainers.train_step([run.trainer for run in self.active])
        seconds = (time.monotonic() - start_time) / len(self.active)
        self.failed += [(run, errors[run.trainer]) for run in self.active if run.trainer in errors]
        self.active = [run for run in self.active if run.trainer not in errors]
        if not self.active:
            return
        trainers = [run.trainer for run in self.active]
        step, total = trainers[0].step, max(t.total for t in trainers)
        loss = sum(t.running_loss for t in trainers) / len(trainers)
        memory_mb = round(memory.peak_mb(trainers[0].model.device.type))
        details: dict[str, Any] = {"objects": len(trainers)} if self.shared else _logged_values(trainers[0])
        for run in self.active if self.shared else ():
            values = {"loss": run.trainer.running_loss, **_logged_values(run.trainer)}
            details |= {f"{run.plan.record.name}/{name}": value for name, value in values.items()}
        self.ctx.report.step("train", step, total, loss=loss, **details, memory_mb=memory_mb)
        for run in self.active:
            self._record(run, seconds)
        group = trainers[0].model.process_group
        signum = group.all_reduce_max(self.ctx.stopped()) if group is not None else self.ctx.stopped()
        is_due = time.monotonic() - self._saved_at > SAVE_INTERVAL
        if signum or is_due or any(t.finished for t in trainers):  # what follows the last step may be stopped too
            self.save()
        if signum:
            raise Stopped(
                signum, f"stopped at step {step} of {total}, state saved", "the same command resumes from there"
            )

    def save(self) -> None:
        """Write the checkpoint of all active runs; in the main process only."""
        model = self.active[0].trainer.model
        if not is_main_process(model.process_group):
            return
        start_time = time.monotonic()
        with self.reservation.lend(self.checkpoint_bytes()):
            runs = [(run.plan.record, run.trainer) for run in self.active]
            self.checkpoint.about = unfinished_runs.checkpoint_header(self.ctx, runs, describe_environment(model))
            self.checkpoint.save(
                {
                    f"{run.number}.{name}" if self.shared else name: value
                    for run in self.active
                    for name, value in (run.trainer.state() | run.history.state()).items()
                }
            )
        now = time.monotonic()
        for run in self.active:
            run.history.record_seconds("save", (now - start_time) / len(self.active))
        self._saved_at = now

    def _record(self, run: TrainingRun, seconds: float) -> None:
        """Record what a step showed, and sample where that is due; in the main process only."""
        trainer = run.trainer
        if not is_main_process(trainer.model.process_group):
            return
        run.history.record_step(trainer.step, trainer.measured)
        run.history.record_seconds("train", seconds)
        if trainer.plateau is not None:
            run.history.validation = {i * trainer.plateau.every: loss for i, loss in enumerate(trainer.plateau.history)}
        if progress_samples.is_due(run):
            start_time = time.monotonic()
            progress_samples.draw(self.ctx, run)
            run.history.record_seconds("samples", time.monotonic() - start_time)

    def checkpoint_bytes(self) -> int:
        """Size of the checkpoint, the largest file to be written: an adapter is a third of its own state."""
        return sum(run.trainer.checkpoint_bytes() for run in self.active) + EXTRA_BYTES

    def reserve_disk(self, *, resumed: bool) -> None:
        """Reserve space for the files to come; a checkpoint is replaced by a second file beside it."""
        self.reservation.reserve(self.checkpoint_bytes() * (1 if resumed else 2))


def _logged_values(trainer: "Trainer") -> dict[str, float]:
    """Running means of the loss terms of a run, and its rates and gradient norm at this step."""
    return trainer.running_losses | {name: trainer.measured[name] for name in LOGGED_VALUES}


def is_main_process(group: "ProcessGroup | None") -> bool:
    """Whether this process is the only one, or the first of several."""
    return group is None or group.is_main_process


def describe_environment(model: "BaseModel") -> str:
    """Device, number formats, threads and version of torch: last digits of sums depend on them."""
    import torch

    formats = f"{model.device.type}/{model.dtype}/{next(model.denoiser.parameters()).dtype}"
    return f"{formats}/{torch.get_num_threads()}/{torch.__version__}"


def run_key(plan: "TrainingPlan", model: "BaseModel") -> str:
    """All that the steps of a run depend on, to the bit."""
    return f"{plan.record.identity()}/{describe_environment(model)}"


def checkpoint_key(text: str) -> str:
    """The key under which the checkpoint of a run, or of several, is stored."""
    return hashlib.sha256(text.encode()).hexdigest()
