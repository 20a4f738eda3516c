"""Placeholder tokens: new words with token vectors of their own, next to the frozen token table."""

import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from objtune_cli.errors import IncompatibleError, InputError
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.conditioning import Conditioning
from objtune_cli.models.prompt_encoding import needs_chunks
from objtune_cli.models.prompt_syntax import PLAIN, name_class_words, plain_text
from objtune_cli.models.prompts import PLACEHOLDER, PLACEHOLDER_TOKENS, placeholder_tokens


class ExtendedEmbedding(nn.Module):
    """The frozen token table with trainable rows after its end; the table is not copied."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table
        self.added_rows: dict[str, Tensor] = {}

    @property
    def weight(self) -> Tensor:
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Token vectors (B, L, d) of ids (B, L); ids past the table's end select the added rows."""
        end = self.table.num_embeddings
        embedded: Tensor = self.table(ids.clamp_max(end - 1))
        if not self.added_rows:
            return embedded
        extra = torch.cat(list(self.added_rows.values()))[(ids - end).clamp_min(0)]
        return torch.where((ids >= end)[..., None], extra.to(embedded.dtype), embedded)


class Placeholders:
    """The placeholders added to one base model, such as `<rex>`."""

    def __init__(self, model: BaseModel) -> None:
        self.model = model
        self.tables = [_extend_embedding(encoder) for encoder in model.text_encoders]
        self.table = self.tables[0]
        self.words: dict[str, list[str]] = {}

    def add(self, name: str, rows: Tensor, class_word: str = "") -> None:
        """Add the placeholder `<name>` with token vectors `rows` (k, d), concatenated over the text encoders.

        Args:
            class_word: The word that T5, which has no placeholders, reads instead; "" for the name itself.

        Raises:
            ValueError: The placeholder exists; `replace` changes its vectors.
        """
        if name in self.words:
            raise ValueError(f"the placeholder <{name}> exists")
        own = placeholder_tokens(name, len(rows))
        for tokenizer, table in zip(self.model.tokenizers, self.tables, strict=True):
            _fill_gap(tokenizer, table)
            self.model.family.add_tokens(tokenizer, own)
        self.words[name] = own
        self.model.classes[name] = class_word or name
        self.replace(name, rows)

    def replace(self, name: str, rows: Tensor) -> None:
        """Replace the vectors of a placeholder with others of the same shape; gradients flow through them."""
        for table, part in zip(self.tables, split_encoders(rows, self.model.widths), strict=True):
            table.added_rows[name] = part.to(self.model.device)

    def expand(self, prompt: str) -> str:
        """Replace every `<name>` or `<name@version>` of a placeholder in a prompt by its tokens."""

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
        text = self.expand(prompt)
        in_class_words = name_class_words(prompt, classes, self.model.prompt_syntax)
        ids, class_ids = (self.model.token_ids([each])[0] for each in (text, in_class_words))
        own = self.model.encode_prompt([text], self.count_leading_tokens([prompt])) if own is None else own
        plain = self.model.encode_prompt([in_class_words]) if plain is None else plain
        own_rows, rows = own.sequence[0], plain.sequence[0]
        t5_rows = range(len(class_ids), len(rows))
        own_rows = nn.functional.pad(own_rows, (0, 0, 0, len(ids) + len(t5_rows) - len(own_rows)))
        is_placeholder = torch.stack([self.token_positions(ids, name) for name in classes]).any(0)
        is_placeholder = torch.cat([is_placeholder, is_placeholder.new_zeros(len(t5_rows))])
        plain_rows = rows[[*_counterparts(tuple(ids.tolist()), tuple(class_ids.tolist())), *t5_rows]]
        return replace(plain, sequence=torch.where(is_placeholder[:, None], own_rows, plain_rows)[None])

    def count_leading_tokens(self, prompts: Sequence[str]) -> int:
        """Number of leading tokens up to the last placeholder in prompts; a causal text encoder needs no more to encode them."""
        ids = self.model.token_ids([self.expand(prompt) for prompt in prompts])
        added = ids >= self.table.table.num_embeddings
        return int(added.any(0).nonzero().max()) + 1 if added.any() else 1

    def token_positions(self, ids: Tensor, name: str) -> Tensor:
        """Mask (B, L) of the tokens of `<name>` in ids (B, L)."""
        own = torch.tensor(self.model.tokenizer.convert_tokens_to_ids(self.words[name]), device=ids.device)
        return torch.isin(ids, own)

    def token_mask(self, text: str, name: str) -> Tensor:
        """Mask of the text features of `<name>` for an expanded prompt: CLIP's tokens, then T5's if the family has it."""
        own = self.token_positions(self.model.token_ids([text]), name)[0]
        return torch.cat([own, self.model.family.t5_token_mask(self.model, text, name).to(own.device)])


def _extend_embedding(encoder: Any) -> ExtendedEmbedding:
    """Extend a text encoder's token table, once."""
    table = encoder.get_input_embeddings()
    extended = table if isinstance(table, ExtendedEmbedding) else ExtendedEmbedding(table)
    encoder.set_input_embeddings(extended)
    return extended


