"""Encode prompts of any length and with weights: chunks of the text encoder's window, as A1111 and ComfyUI do.

A1111 multiplies the states of each token by its weight and restores the mean of the chunk. ComfyUI moves the states from those of
the empty prompt: z_0 + w (z - z_0). Pooled vectors have no weights; they come from the first chunk.
Sources: `sd_hijack_clip.py` and `sd_emphasis.py` of A1111, `sd1_clip.py` of ComfyUI.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from objtune_cli.models.prompt_syntax import A1111, COMFYUI, PLAIN, ParsedPrompt, has_syntax, parse
from objtune_cli.models.prompts import PLACEHOLDER_TOKENS

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.models.conditioning import Conditioning

SPECIAL_TOKENS = 2
"""Start and end token of each chunk."""
A1111_WINDOW, COMMA_BACKTRACK = 75, 20
"""A1111 moves the words after the last comma to the next chunk if they are at most 20 of the 75 tokens."""
LONG_WORD = 8
"""Number of tokens from which ComfyUI splits a word at the end of a chunk."""

ROUNDING = 1e-5
"""Means below this fraction of the mean magnitude are rounding errors."""


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """Tokens of equal weight that stay in one chunk: a token or a word, or all tokens of one object."""

    ids: tuple[int, ...]
    weight: float
    is_object: bool = False


@dataclass(frozen=True, slots=True)
class Chunks:
    """Token ids and weights of a prompt's chunks, K lists of L numbers, with start, end and padding tokens."""

    ids: list[list[int]]
    weights: list[list[float]]


def needs_chunks(model: "BaseModel", text: str) -> bool:
    """Whether a prompt has weights or breaks, or is longer than a text encoder's window; never in plain syntax, or if the family reads no weights."""
    if model.prompt_syntax == PLAIN or not model.family.reads_prompt_weights:
        return False
    if has_syntax(text, model.prompt_syntax):
        return True
    return any(len(tokenizer(text).input_ids) > tokenizer.model_max_length for tokenizer in model.tokenizers)


def encode(model: "BaseModel", text: str) -> "Conditioning":
    """Encode one prompt in chunks; B = 1."""
    chunks = [split(tokenizer, parse(text, model.prompt_syntax), model.prompt_syntax) for tokenizer in model.tokenizers]
    count = max(len(each.ids) for each in chunks)
    for tokenizer, each in zip(model.tokenizers, chunks, strict=True):
        _add_empty(each, tokenizer, count)
    encoded = model.family.encode_chunks(model, [torch.tensor(each.ids, device=model.device) for each in chunks])
    states = _apply_weights(model, [state for state, _ in encoded], chunks)
    pooled = [vectors if vectors is None else vectors[:1] for _, vectors in encoded]
    return model.family.join_chunks(model, text, [state.flatten(0, 1)[None] for state in states], pooled)


def token_ids(model: "BaseModel", text: str, tokenizer: Any) -> Tensor:
    """Token ids (1, K L) of a prompt's chunks, one after the other."""
    count = max(
        len(split(each, parse(text, model.prompt_syntax), model.prompt_syntax).ids) for each in model.tokenizers
    )
    chunks = split(tokenizer, parse(text, model.prompt_syntax), model.prompt_syntax)
    _add_empty(chunks, tokenizer, count)
    return torch.tensor(chunks.ids, device=model.device).flatten()[None]


def split(tokenizer: Any, parsed: ParsedPrompt, syntax: str) -> Chunks:
    """Split a prompt into chunks of the tokenizer's window."""
    size = tokenizer.model_max_length - SPECIAL_TOKENS
    chunks = Chunks([], [])
    for part in parsed.chunks():
        groups = [group for text, weight in part for group in _tokenize(tokenizer, text, weight, syntax)]
        filled = _fill_comfyui(groups, size) if syntax == COMFYUI else _fill_a1111(groups, size, _comma(tokenizer))
        for tokens in filled:
            _add_chunk(chunks, tokenizer, tokens)
    if len(chunks.ids) > 1 and parsed.breaks and _is_empty(chunks.ids[-1], tokenizer):  # behind a break at the end
        chunks.ids.pop()
        chunks.weights.pop()
    return chunks


