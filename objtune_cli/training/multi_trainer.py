"""Several trainers in step: one pass of the denoiser and one of the text encoder for all that are on one stack.

Where there are several stacks each has a thread of its own: processors that one small model's layers cannot be shared out to.

Each keeps its own token, LoRA, optimizer, rate and end; the rows that it shows and what they are held to are those of a
run of its own, so that its weights differ from that run's by rounding alone.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from objtune_cli.errors import GateError
from objtune_cli.lora import batched
from objtune_cli.models import memory_savings
from objtune_cli.models.attention import Recorder
from objtune_cli.numerics import ddpm
from objtune_cli.runtime import cpu
from objtune_cli.training.loss_terms import FIXED
from objtune_cli.training.trainer import Trainer


def train_step(trainers: Sequence[Trainer]) -> dict[Trainer, GateError]:
    """One step of each; all are at the same step and have the same settings.

    Returns:
        Those whose loss is no longer a finite number: they have taken no step.
    """
    lanes: dict[int, list[Trainer]] = {}
    for t in trainers:
        lanes.setdefault(id(t.model), []).append(t)
    failed: dict[Trainer, GateError] = {}
    for found in cpu.run_parallel([partial(_together, lane) for lane in lanes.values()]):
        failed |= found
    return failed


def _together(trainers: Sequence[Trainer]) -> dict[Trainer, GateError]:
    """One step of all that are on one stack."""
    _measure([t for t in trainers if t.plateau is not None and t.plateau.should_measure(t.step)])
    return _ended(
        trainers,
        memory_savings.retry_with_checkpointing(
            trainers[0].model, partial(_pulled, trainers), auto=trainers[0].config.checkpointing == "auto"
        ),
    )


def _pulled(trainers: Sequence[Trainer]) -> list[dict[str, Tensor]]:
    """Each trainer's terms of a step, their gradients taken; done again it is the same."""
    for t in trainers:
        t.begin()
    seen = [t.drawn(ddpm.step_generator(t.config.seed, t.step)) for t in trainers]
    words = _encoded(trainers, [s.prompt for s in seen])
    terms: list[dict[str, Tensor]] = [{} for _ in trainers]
    for parts in zip(*(t.passes(s, w) for t, s, w in zip(trainers, seen, words, strict=True)), strict=True):
        z_t, levels, condition = (torch.cat(column) for column in zip(*(p.given for p in parts), strict=True))
        each = len(z_t) // len(parts)
        watching = max(trainers, key=lambda t: t.config.attention_weight)  # records for all, if any has that term
        with (
            _acting(trainers, each),
            watching.record_attention(len(z_t)) as looked,
        ):  # the backward pass too: it may compute the same layers again
            pred = trainers[0].model.predict(z_t, levels, condition).float()
            if looked is not None:
                looked.over = True
            found = [
                p.terms(own, _part(looked, i, each, len(seen[i].rows)))
                for i, (p, own) in enumerate(zip(parts, pred.split(each), strict=True))
            ]
            loss = torch.stack([t.weighted_sum(f) for t, f in zip(trainers, found, strict=True)]).sum()
            if loss.requires_grad:
                loss.backward()
        for mine, new in zip(terms, found, strict=True):
            mine |= {name: value.detach() for name, value in new.items()}
    return terms


def _ended(trainers: Sequence[Trainer], terms: list[dict[str, Tensor]]) -> dict[Trainer, GateError]:
    """Let each take its step: rows of one say nothing about another's, so that one that diverged stops no other."""
    failed = {}
    for t, own in zip(trainers, terms, strict=True):
        try:
            t.end(own)
        except GateError as error:
            failed[t] = error
    return failed


@torch.no_grad()
def _measure(due: Sequence[Trainer]) -> None:
    """The losses under fixed noise that say when to stop, of running means."""
    found: dict[Trainer, list[float]] = {t: [] for t in due}
    with contextlib.ExitStack() as held:
        for t in due:
            held.enter_context(t.ema_weights())
        for k in range(max((len(t.subjects) for t in due), default=0)):
            own = [t for t in due if k < len(t.subjects)]
            for t, loss in zip(own, _fixed_losses(own, k), strict=True):
                found[t].append(loss)
    for t, losses in found.items():
        assert t.plateau is not None
        t.plateau.record_loss(sum(losses) / len(losses))


def _fixed_losses(due: Sequence[Trainer], k: int) -> list[float]:
    """Of the k-th object of each."""
    fixed, size, model = (
        [t.validation_batch(k) for t in due],
        math.gcd(FIXED, max(1, due[0].config.batch)),
        due[0].model,
    )
    words = torch.cat([w.expand(size, -1, -1) for w in _encoded(due, [f.prompt for f in fixed])])
    parts = []
    with _acting(due, size):
        for at in range(0, len(fixed[0].t), size):
            z, levels = (
                torch.cat([x[at : at + size] for x in column])
                for column in ([f.z_t for f in fixed], [f.t for f in fixed])
            )
            parts.append(model.predict(z, levels, words).float().unflatten(0, (len(due), size)))
    pred = torch.cat(parts, dim=1)
    return [t.object_loss(f, pred[i]) for i, (t, f) in enumerate(zip(due, fixed, strict=True))]


def _encoded(trainers: Sequence[Trainer], prompts: list[str]) -> tuple[Tensor, ...]:
    """Each trainer's prompt through its tokens as they are now, (1, rows, d) each."""
    for t in trainers:
        t.place()
    texts = [t.words.expand(prompt) for t, prompt in zip(trainers, prompts, strict=True)]
    first = (
        0
        if trainers[0].config.context == "own"
        else max(t.words.reach([prompt]) for t, prompt in zip(trainers, prompts, strict=True))
    )
    own = trainers[0].model.encode(texts, first).split(1)
    return tuple(t.condition(prompt, said) for t, prompt, said in zip(trainers, prompts, own, strict=True))


@contextlib.contextmanager
def _acting(trainers: Sequence[Trainer], each: int) -> Iterator[None]:
    """Inside, rows belong to the trainers in turn, `each` to each; where no layer learns there is nothing to part."""
    with (
        batched.per_block_adapters(trainers[0].model, [t.name for t in trainers], each)
        if trainers[0].lora
        else contextlib.nullcontext()
    ):
        yield


def _part(looked: Recorder | None, i: int, each: int, count: int) -> Recorder | None:
    """Where the words looked in the photo's rows of one trainer, which come first among its own."""
    if looked is None:
        return None
    own = Recorder(count)
    own.maps = {side: [maps[i * each : i * each + count] for maps in found] for side, found in looked.maps.items()}
    return own
