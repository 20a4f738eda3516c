"""Placeholder tokens: new words whose vectors come from outside the frozen table."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from objtune_cli.models.stack import Stack

PLACEHOLDER = re.compile(r"<([a-z0-9][a-z0-9._-]*)(?:@([0-9]+))?>")
"""`<name>` or `<name@version>` in a prompt."""


class ExtendedTable(nn.Module):
    """The frozen token table with rows after its end that may be learned; the table is not copied."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table
        self.rows: dict[str, Tensor] = {}

    @property
    def weight(self) -> Tensor:
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) ids to (B, L, d); ids past the table's end take the added rows."""
        end = self.table.num_embeddings
        known = self.table(ids.clamp_max(end - 1))
        if not self.rows:
            return known
        extra = torch.cat(list(self.rows.values()))[(ids - end).clamp_min(0)]
        return torch.where((ids >= end)[..., None], extra.to(known.dtype), known)


class Placeholders:
    """The words added to one stack: what `<rex>` stands for."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        table = stack.text_encoder.get_input_embeddings()
        self.table = table if isinstance(table, ExtendedTable) else ExtendedTable(table)
        stack.text_encoder.set_input_embeddings(self.table)
        self.words: dict[str, list[str]] = {}

    def add(self, name: str, rows: Tensor) -> None:
        """Make `<name>` stand for the vectors `rows` (k, d), in this order.

        Raises:
            ValueError: The name is taken; `replace` gives it other vectors.
        """
        if name in self.words:
            raise ValueError(f"<{name}> is already a word")
        pieces = [f"<|{name}:{i}|>" for i in range(len(rows))]
        if len(self.stack.tokenizer) < self.table.table.num_embeddings:
            self._fill_gap()
        self.stack.tokenizer.add_tokens(pieces, special_tokens=True)
        self.words[name] = pieces
        self.replace(name, rows)

    def replace(self, name: str, rows: Tensor) -> None:
        """Give a known word other vectors of the same shape; gradients flow through them."""
        self.table.rows[name] = rows.to(self.stack.device)

    def expand(self, prompt: str) -> str:
        """The prompt with every known `<name>` written as its tokens; a version is dropped."""

        def words(match: re.Match[str]) -> str:
            return " ".join(self.words[match[1]]) if match[1] in self.words else match[0]

        return PLACEHOLDER.sub(words, prompt)

    def in_context(self, prompt: str, classes: Mapping[str, str], own: Tensor | None = None, plain: Tensor | None = None) -> Tensor:
        """Condition (1, rows, d) of a prompt in which the added words are heard at their own places alone (ours).

        A text encoder lets every place hear the words before it, the end of the sentence all of them: a learned word, which
        has only ever stood for one thing in the middle of a picture, then says so everywhere, and a scene of two things is
        forgotten. Here each other place is as it would be with the class word instead. Gradients flow to the added words.

        Args:
            classes: Class word of each name that the prompt may mention.
            own, plain: The conditions of the prompt as it is and in class words, where they are known.
        """
        text, said = self.expand(prompt), in_class_words(prompt, classes)
        ids, others = self.stack.token_ids([text, said])
        own = (self.stack.encode([text]) if own is None else own)[0]
        rest = (self.stack.encode([said]) if plain is None else plain)[0]
        more = range(len(ids), len(own))  # rows that are no token's: what a family says of the whole prompt
        named = torch.stack([self.positions(ids, name) for name in classes]).any(0)
        named = torch.cat([named, named.new_zeros(len(more))])
        return torch.where(named[:, None], own, rest[[*_counterparts(ids.tolist(), others.tolist()), *more]])[None]

    def positions(self, ids: Tensor, name: str) -> Tensor:
        """Where the tokens of `<name>` stand in ids (B, L): boolean, same shape."""
        own = torch.tensor(self.stack.tokenizer.convert_tokens_to_ids(self.words[name]), device=ids.device)
        return torch.isin(ids, own)

    def _fill_gap(self) -> None:
        """Some bases pad their table past the vocabulary: new ids must lie behind its end."""
        missing = self.table.table.num_embeddings - len(self.stack.tokenizer)
        self.stack.tokenizer.add_tokens([f"<|unused:{i}|>" for i in range(missing)], special_tokens=True)


def in_class_words(prompt: str, classes: Mapping[str, str]) -> str:
    """The prompt with each `<name>` as "a <class>"; an article or a possessive before it stays the only one."""
    for name, word in classes.items():
        named = rf"<{re.escape(name)}(?:@[0-9]+)?>"
        prompt = re.sub(rf"\b(the|my|your|his|her|its|their|this|that|an?)\s+{named}", r"\g<1> " + word.replace("\\", ""), prompt)
        prompt = re.sub(named, f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}", prompt)
    return prompt


def _counterparts(ids: list[int], others: list[int]) -> list[int]:
    """For each place of one sequence that of the same token in the other; where there is none, its end."""
    found = [len(others) - 1] * len(ids)
    for block in difflib.SequenceMatcher(None, ids, others, autojunk=False).get_matching_blocks():
        found[block.a : block.a + block.size] = range(block.b, block.b + block.size)
    return found


def class_rows(stack: Stack, word: str) -> Tensor:
    """The token vectors of a class word, (n, d)."""
    ids: Any = stack.tokenizer(word, add_special_tokens=False).input_ids
    table = stack.text_encoder.get_input_embeddings().weight
    return table[torch.tensor(ids, device=table.device)].detach().clone().float()
