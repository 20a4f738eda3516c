"""Placeholder tokens: new words whose vectors come from outside the frozen table."""

import re
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

    def positions(self, ids: Tensor, name: str) -> Tensor:
        """Where the tokens of `<name>` stand in ids (B, L): boolean, same shape."""
        own = torch.tensor(self.stack.tokenizer.convert_tokens_to_ids(self.words[name]), device=ids.device)
        return torch.isin(ids, own)

    def _fill_gap(self) -> None:
        """Some bases pad their table past the vocabulary: new ids must lie behind its end."""
        missing = self.table.table.num_embeddings - len(self.stack.tokenizer)
        self.stack.tokenizer.add_tokens([f"<|unused:{i}|>" for i in range(missing)], special_tokens=True)


def class_rows(stack: Stack, word: str) -> Tensor:
    """The token vectors of a class word, (n, d)."""
    ids: Any = stack.tokenizer(word, add_special_tokens=False).input_ids
    table = stack.text_encoder.get_input_embeddings().weight
    return table[torch.tensor(ids, device=table.device)].detach().clone().float()
