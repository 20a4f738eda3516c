"""The trainer on the tiny base: what it learns, what it leaves alone, and that it can be stopped anywhere."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from objtune_cli.config.sections import Train
from objtune_cli.errors import GateError, NonFiniteError
from objtune_cli.lora import layers
from objtune_cli.models import loading
from objtune_cli.models.base_model import BaseModel
from objtune_cli.numerics.ddpm import step_generator
from objtune_cli.store.kinds.prior import PriorArtifact
from objtune_cli.training import batches, teacher
from objtune_cli.training import step as training_step
from objtune_cli.training.subjects import Views, subsets
from objtune_cli.training.trainer import Trainer
from tests.support.training import CONFIG, red_square, step_losses, train_to_end


def _prior(model: BaseModel, word: str = "dog", entries: int = 5) -> PriorArtifact:
    """Random (z_t, t) with the frozen base's own predictions."""
    g = torch.Generator().manual_seed(1)
    z, t = (
        torch.randn(entries, model.denoiser.config.in_channels, 8, 8, generator=g),
        torch.randint(0, 1000, (entries,), generator=g),
    )
    with torch.no_grad():
        conditions = model.encode_prompt([f"a photo of a {word}", ""])
        asked = torch.arange(entries) % 2
        pred = model.predict(z, t, conditions[asked])
    return PriorArtifact(z, z, t, pred, asked, conditions.pack())


@pytest.fixture
def trainer(tiny_base) -> Callable[..., Trainer]:
    """A fresh trainer on a fresh base."""

    def make(config: Train = CONFIG, both: bool = False) -> Trainer:
        model = loading.load(tiny_base, torch.device("cpu"), torch.float32)
        subjects = [red_square(model)] + ([red_square(model, "cup", "mug", 30)] if both else [])
        return Trainer(model, subjects, {s.class_word: _prior(model, s.class_word) for s in subjects}, config)

    return make


def _all(trainer: Trainer) -> dict[str, torch.Tensor]:
    return layers.state_dict(trainer.model) | {f"token.{k}": v for k, v in trainer.tokens.as_tensors().items()}


def _encode(trainer: Trainer, prompt: str) -> torch.Tensor:
    return training_step.encode_prompts([trainer], [prompt])[0].sequence[0]


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_at_the_start_it_is_its_own_teacher(trainer) -> None:
    """A new LoRA does nothing and `<rex>` reads "a dog": nothing to correct but the object."""
    terms = step_losses(trainer())
    assert terms.keys() == {"object", "background", "class"}
    assert terms["background"] < 1e-9 and terms["class"] < 1e-9
    assert 0.1 < terms["object"] < 10  # against noise of variance 1


def test_what_the_frozen_base_says_is_known_before_the_first_step(trainer) -> None:
    t = trainer()
    assert len(t.teacher.predictions) == len(t.batches.views)
    for views, known in zip(t.batches.views, t.teacher.predictions, strict=True):
        assert known.keys() == set(batches.TEMPLATES)
        for template, entry in known.items():
            words = t.teacher.conditions[template.format(views.prompt_phrase("class"))]
            with torch.no_grad():  # the new LoRA does nothing: this is still the frozen base
                again = t.model.predict(entry.z_t, entry.t, words.expand(len(entry.t)))
            assert torch.allclose(entry.prediction, again, atol=1e-5)
            a = t.model.alpha_bar[entry.t].view(-1, 1, 1, 1)
            noise = (entry.z_t - a.sqrt() * views.latents[entry.indices]) / (1 - a).sqrt()
            assert noise.std() == pytest.approx(1, abs=0.1)