def _fill_gap(tokenizer: Any, table: ExtendedEmbedding) -> None:
    """Add unused tokens up to the table's end, because some bases pad it past the vocabulary."""
    missing = table.table.num_embeddings - len(tokenizer)
    if missing > 0:
        tokenizer.add_tokens([f"<|unused:{i}|>" for i in range(missing)], special_tokens=True)


@functools.lru_cache(maxsize=64)  # every step of a run compares the same few prompts, of up to 512 tokens
def _counterparts(ids: tuple[int, ...], others: tuple[int, ...]) -> tuple[int, ...]:
    """For each token of one sequence the position of the same token in the other, or its last position."""
    positions = [len(others) - 1] * len(ids)
    for block in difflib.SequenceMatcher(None, ids, others, autojunk=False).get_matching_blocks():
        positions[block.a : block.a + block.size] = range(block.b, block.b + block.size)
    return tuple(positions)


def class_token_embeddings(model: BaseModel, word: str) -> Tensor:
    """The token vectors (n, d) of a class word, concatenated over the text encoders."""
    parts = []
    for tokenizer, encoder in zip(model.tokenizers, model.text_encoders, strict=True):
        ids = model.family.word_ids(tokenizer, word)
        table = encoder.get_input_embeddings().weight
        parts.append(table[torch.tensor(ids, device=table.device)].detach().clone().float())
    return concat_encoders(parts)


def split_encoders(rows: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """Split token vectors (k, d) into those of each text encoder.

    Raises:
        IncompatibleError: The width d differs from that of the base.
    """
    if rows.shape[-1] != sum(widths):
        raise IncompatibleError(
            f"token vectors have {rows.shape[-1]} numbers; those of this base have {sum(widths)}",
            "use the base that they were trained on",
        )
    return [rows] if len(widths) == 1 else list(rows.split(list(widths), dim=-1))


def concat_encoders(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate the token vectors of the text encoders; the inverse of `split_encoders`."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-1)


def from_encoders(parts: Sequence[Any]) -> Tensor:
    """Concatenate a copy of the token vectors of the text encoders, from torch or numpy."""
    return concat_encoders([torch.tensor(part) if not isinstance(part, Tensor) else part.clone() for part in parts])


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Number of tokens of a text for one text encoder, and the encoder's maximum, with start and end token."""

    count: int
    limit: int


def check_objects_read(model: BaseModel, text: str, where: str = "the prompt") -> list[TokenCount]:
    """Check that every text encoder reads all tokens of the objects in an expanded prompt.

    Returns:
        The token count for each encoder that cuts off other words, without repetitions.

    Raises:
        InputError: An encoder cuts off tokens of an object.
    """
    names = list(dict.fromkeys(match[1] for match in PLACEHOLDER_TOKENS.finditer(text)))
    counts = []
    is_chunked = model.prompt_syntax != PLAIN and needs_chunks(model, text)
    for tokenizer in () if is_chunked else model.tokenizers:
        read_text = model.family.prompt_text(model, text)
        ids = tokenizer(read_text).input_ids
        own = {
            name: set(tokenizer.convert_tokens_to_ids(placeholder_tokens(name, _count(text, name)))) for name in names
        }
        places = {name: [i for i, token in enumerate(ids) if token in own[name]] for name in names}
        counts.append(_count_tokens(tokenizer, read_text, tokenizer.model_max_length, places, where))
    class_text = plain_text(model.with_class_words(text), model.prompt_syntax)
    for tokenizer, limit in model.family.t5_tokenizers(model):
        offsets = tokenizer(class_text, return_offsets_mapping=True).offset_mapping
        spans = {name: model.class_word_spans(text, name) for name in names}
        places = {
            name: [i for i, (a, b) in enumerate(offsets) if any(a < end and b > start for start, end in spans[name])]
            for name in names
        }
        counts.append(_count_tokens(tokenizer, class_text, limit, places, where))
    return list(dict.fromkeys(reading for reading in counts if reading.count > reading.limit))


def _count(text: str, name: str) -> int:
    """Number of tokens of a name in an expanded text."""
    return max(len(match[0].split()) for match in PLACEHOLDER_TOKENS.finditer(text) if match[1] == name)


def _count_tokens(tokenizer: Any, text: str, limit: int, places: Mapping[str, Sequence[int]], where: str) -> TokenCount:
    """Count a text's tokens, and check that none of the positions `places` of each name's tokens is cut off."""
    ids, cut = tokenizer(text).input_ids, tokenizer(text, truncation=True, max_length=limit).input_ids
    limit_index = next((i for i, (a, b) in enumerate(zip(ids, cut, strict=False)) if a != b), len(cut))
    for name, own in places.items():
        cut_off = [i for i in own if i >= limit_index]
        if cut_off:
            raise InputError(
                f"<{name}> is at tokens {cut_off[0] + 1} to {cut_off[-1] + 1} of {where}, but the base reads only the first {limit_index}",
                f"move <{name}> forward, or shorten the text before it",
            )
    return TokenCount(len(ids), limit)
