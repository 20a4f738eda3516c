"""Detects prompts that are not in English; the text encoders of the supported bases hardly understand other languages."""

import re
import unicodedata

_WORD = re.compile(r"[^\W\d_]+")
_NAME = re.compile(r"<[^<>]*>")
ENGLISH = frozenset(("the", "of", "with", "and", "on", "at", "my", "is", "by", "for", "from", "into", "an", "its", "his", "her"))  # fmt: skip
"""Short words that English prompts have and the other languages below do not."""
OTHER = frozenset(
    [
        "ein",
        "eine",
        "einen",
        "einem",
        "einer",
        "und",
        "auf",
        "im",
        "der",
        "das",
        "den",
        "dem",
        "mit",
        "meine",
        "meinem",
        "meiner",
        "mein",
        "vor",
        "unter",
        "über",
        "une",
        "un",
        "le",
        "la",
        "les",
        "des",
        "du",
        "au",
        "aux",
        "avec",
        "mon",
        "ma",
        "sur",
        "dans",
        "et",
        "una",
        "el",
        "los",
        "las",
        "del",
        "con",
        "mi",
        "sobre",
        "junto",
        "y",
        "en",
        "por",
        "para",
        "il",
        "lo",
        "gli",
        "della",
        "sulla",
        "nella",
        "mio",
        "mia",
        "davanti",
        "di",
        "al",
        "um",
        "uma",
        "do",
        "da",
        "na",
        "no",
        "com",
        "meu",
        "minha",
        "sobre",
        "em",
        "een",
        "het",
        "van",
        "mijn",
        "op",
        "bij",
        "voor",
        "met",
        "na",
        "w",
        "z",
        "mojego",
        "mojej",
        "mój",
        "moja",
        "na",
        "przy",
    ]
) - {"no", "do", "w", "z", "y", "la", "en", "lo", "met", "van", "un", "al", "den"}
"""Short words of German, French, Spanish, Italian, Portuguese, Dutch and Polish that are not English words."""


def find_language(prompt: str) -> str:
    """The language or script of a prompt, in words for a note; "" for English and if it is uncertain.

    Names of objects in angle brackets do not count.
    """
    text = _NAME.sub(" ", prompt)
    letters = [character for character in text if character.isalpha()]
    scripts = [unicodedata.name(character, "").partition(" ")[0] for character in letters]
    foreign = [script for script in scripts if script not in ("LATIN", "FULLWIDTH", "MODIFIER", "")]
    if len(foreign) > len(letters) / 2:
        script = max(set(foreign), key=foreign.count)
        return f"{'Chinese' if script == 'CJK' else script.capitalize()} script"
    words = [word.casefold() for word in _WORD.findall(text)]
    others = [word for word in words if word in OTHER]
    if len(others) >= 2 and not any(word in ENGLISH for word in words):
        return "another language than English"
    return ""
