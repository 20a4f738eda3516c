"""The class prior: samples of the frozen base and its predictions for them."""

from dataclasses import replace

import torch

from objtune_cli.config.sections import Prior
from objtune_cli.models.base_model import BaseModel
from objtune_cli.training import class_prior

CONFIG = Prior(num_class_images=3, num_predictions=7)


def test_shapes_and_types(model: BaseModel) -> None:
    kept = class_prior.compute(model, "dog", CONFIG, 3.0)
    width = model.text_encoder.config.hidden_size
    assert {k: tuple(v.shape) for k, v in kept.to_tensors().items()} == {
        "latents": (3, 4, 8, 8), "z_t": (7, 4, 8, 8), "t": (7,), "pred": (7, 4, 8, 8), "asked": (7,),
        "conditions": (2, model.tokenizer.model_max_length, width),
    }  # fmt: skip
    assert kept.timesteps.dtype == kept.prompt_index.dtype == torch.int64
    assert all(
        v.dtype == torch.float32 and v.isfinite().all() for k, v in kept.to_tensors().items() if k not in ("t", "asked")
    )
    assert int(kept.timesteps.min()) >= 0 and int(kept.timesteps.max()) < 1000


def test_predictions_are_the_frozen_bases(model: BaseModel) -> None:
    kept = class_prior.compute(
        model, "owl", replace(CONFIG, num_predictions=21), 3.0, others=("cat", "owl")
    )  # more than one batch of 8
    texts = ["a photo of an owl", "", "a photo of a cat"]
    assert set(kept.prompt_index.tolist()) == {0, 1, 2} and kept.prompt_index[::2].count_nonzero() == 0
    with torch.no_grad():
        own = model.predict(
            kept.noisy_latents, kept.timesteps, model.encode_prompt([texts[i] for i in kept.prompt_index])
        )
    torch.testing.assert_close(kept.predictions, own, rtol=1e-4, atol=1e-5)


def test_the_class_alone_when_asked_for(model: BaseModel) -> None:
    kept = class_prior.compute(model, "dog", replace(CONFIG, mixed_prompts=False), 3.0, others=("cat",))
    assert kept.prompt_index.tolist() == [0] * 7 and len(kept.conditions) == 1


def test_noised_latents_are_the_samples_plus_unit_noise(model: BaseModel) -> None:
    kept = class_prior.compute(model, "dog", replace(CONFIG, num_predictions=60), 3.0)
    level = model.alpha_bar[kept.timesteps].view(-1, 1, 1, 1)
    noise = (kept.noisy_latents - level.sqrt() * kept.latents[torch.arange(60) % 3]) / (1 - level).sqrt()
    assert abs(float(noise.mean())) < 0.04 and abs(float(noise.std()) - 1) < 0.03  # 15 360 values: five standard errors
    assert torch.corrcoef(noise.flatten(1)).fill_diagonal_(0).abs().max() < 0.4


def test_same_seed_same_prior_other_seed_another(model: BaseModel) -> None:
    first, again = class_prior.compute(model, "dog", CONFIG, 3.0), class_prior.compute(model, "dog", CONFIG, 3.0)
    other = class_prior.compute(model, "dog", replace(CONFIG, seed=1), 3.0)
    for k, values in first.to_tensors().items():
        assert torch.equal(values, again.to_tensors()[k])
        assert k in ("conditions", "asked") or not torch.equal(values, other.to_tensors()[k])


def test_more_samples_do_not_change_the_first_ones(model: BaseModel) -> None:
    few, many = (class_prior.compute(model, "dog", replace(CONFIG, num_class_images=n), 3.0).latents for n in (2, 6))
    torch.testing.assert_close(many[:2], few, rtol=0, atol=1e-4)


def test_the_class_matters(model: BaseModel) -> None:
    dog, mug = (class_prior.compute(model, word, CONFIG, 3.0) for word in ("dog", "mug"))
    assert not torch.allclose(dog.predictions, mug.predictions)


def test_progress_counts_samples(model: BaseModel) -> None:
    seen: list[tuple[int, int]] = []
    class_prior.compute(
        model, "dog", Prior(num_class_images=6, num_predictions=2), 3.0, lambda done, total: seen.append((done, total))
    )
    assert seen == [(4, 6), (6, 6)]
