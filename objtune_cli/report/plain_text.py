"""Text of users and of other people's files on pages: without characters that a reader does not see."""

import re
import unicodedata
from typing import Any

_UNSEEN = re.compile("[\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""Direction marks and line separators, which change how a text looks."""
_KEPT = "\n\t"


def remove_unseen(text: str) -> str:
    """The text without direction marks, and with a space in place of each control character besides line ends and tabs."""
    plain = _UNSEEN.sub("", text)
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cs") and c not in _KEPT else c for c in plain)


def clean_values(value: Any) -> Any:
    """Apply `remove_unseen` to every text of lists and mappings."""
    if type(value) is str:  # not to those that a template marked as HTML
        return remove_unseen(value)
    if isinstance(value, list | tuple):
        return [clean_values(each) for each in value]
    if isinstance(value, dict):
        return {clean_values(key): clean_values(each) for key, each in value.items()}
    return value
