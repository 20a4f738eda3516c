"""A run that stops by itself: when, with which rates, and the same after an interruption."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from objtune_cli.config.sections import Train
from objtune_cli.models.base_model import BaseModel
from objtune_cli.training import early_stopping
from objtune_cli.training.early_stopping import Plateau
from objtune_cli.training.step import validation_losses
from objtune_cli.training.trainer import Trainer
from tests.support import tiny_sd1
from tests.support.training import red_square, train_to_end
from tests.training.test_trainer import _prior

CONFIG = Train(
    max_steps=60, rank=2, batch_size=2, num_augmentations=2, learning_rate=5e-3, embedding_lr=1e-2, target_modules="all", prior_loss_weight=0.0, background_loss_weight=0.0, target_blocks="all",
    prior_loss_interval=1, single_forward=True, early_stopping="plateau",
)  # fmt: skip


def _run(plateau: Plateau, loss) -> int:
    """Steps of a run whose loss after n steps is loss(n)."""
    step = 0
    while step < plateau.total:
        if plateau.should_measure(step):
            plateau.record_loss(loss(step))
        step += 1
    return step


def test_a_loss_that_falls_in_a_line_is_never_left() -> None:
    assert _run(Plateau(1000), lambda n: 10 - n / 1000) == 1000


def test_a_loss_that_has_settled_is_left_and_the_tail_is_a_third() -> None:
    """1 + exp(-n / 60): of all it has fallen, 6.3 % in the last quarter of 175 steps, where it may stop at the earliest."""
    plateau = Plateau(350)
    taken = _run(plateau, lambda n: 1 + math.exp(-n / 60))
    assert plateau.every == 25 and plateau.decay_start == 175 and taken == 175 + 175 // 3


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_only_the_shape_of_the_fall_counts(scale: float) -> None:
    plateau = Plateau(1000)
    _run(plateau, lambda n: scale * (3 + math.exp(-n / 60)))
    other = Plateau(1000)
    _run(other, lambda n: math.exp(-n / 60))
    assert plateau.decay_start == other.decay_start


def test_a_loss_that_rises_is_left_as_soon_as_may_be() -> None:
    plateau = Plateau(1000)
    _run(plateau, lambda n: 1 + n)
    assert plateau.decay_start == early_stopping.MIN_MEASUREMENTS * plateau.every


@given(st.integers(1, 400), st.lists(st.floats(0, 10), min_size=30, max_size=30))
@settings(deadline=None)
def test_rates_are_full_and_then_fall_to_a_twentieth_whatever_the_losses(most: int, said: list[float]) -> None:
    plateau = Plateau(most)
    rates, step = [], 0
    while step < plateau.total:
        if plateau.should_measure(step):
            plateau.record_loss(said[step // plateau.every])
        rates.append(plateau.rate(step))
        step += 1
    assert step <= most and rates == sorted(rates, reverse=True) and rates[-1] == pytest.approx(0.05)
    again = Plateau(most)
    again.restore(plateau.state())
    assert (again.history, again.decay_start, again.total) == (plateau.history, plateau.decay_start, plateau.total)


def test_a_diverged_loss_ends_it_too() -> None:
    plateau = Plateau(1000)
    _run(plateau, lambda n: 1.0 if n < 50 else math.nan)
    assert plateau.decay_start == early_stopping.MIN_MEASUREMENTS * plateau.every


def test_the_fixed_loss_knows_only_the_weights(model: BaseModel) -> None:
    trainer = Trainer(model, [tiny_sd1.subject(model)], {}, CONFIG)
    before = validation_losses([trainer])[0]
    assert before == validation_losses([trainer])[0] > 0
    trainer.train_step()
    assert validation_losses([trainer])[0] != before


def test_of_several_objects_it_is_the_mean_of_each_alone(model: BaseModel) -> None:
    """Most steps show one object: what is measured is what is learned."""
    subjects = [red_square(model, "rex"), red_square(model, "cup", "mug", 30)]
    trainer = Trainer(model, subjects, {s.class_word: _prior(model, s.class_word) for s in subjects}, CONFIG)
    both = validation_losses([trainer])[0]
    alone = []
    for k, (subject, other) in enumerate((subjects, subjects[::-1])):
        assert (
            subject.name in trainer.batches.validation_batch(k).prompt
            and other.name not in trainer.batches.validation_batch(k).prompt
        )
        own = Trainer(model, [subject], {subject.class_word: _prior(model, subject.class_word)}, CONFIG, f"o{k}")
        own.batches.views = [
            trainer.batches.views[k]
        ]  # placements are drawn by turns: those of the second object are the run's own
        alone.append(validation_losses([own])[0])
    assert both == pytest.approx(sum(alone) / 2) and alone[0] != alone[1]


def test_stopped_and_continued_it_stops_where_it_would_have(tiny_base, monkeypatch: pytest.MonkeyPatch) -> None:
    from objtune_cli.models import loading

    monkeypatch.setattr(early_stopping, "MIN_MEASUREMENTS", 2)
    monkeypatch.setattr(
        early_stopping, "MIN_FALL_SHARE", 0.9
    )  # the tiny base learns little: stop at the first look that may be the last

    def fresh() -> Trainer:
        model = loading.load(tiny_base, torch.device("cpu"), torch.float32)
        return Trainer(model, [tiny_sd1.subject(model)], {}, CONFIG)

    whole, first, second = fresh(), fresh(), fresh()
    train_to_end(whole)
    assert whole.plateau.decay_start is not None and whole.step == whole.plateau.total < CONFIG.max_steps
    for _ in range(3):
        first.train_step()
    second.restore({k: v.clone() for k, v in first.state().items()})
    train_to_end(second)
    assert second.plateau.history == whole.plateau.history and second.step == whole.step
    assert all(torch.equal(a, b) for a, b in zip(second.params(), whole.params(), strict=True))
