r"""Weights, chunk breaks and escapes in prompts, as A1111 and ComfyUI read them.

| syntax | `(a)` | `(a:1.3)` | `[a]` | `BREAK` | escapes |
|---|---|---|---|---|---|
| a1111 | weight x 1.1 | weight x 1.3 | weight / 1.1 | starts a new chunk | `\(`, `\)`, `\[`, `\]`, `\\` |
| comfyui | weight x 1.1 | weight = 1.3 | text | text | `\(`, `\)` |
| plain | text | text | text | text | none |

Sources: `prompt_parser.py` of A1111 and `sd1_clip.py` of ComfyUI. Differences from A1111: a `BREAK` within brackets breaks too, and a
single backslash stays. `[a:b:0.5]` and `[a|b]`, which change the prompt during sampling, are text here; `prompt_editing` reads them before.
"""

import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from objtune_cli.models.prompt_brackets import A1111 as A1111
from objtune_cli.models.prompt_brackets import COMFYUI as COMFYUI
from objtune_cli.models.prompt_brackets import LORA_TAG, MAX_WEIGHT, NUMBER, find_groups
from objtune_cli.models.prompt_brackets import PLAIN as PLAIN
from objtune_cli.models.prompt_brackets import find_fault as find_fault
from objtune_cli.models.prompts import class_word_edits, with_class_words

DECIMALS = 6
"""Decimals to which weights are rounded."""


