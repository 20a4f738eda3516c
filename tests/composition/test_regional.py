"""Regional LoRA and regional attention against peft's own LoRA and the untouched base."""

import math

import pytest
import torch

from objtune_cli.composition.region_masks import PlacedObject, RegionMasks
from objtune_cli.composition.regional import regional_sampling
from objtune_cli.composition.regional_attention import BLOCKED, BoundedAttention, RegionalAttention
from objtune_cli.lora import layers
from objtune_cli.models import loading
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.conditioning import Conditioning

EVERYWHERE = (-1.0, -1.0, 2.0, 2.0)
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
SELF_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CROSS = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
CONV = "mid_block.resnets.0.conv1"


def _none() -> torch.Tensor:
    return torch.zeros(77, dtype=torch.bool)


def _tokens(*at: int) -> torch.Tensor:
    tokens = _none()
    tokens[list(at)] = True
    return tokens


def _lora(model: BaseModel, tiny_base, seed: int = 0, modules: str = "all") -> dict[str, torch.Tensor]:
    """Random weights for every layer that a LoRA of these modules has on this base."""
    other = loading.load(tiny_base, model.device, model.dtype)
    layers.add(other, 2, modules, seed=0)
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(v.shape, generator=g) * 0.2 for k, v in layers.state_dict(other).items()}


def _inputs(model: BaseModel) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    """As guidance makes it: half without prompt, half with it."""
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return (
        torch.cat([z, z]),
        torch.tensor([700] * 4),
        model.encode_prompt(["", "", "a photo of a dog", "a cat on the beach"]),
    )


def _predict(model: BaseModel) -> torch.Tensor:
    with torch.no_grad():
        return model.predict(*_inputs(model))


def test_regions_share_the_frame_and_later_objects_are_in_front() -> None:
    boxes = [(0.0, 0.1, 0.7, 0.9), (0.3, 0.2, 0.9, 1.0), (0.4, 0.0, 0.6, 0.5)]
    shares = RegionMasks([PlacedObject(str(i), {}, b, _none()) for i, b in enumerate(boxes)]).at(40, 40)
    assert shares.shape == (3, 40, 40)
    assert float(shares.min()) >= 0 and float(shares.sum(0).max()) <= 1 + 1e-6
    assert shares[:, 12, 20].tolist() == [0, 0, 1]  # inside all three: the last one's
    assert shares[:, 28, 20].tolist() == [0, 1, 0]  # inside the first two
    assert shares[:, 20, 4].tolist() == [1, 0, 0]
    assert shares[:, 0, 39].tolist() == [0, 0, 0]  # nobody's: the base draws it alone


def test_objects_side_by_side_meet_in_the_middle() -> None:
    shares = RegionMasks([PlacedObject("a", {}, LEFT, _none()), PlacedObject("b", {}, RIGHT, _none())]).at(50, 50)
    assert shares[0, 25, 5] == 1 and shares[1, 25, 5] == 0
    assert shares[0, 25, 45] == 0 and shares[1, 25, 45] == 1
    # At the shared border the one behind keeps (1 - 1/2) · 1/2 of its half.
    middle = shares[:, 25, 24:26].mean(1)
    assert 0.2 < middle[0] < 0.3 and 0.45 < middle[1] < 0.55


@pytest.mark.parametrize(("aspect", "height", "width"), [(1.0, 6, 6), (2.0, 4, 8), (0.5, 10, 5)])
def test_features_in_row_order(aspect: float, height: int, width: int) -> None:
    regions = RegionMasks([PlacedObject("a", {}, (0.0, 0.0, 0.4, 0.7), _none())], aspect)
    assert torch.equal(regions.flat(height * width).view(1, height, width), regions.at(height, width))


def test_with_the_whole_frame_it_is_pefts_own_lora(model: BaseModel, tiny_base) -> None:
    """Self-attention, feed-forward and convolutions; keys and values of cross-attention have tokens in place of places."""
    weights = {k: v for k, v in _lora(model, tiny_base).items() if ".attn2.to_k" not in k and ".attn2.to_v" not in k}
    assert {"conv1", "attn1.to_q", "attn2.to_q", "ff.net.2", "to_out.0"} <= {
        m for k in weights for m in ("conv1", "attn1.to_q", "attn2.to_q", "ff.net.2", "to_out.0") if m in k
    }
    base = _predict(model)
    with regional_sampling(model, [PlacedObject("rex", weights, EVERYWHERE, _none())]):
        ours = _predict(model)
    layers.load(model, weights)
    theirs = _predict(model)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert (theirs - base).abs().max() > 0.05


