"""Placeholder tokens: new words whose vectors come from outside the frozen table."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from objtune_cli.errors import IncompatibleError, InputError
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.conditioning import Conditioning
from objtune_cli.models.prompts import PLACEHOLDER, PLACEHOLDER_TOKENS, placeholder_tokens, with_class_words


class ExtendedEmbedding(nn.Module):
    """The frozen token table with rows after its end that may be learned; the table is not copied."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table
        self.added_rows: dict[str, Tensor] = {}

    @property
    def weight(self) -> Tensor:
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) ids to (B, L, d); ids past the table's end take the added rows."""
        end = self.table.num_embeddings
        known: Tensor = self.table(ids.clamp_max(end - 1))
        if not self.added_rows:
            return known
        extra = torch.cat(list(self.added_rows.values()))[(ids - end).clamp_min(0)]
        return torch.where((ids >= end)[..., None], extra.to(known.dtype), known)


class Placeholders:
    """The words added to one stack: what `<rex>` stands for."""

    def __init__(self, model: BaseModel) -> None:
        self.model = model
        self.tables = [_extend_embedding(encoder) for encoder in model.text_encoders]
        self.table = self.tables[0]
        self.words: dict[str, list[str]] = {}

    def add(self, name: str, rows: Tensor, class_word: str = "") -> None:
        """Make `<name>` stand for the vectors `rows` (k, d), in this order; under several text encoders, theirs side by side.

        Args:
            class_word: What is read in its place by an encoder that knows no added words; the name itself, if there is none.

        Raises:
            ValueError: The name is taken; `replace` gives it other vectors.
        """
        if name in self.words:
            raise ValueError(f"<{name}> is already a word")
        own = placeholder_tokens(name, len(rows))
        for tokenizer, table in zip(self.model.tokenizers, self.tables, strict=True):
            _fill_gap(tokenizer, table)
            tokenizer.add_tokens(own, special_tokens=True)
        self.words[name] = own
        self.model.classes[name] = class_word or name
        self.replace(name, rows)

    def replace(self, name: str, rows: Tensor) -> None:
        """Give a known word other vectors of the same shape; gradients flow through them."""
        for table, part in zip(self.tables, split_encoders(rows, self.model.widths), strict=True):
            table.added_rows[name] = part.to(self.model.device)

    def expand(self, prompt: str) -> str:
        """The prompt with every known `<name>` written as its tokens; a version is dropped."""

        def words(match: re.Match[str]) -> str:
            return " ".join(self.words[match[1]]) if match[1] in self.words else match[0]

        return PLACEHOLDER.sub(words, prompt)

    def encode_with_class_context(
        self,
        prompt: str,
        classes: Mapping[str, str],
        own: Conditioning | None = None,
        plain: Conditioning | None = None,
    ) -> Conditioning:
        """Encode a prompt so that its placeholders act at their own token positions only (ours).

        In a causal text encoder every position reads the tokens before it, and the end token reads all of them. A learned
        token has only been seen as one object in the middle of a photo. It carries that to every later position, and a scene
        of two objects is forgotten. Here every other position is encoded with the class word in place of the placeholder.
        Gradients flow to the placeholders.

        Args:
            classes: Class word of each name that the prompt may mention.
            own: The encoded prompt, if known: all of it, or its tokens up to the last placeholder.
            plain: The encoded prompt in class words, if known: all of it.

        Returns:
            Conditioning of one sample. Rows of T5 and pooled vectors are those of the prompt in class words.
        """
        text, in_class_words = self.expand(prompt), with_class_words(prompt, classes)
        ids, class_ids = self.model.token_ids([text, in_class_words])
        own = self.model.encode_prompt([text], self.count_leading_tokens([prompt])) if own is None else own
        plain = self.model.encode_prompt([in_class_words]) if plain is None else plain
        own_rows, rows = own.sequence[0], plain.sequence[0]
        own_rows = nn.functional.pad(own_rows, (0, 0, 0, len(rows) - len(own_rows)))
        t5_rows = range(len(ids), len(rows))
        is_placeholder = torch.stack([self.token_positions(ids, name) for name in classes]).any(0)
        is_placeholder = torch.cat([is_placeholder, is_placeholder.new_zeros(len(t5_rows))])
        plain_rows = rows[[*_counterparts(ids.tolist(), class_ids.tolist()), *t5_rows]]
        return replace(plain, sequence=torch.where(is_placeholder[:, None], own_rows, plain_rows)[None])

    def count_leading_tokens(self, prompts: Sequence[str]) -> int:
        """Leading tokens of prompts up to their last added word: as many as a causal text encoder must read to say all of these."""
        ids = self.model.token_ids([self.expand(prompt) for prompt in prompts])
        added = ids >= self.table.table.num_embeddings
        return int(added.any(0).nonzero().max()) + 1 if added.any() else 1

    def token_positions(self, ids: Tensor, name: str) -> Tensor:
        """Where the tokens of `<name>` stand in ids (B, L): boolean, same shape."""
        own = torch.tensor(self.model.tokenizer.convert_tokens_to_ids(self.words[name]), device=ids.device)
        return torch.isin(ids, own)

    def token_mask(self, text: str, name: str) -> Tensor:
        """Which rows of an expanded prompt's condition are `<name>`, boolean: its tokens, then what else the family has of it; those behind are not."""
        own = self.token_positions(self.model.token_ids([text]), name)[0]
        return torch.cat([own, self.model.family.t5_token_mask(self.model, text, name).to(own.device)])


