"""Finds the brackets, escapes and breaks of a prompt, in the syntax of A1111 or ComfyUI."""

import re
from collections.abc import Callable
from dataclasses import dataclass

A1111, COMFYUI, PLAIN = "a1111", "comfyui", "plain"
MAX_WEIGHT = 20.0
"""Largest absolute weight of a word."""
STEP = 1.1
"""Weight of one pair of brackets without a number."""
_NUMBER = r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\s*"
NUMBER = re.compile(_NUMBER)
_BREAK = re.compile(r"\bBREAK\b\s*")
_NAMES = re.compile(r"<[^<>]*>")
_EDITING = re.compile(r"\||:\s*[0-9.]+\s*$")
"""Within square brackets: alternatives, or the step at which a text changes."""
_ANY_BRACKET = re.compile(r"[()\[\]]")
_SQUARE = re.compile(r"\\.|\[|\]", re.S)
_INNER = re.compile(r"\[[^\[\]]*\]")
MAX_EDITING = 500
"""Maximum number of characters of square brackets that edit the prompt."""
LORA_TAG = re.compile(r"<\s*(?:lora|lyco|locon)\s*:\s*(?P<name>[^<>:]+?)\s*(?::(?P<weights>[^<>]*))?>", re.I)
MAX_NUMBER_LENGTH = 40
"""Maximum number of characters of a weight, with its spaces."""


@dataclass(slots=True)
class BracketGroups:
    """The syntax of a prompt by position.

    Attributes:
        opened: Opening bracket to its closing position, the weight within from that before it, and the position behind the group.
        escaped: Backslashes that escape the next character. breaks: Start to end of each `BREAK` with the spaces around it.
        unclosed, unopened: Brackets without a partner.
        heavy: Start of a weight that is out of range.
    """

    opened: dict[int, tuple[int, Callable[[float], float], int]]
    escaped: set[int]
    breaks: dict[int, int]
    unclosed: list[int]
    unopened: list[int]
    heavy: list[int]


def find_groups(text: str, syntax: str) -> BracketGroups:
    """Find the syntax of a prompt; time grows with its length only."""
    groups = BracketGroups({}, set(), {}, [], [], [])
    square = syntax == A1111
    specials, escapable = ("()[]", "()[]\\") if square else ("()", "()")
    groups.breaks = _find_breaks(text) if square else {}
    editing = find_editing(text) if square else {}
    waiting: dict[str, list[int]] = {"(": [], "[": []}
    i = 0
    while i < len(text):
        character = text[i]
        if character == "\\" and text[i + 1 : i + 2] and text[i + 1] in escapable:
            groups.escaped.add(i)
            i += 2
            continue
        if i in editing:
            end = editing[i]
            groups.breaks = {start: stop for start, stop in groups.breaks.items() if not i < start < end}
            i = end
            continue
        if character in specials and character in "([":
            waiting[character].append(i)
        elif character in specials:
            stack = waiting["(" if character == ")" else "["]
            if stack:
                _add_group(groups, text, stack.pop(), i, syntax)
            else:
                groups.unopened.append(i)
        i += 1
    groups.unclosed = sorted(waiting["("] + waiting["["])
    return groups


def _find_breaks(text: str) -> dict[int, int]:
    """Start to end of each `BREAK` with the spaces around it."""
    ends: dict[int, int] = {}
    end = 0
    for match in _BREAK.finditer(text):
        start = max(end, len(text[: match.start()].rstrip()))
        end = match.end()
        ends[start] = end
    return ends


def _add_group(groups: BracketGroups, text: str, start: int, close: int, syntax: str) -> None:
    """Add the group between two brackets, with its number if it has one."""
    if text[start] == "[":
        groups.opened[start] = (close, lambda weight: weight / STEP, close + 1)
        return
    colon = text.rfind(":", start + 1, close)
    number = NUMBER.fullmatch(text, colon + 1, close) if colon >= 0 and close - colon <= MAX_NUMBER_LENGTH else None
    if number is None or (syntax == COMFYUI and colon == start + 1):
        groups.opened[start] = (close, lambda weight: weight * STEP, close + 1)
        return
    value = float(number[1])
    if abs(value) > MAX_WEIGHT:
        groups.heavy.append(colon + 1)
    groups.opened[start] = (colon, (lambda weight: weight * value) if syntax == A1111 else (lambda _: value), close + 1)


def find_editing(text: str) -> dict[int, int]:
    """Start to end of each pair of square brackets that edits the prompt during sampling."""
    ends: dict[int, int] = {}
    waiting: list[int] = []
    for match in _SQUARE.finditer(text):
        if match[0] == "[":
            waiting.append(match.start())
        elif match[0] == "]" and waiting:
            start, end = waiting.pop(), match.end()
            inside = _NAMES.sub("", text[start + 1 : end - 1]) if end - start <= MAX_EDITING else ""
            if _EDITING.search(_INNER.sub("", inside)):
                ends[start] = end
    return ends


def find_fault(text: str, syntax: str) -> tuple[int, str]:
    """The first fault in a prompt's brackets: its position from 0, and what it is; (-1, "") for none."""
    if syntax == PLAIN or not _ANY_BRACKET.search(text):
        return -1, ""
    groups = find_groups(LORA_TAG.sub(lambda match: " " * len(match[0]), text), syntax)
    faults = [(i, f"`{text[i]}` is not closed") for i in groups.unclosed]
    faults += [(i, f"`{text[i]}` closes nothing") for i in groups.unopened]
    faults += [(i, f"the weight is not from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}") for i in groups.heavy]
    return min(faults, default=(-1, ""))
