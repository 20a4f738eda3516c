"""Trigger words: the names of objects in other tools. In A1111, Forge and ComfyUI they are the names of embedding files."""

import functools
import gzip
import re
from collections.abc import Iterable, Mapping, Sequence

from objtune_cli.errors import UsageError
from objtune_cli.models.families import bundled_tokenizers
from objtune_cli.store import refs

DEFAULT_SUFFIX = "-objtune"
"""Suffix of default trigger words; objects are often named after their class, and a common word is a bad trigger word."""
_TRIGGER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def default_trigger(name: str) -> str:
    """Default trigger word of an object; it differs from the name of its LoRA file."""
    return name + DEFAULT_SUFFIX


def choose_triggers(objects: Sequence[str], requested: Sequence[str], *, is_inside: bool = False) -> dict[str, str]:
    """Trigger word of each object.

    Args:
        requested: `WORD` for a single object, `NAME=WORD` for one of several. is_inside: The vectors are in a bundle, whose keys have `_` for dots.

    Raises:
        UsageError: Unknown object, two words for one object, one word for two objects, or a word that is no portable file name.
    """
    explicit_words: dict[str, str] = {}
    for text in requested:
        name, equals, word = text.rpartition("=")
        if not equals and len(objects) != 1:
            raise UsageError(
                f"--trigger {text} does not name its object", f"for example `--trigger {objects[0]}={text}`"
            )
        name = name if equals else objects[0]
        if name not in objects:
            raise UsageError(
                f"--trigger {text} is for {name or 'no object'}", f"these are exported: {', '.join(objects)}"
            )
        if name in explicit_words:
            raise UsageError(f"--trigger gives {name} two words", "give each object one trigger")
        explicit_words[name] = check_trigger(word)
    words = {name: explicit_words.get(name, default_trigger(name)) for name in objects}
    owners: dict[str, str] = {}
    for name, word in words.items():
        key = (
            word.replace(".", "_").casefold() if is_inside else word.casefold()
        )  # on Windows and macOS names of files have no case
        other = owners.setdefault(key, name)
        if other != name:
            raise UsageError(
                f"{other} and {name} would have the same trigger, {word}",
                f"give each its own word: `--trigger {name}={name.replace('.', '_')}-2{DEFAULT_SUFFIX}`",
            )
    return words


def check_trigger(word: str) -> str:
    """Return the word if every file system and tool accepts it.

    Raises:
        UsageError: The word has other characters, is too long, or is reserved by an operating system.
    """
    if _TRIGGER.fullmatch(word) and not word.endswith(".") and not refs.is_reserved(word.lower()):
        return word
    raise UsageError(
        f"{word!r} cannot be a trigger",
        "use letters, digits, `.`, `_` and `-`, starting with a letter or digit, at most 80",
    )


def describe_common(words: Mapping[str, str], classes: Mapping[str, str], *, is_file: bool) -> list[str]:
    """One note for each trigger word that is common in prompts.

    Args:
        words: Object to trigger word. classes: Object to class word. is_file: The trigger word comes from the name of the output file.
    """
    return [
        f'the trigger "{word}" is a common word: in A1111 and Forge every "{word}" of any prompt then draws <{name}>, and the word\'s own '
        f"meaning is lost while the file is there; {f'the name {default_trigger(name)}.safetensors' if is_file else f'`--trigger {name}={default_trigger(name)}`'} avoids that"
        for name, word in words.items()
        if is_common_word(word, classes.values())
    ]


def is_common_word(word: str, class_words: Iterable[str] = ()) -> bool:
    """Whether a word is a class word or a single token of Stable Diffusion's tokenizers."""
    common_words = {each.lower() for each in class_words}
    return word.lower() in common_words or len(word) == 1 or word.lower() in _single_tokens()


@functools.cache
def _single_tokens() -> frozenset[str]:
    """Whole words of CLIP's vocabulary, which all known families share."""
    with gzip.open(bundled_tokenizers.MERGES, "rt", encoding="utf-8") as file:
        pieces = ("".join(line.split()) for line in file)
        return frozenset(piece.removesuffix("</w>") for piece in pieces if piece.endswith("</w>"))
