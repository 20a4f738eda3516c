"""Prompts that change while an image is sampled, as A1111 reads them.

| syntax | prompt |
|---|---|
| `[a:b:0.5]` | a in the first half of the steps, then b |
| `[a:b:12]` | a for 12 steps, then b |
| `[b:0.5]`, `[a::0.5]` | nothing, then b; a, then nothing |
| `[a|b|c]` | a, b and c in turn, one for each step |

A number with a point is a fraction of the steps, another one counts steps. Brackets may contain brackets.
Source: `prompt_parser.py` of A1111 and its wiki; there the samplers switch one step later than the schedule says.
"""

import itertools
import re
from collections.abc import Iterator

from objtune_cli.models.prompt_brackets import A1111, find_editing

_SPECIAL = re.compile(r"\\.|<[^<>]*>|[\[\]()|:]", re.S)
_NUMBER = re.compile(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*")


def has_editing(text: str, syntax: str) -> bool:
    """Whether a prompt changes during sampling."""
    return syntax == A1111 and bool(find_editing(text))


def schedule(text: str, syntax: str, steps: int) -> list[tuple[int, str]]:
    """The prompts of an image and the last step of each, counted from 1.

    Args:
        steps: Number of steps.

    Returns:
        Ascending; the last one ends at `steps`. Only one for a prompt without editing.
    """
    if not has_editing(text, syntax):
        return [(steps, text)]
    prompts: list[tuple[int, str]] = []
    for step in range(1, max(1, steps) + 1):
        prompt = prompt_at(text, step, steps)
        if prompts and prompts[-1][1] == prompt:
            prompts.pop()
        prompts.append((step, prompt))
    return prompts


def final_prompt(text: str, syntax: str, steps: int) -> str:
    """The prompt of the last step."""
    return schedule(text, syntax, steps)[-1][1]


def all_prompts(text: str, syntax: str) -> list[str]:
    """The prompts that editing makes of a text, in whatever number of steps."""
    return list(dict.fromkeys(prompt for steps in (2, 1000) for _, prompt in schedule(text, syntax, steps)))


def prompt_at(text: str, step: int, steps: int) -> str:
    """The prompt of one step, counted from 1."""
    edits = find_editing(text)
    out, i = "", 0
    while i < len(text):
        if i in edits:
            out += _read_edit(text[i + 1 : edits[i] - 1], step, steps)
            i = edits[i]
        else:
            out += text[i]
            i += 1
    return out


def _read_edit(inner: str, step: int, steps: int) -> str:
    """What the inside of square brackets stands for at a step."""
    bars = [i for i, character in _top_level(inner) if character == "|"]
    if bars:
        edges = [-1, *bars, len(inner)]
        options = [inner[a + 1 : b] for a, b in itertools.pairwise(edges)]
        return prompt_at(options[(step - 1) % len(options)], step, steps)
    colons = [i for i, character in _top_level(inner) if character == ":"]
    number = _NUMBER.fullmatch(inner[colons[-1] + 1 :]) if colons else None
    if number is None:
        return f"[{inner}]"
    before, after = (
        (inner[: colons[0]], inner[colons[0] + 1 : colons[-1]]) if len(colons) > 1 else ("", inner[: colons[0]])
    )
    value = float(number[1]) * (steps if "." in number[1] else 1)
    return prompt_at(before if step <= min(steps, int(value)) else after, step, steps)


def _top_level(text: str) -> Iterator[tuple[int, str]]:
    """The bars and colons of a text outside of its brackets and names, with their positions."""
    depth = 0
    for match in _SPECIAL.finditer(text):
        if match[0] in "[(":
            depth += 1
        elif match[0] in "])":
            depth -= 1
        elif match[0] in "|:" and depth <= 0:
            yield match.start(), match[0]
