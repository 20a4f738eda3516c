"""Trainers in step on one base: each learns what it learns alone, whatever stands beside it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from objtune_cli.config.sections import Train
from objtune_cli.lora import layers
from objtune_cli.models import loading, memory_savings
from objtune_cli.models.base_model import BaseModel
from objtune_cli.runtime import cpu
from objtune_cli.training import parallel_trainers
from objtune_cli.training.trainer import Trainer
from tests.support import tiny_families
from tests.support.training import CONFIG, red_square
from tests.training.test_trainer import _prior

KINDS = {"rex": ("dog", 10), "cup": ("mug", 30), "tom": ("dog", 4)}


@pytest.fixture
def open_base(tiny_base) -> Callable[[], BaseModel]:
    return lambda: loading.load(tiny_base, torch.device("cpu"), torch.float32)


def _trainer(model: BaseModel, names: str, config: Train, label: str = "default") -> Trainer:
    """Of one object, or of several of one photo: "rex", "rex+cup"."""
    subjects = [red_square(model, name, *KINDS[name]) for name in names.split("+")]
    return Trainer(model, subjects, {s.class_word: _prior(model, s.class_word) for s in subjects}, config, label)


def _company(model: BaseModel, names: Sequence[str], config: Train) -> list[Trainer]:
    return [_trainer(model, each, config, f"o{i}") for i, each in enumerate(names)]


def _learned(t: Trainer) -> dict[str, torch.Tensor]:
    return layers.state_dict(t.model, t.name) | {f"token.{k}": v for k, v in t.tokens.as_tensors().items()}


CASES = {
    "two objects of one photo, beside one of another": CONFIG,
    "class passes apart, every other step": replace(CONFIG, single_forward=False, prior_loss_interval=2),
    "decoder, latents drawn": replace(CONFIG, target_blocks="decoder", sample_vae_latents=True, original_view_prob=0.3),
    "attention term": replace(CONFIG, attention_loss_weight=0.1, single_forward=True),
    "token alone": replace(CONFIG, target_modules="none"),
    "token first": replace(CONFIG, embedding_only_steps=3),
    "stops by itself": replace(CONFIG, early_stopping="plateau", batch_size=3),
}

SELDOM = ("decoder, latents drawn", "token alone", "token first")
"""What `make slow` looks at."""


@pytest.mark.parametrize(
    "config", [pytest.param(c, id=n, marks=[pytest.mark.slow] if n in SELDOM else []) for n, c in CASES.items()]
)
def test_beside_others_each_learns_what_it_learns_alone(open_base, config: Train) -> None:
    """Float32 sums in another order, through Adam, which divides small gradients by their own size: within 2 % of the way gone."""
    _check(open_base, config)


@pytest.mark.parametrize("newer", [pytest.param(False, marks=pytest.mark.slow), True])
def test_so_does_each_on_a_flow(tmp_path: Path, newer: bool) -> None:
    """Joint attention and the term on it, T5's words, noise levels of a flow."""
    folder = tiny_families.sd3(tmp_path / "base", newer=newer, with_clip=False)
    _check(lambda: loading.load(folder, torch.device("cpu"), torch.float32), CASES["attention term"])


@pytest.mark.parametrize("name", ["class passes apart, every other step", "attention term"])
def test_recomputed_activations_change_no_bit(open_base, name: str) -> None:
    """Each row's own layers and the recorder are there when the backward pass computes them again."""

    def run(again: bool) -> list[dict[str, torch.Tensor]]:
        model = open_base()
        memory_savings.reduce_memory(model, checkpointing=again, quantised="none")
        company = _company(model, ["rex", "cup"], CASES[name])
        for _ in range(3):
            assert parallel_trainers.train_step(company) == {}
        return [_learned(t) for t in company]

    for plain, again in zip(run(False), run(True), strict=True):
        assert all(torch.equal(plain[key], value) for key, value in again.items())


def _check(open_base: Callable[[], BaseModel], config: Train) -> None:
    names = ["rex+cup", "tom"] if config in (CONFIG, CASES["stops by itself"]) else ["rex", "cup", "tom"]
    company = _company(open_base(), names, config)
    starts = [_learned(t) for t in company]
    for _ in range(config.max_steps):
        assert parallel_trainers.train_step(company) == {}
    for each, start, t in zip(names, starts, company, strict=True):
        alone = _trainer(open_base(), each, config)
        for _ in range(config.max_steps):
            alone.train_step()
        mine, theirs = _learned(t), _learned(alone)
        assert mine.keys() == theirs.keys() and t.running_losses == pytest.approx(alone.running_losses, rel=1e-3)
        far = sum(float((mine[k] - theirs[k]).square().sum()) for k in mine) ** 0.5
        gone = sum(float((theirs[k] - start[k]).square().sum()) for k in mine) ** 0.5
        assert far < 0.02 * gone and gone > 0
        if t.plateau is not None and alone.plateau is not None:
            assert t.plateau.history == pytest.approx(alone.plateau.history, rel=1e-3) and len(t.plateau.history) > 3


def test_those_on_another_stack_step_at_the_same_time_with_the_same_result(open_base, monkeypatch) -> None:
    """Which thread takes a step changes no bit of it; one that diverges stops none in another lane."""
    monkeypatch.setattr(cpu, "worker_count", lambda wanted: min(wanted, 2))
    lanes = [_company(open_base(), ["rex", "cup"], CONFIG), _company(open_base(), ["tom"], CONFIG)]
    apart = [_company(open_base(), ["rex", "cup"], CONFIG), _company(open_base(), ["tom"], CONFIG)]
    for _ in range(3):
        assert parallel_trainers.train_step([*lanes[0], *lanes[1]]) == {}
        for each in apart:
            parallel_trainers.train_step(each)
    for mine, theirs in zip([*lanes[0], *lanes[1]], [*apart[0], *apart[1]], strict=True):
        kept = _learned(theirs)
        assert all(torch.equal(value, kept[name]) for name, value in _learned(mine).items())
    with torch.no_grad():
        lanes[0][0].lora[0].fill_(float("nan"))
    assert list(parallel_trainers.train_step([*lanes[0], *lanes[1]])) == [lanes[0][0]] and lanes[1][0].step == 4
