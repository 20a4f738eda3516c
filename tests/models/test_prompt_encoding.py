"""Prompts with weights and of any length, on a tiny base of every family: the formulas of A1111 and ComfyUI, and nothing else changes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from objtune_cli.models import prompt_encoding
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.conditioning import Conditioning
from objtune_cli.models.families.t5_text_encoder import T5_TOKENS
from objtune_cli.models.loading import load
from objtune_cli.models.placeholders import Placeholders
from tests.support import tiny_families, tiny_sd1

FAMILIES = ("sd1", "sd2", "sdxl", "sd3")
WINDOW = tiny_sd1.TOKENS
PLAIN_PROMPTS = ("a photo of a dog", "", "a dog, red: 3:2 {a|b} -- c++", "x" * (WINDOW - 2), "犬 at 10:30")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_families.folders(tmp_path_factory.mktemp("families"), FAMILIES)


@pytest.fixture(params=FAMILIES)
def any_model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Iterator[BaseModel]:
    with torch.no_grad():
        model = load(folders[request.param], torch.device("cpu"), torch.float32)
        for encoder in model.text_encoders:
            for name, values in encoder.named_parameters():
                if name.endswith("final_layer_norm.bias"):
                    values.fill_(0.1)  # as of trained encoders, the states have a mean that is no rounding
        yield model


def encode(model: BaseModel, text: str, syntax: str) -> Conditioning:
    model.prompt_syntax = syntax
    return model.encode_prompt([text])


def clip_rows(model: BaseModel, condition: Conditioning) -> torch.Tensor:
    """The states of CLIP, (K, L, d)."""
    rows = condition.sequence[0]
    rows = rows[:-T5_TOKENS] if model.family.name.startswith("sd3") else rows
    return rows.view(-1, WINDOW, rows.shape[-1])


def widths(model: BaseModel) -> list[int]:
    """The parts of a state that A1111 weights on their own."""
    return [sum(model.widths)] if model.family.weights_join_encoders else list(model.widths)


@pytest.mark.parametrize("syntax", ["a1111", "comfyui"])
def test_prompts_without_syntax_within_the_window_keep_their_bytes(any_model: BaseModel, syntax: str) -> None:
    words = Placeholders(any_model)
    words.add("rex", torch.randn(3, sum(any_model.widths), generator=torch.Generator().manual_seed(0)), "dog")
    for text in (*PLAIN_PROMPTS, words.expand("a photo of <rex> on the beach")):
        before = any_model.family.encode_prompt(any_model, [text])
        after = encode(any_model, text, syntax)
        assert all(torch.equal(a, b) for a, b in zip(before.tensors(), after.tensors(), strict=True))
        assert torch.equal(any_model.token_ids([text]), any_model.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids)  # fmt: skip


def test_weights_of_one_change_nothing(any_model: BaseModel) -> None:
    plain = encode(any_model, "a photo of a dog", "plain")
    for syntax in ("a1111", "comfyui"):
        weighted = encode(any_model, "a (photo of:1) a (dog:1.0)", syntax)
        for a, b in zip(plain.tensors(), weighted.tensors(), strict=True):
            torch.testing.assert_close(a, b)


def test_a1111_multiplies_and_restores_the_mean(any_model: BaseModel) -> None:
    """Each text encoder of SDXL on its own, those of SD 3 together; T5 and pooled vectors have no weights."""
    plain, weighted = encode(any_model, "ab cd", "plain"), encode(any_model, "ab (cd:1.5)", "a1111")
    weights = torch.ones(WINDOW)
    weights[3:5] = 1.5  # start, a, b, c, d: every letter is a token
    before, after = clip_rows(any_model, plain)[0], clip_rows(any_model, weighted)[0]
    start = 0
    for width in widths(any_model):
        z = before[:, start : start + width]
        expected = z * weights[:, None]
        torch.testing.assert_close(after[:, start : start + width], expected * (z.mean() / expected.mean()))
        start += width
    if plain.pooled is not None:
        torch.testing.assert_close(weighted.pooled, plain.pooled)
    if any_model.text_encoder_3 is not None:
        torch.testing.assert_close(weighted.sequence[:, -T5_TOKENS:], plain.sequence[:, -T5_TOKENS:])


def test_a_mean_of_rounding_errors_is_not_restored() -> None:
    states = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    states[0] -= states[0].mean()
    weighted = prompt_encoding.multiply(states, torch.full((2, 5), 1.5))
    torch.testing.assert_close(weighted, torch.stack([1.5 * states[0], states[1]]))


def test_comfyui_moves_away_from_the_empty_prompt(any_model: BaseModel) -> None:
    plain, weighted = encode(any_model, "ab cd", "plain"), encode(any_model, "ab (cd:1.5)", "comfyui")
    any_model.options = {}  # SDXL's zeros stand for an empty prompt as a whole only
    empty = encode(any_model, "", "plain")
    before, after, origin = (clip_rows(any_model, each)[0] for each in (plain, weighted, empty))
    torch.testing.assert_close(after[3:5], origin[3:5] + 1.5 * (before[3:5] - origin[3:5]))
    torch.testing.assert_close(after[[*range(3), *range(5, WINDOW)]], before[[*range(3), *range(5, WINDOW)]])
    if plain.pooled is not None:
        torch.testing.assert_close(weighted.pooled, plain.pooled)
    if any_model.text_encoder_3 is not None:
        own, base, zero = (each.sequence[0, -T5_TOKENS:] for each in (weighted, plain, empty))
        moved = (own - base).abs().amax(1) > 1e-6
        assert 0 < moved.sum() < 8
        torch.testing.assert_close(own[moved], zero[moved] + 1.5 * (base[moved] - zero[moved]))


def test_a_long_prompt_is_its_chunks_one_after_the_other(any_model: BaseModel) -> None:
    first, second = "x" * (WINDOW - 2), "y" * 20
    for syntax in ("a1111", "comfyui"):
        long = encode(any_model, f"{first} {second}", syntax)
        parts = [encode(any_model, text, "plain") for text in (first, second)]
        states = torch.cat([clip_rows(any_model, part) for part in parts])
        torch.testing.assert_close(clip_rows(any_model, long), states)
        if long.pooled is not None:
            torch.testing.assert_close(long.pooled, parts[0].pooled)
        any_model.prompt_syntax = syntax
        assert torch.equal(any_model.token_ids([f"{first} {second}"])[0, WINDOW:], any_model.token_ids([second])[0])
    broken = encode(any_model, "aa BREAK bb", "a1111")
    torch.testing.assert_close(
        clip_rows(any_model, broken), torch.cat([clip_rows(any_model, encode(any_model, t, "plain")) for t in ("aa", "bb")])
    )  # fmt: skip
    assert clip_rows(any_model, encode(any_model, f"{first} {second}", "plain")).shape[0] == 1


def test_an_object_stays_in_one_chunk_and_its_tokens_are_found(any_model: BaseModel) -> None:
    words = Placeholders(any_model)
    words.add("rex", torch.randn(3, sum(any_model.widths), generator=torch.Generator().manual_seed(0)), "dog")
    any_model.prompt_syntax = "a1111"
    text = words.expand(f"{'x' * (WINDOW - 3)} (<rex>:1.2) on the beach")
    mask = words.token_mask(text, "rex")
    assert mask[: 2 * WINDOW].nonzero().flatten().tolist() == [WINDOW + 1, WINDOW + 2, WINDOW + 3]
    assert len(mask) == any_model.encode_prompt([text]).sequence.shape[1]
    if any_model.text_encoder_3 is not None:
        tokens = prompt_encoding.t5_tokens(any_model.tokenizer_3, any_model.with_class_words(text), "a1111", T5_TOKENS)
        assert tokens is not None
        plain = "x" * (WINDOW - 3) + " a dog on the beach"
        ranges = {tokens.offsets[row] for row in mask[2 * WINDOW :].nonzero().flatten().tolist()}
        assert "".join(plain[start:end] for start, end in sorted(ranges)).strip() == "dog"


def test_class_context_of_a_prompt_with_weights(any_model: BaseModel) -> None:
    """Other positions are those of the class word, in chunks as in one window."""
    words = Placeholders(any_model)
    words.add("rex", torch.randn(2, sum(any_model.widths), generator=torch.Generator().manual_seed(0)), "dog")
    any_model.prompt_syntax = "a1111"
    for prompt in (f"a <rex> {'y ' * 90}", f"{'y ' * 90} a (<rex>:1.3) z"):
        text, in_class_words = words.expand(prompt), any_model.with_class_words(words.expand(prompt))
        mixed = words.encode_with_class_context(prompt, {"rex": "dog"}, any_model.encode_prompt([text]))
        own, plain = any_model.encode_prompt([text]), any_model.encode_prompt([in_class_words])
        mask = words.token_mask(text, "rex")
        assert torch.equal(mixed.sequence[0, mask[: mixed.sequence.shape[1]]][:2], own.sequence[0, mask][:2])
        assert torch.equal(mixed.sequence[0, 0], plain.sequence[0, 0]) and mixed.sequence.shape == own.sequence.shape


def test_prompts_of_different_lengths_fit_into_one_batch(any_model: BaseModel) -> None:
    """Repeated text features do not change what cross-attention gives; SD 3 gets empty chunks."""
    short, long = (encode(any_model, text, "a1111") for text in ("a dog", "z" * 160))
    same = any_model.match_lengths([short, short])
    assert all(torch.equal(a, b) for each in same for a, b in zip(each.tensors(), short.tensors(), strict=True))
    matched, kept = any_model.match_lengths([short, long])
    assert len(Conditioning.concat([matched, kept])) == 2 and torch.equal(kept.sequence, long.sequence)
    side = any_model.resolution // any_model.vae_scale_factor
    z = torch.randn(1, any_model.denoiser.config.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([500])
    if any_model.family.name == "sd3":
        empty = any_model.encode_prompt([""]).sequence[:, :WINDOW]
        expected = torch.cat([short.sequence, empty, empty], dim=1)
        assert torch.equal(matched.sequence, expected)
    else:
        torch.testing.assert_close(any_model.predict(z, t, matched), any_model.predict(z, t, short))
