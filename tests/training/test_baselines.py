"""The settings of others' methods: each does what it says and nothing else."""

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from objtune_cli.bench.methods import BASELINES
from objtune_cli.config.sections import Embed
from objtune_cli.embedding import prototype
from objtune_cli.lora import layers as adapter
from objtune_cli.models import clip as towers
from objtune_cli.models import loading
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.placeholders import class_token_embeddings
from objtune_cli.numerics import ddpm
from objtune_cli.numerics.augmentation import views
from objtune_cli.numerics.ddpm import step_generator
from objtune_cli.numerics.losses import masked_mse, mse, photo
from objtune_cli.store.kinds.prior import PriorArtifact
from objtune_cli.training import step as training_step
from objtune_cli.training import trainer as training
from objtune_cli.training.batches import StepBatch
from objtune_cli.training.loss_terms import AttentionTerm, Prediction
from objtune_cli.training.trainer import Trainer
from tests.support.training import CONFIG, red_square, step_losses, train_to_end


def _prior(model: BaseModel, entries: int = 5) -> PriorArtifact:
    g = torch.Generator().manual_seed(1)
    rows = torch.randn(4, entries, 4, 8, 8, generator=g)
    t, asked = torch.randint(0, 1000, (entries,), generator=g), torch.arange(entries) % 2
    with torch.no_grad():
        conditions = model.encode_prompt(["a photo of a dog", ""]).pack()
    return PriorArtifact(rows[0], rows[1], t, rows[2], asked, conditions)


@pytest.fixture(scope="module")
def opened(tiny_base) -> BaseModel:
    return loading.load(tiny_base, torch.device("cpu"), torch.float32)


@pytest.fixture
def trainer(opened: BaseModel) -> Callable[..., Trainer]:
    """A fresh trainer on a copy of the base; `given` are settings that differ from `CONFIG`."""

    def make(both: bool = False, prior: bool = True, **given: object) -> Trainer:
        model = copy.deepcopy(opened)
        places = {"rex": 4, "cup": 20} if both else {"rex": 10}
        subjects = [red_square(model, name, left=left, width=10, side=32) for name, left in places.items()]
        return Trainer(model, subjects, {"dog": _prior(model)} if prior else {}, replace(CONFIG, **given))

    return make


def _lora(t: Trainer) -> dict[str, torch.Tensor]:
    return adapter.state_dict(t.model)


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _given(seed: int, rows: int = 3) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, 4, 6, 6, generator=g),
        torch.randn(rows, 4, 6, 6, generator=g),
        torch.rand(rows, 1, 6, 6, generator=g),
    )


# The photo's loss.


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_three_areas_of_the_photos_loss(seed: int) -> None:
    pred, target, mask = _given(seed)
    own = photo(pred, target, mask, "mask-normalized")
    torch.testing.assert_close(own, masked_mse(pred, target, mask))
    torch.testing.assert_close(photo(pred, target, mask, "mask"), own * mask.mean((1, 2, 3)))
    torch.testing.assert_close(photo(pred, target, mask, "mask"), (mask * (pred - target) ** 2).mean((1, 2, 3)))
    torch.testing.assert_close(photo(pred, target, mask, "image"), mse(pred, target))
    torch.testing.assert_close(photo(pred, target, mask, "image"), photo(pred, target, 1 - mask, "image"))
    everything = torch.ones_like(mask)
    for area in ("mask-normalized", "mask"):
        torch.testing.assert_close(photo(pred, target, everything, area), mse(pred, target))


def test_there_is_no_fourth_area() -> None:
    with pytest.raises(ValueError, match="region 'photo'"):
        photo(*_given(0), "photo")


def test_on_the_whole_frame_the_mask_plays_no_part(trainer) -> None:
    t = trainer(loss_region="image", background_loss_weight=0.0)
    before = step_losses(t)
    t.batches.views[0].masks = torch.rand(t.batches.views[0].masks.shape)
    assert step_losses(t) == before
    t.reconfigure(replace(t.config, loss_region="mask-normalized"))
    assert step_losses(t)["object"] != before["object"]