def test_one_row_in_four_is_known_and_keeps_its_own_mask(trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    t = trainer()
    seen: list[torch.Tensor] = []
    real = type(t.model).predict
    monkeypatch.setattr(
        type(t.model), "predict", lambda self, z, *rest: (seen.append(z.clone()), real(self, z, *rest))[1]
    )
    before = step_losses(t)
    known = [
        (z, int(row))
        for entry in t.teacher.predictions[0].values()
        for z, row in zip(entry.z_t, entry.indices, strict=True)
    ]
    found = [[row for z, row in known if torch.equal(z, given)] for given in seen[0][:4]]
    assert [len(rows) for rows in found] == [1, 0, 0, 0]
    masks = t.batches.views[0].masks.clone()
    t.batches.views[0].masks[:] = float("nan")
    t.batches.views[0].masks[found[0][0]] = masks[found[0][0]]
    assert step_losses(t)["background"] == before["background"]


@pytest.mark.parametrize("batch", [1, 2, 4, 6])
def test_a_quarter_of_all_rows_on_average(trainer, batch: int) -> None:
    """Mean of 2,000 draws whose fractional part is at most 1/2: standard error below 0.012."""
    t = trainer(replace(CONFIG, batch_size=batch))
    asked = [t.teacher.sample_cached(batch, step_generator(0, i))[0] for i in range(2_000)]
    assert sum(asked) / len(asked) == pytest.approx(batch / teacher.INTERVAL, abs=0.05)
    assert set(asked) <= {batch // teacher.INTERVAL, batch // teacher.INTERVAL + 1}


def test_losses_stay_finite_and_the_loop_calls_back(trainer) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    t = trainer()
    train_to_end(t, lambda step: seen.append((step, dict(t.running_losses))))
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5, 6] and t.step == 6
    assert all(0 <= v < 100 for _, terms in seen for v in terms.values())
    assert seen[-1][1]["background"] > 1e-9  # the LoRA acts now


def test_the_shown_terms_are_a_running_mean(trainer) -> None:
    t = trainer()
    first = step_losses(t)
    t.train_step()
    assert t.running_losses == pytest.approx(first)
    second = step_losses(t, 1)
    t.train_step()
    assert t.running_losses == pytest.approx({k: 0.9 * first[k] + 0.1 * second[k] for k in first})


def test_training_learns_the_object(trainer) -> None:
    t = trainer(replace(CONFIG, max_steps=40, learning_rate=2e-2))
    before = sum(step_losses(t, 1000 + i)["object"] for i in range(8))
    train_to_end(t)
    assert sum(step_losses(t, 1000 + i)["object"] for i in range(8)) < 0.95 * before


@pytest.mark.parametrize("both", [False, True])
def test_stopped_and_continued_equals_unbroken_bit_for_bit(trainer, both: bool) -> None:
    whole = trainer(both=both)
    train_to_end(whole)
    first = trainer(both=both)
    for _ in range(3):
        first.train_step()
    kept = {k: v.clone() for k, v in first.state().items()}
    first.train_step()  # what is done after saving is lost
    second = trainer(both=both)
    second.restore(kept)
    assert second.step == 3
    train_to_end(second)
    assert second.running_losses == whole.running_losses
    assert _equal(_all(second), _all(whole))
    assert _equal(second.state(), whole.state())


def test_a_state_from_before_the_first_step_is_a_fresh_start(trainer) -> None:
    a, b = trainer(), trainer()
    b.restore(a.state())
    a.train_step(), b.train_step()
    assert _equal(_all(a), _all(b))


def test_two_runs_are_equal_and_the_seed_matters(trainer) -> None:
    runs = []
    for config in (CONFIG, CONFIG, replace(CONFIG, seed=1)):
        t = trainer(config)
        torch.manual_seed(len(runs))  # the global generator plays no part
        t.train_step(), t.train_step()
        runs.append(_all(t))
    assert _equal(runs[0], runs[1])
    assert not any(torch.equal(runs[0][k], runs[2][k]) for k in runs[0])


def test_the_seed_decides_each_steps_draw_not_only_the_start(trainer) -> None:
    t = trainer()
    losses = []
    for seed in (0, 1, 2):  # the same start, views and LoRA
        t.reconfigure(replace(CONFIG, seed=seed))
        losses += [step_losses(t, step)["object"] for step in (0, 1)]
    assert len({round(v, 4) for v in losses}) == 6


def test_tokens_keep_their_length_and_class_rows_their_place(trainer) -> None:
    t = trainer()
    start = t.subjects[0].token_embeddings
    train_to_end(t)
    rows = t.tokens.as_tensors()["rex"]
    assert rows.shape == start.shape
    assert not torch.equal(rows[0], start[0])
    torch.testing.assert_close(rows[0].norm(), start[0].norm())
    assert torch.equal(rows[1:], start[1:])


def test_the_base_itself_is_never_trained(trainer) -> None:
    t = trainer()
    frozen = {
        n: p.detach().clone()
        for m in (t.model.denoiser, t.model.text_encoder, t.model.vae)
        for n, p in m.named_parameters()
        if "lora" not in n
    }
    lora = layers.state_dict(t.model)
    train_to_end(t)
    now = {
        n: p
        for m in (t.model.denoiser, t.model.text_encoder, t.model.vae)
        for n, p in m.named_parameters()
        if "lora" not in n
    }
    assert all(torch.equal(now[n], v) for n, v in frozen.items())
    trained = layers.state_dict(t.model)
    assert not any(torch.equal(trained[k], lora[k]) for k in lora)


def test_two_objects_train_alone_and_together(trainer) -> None:
    t = trainer(both=True)
    assert [tuple(s.name for s in v.members) for v in t.batches.views] == [("rex",), ("cup",), ("rex", "cup")]
    for v in t.batches.views:
        assert v.latents.shape == (4, 4, 8, 8) and v.masks.shape == (4, 1, 8, 8)
    train_to_end(t)
    assert t.tokens.as_tensors().keys() == {"rex", "cup"}
    assert all(not torch.equal(t.tokens.as_tensors()[s.name][0], s.token_embeddings[0]) for s in t.subjects)


def test_of_many_objects_not_every_combination_is_shown(model: BaseModel) -> None:
    """Up to three: 2^N - 1; of five: singles, pairs, all; each object as often as any other; prompts of two of a class name both."""
    five = [red_square(model, name) for name in "abcde"]
    for count, combinations in ((1, 1), (2, 3), (3, 7), (4, 4 + 6 + 1), (5, 5 + 10 + 1)):
        found = subsets(five[:count])
        assert len(set(found)) == len(found) == combinations and found[-1] == tuple(five[:count])
        assert len({sum(s in members for members in found) for s in five[:count]}) == 1
    assert Views(tuple(five[:2]), *[torch.zeros(1, 1, 1, 1)] * 3).prompt_phrase("class") == "a dog and a dog"


def test_combinations_share_what_the_frozen_base_is_asked(trainer) -> None:
    """8 noised views for each sentence: 8 of one object, 3 for each of three combinations."""
    config = replace(CONFIG, num_teacher_samples=8, multiple_templates=False)
    for both, each in ((False, [8]), (True, [3, 3, 3])):
        t = trainer(config, both=both)
        assert [len(k.indices) for known in t.teacher.predictions for k in known.values()] == each
        for _ in range(4):
            t.train_step()


@pytest.mark.parametrize(("share", "expected"), [(0.0, 2 / 3), (0.6, 0.6 + 0.4 * 2 / 3), (1.0, 1.0)])
def test_one_object_alone_is_shown_more_often_than_in_its_turn(trainer, share: float, expected: float) -> None:
    """Of two: rex, cup, both; 400 steps, within four standard deviations; either of the two as often."""
    t = trainer(replace(CONFIG, single_object_prob=share), both=True)
    shown = [t.sample_batch(step_generator(0, i)).views.members for i in range(400)]
    alone = [members[0].name for members in shown if len(members) == 1]
    assert abs(len(alone) / 400 - expected) <= 4 * (expected * (1 - expected) / 400) ** 0.5
    assert abs(alone.count("rex") / len(alone) - 0.5) < 4 * 0.5 / len(alone) ** 0.5


def test_of_one_object_alone_there_is_nothing_to_choose(trainer) -> None:
    """Not even a random number is drawn: its steps are what they were before several could be learned."""
    some, none = trainer(replace(CONFIG, single_object_prob=0.8)), trainer(replace(CONFIG, single_object_prob=0.0))
    for t in (some, none):
        for _ in range(2):
            t.train_step()
    assert _equal(_all(some), _all(none))


def test_several_together_fill_the_frame(trainer) -> None:
    """The box of what stands in a placement, longer side: of one at most 0.72 of the frame, of both more than that; 8 cells a side."""
    for views in trainer(replace(CONFIG, num_augmentations=6), both=True).batches.views:
        for mask in views.masks[1:, 0]:  # the first is as in the photo
            wide = max(int((mask.amax(side) > 0.02).sum()) for side in (0, 1)) / 8
            assert wide >= 0.75 if len(views.members) == 2 else wide <= 0.72 + 2 / 8


def test_the_mask_of_both_covers_each(trainer) -> None:
    """Two masks of 14 x 24 px side by side, 6 px apart, in one frame: wider than high; each alone is not."""
    for views in trainer(both=True).batches.views:
        for mask in views.masks[:, 0]:
            ys, xs = (torch.arange(8.0).view(shape).expand(8, 8) for shape in ((8, 1), (1, 8)))
            spread = [float((mask * (v - (mask * v).sum() / mask.sum()) ** 2).sum()) for v in (xs, ys)]
            assert (spread[0] > spread[1]) == (len(views.members) == 2)


@pytest.mark.parametrize("kind", ["token", "class"])
def test_words_of_a_subset(model: BaseModel, kind: str) -> None:
    members = (red_square(model), replace(red_square(model, "otto", "owl")))
    expected = "<rex> and <otto>" if kind == "token" else "a dog and an owl"
    assert Views(members, *[torch.zeros(1, 1, 1, 1)] * 3).prompt_phrase(kind) == expected


def test_the_rate_warms_up_and_ends_at_a_twentieth(trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    t = trainer(replace(CONFIG, max_steps=40))
    monkeypatch.setattr(
        training_step,
        "compute_losses",
        lambda *_: [[{k: sum(p.sum() for p in t.lora) * 0 for k in ("object", "background", "class")}]],
    )
    rates = []
    for _ in range(40):
        t.train_step()
        rates.append([g["lr"] for g in t.optimizer.param_groups])
    scale = float(t.tokens.norms["rex"].mean())
    token, lora = CONFIG.embedding_lr * scale, CONFIG.learning_rate
    assert rates[0] == pytest.approx([token * (0.95 / 8 + 0.05), lora * (0.95 / 8 + 0.05)])
    assert rates[20] == pytest.approx([token * 0.525, lora * 0.525])  # half a cosine, half way: 0.95 / 2 + 0.05
    assert rates[39][1] == pytest.approx(lora * 0.05, rel=0.05)
    assert max(r[1] for r in rates) <= lora


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_run_is_stopped(trainer, value: float) -> None:
    t = trainer()
    t.train_step()
    with torch.no_grad():
        t.lora[0].fill_(value)
    with pytest.raises(GateError, match="diverged at step 1") as caught:
        t.train_step()
    assert "train.learning_rate" in caught.value.hint
    assert t.step == 1


def test_a_gradient_that_is_not_finite_moves_nothing(trainer) -> None:
    """Its loss is finite; a state with such weights would be saved, and gone on from."""
    t = trainer()
    t.train_step()
    before = [p.detach().clone() for p in t.params()]
    t.lora[0].register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(GateError, match="diverged at step 1: a gradient is not finite"):
        t.train_step()
    assert t.step == 1 and all(torch.equal(p, kept) for p, kept in zip(t.params(), before, strict=True))


def test_what_is_not_finite_before_anything_was_learned_is_laid_to_no_rate(trainer) -> None:
    t = trainer()
    t.batches.views[0].masks[:] = float("nan")
    with pytest.raises(GateError, match="training cannot start: the loss is nan before anything was learned") as caught:
        t.train_step()
    assert "rate" not in caught.value.hint
    with torch.no_grad():
        t.model.denoiser.conv_out.bias.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match="the denoiser gives NaN or infinite values in fp32"):
        t.train_step()


def test_weights_of_the_terms(trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each term pulls at a parameter of its own; clipping scales all three alike."""
    t = trainer(replace(CONFIG, background_loss_weight=3.0, prior_loss_weight=0.5))
    monkeypatch.setattr(
        training_step,
        "compute_losses",
        lambda *_: [[{k: p.sum() for k, p in zip(("object", "background", "class"), t.lora, strict=False)}]],
    )
    t.train_step()
    grads = [p.grad.flatten()[0] for p in t.lora[:3]]
    assert float(grads[1] / grads[0]) == pytest.approx(3) and float(grads[2] / grads[0]) == pytest.approx(0.5)
    assert float(torch.stack([p.grad.norm() for p in t.lora[:3]]).norm()) == pytest.approx(1, abs=1e-5)


def test_while_it_learns_the_rest_of_the_sentence_hears_the_class_word(trainer) -> None:
    own, context = (
        trainer(replace(CONFIG, context_words="placeholder")),
        trainer(replace(CONFIG, context_words="class")),
    )
    prompt = "a photo of <rex>"
    for t in (own, context):  # no longer "a dog" to the letter
        t.tokens.trainable["rex"].data.mul_(-1)
    as_is, words = _encode(own, prompt), context.tokens.placeholders
    assert torch.equal(as_is, own.model.encode_prompt([own.tokens.placeholders.expand(prompt)]).sequence[0])
    ids = context.model.token_ids([words.expand(prompt)])
    named = words.token_positions(ids, "rex")[0]
    said, plain = _encode(context, prompt), context.model.encode_prompt(["a photo of a dog"]).sequence[0]
    assert torch.equal(said[-1], plain[-1]) and (said[named] - as_is[named]).abs().max() < 1e-6
    assert not torch.equal(as_is[-1], plain[-1])
    for t in (own, context):
        t.train_step()
    assert not torch.equal(own.tokens.as_tensors()["rex"], context.tokens.as_tensors()["rex"])
