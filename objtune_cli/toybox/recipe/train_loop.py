"""The training loop of every part of the recipe: warm-up, constant rate, decay, EMA, save, resume.

Each step has a generator made of (seed, step), so that a resumed run equals an unbroken one.
"""

import functools
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from objtune_cli.numerics.ddpm import step_generator
from objtune_cli.toybox.recipe import optimizers
from objtune_cli.toybox.recipe.optimizers import OptimizerName

Losses = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Plan:
    """Length and learning rate: `steps` in all, of which the last fraction `decay` lowers the rate.

    States are saved every `save_every` seconds; samples follow a save, `sample_every` seconds after the last ones at the
    earliest.
    """

    steps: int
    lr: float
    decay: float = 0.25
    warmup: int = 150
    ema: float = 0.999
    seed: int = 1
    save_every: float = 120.0
    sample_every: float = 0.0
    optimizer: OptimizerName = "adamw"

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, constant, then a half cosine to 1 % of the peak."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        left = (self.steps - step) / max(1.0, self.decay * self.steps)
        if left >= 1:
            return self.lr
        return self.lr * (0.01 + 0.99 * 0.5 * (1 - math.cos(math.pi * max(left, 0.0))))


def fit(
    part: str,
    network: nn.Module,
    losses: Callable[[int, torch.Generator], Losses],
    plan: Plan,
    work: Path,
    *,
    sample: Callable[[int], None] | None = None,
    weight_decay: float = 0.01,
    device: str = "cpu",
) -> nn.Module:
    """Train `network` in place to `plan.steps`, going on from `work/<part>.safetensors`.

    Args:
        part: Name in logs and of the state file.
        losses: Step and generator to named losses; their sum is minimised.
        sample: Called with the step after each save while the averaged weights are in place.
        device: Device of the training; the result is on the CPU.

    Returns:
        The network holding the averaged (EMA) weights, in eval mode.
    """
    state_file = work / f"{part}.safetensors"
    network.to(device)
    params = [p for p in network.parameters() if p.requires_grad]
    optimizer = optimizers.build(plan.optimizer, params, plan.lr, weight_decay)
    average = [p.detach().clone() for p in params]
    step = _resume(state_file, network, params, optimizer, average)
    network.train()
    start_time = saved = sampled = time.monotonic()
    first = step
    recent: dict[str, float] = {}
    while step < plan.steps:
        terms = advance(plan, step, plan.rate(step), losses, params, optimizer, average)
        step += 1
        for name, value in terms.items():
            number = float(value.detach())
            recent[name] = 0.98 * recent.get(name, number) + 0.02 * number
        if step % 100 == 0:
            pace = (time.monotonic() - start_time) / (step - first)
            summary = "  ".join(f"{name} {value:.4f}" for name, value in recent.items())
            print(f"{part} {step}/{plan.steps}  {summary}  {pace:.3f} s/step", flush=True)
        if time.monotonic() - saved > plan.save_every or step == plan.steps:
            _save(state_file, network, params, optimizer, average, step)
            saved = time.monotonic()
            if sample is not None and step < plan.steps and saved - sampled >= plan.sample_every:
                sampled = saved
                _with_average(network, params, average, functools.partial(sample, step))
    _assign(params, average)
    return network.to("cpu").eval()


def advance(
    plan: Plan,
    step: int,
    rate: float,
    losses: Callable[[int, torch.Generator], Losses],
    params: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    average: list[Tensor],
) -> Losses:
    """One optimizer step on the sum of the losses with learning rate `rate`, and one of the EMA; returns the losses."""
    terms = losses(step, step_generator(plan.seed, step))
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    torch.stack(list(terms.values())).sum().backward()
    nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()
    keep = min(plan.ema, (1 + step) / (10 + step))
    torch._foreach_lerp_(average, [p.detach() for p in params], 1 - keep)
    return terms


def _assign(params: list[nn.Parameter], values: list[Tensor]) -> None:
    with torch.no_grad():
        for p, v in zip(params, values, strict=True):
            p.copy_(v)


def _with_average(network: nn.Module, params: list, average: list, then: Callable[[], None]) -> None:
    current = [p.detach().clone() for p in params]
    _assign(params, average)
    network.eval()
    then()
    network.train()
    _assign(params, current)


def _save(file: Path, network: nn.Module, params, optimizer, average, step: int) -> None:
    tensors = {f"net.{k}": v.contiguous() for k, v in network.state_dict().items()}
    for i, p in enumerate(params):
        state = optimizer.state[p]
        if state:  # a parameter that no loss has reached has no state yet
            tensors[f"m.{i}"] = state["exp_avg"].contiguous()
        if "exp_avg_sq" in state:
            tensors[f"v.{i}"] = state["exp_avg_sq"].contiguous()
        tensors[f"ema.{i}"] = average[i].contiguous()
    partial = file.with_suffix(".partial")
    save_file({k: v.clone() for k, v in tensors.items()}, partial, metadata={"step": str(step)})
    os.replace(partial, file)


def _resume(file: Path, network: nn.Module, params, optimizer, average) -> int:
    if not file.exists():
        return 0
    with safe_open(file, framework="pt") as f:
        step = int(f.metadata()["step"])
        network.load_state_dict({k[4:]: f.get_tensor(k) for k in f.keys() if k.startswith("net.")})  # noqa: SIM118
        for i, p in enumerate(params):
            if f"m.{i}" in f.keys():  # noqa: SIM118
                optimizer.state[p] = {"exp_avg": f.get_tensor(f"m.{i}").to(p.device)}
            if f"v.{i}" in f.keys():  # noqa: SIM118
                optimizer.state[p] |= {
                    "step": torch.tensor(float(step)),
                    "exp_avg_sq": f.get_tensor(f"v.{i}").to(p.device),
                }
            average[i].copy_(f.get_tensor(f"ema.{i}"))
    return step