def test_masked_is_the_object_loss_times_its_share_of_the_frame(trainer) -> None:
    t = trainer(batch_size=1, num_augmentations=1)
    share = float(t.batches.views[0].masks.mean())
    own = step_losses(t)["object"]
    t.reconfigure(replace(t.config, loss_region="mask"))
    assert step_losses(t)["object"] == pytest.approx(share * own, rel=1e-5) and 0.05 < share < 0.5


# Terms that may be left out.


def test_without_a_class_weight_no_prior_is_needed(trainer) -> None:
    t = trainer(prior=False, prior_loss_weight=0.0)
    train_to_end(t)
    assert t.running_losses.keys() == {"object", "background"} and all(0 <= v < 100 for v in t.running_losses.values())


def test_without_a_background_weight_there_is_no_teacher(trainer) -> None:
    t = trainer(background_loss_weight=0.0)
    assert t.teacher.predictions == []
    t.train_step()
    assert t.running_losses.keys() == {"object", "class"}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_class_samples_may_be_pictures_like_any_other(trainer, prediction: str) -> None:
    """z_t = sqrt(a) z + sqrt(1 - a) e of a kept latent z; what is asked for is e, or sqrt(a) e - sqrt(1 - a) z."""
    t = trainer(prior_target="noise")
    t.model.scheduler.register_to_config(prediction_type=prediction)
    batch = t.batches.sample_prior("dog", 4, step_generator(0, 0))
    z_t, steps, aim = batch.z_t, batch.t, batch.target
    of_class = t.batches.priors["dog"].conditions[:1]
    assert torch.equal(batch.condition.sequence, of_class.expand(4, -1, -1))
    assert z_t.shape == aim.shape == (4, 4, 8, 8)
    for z, s, y in zip(z_t, steps, aim, strict=True):
        a = t.model.alpha_bar[s]
        misses = []
        for latent in t.batches.priors["dog"].latents:
            eps = (z - a.sqrt() * latent) / (1 - a).sqrt()
            expected = eps if prediction == "epsilon" else a.sqrt() * eps - (1 - a).sqrt() * latent
            misses.append(float((y - expected).abs().max()))
        assert sorted(misses)[0] < 1e-3 < sorted(misses)[1]


def test_each_class_term_reads_its_own_part_of_the_prior(trainer) -> None:
    for term, unread in (("noise", ("noisy_latents", "predictions")), ("prediction", ("latents",))):
        t = trainer(prior_target=term)
        before = step_losses(t)
        unusable = {key: torch.full_like(getattr(t.batches.priors["dog"], key), float("nan")) for key in unread}
        t.batches.priors["dog"] = replace(t.batches.priors["dog"], **unusable)
        assert step_losses(t) == before
    batch = t.batches.sample_prior("dog", 3, step_generator(0, 0))  # as stored, each with its own prompt and prediction
    kept = _prior(t.model)
    for z, s, told, y in zip(batch.z_t, batch.t, batch.condition, batch.target, strict=True):
        assert any(
            torch.equal(z, kept.noisy_latents[i])
            and int(s) == int(kept.timesteps[i])
            and torch.equal(told.sequence[0], kept.conditions[kept.prompt_index[i]])
            and torch.equal(y, kept.predictions[i])
            for i in range(5)
        )


# Noise levels, rates, sentences.


def test_uniform_timesteps_are_uniform_and_focused_ones_are_not(trainer) -> None:
    """Mean of 20,000 whole numbers below 1000: 499.5 with a deviation of 2; ten classes of 2,000 each, deviation 42."""
    z = torch.zeros(20_000, 1, 1, 1)
    counts = {}
    for kind in ("uniform", "focused"):
        t = trainer(timestep_sampling=kind).batches.add_noise(z, torch.Generator().manual_seed(0))[1]
        assert int(t.min()) >= 0 and int(t.max()) < 1000
        counts[kind] = torch.histc(t.float(), 10, 0, 1000)
    assert bool(((counts["uniform"] - 2000).abs() < 5 * 42).all())
    assert bool(((counts["focused"] - 2000).abs() > 5 * 42).any())


