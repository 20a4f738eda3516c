"""`objtune bench --speed`: seconds and memory of a training step, methods side by side in one run.

Knows no pictures: what is learned from noise costs what is learned from a photo. Two sizes: the base at hand, and
Stable Diffusion 1.5's own layout with random weights; on a processor at 256 px, so that it fits a small machine.
"""

import contextlib
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from objtune_cli.bench.methods import METHODS
from objtune_cli.bench.worker_processes import Children
from objtune_cli.config.sections import Bench, Embed, Train
from objtune_cli.errors import ObjtuneError
from objtune_cli.evaluation import statistics
from objtune_cli.models import registry
from objtune_cli.store.kinds.prior import PriorArtifact
from objtune_cli.training import stage as train
from objtune_cli.workflow.context import StageContext

if TYPE_CHECKING:
    import torch

    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.training.trainer import Trainer

COMPARED = ("objtune", "dreambooth-lora")
SIZES = ("base", "sd15")
"""The base at hand; Stable Diffusion 1.5's layout."""
WARM_UP = {"base": 4, "sd15": 1}
STEPS = {"base": 12, "sd15": 4}
"""Steps of a round: whole turns of the class term, taken at every step or every fourth."""
JOINT = (1, 2, 3)
"""Numbers of objects of one photo that are learned together."""
SIDE = 256
"""Side of the large model's pictures on a processor, px."""
PARTS = ("words", "forward", "backward", "optimizer")


@dataclass(frozen=True, slots=True)
class Task:
    """What a process builds: everything but the base's weights travels to it."""

    size: str
    base: str
    training: Mapping[str, Any]
    method: str
    device: str
    precision: str
    objects: int = 1
    side: int = 0


def run(ctx: StageContext, config: Bench, sizes: tuple[str, ...] = SIZES) -> list[dict[str, Any]]:
    """Rows of both methods at each size, one value a round, and of the ratio of ours to the other.

    Measures: `<size>_step_s`, its parts `_words_s`, `_forward_s`, `_backward_s`, `_optimizer_s`, and
    `<size>_memory_mb`, the largest resident memory of stepping (on a GPU: allocated), the model included; on a processor also
    `<size>_tensors_mb`, the largest bytes of live tensors, the model's included: what a GPU would hold, where Python and its libraries have no part.

    Raises:
        ResourceError: A process ended on its own. Stopped: a signal came.
    """
    rows: list[dict[str, Any]] = []
    for size in sizes:
        tasks = {name: replace(_task(ctx, size, name), side=config.side) for name in COMPARED}
        found = _side_by_side(ctx, f"speed {size}", tasks, config.rounds)
        for name in COMPARED:
            rows += statistics.rows(
                name, [{f"{size}_{m}": v for m, v in r.items() if m != "prepare_s"} for r in found[name]]
            )
        ours, theirs = (found[name] for name in COMPARED)
        ratios = [
            {f"{size}_{m}": a[m] / b[m] for m in ("step_s", "memory_mb", "tensors_mb") if b.get(m)}
            for a, b in zip(ours, theirs, strict=True)
        ]
        rows += statistics.rows("ratio", ratios)
    return rows


def objects(ctx: StageContext, rounds: int) -> list[dict[str, Any]]:
    """Rows of one, two and three objects of one photo, learned together, and of their ratio to one.

    Measures: `prepare_s`, before the first step; `step_s`; `run_s`, both for the most steps that suit the base and that many objects.
    """
    tasks = {_counted(n): replace(_task(ctx, "base", "objtune"), objects=n) for n in JOINT}
    found = _side_by_side(ctx, "speed of several objects", tasks, rounds)
    most = {_counted(n): train.fill_defaults(Train(), ctx.base.training, n).steps for n in JOINT}
    costs = {
        name: [
            {"prepare_s": r["prepare_s"], "step_s": r["step_s"], "run_s": r["prepare_s"] + most[name] * r["step_s"]}
            for r in results
        ]
        for name, results in found.items()
    }
    rows = [row for name, values in costs.items() for row in statistics.rows(name, values)]
    one = costs[_counted(1)]
    for n in JOINT[1:]:
        ratios = [{m: a[m] / b[m] for m in a} for a, b in zip(costs[_counted(n)], one, strict=True)]
        rows += statistics.rows(f"ratio of {n} to 1", ratios)
    return rows


def _counted(n: int) -> str:
    return f"{n} object{'s' if n > 1 else ''} of a photo"


def _task(ctx: StageContext, size: str, method: str) -> Task:
    training = ctx.base.training if size == "base" else registry.DEFAULT_TRAINING
    return Task(size, ctx.common.base, dict(training), method, ctx.common.device, ctx.common.precision)