def test_keys_and_values_act_at_the_objects_tokens_with_the_prompt_only(model: BaseModel, tiny_base) -> None:
    weights = {
        k: v
        for k, v in _lora(model, tiny_base, modules="attention").items()
        if ".attn2.to_k" in k or ".attn2.to_v" in k
    }
    base = _predict(model)
    with regional_sampling(model, [PlacedObject("rex", weights, EVERYWHERE, ~_none())]):
        ours = _predict(model)
    with regional_sampling(model, [PlacedObject("rex", weights, EVERYWHERE, _none())]):
        torch.testing.assert_close(_predict(model), base, rtol=1e-4, atol=1e-5)  # no tokens of its own: no effect
    layers.load(model, weights)
    theirs = _predict(model)
    torch.testing.assert_close(ours[2:], theirs[2:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[:2], base[:2], rtol=1e-4, atol=1e-5)
    assert (theirs[:2] - base[:2]).abs().max() > 1e-3  # which peft's would have changed


def test_a_keys_delta_stands_at_its_tokens(model: BaseModel, tiny_base) -> None:
    weights = _lora(model, tiny_base)
    layer = model.denoiser.get_submodule(f"{CROSS}.to_k")
    x = torch.randn(2, 77, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        base = layer(x)
        with regional_sampling(model, [PlacedObject("rex", weights, LEFT, _tokens(4, 5))]):
            out = layer(x)
    delta = x @ weights[f"unet.{CROSS}.to_k.lora_A.weight"].T @ weights[f"unet.{CROSS}.to_k.lora_B.weight"].T
    expected = base.clone()
    expected[1, 4:6] += delta[1, 4:6]
    torch.testing.assert_close(out, expected)


def test_a_convolution_is_the_bases_outside_the_region(model: BaseModel, tiny_base) -> None:
    weights = _lora(model, tiny_base)
    layer = model.denoiser.get_submodule(CONV)
    x = torch.randn(2, layer.in_channels, 20, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        base = layer(x)
        with regional_sampling(model, [PlacedObject("rex", weights, LEFT, _none())]) as regions:
            out = layer(x)
    share = regions.at(20, 20)[0]
    outside, inside = share == 0, share == 1
    assert outside.sum() >= 140 and inside.sum() >= 140
    assert torch.equal(out[..., outside], base[..., outside])
    down, up = weights[f"unet.{CONV}.lora_A.weight"], weights[f"unet.{CONV}.lora_B.weight"]
    delta = torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, down, padding=1), up)
    torch.testing.assert_close(out, base + share * delta, rtol=1e-4, atol=1e-5)
    assert (out - base)[..., inside].abs().min() > 0


def test_a_linear_layer_is_the_bases_outside_and_two_objects_do_not_mix(model: BaseModel, tiny_base) -> None:
    first, second = _lora(model, tiny_base, 1), _lora(model, tiny_base, 2)
    layer = model.denoiser.get_submodule(SELF_Q)
    x = torch.randn(2, 64, layer.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        base = layer(x)
        with regional_sampling(
            model,
            [PlacedObject("rex", first, (0, 0, 0.3, 1), _none()), PlacedObject("cup", second, (0.7, 0, 1, 1), _none())],
        ):
            out = layer(x)
    grid = (out - base).view(2, 8, 8, -1)
    assert torch.equal(grid[:, :, 3:5], torch.zeros_like(grid[:, :, 3:5]))
    for weights, columns in ((first, slice(0, 2)), (second, slice(6, 8))):
        delta = x @ weights[f"unet.{SELF_Q}.lora_A.weight"].T @ weights[f"unet.{SELF_Q}.lora_B.weight"].T
        torch.testing.assert_close(grid[:, :, columns], delta.view(2, 8, 8, -1)[:, :, columns], rtol=1e-4, atol=1e-5)


def test_everything_is_as_before_afterwards(model: BaseModel, tiny_base) -> None:
    base = _predict(model)
    processors = dict(model.denoiser.attn_processors)
    placed = [
        PlacedObject("rex", _lora(model, tiny_base, 1), LEFT, _tokens(4)),
        PlacedObject("cup", _lora(model, tiny_base, 2), RIGHT, _tokens(5)),
    ]
    with regional_sampling(model, placed):
        assert not torch.allclose(_predict(model), base)
    with pytest.raises(RuntimeError, match="inside"), regional_sampling(model, placed):
        raise RuntimeError("inside")
    assert torch.equal(_predict(model), base)
    assert all(model.denoiser.attn_processors[k] is v for k, v in processors.items())
    assert not any(m._forward_hooks for m in model.denoiser.modules())
    assert not any("lora" in n for n, _ in model.denoiser.named_parameters())


def test_an_adapter_of_another_base_leaves_nothing_behind(model: BaseModel) -> None:
    base = _predict(model)
    weights = {f"unet.{name}.lora_{side}.weight": torch.ones(2, 2) for name in (CONV, "no.such.layer") for side in "AB"}
    with (
        pytest.raises(Exception, match=r"no\.such\.layer"),
        regional_sampling(model, [PlacedObject("rex", weights, LEFT, _none())]),
    ):
        pass
    assert not any(m._forward_hooks for m in model.denoiser.modules())
    assert torch.equal(_predict(model), base)


def test_bias_is_the_log_of_the_share_at_the_objects_tokens() -> None:
    placed = [
        PlacedObject("rex", {}, (0, 0, 0.45, 1), _tokens(4, 5)),
        PlacedObject("cup", {}, (0.5, 0, 1, 1), _tokens(9)),
    ]
    attention = RegionalAttention(RegionMasks(placed))
    bias = attention.bias(64, torch.zeros(1)).view(8, 8, 77)
    shares = attention.regions.at(8, 8)
    others = [i for i in range(77) if i not in (4, 5, 9)]
    assert torch.equal(bias[..., others], torch.zeros(8, 8, len(others)))
    assert bias[0, 0, 4] == bias[0, 0, 5] == 0  # log 1
    assert bias[0, 0, 9] == bias[7, 7, 4] == BLOCKED
    some = (shares > 0) & (shares < 1)
    assert some[0].any()
    torch.testing.assert_close(bias[..., 4][some[0]], shares[0][some[0]].log())


def test_without_regions_borders_it_is_the_attention_of_the_base(model: BaseModel) -> None:
    base = _predict(model)
    with regional_sampling(model, [PlacedObject("rex", {}, EVERYWHERE, _tokens(4, 5))]):
        torch.testing.assert_close(_predict(model), base, rtol=1e-4, atol=1e-5)


def test_a_token_is_not_seen_outside_its_region(model: BaseModel) -> None:
    attention = model.denoiser.get_submodule(CROSS)
    g = torch.Generator().manual_seed(0)
    features, words = torch.randn(2, 64, attention.to_q.in_features, generator=g), torch.randn(2, 77, 16, generator=g)
    changed = words.clone()
    changed[:, 4] += 3.0
    with torch.no_grad(), regional_sampling(model, [PlacedObject("rex", {}, (0, 0, 0.4, 1), _tokens(4))]):
        first, second = (attention(features, encoder_hidden_states=w).view(2, 8, 8, -1) for w in (words, changed))
    assert torch.equal(first[1, :, 5:], second[1, :, 5:])
    assert (first[1, :, :2] - second[1, :, :2]).abs().amax(-1).min() > 1e-6
    assert (first[0] - second[0]).abs().amax(-1).min() > 1e-6  # without prompt, no token is anybody's


def test_a_blocked_token_is_as_if_it_were_not_there(model: BaseModel) -> None:
    """Softmax over the other 76 tokens, computed by hand."""
    attention = model.denoiser.get_submodule(CROSS)
    g = torch.Generator().manual_seed(0)
    features, words = torch.randn(2, 64, attention.to_q.in_features, generator=g), torch.randn(2, 77, 16, generator=g)
    with torch.no_grad(), regional_sampling(model, [PlacedObject("rex", {}, (0, 0, 0.4, 1), _tokens(4))]):
        out = attention(features, encoder_hidden_states=words)[1].view(8, 8, -1)[:, 5:].flatten(0, 1)
    with torch.no_grad():
        rest = torch.cat([words[1, :4], words[1, 5:]])
        split = lambda x: x.unflatten(-1, (attention.heads, -1)).transpose(0, 1)  # noqa: E731
        at = features[1].view(8, 8, -1)[:, 5:].flatten(0, 1)
        q, k, v = split(attention.to_q(at)), split(attention.to_k(rest)), split(attention.to_v(rest))
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
        expected = attention.to_out[0]((weights @ v).transpose(0, 1).flatten(1))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_bounded_self_attention_is_closed_between_objects_and_open_to_the_rest() -> None:
    placed = [PlacedObject("rex", {}, (0, 0, 0.3, 1), _none()), PlacedObject("cup", {}, (0.7, 0, 1, 1), _none())]
    bias = BoundedAttention(RegionMasks(placed)).bias(100, torch.zeros(1)).view(10, 10, 10, 10)  # query y, x, key y, x
    assert bias[5, 0, 5, 9] == bias[5, 9, 5, 0] == BLOCKED
    assert bias[5, 0, 2, 1] == bias[5, 0, 5, 5] == bias[5, 5, 5, 9] == bias[5, 5, 0, 5] == 0
    half = BoundedAttention(
        RegionMasks([PlacedObject("rex", {}, LEFT, _none()), PlacedObject("cup", {}, RIGHT, _none())], edge=0.2)
    ).bias(100, torch.zeros(1))
    middle = RegionMasks(
        [PlacedObject("rex", {}, LEFT, _none()), PlacedObject("cup", {}, RIGHT, _none())], edge=0.2
    ).flat(100)[:, 54]
    expected = 1 - float(middle[0] * middle[1] * 2)  # one place looks at itself: both shares, either way round
    assert half[54, 54].exp() == pytest.approx(expected, abs=1e-5)


def test_with_bounds_what_is_in_one_region_is_not_seen_from_the_other(model: BaseModel) -> None:
    attention = model.denoiser.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1")
    features = torch.randn(2, 64, attention.to_q.in_features, generator=torch.Generator().manual_seed(0))
    changed = features.view(2, 8, 8, -1).clone()
    changed[:, :, 7] += 3.0
    placed = [PlacedObject("rex", {}, (0, 0, 0.3, 1), _none()), PlacedObject("cup", {}, (0.7, 0, 1, 1), _none())]
    for bounded in (False, True):
        with torch.no_grad(), regional_sampling(model, placed, bounded=bounded):
            first, second = (attention(f).view(2, 8, 8, -1) for f in (features, changed.flatten(1, 2)))
        moved = (first - second).abs().amax(-1)
        assert (moved[:, :, 0].max() == 0) == bounded
        assert moved[:, :, 4].min() > 1e-6  # what is nobody's sees all


@pytest.mark.parametrize("edge", [0.06, 0.3])
def test_a_softer_region_falls_more_slowly(edge: float) -> None:
    share = RegionMasks([PlacedObject("a", {}, (0.0, 0.0, 0.5, 1.0), _none())], edge=edge).at(100, 100)[0, 50]
    assert int(((share > 0) & (share < 1)).sum()) == pytest.approx(100 * edge, abs=1)


def test_sampling_with_guidance_runs_inside(model: BaseModel, tiny_base) -> None:
    from objtune_cli.generation.sampling import sample
    from objtune_cli.generation.settings import SamplingSettings

    placed = [
        PlacedObject("rex", _lora(model, tiny_base, 1), LEFT, _tokens(4)),
        PlacedObject("cup", _lora(model, tiny_base, 2), RIGHT, _tokens(6)),
    ]
    with regional_sampling(model, placed):
        latents = sample(model, "a photo of a dog", [0, 1, 2], SamplingSettings(2, 3.0))
    assert latents.shape == (3, 4, 8, 8) and latents.isfinite().all()