def _tokenize(tokenizer: Any, text: str, weight: float, syntax: str) -> list[TokenGroup]:
    """The tokens of a text of one weight; `syntax` decides what stays together."""
    groups: list[TokenGroup] = []
    end = 0
    for match in [*PLACEHOLDER_TOKENS.finditer(text), None]:
        between = text[end : match.start() if match else None]
        words = between.split() if syntax == COMFYUI else [between]
        for ids in tokenizer(words, add_special_tokens=False).input_ids if words else []:
            groups += [TokenGroup(tuple(ids), weight)] if syntax == COMFYUI else [TokenGroup((i,), weight) for i in ids]
        if match:
            ids = tokenizer(match[0], add_special_tokens=False).input_ids
            groups.append(TokenGroup(tuple(ids), weight, is_object=True))
            end = match.end()
    return groups


def _comma(tokenizer: Any) -> int:
    """The id of the comma as a word; -1 if the tokenizer has none."""
    return int(tokenizer.get_vocab().get(",</w>", -1))


def _fill_a1111(groups: Sequence[TokenGroup], size: int, comma: int) -> list[list[tuple[int, float]]]:
    """Fill chunks one token after the other; words behind a late comma move to the next chunk together."""
    chunks: list[list[tuple[int, float]]] = [[]]
    backtrack, after_comma = COMMA_BACKTRACK * size // A1111_WINDOW, -1
    for group in groups:
        if group.ids == (comma,) and not group.is_object:
            after_comma = len(chunks[-1])
        elif len(chunks[-1]) == size and after_comma >= 0 and size - after_comma <= backtrack:
            chunks[-1], moved = chunks[-1][: after_comma + 1], chunks[-1][after_comma + 1 :]
            chunks.append(moved)
            after_comma = -1
        tokens = [(i, group.weight) for i in group.ids]
        while tokens:
            room = size - len(chunks[-1])
            if room == 0 or (group.is_object and len(tokens) > room and chunks[-1]):
                chunks.append([])
                after_comma = -1
                continue
            chunks[-1] += tokens[:room]
            tokens = tokens[room:]
    return chunks


def _fill_comfyui(groups: Sequence[TokenGroup], size: int) -> list[list[tuple[int, float]]]:
    """Fill chunks one word after the other; a word that does not fit moves to the next chunk, a long one is split."""
    chunks: list[list[tuple[int, float]]] = [[]]
    for group in groups:
        tokens = [(i, group.weight) for i in group.ids]
        is_long = len(tokens) >= LONG_WORD and not (group.is_object and len(tokens) <= size)
        while tokens:
            room = size - len(chunks[-1])
            if len(tokens) <= room:
                chunks[-1] += tokens
                break
            if is_long:
                chunks[-1] += tokens[:room]
                tokens = tokens[room:]
            chunks.append([])
    return chunks


def _add_chunk(chunks: Chunks, tokenizer: Any, tokens: Sequence[tuple[int, float]]) -> None:
    """Add a chunk with start and end token, padded to the tokenizer's window."""
    length = tokenizer.model_max_length
    ids = [tokenizer.bos_token_id, *(i for i, _ in tokens), tokenizer.eos_token_id]
    weights = [1.0, *(weight for _, weight in tokens), 1.0]
    chunks.ids.append(ids + [tokenizer.pad_token_id] * (length - len(ids)))
    chunks.weights.append(weights + [1.0] * (length - len(weights)))


def _add_empty(chunks: Chunks, tokenizer: Any, count: int) -> None:
    """Add empty chunks up to `count`."""
    while len(chunks.ids) < count:
        _add_chunk(chunks, tokenizer, ())


