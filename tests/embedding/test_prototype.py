"""Starting a token: its aim, its length, and what each way to start gives."""

from dataclasses import replace

import pytest
import torch

from objtune_cli.config.sections import Embed
from objtune_cli.embedding import prototype
from objtune_cli.models import clip as towers
from objtune_cli.models import prompts
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.placeholders import class_token_embeddings

CONFIG = Embed(init="prototype", steps=15, relative_lr=0.05)


@pytest.fixture
def clip(tiny_base, model: BaseModel) -> towers.Clip:
    return towers.load(tiny_base / "clip", model)


def _photo() -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.zeros(40, 60)
    mask[10:30, 20:35] = 1
    return torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.7 * mask, mask


def _start(model: BaseModel, clip: towers.Clip | None, config: Embed = CONFIG) -> prototype.TokenInit:
    return prototype.initialise_token(model, clip, [_photo()], "dog", config)


def test_aim_is_the_mean_direction_of_its_three_parts(model: BaseModel, clip: towers.Clip) -> None:
    p, cosines = prototype.compute_prototype(clip, model, [_photo()], "dog")
    assert float(p.norm()) == pytest.approx(1, abs=1e-5)
    assert cosines.keys() == {"cos_picture_object", "cos_picture_class", "cos_object_class"}
    # |a + b + c|² = 3 + 2 (ab + ac + bc), and p · c = (ac + bc + 1) / |a + b + c|.
    length = (3 + 2 * sum(cosines.values())) ** 0.5
    word = clip.text_features(model, ["a photo of a dog"])[0]
    assert float(p @ word) == pytest.approx(
        (cosines["cos_picture_class"] + cosines["cos_object_class"] + 1) / length, abs=1e-5
    )


def test_prototype_brings_the_token_nearer_and_says_so(model: BaseModel, clip: towers.Clip) -> None:
    started = _start(model, clip)
    assert started.metrics["cos_after"] > started.metrics["cos_before"] + 0.01
    assert started.metrics["cos_before"] >= -1 and started.metrics["cos_after"] <= 1


@pytest.mark.parametrize("init", ["prototype", "class", "random"])
@pytest.mark.parametrize("vectors", [1, 3])
def test_learned_rows_have_the_classs_length_and_its_own_rows_follow(
    model: BaseModel, clip: towers.Clip, init: str, vectors: int
) -> None:
    own = class_token_embeddings(model, "dog")
    rows = _start(model, clip, replace(CONFIG, init=init, num_vectors=vectors, steps=3)).token_embeddings
    assert rows.shape == (vectors + 3, 16) and rows.dtype == torch.float32 and not rows.requires_grad
    torch.testing.assert_close(rows[:vectors].norm(dim=1), own.norm(dim=1).mean().expand(vectors))
    assert torch.equal(rows[vectors:], own)


def test_class_start_is_near_the_class_random_is_not(model: BaseModel) -> None:
    centre = class_token_embeddings(model, "dog").mean(0)
    near, far = (_start(model, None, replace(CONFIG, init=init)).token_embeddings[0] for init in ("class", "random"))
    cosine = torch.nn.functional.cosine_similarity
    assert float(cosine(near, centre, dim=0)) > 0.95
    assert abs(float(cosine(far, centre, dim=0))) < 0.9


def test_without_towers_there_are_no_metrics(model: BaseModel) -> None:
    assert _start(model, None, replace(CONFIG, init="class")).metrics == {}


def test_same_seed_same_token(model: BaseModel, clip: towers.Clip) -> None:
    first = _start(model, clip)
    assert torch.equal(_start(model, clip).token_embeddings, first.token_embeddings)
    assert not torch.equal(_start(model, clip, replace(CONFIG, seed=1)).token_embeddings, first.token_embeddings)


def test_progress_counts_steps_and_steps_may_be_none(model: BaseModel, clip: towers.Clip) -> None:
    seen: list[int] = []
    prototype.initialise_token(model, clip, [_photo()], "dog", CONFIG, lambda step, loss: seen.append(step))
    assert seen == list(range(1, 16))
    still = _start(model, clip, replace(CONFIG, steps=0))
    assert still.metrics["cos_before"] == still.metrics["cos_after"]


@pytest.mark.parametrize(("word", "said"), [("dog", "a dog"), ("owl", "an owl"), ("Old mug", "an Old mug")])
def test_article(word: str, said: str) -> None:
    assert prompts.with_article(word) == said
