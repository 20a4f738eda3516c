"""One optimizer step of trainers that share a base model, in shared calls of the denoiser and the text encoder.

Each trainer keeps its own token, LoRA, optimizer, learning rate and end. Its samples and targets are those of a run of its
own, so that its weights differ from that run's by rounding only; of a single trainer they do not differ.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from objtune_cli.errors import GateError
from objtune_cli.lora import batched
from objtune_cli.models import attention, memory_savings
from objtune_cli.models.attention import Recorder
from objtune_cli.models.conditioning import Conditioning
from objtune_cli.models.prompts import with_class_words
from objtune_cli.numerics import ddpm, losses
from objtune_cli.training.batches import VALIDATION_SAMPLES
from objtune_cli.training.loss_terms import Prediction, compute_terms

if TYPE_CHECKING:
    from objtune_cli.training.trainer import Trainer


def train_step(trainers: "Sequence[Trainer]") -> "dict[Trainer, GateError]":
    """One step of each; all share a model, are at the same step and have the same settings.

    Returns:
        The trainers whose loss or gradient is not finite: they have taken no step.
    """
    model = trainers[0].model
    _measure([t for t in trainers if t.plateau is not None and t.plateau.should_measure(t.step)])
    terms = memory_savings.retry_with_checkpointing(
        model, partial(forward_backward, trainers), auto=trainers[0].config.gradient_checkpointing == "auto"
    )
    failed = {}
    for t, own in zip(trainers, terms, strict=True):
        if model.process_group is not None:
            model.process_group.all_reduce_gradients(t.params())
        try:
            t.finish_step(own)
        except GateError as error:
            failed[t] = error
    return failed


def forward_backward(trainers: "Sequence[Trainer]") -> list[dict[str, Tensor]]:
    """The loss terms of a step of each trainer; leaves the gradients in the parameters. Repeating it changes nothing."""
    for t in trainers:
        t.begin_step()
    terms: list[dict[str, Tensor]] = [{} for _ in trainers]
    generators = [ddpm.step_generator(t.config.seed, t.step) for t in trainers]
    for parts in compute_losses(trainers, generators):
        loss = torch.stack([t.weighted_sum(part) for t, part in zip(trainers, parts, strict=True)]).sum()
        if loss.requires_grad:  # a call with the class prior only has no gradient where only the token learns
            loss.backward()
        for own, part in zip(terms, parts, strict=True):
            own |= {name: value.detach() for name, value in part.items()}
    return terms


def compute_losses(
    trainers: "Sequence[Trainer]", generators: Sequence[torch.Generator]
) -> Iterator[list[dict[str, Tensor]]]:
    """The loss terms of a step, for each call of the denoiser a dictionary per trainer.

    Take the gradients of one item before the next: a backward pass may compute the layers again, as they are set up here.
    """
    model = trainers[0].model
    batches = [t.sample_batch(g) for t, g in zip(trainers, generators, strict=True)]
    conditions = encode_prompts(trainers, [b.prompt for b in batches])
    single = bool(trainers[0].config.single_forward)
    calls = (b.forward_passes(c, single) for b, c in zip(batches, conditions, strict=True))
    for passes in zip(*calls, strict=True):
        z_t, t = _concat(trainers, [p.z_t for p in passes]), _concat(trainers, [p.t for p in passes])
        condition = _concat_conditions(trainers, [p.condition for p in passes])
        each = len(z_t) // len(passes)
        recorded = len(z_t) if len(passes) > 1 else passes[0].num_photo
        with (
            _own_lora(trainers, each),
            record_attention(trainers, recorded) as recorder,
        ):
            output = model.predict(z_t, t, condition).float()
            if recorder is not None:
                recorder.complete = True
            terms = []
            for i, own in enumerate(output.split(each)):
                count, maps = passes[i].num_photo, None
                if recorder is not None and count and trainers[i].config.attention_loss_weight:
                    part = recorder if len(passes) == 1 else _slice_attention(recorder, i * each, count)
                    maps = trainers[i].tokens.attention_maps(part, batches[i])
                prediction = Prediction(own[:count] if count else None, own[count:] if count < each else None, maps)
                terms.append(compute_terms(batches[i], prediction))
            yield terms


def encode_prompts(trainers: "Sequence[Trainer]", prompts: Sequence[str]) -> list[Conditioning]:
    """Each trainer's prompt with its current token vectors, one sample each, in one call of the text encoders."""
    placeholders = [t.tokens.sync() for t in trainers]
    texts = [words.expand(prompt) for words, prompt in zip(placeholders, prompts, strict=True)]
    if trainers[0].config.context_words == "placeholder":
        return trainers[0].model.encode_prompt(texts).split(1)
    length = max(words.count_leading_tokens([prompt]) for words, prompt in zip(placeholders, prompts, strict=True))
    encoded = trainers[0].model.encode_prompt(texts, length).split(1)
    return [
        t.tokens.placeholders.encode_with_class_context(
            prompt, t.tokens.class_words, own, t.teacher.conditions[with_class_words(prompt, t.tokens.class_words)]
        )
        for t, prompt, own in zip(trainers, prompts, encoded, strict=True)
    ]