def _is_empty(ids: Sequence[int], tokenizer: Any) -> bool:
    return bool(ids[1] == tokenizer.eos_token_id)


def _apply_weights(model: "BaseModel", states: list[Tensor], chunks: Sequence[Chunks]) -> list[Tensor]:
    """Apply the weights to the states (K, L, d) of each text encoder."""
    weights = [state.new_tensor(each.weights) for state, each in zip(states, chunks, strict=True)]
    if all(bool((each == 1).all()) for each in weights):
        return states
    if model.prompt_syntax == A1111:
        if not model.family.weights_join_encoders:
            return [multiply(state, each) for state, each in zip(states, weights, strict=True)]
        joined = torch.cat(states, dim=-1)
        split_weights = torch.cat(
            [each[..., None].expand_as(state) for state, each in zip(states, weights, strict=True)], dim=-1
        )
        return list(_restore_mean(joined, joined * split_weights).split([each.shape[-1] for each in states], dim=-1))
    empty = [Chunks([], []) for _ in states]
    for tokenizer, each in zip(model.tokenizers, empty, strict=True):
        _add_empty(each, tokenizer, 1)
    origins = model.family.encode_chunks(model, [torch.tensor(each.ids, device=model.device) for each in empty])
    return [interpolate(z, w, origin[0]) for z, w, (origin, _) in zip(states, weights, origins, strict=True)]


def multiply(states: Tensor, weights: Tensor) -> Tensor:
    """A1111's weighting of states (K, L, d) by weights (K, L): multiply, then restore the mean of each chunk."""
    return _restore_mean(states, states * weights[..., None])


def _restore_mean(states: Tensor, weighted: Tensor) -> Tensor:
    """Scale each chunk of `weighted` (K, L, d) to the mean of `states`; a chunk whose mean is 0, up to rounding, stays."""
    before, after = states.mean(dim=(1, 2), keepdim=True), weighted.mean(dim=(1, 2), keepdim=True)
    rounding = ROUNDING * weighted.abs().mean(dim=(1, 2), keepdim=True)
    is_zero = torch.minimum(before.abs(), after.abs()) <= rounding
    return weighted * torch.where(is_zero, torch.ones_like(after), before / after)


def interpolate(states: Tensor, weights: Tensor, empty: Tensor) -> Tensor:
    """ComfyUI's weighting of states (K, L, d) by weights (K, L), from the states (L, d) of the empty prompt."""
    weighted = empty + (states - empty) * weights[..., None]
    return torch.where(weights[..., None] == 1, states, weighted)


@dataclass(frozen=True, slots=True)
class T5Tokens:
    """Token ids and weights of T5, padded to its window, and the range [start, end) of each token in the plain text."""

    ids: list[int]
    weights: list[float]
    offsets: list[tuple[int, int]]


def t5_tokens(tokenizer: Any, text: str, syntax: str, length: int, *, always: bool = False) -> T5Tokens | None:
    """The T5 tokens of a prompt in a syntax; None if it has no syntax, unless `always`."""
    if not always and not has_syntax(text, syntax):
        return None
    tokens: list[tuple[int, float, tuple[int, int]]] = []
    at = 0
    for run, weight in [run for chunk in parse(text, syntax).chunks() for run in chunk]:
        encoding = tokenizer(run, add_special_tokens=False, return_offsets_mapping=True)
        tokens += [
            (i, weight, (at + a, at + b)) for i, (a, b) in zip(encoding.input_ids, encoding.offset_mapping, strict=True)
        ]
        at += len(run)
    tokens = [*tokens[: length - 1], (tokenizer.eos_token_id, 1.0, (0, 0))]
    tokens += [(tokenizer.pad_token_id, 1.0, (0, 0))] * (length - len(tokens))
    ids, weights, offsets = (list(column) for column in zip(*tokens, strict=True))
    return T5Tokens(ids, weights, offsets)
