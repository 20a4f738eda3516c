"""Reads tables that users write: TOML, or JSON in files that begin with `{`, in any Unicode encoding."""

import codecs
import io
import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from objtune_cli.errors import InputError, ObjtuneError

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
"""Byte order marks and their encodings; the mark of UTF-16 is a prefix of that of UTF-32."""
SMART = "“”„‟‘’‚«»″′"
LARGEST = 16 << 20
"""Maximum size of a table file, bytes."""


def read(file: Path, form: str, error: type[ObjtuneError] = InputError) -> dict[str, Any]:
    """Read the table of a file.

    Args:
        form: Hint for unreadable files, an example of the correct form. error: Class of the error.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(LARGEST + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as failure:
        raise error(f"{file} cannot be read: {getattr(failure, 'strerror', None) or failure}", form) from None
    if len(data) > LARGEST:
        raise error(f"{file} cannot be read: it is larger than {LARGEST >> 20} MB", form)
    text = decode(data, str(file), error)
    if text.lstrip()[:1] == "{":
        return _from_json(text, file, form, error)
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as failure:
        raise error(
            f"{file} is not valid TOML: {failure or 'it is nested too deeply'}", _remedy(text, str(failure)) or form
        ) from None


def decode(data: bytes, source: str, error: type[ObjtuneError] = InputError) -> str:
    """Decode text in UTF-8, UTF-16 or UTF-32; `source`: the file or stream in messages."""
    name = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    if name == "utf-8" and b"\0" in data[:2]:  # two bytes per character, without a mark
        name = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
    try:
        return data.decode(name)
    except UnicodeDecodeError as failure:
        line = data[: failure.start].count(b"\n") + 1
        raise error(
            f"{source} is not {'UTF-8' if name.startswith('utf-8') else 'UTF-16'} text: byte {failure.start + 1}, in line {line}, belongs to another encoding",
            "save the text as UTF-8 in your editor",
        ) from None


def number_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a text that are not empty, with their numbers."""
    for number, line in enumerate(io.StringIO(text.removeprefix("\ufeff"), newline=None), 1):
        if line.strip():
            yield number, line.strip()


def _from_json(text: str, file: Path, form: str, error: type[ObjtuneError]) -> dict[str, Any]:
    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise error(f"{file}: the key {twice} appears twice", "keep one of them")
        return dict(pairs)

    try:
        document: dict[str, Any] = json.loads(text, object_pairs_hook=table)
    except (ValueError, RecursionError) as failure:
        raise error(f"{file} is not valid JSON: {failure}", _quotes(text) or form) from None
    return document


def _remedy(text: str, failure: str) -> str:
    """A hint for a line that is not TOML; "" if there is none better than the form."""
    place = re.search(r"at line (\d+)", failure)
    lines = text.splitlines() if text.strip() else [""]
    line = (
        lines[min(int(place[1]), len(lines)) - 1].strip()
        if place
        else next(filter(None, map(str.strip, reversed(lines))), "")
    )
    key, equals, value = (part.strip() for part in line.partition("="))
    if hint := _quotes(line):
        return hint
    if "Cannot overwrite a value" in failure:
        return f"{key} appears twice in one table: keep one of them, or start a separate table for each"
    if re.search(r"Cannot (?:declare|mutate)|more than once", failure) and line.startswith("["):
        name = line.strip("[] ")
        return (
            f"begin each of several tables with two brackets: `[[{name}]]`"
            if not line.startswith("[[")
            else f"{name} appears twice in two forms: keep one"
        )
    if "\\" in value and value.startswith('"'):
        return f"write Windows paths with / or in single quotes: `{key} = '{value.strip(chr(34))}'`"
    if equals and value and re.match(r"[^\W\d]|[~/.]", value):
        word = value.split("#")[0].strip()
        if word.lower() in ("true", "false"):
            return f"write it in lower case: `{key} = {word.lower()}`"
        return f'write text in quotes: `{key} = "{word}"`'
    if equals and not value:
        return f'{key} has no value: `{key} = "…"`'
    if line and not equals and not line.startswith("["):
        return 'each line is `key = value`, for example `class = "dog"`; comments begin with #'
    return ""


def _quotes(line: str) -> str:
    """A hint if a line has the quotes of word processors."""
    quote = next((c for c in line if c in SMART), "")
    return f"replace the typographic quotes ({quote}) with straight ones: \" or '" if quote else ""


def find_nearest(key: str, choices: Iterable[str]) -> str:
    """The key of `choices` that the user probably meant; "" if none is similar."""
    names = {name.lower(): name for name in choices}
    wanted = _normalize(key)
    if wanted in names:
        return names[wanted]
    import difflib  # loaded only after a mistake

    matches = difflib.get_close_matches(wanted, names, 1, 0.72)
    return names[matches[0]] if matches else ""


def find_similar(key: str, choices: Iterable[str], count: int) -> list[str]:
    """Up to `count` keys of `choices` that contain `key` or have letters in common, most similar first."""
    import difflib

    wanted, names = _normalize(key), {name.lower(): name for name in choices}
    containing = sorted((name for name in names if wanted and wanted in name), key=len)
    close = difflib.get_close_matches(wanted, names, count, 0.5)
    return [names[name] for name in dict.fromkeys([*containing, *close])][:count]


def _normalize(key: str) -> str:
    return key.lower().replace("-", "_").replace(" ", "_")
