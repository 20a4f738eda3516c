"""Former names of options: accepted for one release, with a note that names today's. `--help` leaves them out."""

from collections.abc import Sequence

from objtune_cli.errors import UsageError

NOTES = "objtune.notes"
"""Key of a parser context's `meta`: the notes on former names in its command line."""
_OF_PHOTOS = {"--not-point": "--negative-point", "--rough": "--refine-mask", "--which": "--select"}
RENAMED: dict[str, dict[str, str]] = {
    "segment": _OF_PHOTOS,
    "train": _OF_PHOTOS,
    "import": {"--word": "--trigger"},
    "bench": {"--from": "--reuse"},
}
"""Former option to today's, by command."""
SUBCOMMANDS: dict[str, dict[str, str]] = {
    "bench": {
        "--speed": "speed", "--memory": "memory", "--scenes": "scenes", "--masks": "masks", "--base-only": "base",
        "--many": "throughput", "--photos": "dreambooth", "--table": "show",
    },
}  # fmt: skip
"""Former option to the subcommand that does the same, by command."""
WITH_VALUE = ("--many", "--photos", "--table")
"""Those of SUBCOMMANDS with a value, which is the subcommand's argument now."""


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


def translate_to_subcommand(command: str, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replace a former option that chose a mode by the subcommand, which then stands first.

    Returns:
        The words, and one note for each former option.

    Raises:
        UsageError: Two options choose two subcommands.
    """
    options = SUBCOMMANDS.get(command, {})
    values: dict[str, list[str]] = {}
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name not in options:
            others.append(word)
            continue
        arguments = [value] if equals else [next(rest, "")] if name in WITH_VALUE else []
        values[name] = [options[name], *filter(None, arguments)]
    if len(values) > 1:
        choices = " or ".join(f"`objtune {command} {options[name]}`" for name in values)
        raise UsageError(f"{' and '.join(values)} are different benchmarks", f"choose one: {choices}")
    first = next(iter(values.values()), [])
    return [*first, *others], [f"{command} {name} is now {command} {options[name]}" for name in values]