@dataclass(frozen=True, slots=True)
class ParsedPrompt:
    """A prompt without its syntax.

    Attributes:
        text: The plain text; each `BREAK` is one space.
        weights: Weight of each character of `text`.
        breaks: Positions in `text` at which a new chunk starts, ascending.
        loras: Name and weight of each `<lora:name:0.7>`, in order.
    """

    text: str
    weights: tuple[float, ...]
    breaks: tuple[int, ...] = ()
    loras: tuple[tuple[str, float], ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether all weights are 1 and nothing breaks."""
        return not self.breaks and all(weight == 1 for weight in self.weights)

    def chunks(self) -> list[list[tuple[str, float]]]:
        """The texts between breaks, each as runs of equal weight."""
        edges = [0, *self.breaks, len(self.text)]
        return [self._runs(start, end) for start, end in itertools.pairwise(edges)]

    def _runs(self, start: int, end: int) -> list[tuple[str, float]]:
        runs: list[tuple[str, float]] = []
        first = start
        for i in range(start + 1, end + 1):
            if i == end or self.weights[i] != self.weights[first]:
                runs.append((self.text[first:i], self.weights[first]))
                first = i
        return runs

    def keep(self, indices: Sequence[int]) -> "ParsedPrompt":
        """Only the characters at these positions, ascending; breaks move along."""
        text = "".join(self.text[i] for i in indices)
        before = [sum(i < position for i in indices) for position in self.breaks]
        return replace(self, text=text, weights=tuple(self.weights[i] for i in indices), breaks=tuple(before))

    def splice(self, start: int, end: int, text: str) -> "ParsedPrompt":
        """Replace the characters [start, end) by a text with the weight of the last of them."""
        weights = (*self.weights[:start], *[self.weights[end - 1]] * len(text), *self.weights[end:])
        moved = tuple(at if at <= start else max(at + len(text) - (end - start), start) for at in self.breaks)
        return replace(self, text=self.text[:start] + text + self.text[end:], weights=weights, breaks=moved)


@functools.lru_cache(maxsize=256)
def parse(text: str, syntax: str) -> ParsedPrompt:
    """Read a prompt; never fails. Brackets without a partner are text; weights are at most `MAX_WEIGHT`."""
    if syntax == PLAIN:
        return ParsedPrompt(text, (1.0,) * len(text))
    text, loras = extract_loras(text)
    groups = find_groups(text, syntax)
    characters, weights, breaks = list[str](), list[float](), list[int]()
    active: list[tuple[int, float, float]] = []  # closing position, weight before, weight within
    ends = {close: after for _, (close, _, after) in groups.opened.items()}
    weight, i = 1.0, 0
    while i < len(text):
        if i in groups.opened:
            close, value, _ = groups.opened[i]
            within = value(weight)
            active.append((close, weight, within))
            weight, i = within, i + 1
        elif i in ends:
            weight = _close(active, i)
            i = ends[i]
        elif i in groups.escaped:
            characters.append(text[i + 1])
            weights.append(weight)
            i += 2
        elif i in groups.breaks:
            characters.append(" ")
            weights.append(1.0)
            breaks.append(len(characters))
            i = groups.breaks[i]
        else:
            characters.append(text[i])
            weights.append(weight)
            i += 1
    rounded = tuple(round(max(-MAX_WEIGHT, min(MAX_WEIGHT, each)), DECIMALS) for each in weights)
    return ParsedPrompt("".join(characters), rounded, tuple(breaks), loras)


def _close(active: list[tuple[int, float, float]], close: int) -> float:
    """Close one group, and return the weight behind it; brackets of two kinds may overlap, as in A1111."""
    if active[-1][0] == close:
        return active.pop()[1]
    index = next(i for i, group in enumerate(active) if group[0] == close)
    _, before, within = active.pop(index)
    ratio = before / within if within else 1.0
    for i in range(index, len(active)):
        active[i] = (active[i][0], active[i][1] * ratio, active[i][2] * ratio)
    return active[-1][2]


def extract_loras(
    text: str, is_object: Callable[[str], bool] = lambda name: False
) -> tuple[str, tuple[tuple[str, float], ...]]:
    """Read `<lora:name:0.7>`: the prompt without such tags, and their names and weights.

    Args:
        is_object: Whether a name is that of a trained object; its tag stays.

    Returns:
        The weight is the first number; 1 without a number. Tags with other text in its place stay.
    """
    loras: list[tuple[str, float]] = []

    def read(match: re.Match[str]) -> str:
        first = (match["weights"] or "1").split(":")[0].rpartition("=")[2]
        number = NUMBER.fullmatch(first)
        if number is None or is_object(match["name"]):
            return match[0]
        loras.append((match["name"], float(number[1])))
        return ""

    return LORA_TAG.sub(read, text), tuple(loras)


def has_syntax(text: str, syntax: str) -> bool:
    """Whether a prompt reads otherwise than as plain text."""
    if syntax == PLAIN:
        return False
    parsed = parse(text, syntax)
    return parsed.text != text or not parsed.is_plain


def plain_text(text: str, syntax: str) -> str:
    """A prompt without weights, breaks and escapes."""
    return parse(text, syntax).text


def write(parsed: ParsedPrompt, syntax: str) -> str:
    """Write a prompt in a syntax; `parse` reads the same from it, LoRA tags aside."""
    if syntax == PLAIN:
        return parsed.text
    escaped = r"[\\()\[\]]" if syntax == A1111 else r"[()]"
    chunks = []
    for k, chunk in enumerate(parsed.chunks()):
        text = ""
        for run, weight in chunk:
            inside = re.sub(escaped, lambda match: "\\" + match[0], run)
            text += inside if weight == 1 else f"({inside}:{weight:.{DECIMALS}f}".rstrip("0").rstrip(".") + ")"
        is_last = k == len(parsed.breaks)
        chunks.append(text if is_last else text[:-1])  # the space that stands for the break
    return " BREAK ".join(chunks)


def escape(text: str, syntax: str) -> str:
    """Write plain text in a syntax: brackets in it stay brackets."""
    return write(ParsedPrompt(text, (1.0,) * len(text)), syntax) if has_syntax(text, syntax) else text


def edit(text: str, syntax: str, select: Callable[[str], Sequence[int]]) -> str:
    """Keep the characters of a prompt's plain text that `select` names by position; their weights stay."""
    if not has_syntax(text, syntax):
        return "".join(text[i] for i in select(text))
    parsed = parse(text, syntax)
    return write(parsed.keep(select(parsed.text)), syntax)


Edits = Callable[[str], list[tuple[int, int, str]]]
"""Plain text to the ranges [start, end) of it to replace, ascending, each with its new text."""


def substitute(text: str, syntax: str, *steps: Edits) -> str:
    """Replace ranges of a prompt's plain text, step by step; new text has the weight of the last character that it replaces."""
    parsed = parse(text, syntax)
    for find in steps:
        for start, end, new in reversed(find(parsed.text)):
            parsed = parsed.splice(start, end, new)
    return write(parsed, syntax) if has_syntax(text, syntax) else escape(parsed.text, syntax)


def name_class_words(text: str, classes: Mapping[str, str], syntax: str) -> str:
    """`prompts.with_class_words` for a prompt in a syntax: a class word has its object's weight."""
    if not has_syntax(text, syntax):
        return escape(with_class_words(text, classes), syntax)
    steps = [step for name, word in classes.items() for step in class_word_edits(name, word)]
    return substitute(text, syntax, *steps)
