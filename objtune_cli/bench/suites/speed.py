"""`objtune bench speed`: seconds and memory of a training step of several methods, measured in turns.

Trains on noise, which costs the same as a photo. Two sizes: the base of the command, and Stable Diffusion 1.5's
architecture with random weights; on a CPU at 256 px, so that it fits a small machine.
"""

import contextlib
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from objtune_cli.bench.methods import METHODS
from objtune_cli.bench.worker_processes import WorkerProcesses
from objtune_cli.config.sections import Bench, Embed, Train
from objtune_cli.errors import ObjtuneError
from objtune_cli.evaluation import statistics
from objtune_cli.models import registry
from objtune_cli.training import train
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.training.trainer import Trainer

COMPARED = ("objtune", "dreambooth-lora")
SIZES = ("base", "sd15")
"""The base of the command; Stable Diffusion 1.5's architecture."""
WARM_UP = {"base": 4, "sd15": 1}
STEPS = {"base": 12, "sd15": 4}
"""Steps of a round: multiples of the interval of the prior loss, which is 1 or 4."""
JOINT = (1, 2, 3)
"""Numbers of objects of one photo that are trained jointly."""
SIDE = 256
"""Side of the large model's images on a CPU, px."""
PRIOR_PREDICTIONS = 8
PARTS = ("text_encoder", "forward", "backward", "optimizer")


@dataclass(frozen=True, slots=True)
class Task:
    """The task of a worker process, without the base's weights."""

    size: str
    base: str
    training: Mapping[str, Any]
    method: str
    device: str
    precision: str
    objects: int = 1
    side: int = 0


def run(ctx: StageContext, config: Bench, sizes: tuple[str, ...] = SIZES) -> list[dict[str, Any]]:
    """Rows of both methods at each size, one value per round, and of the ratio of ours to the other.

    Measures: `<size>_step_s`, its parts `_text_encoder_s`, `_forward_s`, `_backward_s`, `_optimizer_s`, and
    `<size>_memory_mb`, the peak resident memory (on a GPU: allocated memory) of the steps, the model included; on a CPU also
    `<size>_live_tensors_mb`, the peak bytes of live tensors, the model's included, without Python and libraries.

    Raises:
        ResourceError: A worker process ended or failed.
        Stopped: A signal came.
    """
    rows: list[dict[str, Any]] = []
    for size in sizes:
        tasks = {name: replace(_make_task(ctx, size, name), side=config.resolution) for name in COMPARED}
        results = _side_by_side(ctx, f"speed {size}", tasks, config.timing_rounds)
        for name in COMPARED:
            rows += statistics.table_rows(
                name, [{f"{size}_{m}": v for m, v in r.items() if m != "prepare_s"} for r in results[name]]
            )
        ours, theirs = (results[name] for name in COMPARED)
        ratios = [
            {f"{size}_{m}": a[m] / b[m] for m in ("step_s", "memory_mb", "live_tensors_mb") if b.get(m)}
            for a, b in zip(ours, theirs, strict=True)
        ]
        rows += statistics.table_rows("ratio", ratios)
    return rows


def measure_joint_training(ctx: StageContext, rounds: int) -> list[dict[str, Any]]:
    """Rows of jointly training one, two and three objects of one photo, and of their ratio to one.

    Measures: `prepare_s`, before the first step; `step_s`; `run_s`, the whole run with the base's default steps for that many objects.
    """
    tasks = {_objects_label(n): replace(_make_task(ctx, "base", "objtune"), objects=n) for n in JOINT}
    timings = _side_by_side(ctx, "speed of several objects", tasks, rounds)
    most = {_objects_label(n): train.fill_defaults(Train(), ctx.base.training, n).max_steps for n in JOINT}
    costs = {
        name: [
            {"prepare_s": r["prepare_s"], "step_s": r["step_s"], "run_s": r["prepare_s"] + most[name] * r["step_s"]}
            for r in results
        ]
        for name, results in timings.items()
    }
    rows = [row for name, values in costs.items() for row in statistics.table_rows(name, values)]
    one = costs[_objects_label(1)]
    for n in JOINT[1:]:
        ratios = [{m: a[m] / b[m] for m in a} for a, b in zip(costs[_objects_label(n)], one, strict=True)]
        rows += statistics.table_rows(f"ratio of {n} to 1", ratios)
    return rows


def _objects_label(n: int) -> str:
    return f"{n} object{'s' if n > 1 else ''} of a photo"


def _make_task(ctx: StageContext, size: str, method: str) -> Task:
    training = ctx.base.training if size == "base" else registry.DEFAULT_TRAINING
    return Task(size, ctx.common.base, dict(training), method, ctx.common.device, ctx.common.precision)