@torch.no_grad()
def validation_losses(trainers: "Sequence[Trainer]") -> list[float]:
    """The mean L_OS over the objects of each trainer, always on the same samples with the same noise."""
    losses_per_object: list[list[float]] = [[] for _ in trainers]
    for k in range(max((len(t.subjects) for t in trainers), default=0)):
        indices = [i for i, t in enumerate(trainers) if k < len(t.subjects)]
        for i, loss in zip(indices, _validation_losses([trainers[i] for i in indices], k), strict=True):
            losses_per_object[i].append(loss)
    return [sum(values) / len(values) for values in losses_per_object]


def _validation_losses(trainers: "Sequence[Trainer]", k: int) -> list[float]:
    """L_OS of the k-th object of each."""
    model, size = trainers[0].model, max(1, trainers[0].config.batch_size)
    if trainers[0].shares_model:
        size = math.gcd(VALIDATION_SAMPLES, size)  # the trainers' samples alternate in blocks of one size
    batches = [t.batches.validation_batch(k) for t in trainers]
    conditions = encode_prompts(trainers, [b.prompt for b in batches])
    parts = []
    for start in range(0, VALIDATION_SAMPLES, size):
        z_t = _concat(trainers, [b.z_t[start : start + size] for b in batches])
        t = _concat(trainers, [b.t[start : start + size] for b in batches])
        each = len(z_t) // len(trainers)
        condition = _concat_conditions(trainers, [c.expand(each) for c in conditions])
        with _own_lora(trainers, each):
            parts.append(model.predict(z_t, t, condition).float().unflatten(0, (len(trainers), each)))
    output = torch.cat(parts, dim=1)
    return [float(losses.masked_mse(own, b.target, b.masks).mean()) for own, b in zip(output, batches, strict=True)]


def _measure(trainers: "Sequence[Trainer]") -> None:
    """Record the validation losses of the averaged weights, which tell when to stop."""
    with contextlib.ExitStack() as averaged:
        for t in trainers:
            averaged.enter_context(t.ema_weights())
        for t, loss in zip(trainers, validation_losses(trainers), strict=True):
            assert t.plateau is not None
            t.plateau.record_loss(loss)


def _concat(trainers: "Sequence[Trainer]", tensors: Sequence[Tensor]) -> Tensor:
    """The trainers' tensors along the batch; not copied for a run of its own, because strides decide on last digits."""
    return torch.cat(list(tensors)) if trainers[0].shares_model else tensors[0]


def _concat_conditions(trainers: "Sequence[Trainer]", conditions: Sequence[Conditioning]) -> Conditioning:
    """As `_concat`, for conditionings."""
    return Conditioning.concat(conditions) if trainers[0].shares_model else conditions[0]


@contextlib.contextmanager
def _own_lora(trainers: "Sequence[Trainer]", each: int) -> Iterator[None]:
    """Inside, blocks of `each` samples go through the LoRA of one trainer after the other."""
    if not trainers[0].shares_model or not trainers[0].lora:
        yield
        return
    with batched.per_block_adapters(trainers[0].model, [t.name for t in trainers], each):
        yield


def record_attention(trainers: "Sequence[Trainer]", count: int) -> contextlib.AbstractContextManager[Recorder | None]:
    """Inside, attention maps of the first `count` samples are recorded if a trainer has the attention term."""
    if any(t.config.attention_loss_weight for t in trainers):
        return attention.record_cross_attention(trainers[0].model, count)
    return contextlib.nullcontext()


def _slice_attention(recorder: Recorder, start: int, count: int) -> Recorder:
    """The maps of some of the samples."""
    own = Recorder(count)
    own.maps = {side: [maps[start : start + count] for maps in recorded] for side, recorded in recorder.maps.items()}
    return own