def _extend_embedding(encoder: Any) -> ExtendedEmbedding:
    """A text encoder's own table, extended once."""
    table = encoder.get_input_embeddings()
    extended = table if isinstance(table, ExtendedEmbedding) else ExtendedEmbedding(table)
    encoder.set_input_embeddings(extended)
    return extended


def _fill_gap(tokenizer: Any, table: ExtendedEmbedding) -> None:
    """Some bases pad their table past the vocabulary: new ids must lie behind its end."""
    missing = table.table.num_embeddings - len(tokenizer)
    if missing > 0:
        tokenizer.add_tokens([f"<|unused:{i}|>" for i in range(missing)], special_tokens=True)


def _counterparts(ids: list[int], others: list[int]) -> list[int]:
    """For each place of one sequence that of the same token in the other; where there is none, its end."""
    found = [len(others) - 1] * len(ids)
    for block in difflib.SequenceMatcher(None, ids, others, autojunk=False).get_matching_blocks():
        found[block.a : block.a + block.size] = range(block.b, block.b + block.size)
    return found


def class_token_embeddings(model: BaseModel, word: str) -> Tensor:
    """The token vectors of a class word, (n, d); those of several text encoders side by side."""
    parts = []
    for tokenizer, encoder in zip(model.tokenizers, model.text_encoders, strict=True):
        ids: Any = tokenizer(word, add_special_tokens=False).input_ids
        table = encoder.get_input_embeddings().weight
        parts.append(table[torch.tensor(ids, device=table.device)].detach().clone().float())
    return concat_encoders(parts)


def split_encoders(rows: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """Rows (k, d) as each text encoder's own.

    Raises:
        IncompatibleError: They are as wide as no token of this base.
    """
    if rows.shape[-1] != sum(widths):
        raise IncompatibleError(
            f"a token's vectors have {rows.shape[-1]} numbers; this base's have {sum(widths)}",
            "use the base that it was made on",
        )
    return [rows] if len(widths) == 1 else list(rows.split(list(widths), dim=-1))


def concat_encoders(parts: Sequence[Tensor]) -> Tensor:
    """The undoing of `split`."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-1)


def from_encoders(parts: Sequence[Any]) -> Tensor:
    """Rows from each text encoder's own, as artifacts hold them (torch or numpy); a copy."""
    return concat_encoders([torch.tensor(part) if not isinstance(part, Tensor) else part.clone() for part in parts])


@dataclass(frozen=True, slots=True)
class TokenCount:
    """How much of a text one encoder reads: its tokens, and the tokens that the encoder takes at most, start and end included."""

    count: int
    limit: int


def check_objects_read(model: BaseModel, text: str, where: str = "the prompt") -> list[TokenCount]:
    """Check that every text encoder reads all tokens of the objects in an expanded prompt.

    Returns:
        A reading for each encoder that cuts off plain words, without repetitions.

    Raises:
        InputError: An encoder cuts off an object, all or a part.
    """
    names = list(dict.fromkeys(match[1] for match in PLACEHOLDER_TOKENS.finditer(text)))
    found = []
    for tokenizer in model.tokenizers:
        ids = tokenizer(text).input_ids
        own = {
            name: set(tokenizer.convert_tokens_to_ids(placeholder_tokens(name, _count(text, name)))) for name in names
        }
        places = {name: [i for i, token in enumerate(ids) if token in own[name]] for name in names}
        found.append(_count_tokens(tokenizer, text, tokenizer.model_max_length, places, where))
    said = model.with_class_words(text)
    for tokenizer, limit in model.family.t5_tokenizers(model):
        offsets = tokenizer(said, return_offsets_mapping=True).offset_mapping
        spans = {name: model.class_word_spans(text, name) for name in names}
        places = {
            name: [i for i, (a, b) in enumerate(offsets) if any(a < end and b > start for start, end in spans[name])]
            for name in names
        }
        found.append(_count_tokens(tokenizer, said, limit, places, where))
    return list(dict.fromkeys(reading for reading in found if reading.count > reading.limit))


def _count(text: str, name: str) -> int:
    """How many tokens a name has in an expanded text."""
    return max(len(match[0].split()) for match in PLACEHOLDER_TOKENS.finditer(text) if match[1] == name)


def _count_tokens(tokenizer: Any, text: str, limit: int, places: Mapping[str, Sequence[int]], where: str) -> TokenCount:
    """Compare what a tokenizer makes of a text with the part of it that is read; `places`: of each name's tokens."""
    ids, cut = tokenizer(text).input_ids, tokenizer(text, truncation=True, max_length=limit).input_ids
    read = next((i for i, (a, b) in enumerate(zip(ids, cut, strict=False)) if a != b), len(cut))
    for name, own in places.items():
        lost = [i for i in own if i >= read]
        if lost:
            raise InputError(
                f"<{name}> stands at tokens {lost[0] + 1} to {lost[-1] + 1} of {where}, but the base reads only the first {read}",
                f"name <{name}> earlier, or make the text before it shorter",
            )
    return TokenCount(len(ids), limit)
