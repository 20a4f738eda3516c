"""Where tokens look: recorded maps are the denoiser's own attention, and recording changes nothing."""

import pytest
import torch

from objtune_cli.lora import layers as adapter
from objtune_cli.models import attention
from objtune_cli.models.attention import Recorder, record_cross_attention
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.placeholders import Placeholders, class_token_embeddings


def _given(rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(rows, 4, 8, 8, generator=g), torch.linspace(10, 900, rows).long()


def _predict(model: BaseModel, prompts: list[str]) -> torch.Tensor:
    return model.predict(*_given(len(prompts)), model.encode_prompt(prompts))


PROMPTS = ["a dog on the beach", "a cat", "a red mug"]


@pytest.mark.parametrize("lora", [False, True])
@torch.no_grad()
def test_the_denoiser_answers_as_without_it(model: BaseModel, lora: bool) -> None:
    if lora:
        for p in adapter.add(model, 4, "all", seed=0):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    expected = _predict(model, PROMPTS)
    with record_cross_attention(model, 3):
        torch.testing.assert_close(_predict(model, PROMPTS), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_afterwards_all_is_as_before(model: BaseModel) -> None:
    expected, processors = _predict(model, PROMPTS), dict(model.denoiser.attn_processors)
    with pytest.raises(RuntimeError, match="inside"), record_cross_attention(model, 3) as seen:
        inside = dict(model.denoiser.attn_processors)
        assert {k for k, v in inside.items() if v is seen} == {k for k in inside if ".attn2." in k} != set(inside)
        raise RuntimeError("inside")
    assert model.denoiser.attn_processors == processors
    assert torch.equal(_predict(model, PROMPTS), expected) and not seen.maps


@torch.no_grad()
def test_maps_are_probabilities_over_the_prompt(model: BaseModel) -> None:
    with record_cross_attention(model, 2) as seen:
        _predict(model, PROMPTS)
    assert {side: {tuple(m.shape) for m in maps} for side, maps in seen.maps.items()} == {
        8: {(2, 64, 77)},
        4: {(2, 16, 77)},
    }
    for maps in seen.maps.values():
        for m in maps:
            assert float(m.min()) >= 0
            torch.testing.assert_close(m.sum(-1), torch.ones(m.shape[:2]))
    layers = [k for k in model.denoiser.attn_processors if ".attn2." in k]
    assert sum(map(len, seen.maps.values())) == len(layers)


@torch.no_grad()
def test_a_map_is_the_softmax_of_queries_and_keys(model: BaseModel) -> None:
    """Of the first layer, by hooks on its own queries and keys."""
    layer = model.denoiser.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    kept = {}
    handles = [
        getattr(layer, n).register_forward_hook(lambda m, a, out, n=n: kept.setdefault(n, out))
        for n in ("to_q", "to_k")
    ]
    with record_cross_attention(model, 3) as seen:
        _predict(model, PROMPTS)
    for handle in handles:
        handle.remove()
    q, k = (x.unflatten(-1, (layer.heads, -1)) for x in kept.values())
    width = q.shape[-1]
    expected = (torch.einsum("bqhd,bkhd->bhqk", q, k) / width**0.5).softmax(-1).mean(1)
    torch.testing.assert_close(seen.maps[8][0], expected)


@torch.no_grad()
def test_only_maps_that_are_no_larger_are_kept(model: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MAX_MAP_SIDE", 4)
    with record_cross_attention(model, 3) as seen:
        _predict(model, PROMPTS)
    assert set(seen.maps) == {4}


@torch.no_grad()
def test_where_none_is_kept_a_layer_does_what_it_did_before(model: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MAX_MAP_SIDE", 0)
    monkeypatch.setattr(type(model.family), "latent_multiple", lambda *_: 99)
    expected = _predict(model, PROMPTS)
    with record_cross_attention(model, 3) as seen:
        assert torch.equal(_predict(model, PROMPTS), expected) and not seen.maps


@torch.no_grad()
def test_once_it_is_over_no_more_is_kept(model: BaseModel) -> None:
    with record_cross_attention(model, 3) as seen:
        first = _predict(model, PROMPTS)
        kept = {side: list(maps) for side, maps in seen.maps.items()}
        seen.complete = True
        assert torch.equal(_predict(model, PROMPTS), first)
    assert all(len(maps) == len(kept[side]) for side, maps in seen.maps.items()) and kept.keys() == seen.maps.keys()


def test_seen_by_hand() -> None:
    """Two layers, four places, three tokens: of the last two, the mean is 0.3, 0.2, 0.1, 0.15; the largest is 1 then."""
    a = torch.tensor([[[0.4, 0.2, 0.4], [0.6, 0.4, 0.0], [0.8, 0.1, 0.1], [0.7, 0.2, 0.1]]])
    b = torch.tensor([[[0.4, 0.6, 0.0], [0.6, 0.0, 0.4], [0.8, 0.2, 0.0], [0.7, 0.0, 0.3]]])
    recorder = Recorder(1)
    recorder.maps = {1: [torch.ones(1, 1, 3)], 2: [a, b]}
    found = recorder.token_map(torch.tensor([False, True, True]))
    torch.testing.assert_close(found, torch.tensor([[[1, 2 / 3], [1 / 3, 1 / 2]]]))


@torch.no_grad()
def test_a_map_peaks_at_one_and_the_whole_prompt_is_seen_everywhere_alike(model: BaseModel) -> None:
    words = Placeholders(model)
    words.add("rex", class_token_embeddings(model, "dog"))
    prompts = [words.expand("a photo of <rex> on the beach")] * 3
    with record_cross_attention(model, 3) as seen:
        _predict(model, prompts)
    own = words.token_positions(model.token_ids(prompts), "rex")[0]
    assert int(own.sum()) == 3
    maps = seen.token_map(own)
    assert maps.shape == (3, 8, 8) and float(maps.min()) >= 0
    torch.testing.assert_close(maps.amax((1, 2)), torch.ones(3))
    torch.testing.assert_close(seen.token_map(torch.ones_like(own)), torch.ones(3, 8, 8))


def test_gradients_reach_the_token(model: BaseModel) -> None:
    words = Placeholders(model)
    rows = class_token_embeddings(model, "dog").requires_grad_()
    words.add("rex", rows)
    prompts = [words.expand("a photo of <rex>")] * 3
    with record_cross_attention(model, 3) as seen:
        _predict(model, prompts)
    seen.token_map(words.token_positions(model.token_ids(prompts), "rex")[0])[:, :4].mean().backward()
    assert rows.grad is not None and float(rows.grad.abs().sum()) > 0