def _side_by_side(
    ctx: StageContext, label: str, tasks: Mapping[str, Task], rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Measure each task in a worker process, in turns, so that other load on the machine affects all alike."""
    names = list(tasks)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    progress = ctx.progress(label)
    with WorkerProcesses(_work) as children:
        for name in names:
            children.start(name, tasks[name])
        built = {name: children.receive(name, ctx.check_stopped) for name in names}  # and warm
        for i in range(rounds):
            for name in names if i % 2 == 0 else names[::-1]:
                results[name].append(children.run_round(name, ctx.check_stopped) | built[name])
            progress(i + 1, rounds)
    return results


def _work(pipe: Connection, task: Task) -> None:
    """Build the task's trainer, warm up, then measure a round for every message."""
    for number in (
        signal.SIGINT,
        getattr(signal, "SIGHUP", signal.SIGINT),
    ):  # signals go to the parent, which ends this process
        signal.signal(number, signal.SIG_IGN)
    try:
        trainer, prepared = _build_timed(task)
        for _ in range(WARM_UP[task.size]):
            trainer.train_step()
        live_tensors = measure_live_tensors(trainer, STEPS[task.size])
        clock = StepTimer(trainer)
        pipe.send({"prepare_s": prepared} | live_tensors)
        while True:
            pipe.recv()
            pipe.send(clock.round(STEPS[task.size]))
    except EOFError:
        return
    except Exception as error:  # as text, because not every exception can be pickled
        failed, hint = (
            (error.message, error.hint) if isinstance(error, ObjtuneError) else (f"{type(error).__name__}: {error}", "")
        )
        with contextlib.suppress(OSError):
            pipe.send({"failed": failed, "hint": hint})


def _build_timed(task: Task) -> "tuple[Trainer, float]":
    """A trainer, and the seconds of its preparation: augmented views and teacher predictions."""
    model = _load_model(task)
    start_time = time.perf_counter()
    return build_trainer(task, model), time.perf_counter() - start_time


def measure_live_tensors(trainer: "Trainer", steps: int) -> dict[str, float]:
    """The peak bytes of live tensors in some steps, MB; empty on a GPU, whose allocator reports its peak."""
    from objtune_cli.runtime import cpu, memory
    from objtune_cli.runtime.tensor_memory import LiveTensorCounter, module_tensors

    model = trainer.model
    if model.device.type != "cpu":
        return {}
    counted = LiveTensorCounter()
    counted.add(module_tensors(model.denoiser, *model.text_encoders, model.text_encoder_3, model.loaded_vae))
    with counted:
        trainer.train_step()  # other tensors are counted when a step reads them
        counted.reset_peak()
        for _ in range(steps):
            trainer.train_step()
    cpu.trim_malloc()  # the time for counting is not part of a step
    return {"live_tensors_mb": counted.peak / memory.MB}


class StepTimer:
    """Times the parts of a trainer's steps; the remaining time counts as backward."""

    def __init__(self, trainer: "Trainer") -> None:
        self.trainer, self.spent = trainer, dict.fromkeys(PARTS, 0.0)
        model: Any = trainer.model
        self._time(trainer.optimizer, "step", "optimizer")
        self._time(model.text_encoder, "forward", "text_encoder")
        self._time(model.denoiser, "forward", "forward")

    def _time(self, owner: Any, name: str, part: str) -> None:
        inside = getattr(owner, name)

        def timed(*args: Any, **named: Any) -> Any:
            start_time = self._now()
            out = inside(*args, **named)
            self.spent[part] += self._now() - start_time
            return out

        setattr(owner, name, timed)

    def _now(self) -> float:
        import torch

        if self.trainer.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def round(self, steps: int) -> dict[str, float]:
        """Mean seconds of a step and of its parts, and the round's peak memory in MB."""
        from objtune_cli.runtime import memory

        self.spent = dict.fromkeys(PARTS, 0.0)
        memory.reset_peak(self.trainer.model.device.type)
        start_time = self._now()
        for _ in range(steps):
            self.trainer.train_step()
        step = (self._now() - start_time) / steps
        parts = {part: spent / steps for part, spent in self.spent.items()}
        parts["backward"] = step - sum(parts[p] for p in PARTS if p != "backward")
        return {
            "step_s": step,
            **{f"{p}_s": parts[p] for p in PARTS},
            "memory_mb": memory.peak_mb(self.trainer.model.device.type),
        }


def _load_model(task: Task) -> "BaseModel":
    if task.size == "base":
        return _load_base(task)
    from objtune_cli.models import random_weights

    return random_weights.load_random("sd15", task.device, task.precision, task.side, SIDE)


def build_trainer(task: Task, model: "BaseModel") -> "Trainer":
    """Return a trainer with the method's settings, on a noise image and a class prior of noise."""
    from objtune_cli.training import noise_inputs
    from objtune_cli.training import trainer as training

    method = METHODS[task.method]
    config = train.fill_defaults(replace(Train(), **method.train), task.training)
    if task.size != "base":
        config = replace(config, num_teacher_samples=2)  # computed before the first step, so not part of a step
    num_vectors = replace(Embed(), **method.embed).num_vectors
    subjects = noise_inputs.noise_subjects(model, num_vectors, task.objects)
    priors = {"dog": noise_inputs.noise_prior(model, PRIOR_PREDICTIONS)} if config.prior_loss_weight else {}
    return training.Trainer(model, subjects, priors, config)


def _load_base(task: Task) -> "BaseModel":
    from objtune_cli.models import loading, precision
    from objtune_cli.runtime import devices

    device = devices.pick_device(task.device)
    loaded = loading.load(registry.resolve(task.base).folder, device, loading.pick_dtype(task.precision, device))
    if task.precision == "auto" and device.type == "cpu" and precision.processor_has_bf16():
        precision.use_bf16_matmuls(loaded.denoiser)
    return loaded