def test_noised_latents_and_their_aim(trainer) -> None:
    t = trainer(timestep_sampling="uniform")
    z = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    z_t, steps, eps = t.batches.add_noise(z, torch.Generator().manual_seed(1))
    torch.testing.assert_close(z_t, ddpm.add_noise(z, eps, t.model.alpha_bar, steps))
    assert float(eps.std()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("steps", "warm"), [(120, training.WARMUP), (60, 12), (3, 1)])
def test_a_constant_rate_warms_up_and_stays(trainer, monkeypatch: pytest.MonkeyPatch, steps: int, warm: int) -> None:
    """For 20 steps, and for a fifth of a short run."""
    t = trainer(lr_scheduler="constant", max_steps=steps)
    monkeypatch.setattr(training_step, "compute_losses", lambda *_: [[{"object": sum(p.sum() for p in t.lora) * 0}]])
    rates = []
    for _ in range(steps):
        t.train_step()
        rates.append([g["lr"] for g in t.optimizer.param_groups])
    peaks = [CONFIG.embedding_lr * float(t.tokens.norms["rex"].mean()), CONFIG.learning_rate]
    assert rates[0] == pytest.approx([p / warm for p in peaks])
    assert rates[warm // 2] == pytest.approx([p * (warm // 2 + 1) / warm for p in peaks])
    assert all(r == pytest.approx(peaks) for r in rates[warm - 1 :])


@pytest.mark.parametrize(
    ("templates", "expected"), [(False, {"a photo of"}), (True, {"a photo of", "a picture of", ""})]
)
def test_sentences_that_the_photo_is_learned_under(trainer, templates: str, expected: set[str]) -> None:
    t = trainer(multiple_templates=templates)
    prompts = [t.sample_batch(step_generator(0, step)).prompt for step in range(12)]
    assert {prompt.split("<")[0].strip() for prompt in prompts} == expected


# The token.


def test_a_fixed_token_does_not_move_and_the_layers_do(trainer) -> None:
    t = trainer(train_embedding=False, fix_embedding_norm=False)
    start = _lora(t)
    train_to_end(t)
    assert torch.equal(t.tokens.as_tensors()["rex"], t.subjects[0].token_embeddings)
    assert not any(torch.equal(v, start[k]) for k, v in _lora(t).items())


def test_a_fixed_token_of_kept_length_does_not_move_by_a_rounding_either(trainer) -> None:
    t = trainer(train_embedding=False)
    t.tokens.trainable["rex"].copy_(torch.linspace(-1, 1.7, 16)[None] / 3)
    t.tokens.norms["rex"] = t.tokens.trainable["rex"].norm(dim=1)
    start = t.tokens.trainable["rex"].clone()
    train_to_end(t)
    assert torch.equal(t.tokens.trainable["rex"], start)


def test_a_free_token_changes_its_length(trainer) -> None:
    for fixed, moved in ((False, True), (True, False)):
        t = trainer(fix_embedding_norm=fixed, embedding_lr=0.1)
        train_to_end(t)
        now, start = t.tokens.as_tensors()["rex"][0], t.subjects[0].token_embeddings[0]
        assert not torch.equal(now, start)
        assert (abs(float(now.norm() / start.norm()) - 1) > 1e-3) == moved
        assert torch.equal(t.tokens.as_tensors()["rex"][1:], t.subjects[0].token_embeddings[1:])


def test_the_token_learns_first_and_then_the_layers(trainer) -> None:
    t = trainer(embedding_only_steps=3)
    for step in range(6):
        lora, token = _lora(t), t.tokens.as_tensors()["rex"]
        t.train_step()
        assert _same(_lora(t), lora) == (step < 3)
        assert torch.equal(t.tokens.as_tensors()["rex"], token) == (step >= 3)


# Layers.


def test_with_no_layers_the_token_alone_learns(trainer) -> None:
    t = trainer(
        target_modules="none",
        loss_region="image",
        background_loss_weight=0.0,
        prior_loss_weight=0.0,
        prior=False,
        fix_embedding_norm=False,
    )
    frozen = {k: v.clone() for k, v in t.model.denoiser.state_dict().items()}
    start = t.tokens.as_tensors()["rex"]
    train_to_end(t)
    assert t.lora == [] and _lora(t) == {}
    assert not torch.equal(t.tokens.as_tensors()["rex"][0], start[0])
    assert _same(dict(t.model.denoiser.state_dict()), frozen)


def test_with_no_layers_the_teacher_is_the_denoiser_itself(trainer) -> None:
    """`<rex>` starts as "a dog" to the letter: nothing to correct outside the mask."""
    assert step_losses(trainer(target_modules="none"))["background"] < 1e-9


def test_keys_and_values_of_cross_attention_alone(trainer) -> None:
    t = trainer(target_modules="cross-kv")
    train_to_end(t)
    layers = {k.removeprefix("unet.").split(".lora_")[0] for k in _lora(t)}
    expected = {n for n, _ in t.model.denoiser.named_modules() if n.endswith((".attn2.to_k", ".attn2.to_v"))}
    assert layers == expected and len(layers) >= 4
    assert all(float(v.abs().max()) > 0 for v in _lora(t).values())


# The attention term.


def _attention_term(t: Trainer, batch: StepBatch, maps: dict[str, torch.Tensor]) -> float:
    """The term where a recorder has these maps for the tokens of the named objects."""
    words = t.tokens.placeholders
    ids = t.model.token_ids([words.expand(batch.prompt)])
    own = {name: words.token_positions(ids, name)[0] for name in maps}
    recorder = SimpleNamespace(
        token_map=lambda tokens: next(m for name, m in maps.items() if torch.equal(own[name], tokens))
    )
    found = Prediction(batch.target, None, t.tokens.attention_maps(recorder, batch))
    return float(AttentionTerm().compute(batch, found))


def test_the_attention_term_is_zero_where_each_token_looks_at_its_own_object(trainer) -> None:
    t = trainer(both=True, single_object_prob=0.0)
    batches = (t.sample_batch(step_generator(0, i)) for i in range(100))
    batch = next(b for b in batches if len(b.views.members) == 2)
    batch.indices = torch.tensor([1, 0, 3])
    rex, cup = (batch.views.object_masks[batch.indices, i] for i in range(2))
    assert float((rex - cup).abs().mean()) > 0.05
    assert _attention_term(t, batch, {"rex": rex, "cup": cup}) == 0
    swapped = _attention_term(t, batch, {"rex": cup, "cup": rex})
    assert swapped == pytest.approx(float((rex - cup).square().mean()))
    coarse = torch.nn.functional.avg_pool2d(rex, 2), torch.nn.functional.avg_pool2d(cup, 2)
    assert _attention_term(t, batch, dict(zip(("rex", "cup"), coarse, strict=True))) < 1e-12


def test_the_attention_term_is_there_when_it_weighs_something(trainer) -> None:
    t = trainer(attention_loss_weight=0.5)
    processors = dict(t.model.denoiser.attn_processors)
    terms = step_losses(t)
    assert terms.keys() == {"object", "background", "class", "attention"} and 0 < terms["attention"] < 1
    assert t.model.denoiser.attn_processors == processors
    plain = step_losses(trainer())
    assert {k: v for k, v in terms.items() if k != "attention"} == pytest.approx(plain, rel=1e-4, abs=1e-9)


def test_the_attention_term_turns_the_tokens_look_to_the_object(trainer) -> None:
    t = trainer(
        attention_loss_weight=1000.0,
        max_steps=20,
        prior_loss_weight=0.0,
        embedding_lr=0.1,
        learning_rate=2e-2,
        num_augmentations=1,
    )
    before = sum(step_losses(t, 100 + i)["attention"] for i in range(4))
    train_to_end(t)
    assert sum(step_losses(t, 100 + i)["attention"] for i in range(4)) < 0.85 * before


# All of them together.

CONTINUED = {
    "no layers": {"target_modules": "none", "prior_loss_weight": 0.0},
    "fixed token": {"train_embedding": False, "prior_target": "noise"},
    "attention": {
        "attention_loss_weight": 0.1,
        "loss_region": "mask",
        "timestep_sampling": "uniform",
        "lr_scheduler": "constant",
    },
    "token first": {"embedding_only_steps": 1},
    "token first, stopped at the turn": {"embedding_only_steps": 2},
    "token first, stopped before": {"embedding_only_steps": 3},
}


@pytest.mark.parametrize("name", CONTINUED)
def test_stopped_and_continued_equals_unbroken_bit_for_bit(trainer, name: str) -> None:
    whole = trainer(max_steps=4, **CONTINUED[name])
    train_to_end(whole)
    first = trainer(max_steps=4, **CONTINUED[name])
    for _ in range(2):
        first.train_step()
    second = trainer(max_steps=4, **CONTINUED[name])
    second.restore({k: v.clone() for k, v in first.state().items()})
    train_to_end(second)
    assert _same(_lora(second), _lora(whole)) and _same(second.tokens.as_tensors(), whole.tokens.as_tensors())


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_trains(trainer, name: str) -> None:
    """Its own settings, cut short."""
    own = dict(BASELINES[name].train)
    short = {
        "max_steps": 4,
        "rank": 2,
        "learning_rate": CONFIG.learning_rate,
        "embedding_lr": CONFIG.embedding_lr,
        "embedding_only_steps": min(2, own.get("embedding_only_steps", 0)),
    }
    t = trainer(**{**own, **short}, prior=bool(own["prior_loss_weight"]))
    before = _lora(t) | {"token": t.tokens.as_tensors()["rex"]}
    train_to_end(t)
    after = _lora(t) | {"token": t.tokens.as_tensors()["rex"]}
    assert len(t.batches.views[0].latents) == 1 and all(0 <= v < 100 for v in t.running_losses.values())
    changed = {k for k in after if not torch.equal(after[k], before[k])}
    assert ("token" in changed) == (own.get("train_embedding", True))
    assert bool(changed - {"token"}) == (own["target_modules"] != "none")


# The photo and its views.


def test_one_view_is_the_photo_itself(trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    posterior = BaseModel.encode_image_distribution
    monkeypatch.setattr(
        BaseModel,
        "encode_image_distribution",
        lambda self, pictures: seen.append(pictures) or posterior(self, pictures),
    )
    t = trainer(num_augmentations=1)
    assert [p.shape for p in seen] == [(1, 3, 32, 32)] and t.batches.views[0].latents.shape == (1, 4, 8, 8)
    own = t.subjects[0].photos[0]
    around = torch.nn.functional.avg_pool2d(own.mask[None], 3, 1, 1)[0]
    inner = (around == 0) | (around == 1)  # off the outline, which resampling softens
    torch.testing.assert_close(seen[0][0][:, inner], own.picture[:, inner], atol=1e-4, rtol=0)
    torch.testing.assert_close(t.batches.views[0].masks[0, 0].mean(), own.mask.mean(), atol=1e-3, rtol=0)


def test_latents_are_the_posteriors_mean_or_drawn_from_it_at_each_step(trainer) -> None:
    """diffusers' examples draw them: the difference is of one standard deviation, another one at each step."""
    mean, drawn = trainer(num_augmentations=1), trainer(num_augmentations=1, sample_vae_latents=True)
    assert (
        mean.batches.views[0].latent_std is None
        and drawn.batches.views[0].latent_std.shape == drawn.batches.views[0].latents.shape
    )
    torch.testing.assert_close(mean.batches.views[0].latents, drawn.batches.views[0].latents)
    z, spread = torch.zeros(4000, 1, 1, 1), torch.full((4000, 1, 1, 1), 0.3)
    still, _, _ = mean.batches.add_noise(z, step_generator(0, 1))
    _, t, _ = drawn.batches.add_noise(z, step_generator(0, 1), spread)
    bar = drawn.model.alpha_bar[t].view(-1, 1, 1, 1)
    moved = drawn.batches.add_noise(z, step_generator(0, 1), spread)[0]
    assert float((moved**2 / (bar * 0.09 + 1 - bar)).mean()) == pytest.approx(1, abs=0.1)
    assert not torch.equal(still, moved)


def test_drawn_latents_change_the_training_and_the_class_samples_too(trainer) -> None:
    seen: dict[bool, list[torch.Tensor]] = {}
    for way in (False, True):
        t = trainer(num_augmentations=1, sample_vae_latents=way, prior_target="noise", background_loss_weight=0.0)
        add_noise = t.batches.add_noise
        seen[way] = []
        t.batches.add_noise = lambda z, g, std=None, seen=seen[way], add=add_noise: seen.append(std) or add(z, g, std)
        t.train_step()
    assert seen[False] == [None, None]
    photo, of_class = seen[True]
    assert photo.shape == (4, 4, 8, 8) and of_class.shape == (1, 4, 8, 8) and bool((photo > 0).all())


@pytest.mark.parametrize("weights", [{}, {"attention_loss_weight": 0.01}, {"prior_target": "noise"}])
def test_apart_and_together_are_the_same_step(trainer, monkeypatch: pytest.MonkeyPatch, weights: dict) -> None:
    """One pass or two: the same gradients, but for rounding."""
    stepped, predict = [], BaseModel.predict
    for passes in (True, False):
        t = trainer(single_forward=passes, **weights)
        seen: list[int] = []
        monkeypatch.setattr(
            BaseModel, "predict", lambda self, z, *rest, seen=seen: seen.append(len(z)) or predict(self, z, *rest)
        )
        t.train_step()
        monkeypatch.setattr(BaseModel, "predict", predict)
        stepped.append((seen, dict(t.running_losses), [p.grad.clone() for p in t.params()]))
    (one, means, grads), (two, means_apart, grads_apart) = stepped
    assert one == [6] and two == [4, 2]
    assert means_apart == pytest.approx(means, rel=1e-4)
    for a, b in zip(grads, grads_apart, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("alone", [{"target_modules": "none"}, {"embedding_only_steps": 3}])
def test_apart_a_class_pass_without_anything_to_learn_is_no_error(trainer, alone: dict) -> None:
    t = trainer(single_forward=False, **alone)
    before = t.tokens.as_tensors()["rex"]
    t.train_step()
    assert not torch.equal(t.tokens.as_tensors()["rex"], before) and t.running_losses["class"] >= 0


def test_the_class_term_at_every_third_step_is_three_times_as_heavy(trainer) -> None:
    t = trainer(prior_loss_interval=3)
    assert t.weights["class"] == 3 * trainer().weights["class"]
    taken = []
    for _ in range(6):
        taken.append("class" in step_losses(t, t.step))
        t.train_step()
    assert taken == [True, False, False, True, False, False]


def test_the_decoder_alone_learns_and_nothing_runs_back_behind_it(trainer) -> None:
    t = trainer(target_blocks="decoder", prior_loss_weight=0.0)
    names = [n for n, p in t.model.denoiser.named_parameters() if p.requires_grad]
    assert names and all(n.startswith("up_blocks.") for n in names)
    reached: list[str] = []
    for name, block in (
        ("down", t.model.denoiser.down_blocks[0]),
        ("middle", t.model.denoiser.mid_block),
        ("up", t.model.denoiser.up_blocks[0]),
    ):
        block.register_forward_hook(
            lambda _m, _i, out, name=name: (
                reached.append(name) if (out[0] if isinstance(out, tuple) else out).requires_grad else None
            )
        )
    before = t.tokens.as_tensors()["rex"]
    t.train_step()
    assert reached == ["up"]
    assert not torch.equal(t.tokens.as_tensors()["rex"], before)  # the token learns through the decoder's attention


def test_the_memory_of_squared_gradients_is_a_setting(trainer) -> None:
    assert {g["betas"] for g in trainer(adam_beta2=0.999).optimizer.param_groups} == {(0.9, 0.999)}
    assert {g["betas"] for g in trainer().optimizer.param_groups} == {(0.9, 0.99)}


def test_the_photo_shows_its_own_ground_not_the_one_that_was_filled_in() -> None:
    picture, mask = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.zeros(64, 64)
    mask[20:40, 16:48] = 1

    def drawn(ground: float, count: int) -> torch.Tensor:
        return views(picture, mask, torch.full_like(picture, ground), count, 64, torch.Generator().manual_seed(0))[0]

    assert torch.equal(drawn(-1, 1), drawn(1, 1)) and not torch.equal(drawn(-1, 3)[:2], drawn(1, 3)[:2])
    assert float((drawn(0, 1)[0] - picture).abs().mean()) < 0.5 * float((picture - picture.mean()).abs().mean())


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_parts_move_along_with_the_mask(seed: int) -> None:
    """Two halves of the mask: together the whole; without parts, the same pictures."""
    picture, mask = torch.zeros(3, 48, 48), torch.zeros(48, 48)
    mask[10:30, 12:36] = 1
    left = mask.clone()
    left[:, 24:] = 0
    parts = torch.stack([left, mask - left, mask])
    pictures, masks = views(picture, mask, picture, 4, 32, torch.Generator().manual_seed(seed), parts=parts)
    plain, alone = views(picture, mask, picture, 4, 32, torch.Generator().manual_seed(seed))
    assert masks.shape == (4, 4, 32, 32) and alone.shape == (4, 1, 32, 32)
    assert torch.equal(pictures, plain) and torch.equal(masks[:, :1], alone)
    torch.testing.assert_close(masks[:, 1] + masks[:, 2], masks[:, 0], atol=1e-5, rtol=0)
    assert torch.equal(masks[:, 3], masks[:, 0])


def test_each_object_of_a_view_has_a_mask_of_its_own(trainer) -> None:
    for v in trainer(both=True).batches.views:
        assert v.object_masks.shape == (4, len(v.members), 8, 8)
        torch.testing.assert_close(v.object_masks.sum(1, keepdim=True), v.masks, atol=1e-5, rtol=0)
        if len(v.members) == 2:  # side by side, as in the photo
            x = torch.arange(8.0)
            rex, cup = ((v.object_masks[:, i] * x).sum((1, 2)) / v.object_masks[:, i].sum((1, 2)) for i in range(2))
            assert bool((rex < cup).all())


# Where the token starts.


def _start(model: BaseModel, clip: towers.Clip | None = None, **given: object) -> prototype.TokenInit:
    mask = torch.zeros(40, 40)
    mask[10:30, 12:30] = 1
    picture = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    return prototype.initialise_token(model, clip, [(picture, mask)], "dog", Embed(**given))


def test_a_rare_word_is_taken_as_it_is(model: BaseModel) -> None:
    """A letter is a token here: "sks" has three; `vectors` are the most that are taken."""
    own = class_token_embeddings(model, Embed().rare_token)
    for vectors in (1, 2, 3, 5):
        started = _start(model, init="rare-token", num_vectors=vectors)
        assert started.num_trainable == min(vectors, 3)
        assert torch.equal(started.token_embeddings, torch.cat([own[:vectors], class_token_embeddings(model, "dog")]))


@pytest.mark.parametrize("init", ["class", "random", "rare-token"])
def test_without_the_noun_the_learned_vectors_stand_alone(model: BaseModel, init: str) -> None:
    kept, alone = (
        _start(model, init=init, append_class_token=True, num_vectors=3),
        _start(model, init=init, append_class_token=False, num_vectors=3),
    )
    assert alone.num_trainable == kept.num_trainable == len(alone.token_embeddings) == len(kept.token_embeddings) - 3
    assert torch.equal(alone.token_embeddings, kept.token_embeddings[: kept.num_trainable])


def test_a_prototype_without_the_noun_is_fitted_alone(model: BaseModel, tiny_base) -> None:
    clip = towers.load(tiny_base / "clip", model)
    started = _start(model, clip, init="prototype", append_class_token=False, num_vectors=2, steps=8, relative_lr=0.05)
    assert started.token_embeddings.shape == (2, 16) and started.metrics["cos_after"] > started.metrics["cos_before"]


@pytest.mark.parametrize("init", ["class", "random", "rare-token"])
def test_only_a_prototype_is_fitted(model: BaseModel, tiny_base, init: str) -> None:
    """With an image tower the others are measured, not moved."""
    clip = towers.load(tiny_base / "clip", model)
    with_tower, without = (_start(model, c, init=init, num_vectors=3, steps=8) for c in (clip, None))
    torch.testing.assert_close(with_tower.token_embeddings, without.token_embeddings)
    assert with_tower.metrics["cos_after"] == pytest.approx(with_tower.metrics["cos_before"], abs=1e-6)
