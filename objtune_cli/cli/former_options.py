"""Former names of options: accepted for one release, with a note that names today's option. `--help` leaves them out."""

from collections.abc import Sequence

NOTES = "objtune.notes"
"""Key of a parser context's `meta`: the notes on former names in its command line."""
_OF_PHOTOS = {"--not-point": "--negative-point", "--rough": "--refine-mask", "--which": "--select"}
RENAMED: dict[str, dict[str, str]] = {
    "segment": _OF_PHOTOS,
    "train": _OF_PHOTOS,
    "import": {"--word": "--trigger"},
}
"""Former option to today's, by command."""
ALL = frozenset(former for renamed in RENAMED.values() for former in renamed)
"""Every former option."""


def translate(command: str, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replace former option names in a command's words.

    Returns:
        The words with today's names, and one note for each former name that was used.
    """
    renamed = RENAMED.get(command, {})
    end = words.index("--") if "--" in words else len(words)
    used = {name: renamed[name] for word in words[:end] if (name := word.partition("=")[0]) in renamed}

    def today(word: str) -> str:
        name, equals, value = word.partition("=")
        return used.get(name, name) + equals + value

    return [*map(today, words[:end]), *words[end:]], [
        f"the option {former} is now {name}" for former, name in used.items()
    ]
