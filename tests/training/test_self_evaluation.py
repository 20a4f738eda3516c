"""The judge's scores on the frozen base itself, where they are known; averages by their definition."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from objtune_cli.config.sections import Train
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.models import clip
from objtune_cli.models.base_model import BaseModel
from objtune_cli.training import self_evaluation
from objtune_cli.training.ema import WeightAverage, copy_values
from objtune_cli.training.self_evaluation import SelfEvaluation, layout_descriptor
from objtune_cli.training.trainer import Trainer
from tests.support import tiny_sd1
from tests.support.training import train_to_end

CONFIG = Train(
    max_steps=6, rank=2, batch_size=2, num_augmentations=2, learning_rate=5e-3, embedding_lr=1e-2, target_modules="all", prior_loss_weight=0.0, target_blocks="all", prior_loss_interval=1, single_forward=True,
    ema_decay=0.9, early_stopping="off", fix_embedding_norm=False,
)  # fmt: skip


@pytest.fixture
def judge(model: BaseModel, tiny_base) -> SelfEvaluation:
    return SelfEvaluation(
        model,
        clip.load(tiny_base / "clip", model),
        [tiny_sd1.subject(model)],
        SamplingSettings(20, 2.0, guidance_interval_high=0.6),
    )


def test_the_class_itself_scores_as_the_class(judge: SelfEvaluation) -> None:
    """A token that says exactly "a dog" draws the class's own pictures: no identity, no copy, no drift, all of its prompts."""
    words = SimpleNamespace(expand=lambda text: text.replace("<rex>", "a dog"))
    found = judge.scores(words)
    assert found["identity"] == pytest.approx(0, abs=1e-5) and found["copy"] == pytest.approx(0, abs=1e-5)
    follows = judge.references[0].class_prompt_accuracy
    assert found["prompt"] == pytest.approx(1 if follows else 0) and judge.drift() == pytest.approx(0, abs=1e-5)


def test_objects_are_judged_as_they_will_be_drawn(judge: SelfEvaluation, tiny_base) -> None:
    """Begun by the frozen base, and at the limit drawn by it alone: then nothing that was learned shows."""
    subject, kept = judge.subjects[0], SamplingSettings(20, 2.0, guidance_interval_high=0.6)
    never = SelfEvaluation(judge.model, judge.towers, [subject], kept, subject_conditioning_start=0.0)
    late = SelfEvaluation(judge.model, judge.towers, [subject], kept, subject_conditioning_start=0.5)
    trainer = Trainer(judge.model, [subject], {}, CONFIG)
    with torch.no_grad():
        for p in trainer.lora:
            p.add_(0.1)
    found = [j.scores(trainer.tokens.sync()) for j in (judge, late, never)]
    assert found[2]["identity"] == pytest.approx(0, abs=1e-5) and found[2]["copy"] == pytest.approx(0, abs=1e-5)
    assert len({round(f["copy"], 4) for f in found}) == 3
    assert judge.drift() == never.drift() != 0  # the class is asked for as it always is


def test_the_photos_own_object_scores_one(judge: SelfEvaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, known = judge.subjects[0], judge.references[0]
    placed = subject.augmented_views(self_evaluation.NUM_VIEWS, judge.model.resolution)
    found = judge._score_subject(subject, known, placed[: len(self_evaluation.SCENES)].repeat(1, 1, 1, 1))
    whole = judge._score_subject(subject, known, placed[:1].repeat(len(self_evaluation.SCENES), 1, 1, 1))
    likeness = float((judge._central_features(placed) @ known.embedding).mean())
    assert (
        known.object_similarity == pytest.approx(likeness)
        and whole["copy"] == pytest.approx(1, abs=1e-4)
        and found["copy"] < 1
    )


def test_an_object_that_looks_like_its_class_divides_by_no_small_number(judge: SelfEvaluation) -> None:
    """Where CLIP sees the class's pictures as like the object as the object itself, scores stay small."""
    subject, known = judge.subjects[0], judge.references[0]
    same = replace(known, object_similarity=known.class_similarity - 0.1)
    likeness = float((judge._central_features(judge.class_images["dog"]) @ known.embedding).mean())
    found = judge._score_subject(subject, same, judge.class_images["dog"])
    assert (
        found["identity"]
        == pytest.approx((likeness - known.class_similarity) / self_evaluation.MIN_COSINE_GAP, abs=1e-5)
        and abs(found["identity"]) < 1
    )


def test_pictures_come_from_the_same_noise_every_time(judge: SelfEvaluation) -> None:
    assert torch.equal(judge._sample_class("dog"), judge._sample_class("dog"))
    assert len(judge._sample_class("dog")) == len(self_evaluation.SCENES) == len(set(judge.seeds))


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_coarse_is_a_correlation(seed: int) -> None:
    a, b = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    first, second = layout_descriptor(torch.stack([a, b]))
    assert float(first @ first) == pytest.approx(1, abs=1e-5) and -1.001 <= float(first @ second) <= 1.001
    assert float(first @ layout_descriptor((0.5 * a + 0.2)[None])[0]) == pytest.approx(
        1, abs=1e-4
    )  # brightness and contrast do not count


def test_the_running_mean_by_hand() -> None:
    p = torch.zeros(2)
    mean = WeightAverage([p], 0.5)
    for n, value in enumerate((1.0, 2.0, 4.0)):
        p.fill_(value)
        mean.update(n)
    expected = 0.0
    for n, value in enumerate((1.0, 2.0, 4.0)):
        d = min(0.5, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * value
    torch.testing.assert_close(mean.kept[0], torch.full((2,), expected))
    with pytest.raises(RuntimeError), mean.in_place():
        assert torch.equal(p, mean.kept[0])
        raise RuntimeError
    assert p.tolist() == [4, 4]  # as it was, whatever happened inside


def test_the_mean_is_what_is_kept(model: BaseModel) -> None:
    trainer = Trainer(model, [tiny_sd1.subject(model)], {}, CONFIG)
    train_to_end(trainer)
    assert trainer.step == 6 and trainer.plateau is None
    assert all(torch.equal(a, b) for a, b in zip(trainer.params(), trainer.average.kept, strict=True))


def test_write_sets_parameters_that_learn() -> None:
    p = torch.zeros(2, requires_grad=True)
    copy_values([p], [torch.ones(2)])
    assert p.tolist() == [1, 1] and p.requires_grad


def test_a_mean_keeps_the_tokens_length(model: BaseModel) -> None:
    """The mean of vectors of one length is shorter; what is kept is not."""
    from dataclasses import replace

    trainer = Trainer(model, [tiny_sd1.subject(model)], {}, replace(CONFIG, fix_embedding_norm=True, embedding_lr=0.5))
    train_to_end(trainer)
    assert float(trainer.average.kept[0].norm()) < 0.9999 * float(trainer.tokens.norms["rex"])
    torch.testing.assert_close(trainer.tokens.as_tensors()["rex"][:1].norm(dim=1), trainer.tokens.norms["rex"])