def _side_by_side(
    ctx: StageContext, label: str, tasks: Mapping[str, Task], rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Each task in a process of its own, taking turns: whatever else the machine does meets all."""
    names = list(tasks)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    progress = ctx.progress(label)
    with Children(_child) as children:
        for name in names:
            children.start(name, tasks[name])
        built = {name: children.hear(name, ctx.check_stopped) for name in names}  # and warm
        for i in range(rounds):
            for name in names if i % 2 == 0 else names[::-1]:
                found[name].append(children.ask(name, ctx.check_stopped) | built[name])
            progress(i + 1, rounds)
    return found


def _child(pipe: Connection, task: Task) -> None:
    """Build, warm up, then measure a round for every word that comes."""
    for number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):  # the parent hears them, and ends this one
        signal.signal(number, signal.SIG_IGN)
    try:
        trainer, prepared = _timed(task)
        for _ in range(WARM_UP[task.size]):
            trainer.train_step()
        held = live(trainer, STEPS[task.size])
        clock = Clock(trainer)
        pipe.send({"prepare_s": prepared} | held)
        while True:
            pipe.recv()
            pipe.send(clock.round(STEPS[task.size]))
    except EOFError:
        return
    except Exception as error:  # as plain text: not every exception survives the way
        failed, hint = (
            (error.message, error.hint) if isinstance(error, ObjtuneError) else (f"{type(error).__name__}: {error}", "")
        )
        with contextlib.suppress(OSError):
            pipe.send({"failed": failed, "hint": hint})


def _timed(task: Task) -> "tuple[Trainer, float]":
    """A trainer, and the seconds from its objects to its first step: placements, and what the frozen base says of them."""
    model = _stack(task)
    started = time.perf_counter()
    return build(task, model), time.perf_counter() - started


def live(trainer: "Trainer", steps: int) -> dict[str, float]:
    """The largest bytes of live tensors in some steps, MB; nothing on a GPU, whose allocator says so itself."""
    from objtune_cli.runtime import cpu, memory
    from objtune_cli.runtime.tensor_memory import LiveTensorCounter, module_tensors

    model = trainer.model
    if model.device.type != "cpu":
        return {}
    counted = LiveTensorCounter()
    counted.add(module_tensors(model.denoiser, *model.text_encoders, model.text_encoder_3, model.autoencoder))
    with counted:
        trainer.train_step()  # what else a run holds is seen where a step reads it
        counted.forget()
        for _ in range(steps):
            trainer.train_step()
    cpu.trim_malloc()  # what counting took is no step's
    return {"tensors_mb": counted.peak / memory.MB}


class Clock:
    """Times the parts of a trainer's steps; what is none of the others counts as backward."""

    def __init__(self, trainer: "Trainer") -> None:
        self.trainer, self.spent = trainer, dict.fromkeys(PARTS, 0.0)
        model: Any = trainer.model
        self._time(trainer.optimizer, "step", "optimizer")
        self._time(model.text_encoder, "forward", "words")
        self._time(model.denoiser, "forward", "forward")

    def _time(self, owner: Any, name: str, part: str) -> None:
        inside = getattr(owner, name)

        def timed(*args: Any, **named: Any) -> Any:
            started = self._now()
            out = inside(*args, **named)
            self.spent[part] += self._now() - started
            return out

        setattr(owner, name, timed)

    def _now(self) -> float:
        import torch

        if self.trainer.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def round(self, steps: int) -> dict[str, float]:
        """Mean seconds of a step and of its parts, and the round's largest memory in MB."""
        from objtune_cli.runtime import memory

        self.spent = dict.fromkeys(PARTS, 0.0)
        memory.reset_peak(self.trainer.model.device.type)
        started = self._now()
        for _ in range(steps):
            self.trainer.train_step()
        step = (self._now() - started) / steps
        parts = {part: spent / steps for part, spent in self.spent.items()}
        parts["backward"] = step - sum(parts[p] for p in PARTS if p != "backward")
        return {
            "step_s": step,
            **{f"{p}_s": parts[p] for p in PARTS},
            "memory_mb": memory.peak_mb(self.trainer.model.device.type),
        }


def _stack(task: Task) -> "BaseModel":
    if task.size == "base":
        return _base(task)
    from objtune_cli.models import random_weights

    return random_weights.opened("sd15", task.device, task.precision, task.side, SIDE)


def build(task: Task, model: "BaseModel") -> "Trainer":
    """A trainer of the method's settings on a picture and a class prior of noise."""
    import torch

    from objtune_cli.models.placeholders import class_token_embeddings
    from objtune_cli.training import trainer as training
    from objtune_cli.training.subjects import Subject

    method = METHODS[task.method]
    config = train.fill_defaults(replace(Train(), **method.train), task.training)
    if task.size != "base":
        config = replace(config, known=2)  # asked before any step: no part of one
    vectors = int(method.embed.get("vectors", Embed().vectors))
    noun = class_token_embeddings(model, "dog")
    rows = torch.cat([noun[:1].expand(vectors, -1), noun])
    g = torch.Generator().manual_seed(0)
    picture = torch.rand((3, model.size, model.size), generator=g) * 2 - 1
    subjects = [
        Subject(f"it{i}", "dog", rows, vectors, picture, picture.flip(-1), _mask(model, i, task.objects))
        for i in range(task.objects)
    ]
    return training.Trainer(model, subjects, {"dog": _noise_prior(model, g)} if config.class_weight else {}, config)


def _mask(model: "BaseModel", number: int, count: int) -> "torch.Tensor":
    """Where the object of a number stands among so many: a quarter of the frame, shared out from left to right."""
    import torch

    quarter, wide = model.size // 4, model.size // 2 // count
    mask = torch.zeros(model.size, model.size)
    mask[quarter:-quarter, quarter + number * wide : quarter + (number + 1) * wide] = 1
    return mask


def _base(task: Task) -> "BaseModel":
    from objtune_cli.models import base_model as model
    from objtune_cli.models import precision

    device = model.pick_device(task.device)
    loaded = model.load(registry.resolve(task.base).folder, device, model.pick_dtype(task.precision, device))
    if task.precision == "auto" and device.type == "cpu" and precision.processor_has_bf16():
        precision.use_bf16_matmuls(loaded.denoiser)
    return loaded


def _noise_prior(model: "BaseModel", g: "torch.Generator", entries: int = 8) -> PriorArtifact:
    import torch

    side = model.size // model.factor
    drawn = torch.randn((3, entries, model.denoiser.config.in_channels, side, side), generator=g)
    with torch.no_grad():
        conditions = model.encode(["a photo of a dog"])
    t = torch.from_numpy(np.linspace(100, 900, entries).astype(np.int64))
    return PriorArtifact(drawn[0], drawn[1], t, drawn[2], torch.zeros(entries, dtype=torch.int64), conditions)
