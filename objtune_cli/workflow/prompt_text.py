"""Reads prompts as users type or paste them: white space, invisible characters, brackets around names, other tools' syntax."""

import re
import unicodedata
from collections.abc import Callable, Mapping

from objtune_cli.errors import InputError, UsageError
from objtune_cli.store.refs import make_name

EXAMPLE = 'for example `objtune generate "a photo of <rex> on the beach"`'
WHITE_SPACE = "\t\n\v\f\r\x85\u200b"
"""White space besides Unicode's separators; the zero-width space separates words."""
CONTROLS = {0x00: "NUL", 0x07: "BEL", 0x08: "BS", 0x1B: "ESC", 0x7F: "DEL"}
JOINERS = "\u200c\u200d"
"""Joiners, which shape the letters and emoji on both sides."""
VISIBLE_FORMATS = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
"""Visible characters among Unicode's format characters."""
FLAG, TAGS = "\U0001f3f4", "[\U000e0020-\U000e007f]+"
"""Tag characters, which have a meaning only after a flag."""
MAX_LENGTH = 20_000
"""Maximum number of characters of a prompt: far more than a base reads, and less than the limit of a record."""


def clean_prompt(text: str, where: str = "the prompt", *, may_be_empty: bool = False) -> str:
    """Return the prompt on one line, without invisible characters; a prompt of printable characters stays as it is.

    Args:
        where: Name of the prompt in messages.

    Raises:
        InputError: It is empty or too long, or contains a control character or a byte that is not UTF-8.
    """
    if len(text) > MAX_LENGTH:
        raise InputError(
            f"{where} has {len(text)} characters; the maximum is {MAX_LENGTH}",
            "a file of prompts is read line by line: `objtune generate - < prompts.txt`",
        )
    if not text.isprintable():
        for place, character in enumerate(text, 1):
            _check_character(character, place, where)
        spaced = re.sub(f"({FLAG}{TAGS})|{TAGS}", r"\1", "".join("\n" if _is_white(c) else c for c in text))
        cleaned = "".join(c for i, c in enumerate(spaced) if c in " \n" or not _is_stray(spaced, i))
        text = re.sub(r" *\n[ \n]*", " ", cleaned).strip()
    if not text.strip() and not may_be_empty:
        raise InputError(f"{where} is empty", EXAMPLE)
    return text


def _check_character(character: str, place: int, where: str) -> None:
    code, category = ord(character), unicodedata.category(character)
    if category == "Cs":
        raise InputError(f"{where} is not UTF-8 at character {place}", "save the text as UTF-8")
    if (category == "Cc" and character not in WHITE_SPACE) or code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF:
        name = f" ({CONTROLS[code]})" if code in CONTROLS else ""
        hint = (
            "save the text as UTF-8; this looks like UTF-16"
            if code in (0, 0xFFFE)
            else "remove it; output of a terminal and binary files contain such characters"
        )
        kind = "control" if category == "Cc" else "invalid"
        raise InputError(f"{where} contains the {kind} character U+{code:04X}{name} at character {place}", hint)


def _is_white(character: str) -> bool:
    return character in WHITE_SPACE or (character != " " and unicodedata.category(character)[0] == "Z")


def _is_stray(text: str, i: int) -> bool:
    """Whether a character is invisible and has no effect: byte order marks, soft hyphens, direction marks, joiners next to plain letters."""
    character = text[i]
    if unicodedata.category(character) != "Cf" or character in VISIBLE_FORMATS:
        return False
    if re.match(TAGS, character):  # the remaining ones follow a flag
        return False
    return character not in JOINERS or any(not c or c.isascii() for c in (text[max(i - 1, 0) : i], text[i + 1 : i + 2]))


_OPEN = r"&lt;|&#0*60;|&#x0*3c;|\\u003c|%3c|\\?<|[＜‹〈⟨〈﹤«《]"
_CLOSE = r"&gt;|&#0*62;|&#x0*3e;|\\u003e|%3e|\\?>|[＞›〉⟩〉﹥»》]"
_BRACKETS = re.compile(rf"(?P<open>{_OPEN})(?P<inside>[^<>\n]{{1,80}}?)(?P<close>{_CLOSE})", re.I)
_INSIDE = re.compile(r"(?P<name>.*?)(?P<rest>(?:\s*[@:]\s*[0-9.]+)*)")


def read_names(text: str, is_trained: Callable[[str], bool]) -> tuple[str, list[tuple[str, str]]]:
    """Write every object name as `<name>`, despite escaped brackets, brackets of other scripts, capitals and spaces.

    Args:
        is_trained: Whether there is an object of a name. Other text stays, except escaped brackets, which can only mean `<`.

    Returns:
        The prompt, and for each changed name the typed text and the result.
    """
    changes: list[tuple[str, str]] = []

    def read(match: re.Match[str]) -> str:
        typed, parts = match[0], _INSIDE.fullmatch(unicodedata.normalize("NFKC", match["inside"]).strip())
        if parts is None:
            return typed
        name = plain = parts["name"].strip().lower()
        if not is_trained(name):
            name = make_object_name(parts["name"])
            name = name if name and is_trained(name) else plain if len(match["open"]) > 1 else ""
        reference = f"<{name}{parts['rest'].replace(' ', '')}>"
        if not name or reference == typed:
            return typed
        changes.append((typed, reference))
        return reference

    return _BRACKETS.sub(read, text), changes


def make_object_name(text: str) -> str:
    """The name that an object with this text as its name would have; "" if it cannot be one."""
    try:
        return make_name(text)
    except UsageError:
        return ""


MAX_STRENGTH = 2.0
_STRENGTH = re.compile(r"<(?P<name>[a-z0-9][a-z0-9._-]*)(?P<version>@[0-9]+)?\s*:\s*(?P<strength>[^<>:]*?)\s*>")


def take_strengths(text: str) -> tuple[str, dict[str, float]]:
    """Read `<name:0.8>`: the prompt with plain names, and the strength of each object that has one.

    Raises:
        InputError: Not a number from 0 to 2, or two strengths of one object.
    """
    strengths: dict[str, float] = {}

    def read(match: re.Match[str]) -> str:
        name, reference = match["name"], match["strength"]
        if name in FILE_PREFIXES:
            return match[0]
        value = float(reference) if re.fullmatch(r"[0-9]{1,9}\.?[0-9]*|\.[0-9]+", reference) else -1.0
        if not 0 <= value <= MAX_STRENGTH:
            raise InputError(
                f"{match[0]} has no strength",
                f"a number from 0 to {MAX_STRENGTH:g} draws an object weaker or stronger: `<{name}:0.8>`",
            )
        if strengths.setdefault(name, value) != value:
            raise InputError(
                f"the prompt has for <{name}> the strengths {strengths[name]:g} and {value:g}",
                "use one strength for each object of a prompt",
            )
        return f"<{name}{match['version'] or ''}>"

    return _STRENGTH.sub(read, text), strengths


def write_strengths(text: str, strengths: Mapping[str, float]) -> str:
    """Insert strengths into a prompt; the inverse of `take_strengths`."""
    return re.sub(
        r"<([a-z0-9][a-z0-9._-]*)((?:@[0-9]+)?)>",
        lambda m: f"<{m[1]}{m[2]}:{strengths[m[1]]:g}>" if m[1] in strengths else m[0],
        text,
    )


FILE_PREFIXES = ("lora", "lyco", "locon", "ti", "embed", "embedding")
"""Prefixes of other tools before the name of a file that `import` reads."""


def check_brackets(text: str, is_trained: Callable[[str], bool]) -> None:
    """Refuse brackets without a valid name, and names with one bracket.

    Raises:
        InputError: Its hint is the correct form.
    """
    from objtune_cli.models.prompts import PLACEHOLDER

    for inside in re.findall(r"<[^<>]*>", text):
        if not PLACEHOLDER.fullmatch(inside):
            raise InputError(f"{inside} cannot be the name of an object", _suggest_syntax(inside, is_trained))
    rest = PLACEHOLDER.sub(" ", text)
    for half in re.findall(r"<[a-z0-9][a-z0-9._-]*|(?<![a-z0-9._-])[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9_])?>", rest):
        name = half.strip("<>").rstrip(".-")
        if is_trained(name):
            raise InputError(
                f"`{half}` has only one bracket", f"write `<{name}>` to draw the object, or `{name}` for the word"
            )


def _suggest_syntax(inside: str, is_trained: Callable[[str], bool]) -> str:
    """A hint for brackets of another tool."""
    kind, _, rest = inside.strip("<>").partition(":")
    name = make_object_name(rest.split(":")[0])
    own = make_object_name(re.split(r"[@:|=*\s]", inside.strip("<> "))[0])
    if own and is_trained(own):
        return f"write `<{own}>`; after the name, `:` and a number set its strength (`<{own}:0.8>`), `@` and a number select its version (`<{own}@2>`)"
    if kind.strip().lower() not in FILE_PREFIXES or not name:
        return "names are lower case: `<rex>`, or `<rex@2>` for a version"
    if is_trained(name):
        number = rest.partition(":")[2].split(":")[0].strip()
        strength = (
            f", or `<{name}:{number}>` at that strength"
            if re.fullmatch(r"[01](\.[0-9]+)?|2(\.0+)?|\.[0-9]+", number)
            else ""
        )
        return f"write `<{name}>`{strength}: it loads the object's LoRA and its token"
    return f"`objtune import FILE --class WORD --name {name}` reads a file of another tool; then write `<{name}>`"


def find_plain_names(text: str, objects: Mapping[str, str]) -> dict[str, str]:
    """The objects whose names a prompt has as plain words, sorted, with the prompt's spelling; "tea cup" matches `tea-cup`.

    Args:
        objects: Name to class word, which matches too if the name was made from it.
    """
    mentions: dict[str, str] = {}
    for name in sorted(objects, key=lambda name: (-len(name), name)):  # a longer name may contain a shorter one
        for spelling in dict.fromkeys([name, objects[name]] if make_object_name(objects[name]) == name else [name]):
            words = r"[\s._-]".join(map(re.escape, re.split(r"[\s._-]", spelling)))
            spaced = not all(
                unicodedata.category(c) in ("Lo", "Mn", "Mc") for c in spelling
            )  # scripts without spaces have no word boundaries
            pattern = re.compile(rf"(?<![^\W_]){words}(?![^\W_])" if spaced else words, re.I)
            if match := pattern.search(text):
                mentions[name] = match[0]
                text = pattern.sub(" ", text)
    return dict(sorted(mentions.items()))


_SYNTAX = re.compile(
    r"""
      \([^()]{0,500}:\s*[-+]?[0-9.]+\s*\)         # (word:1.3)
    | \({2,9}[^()]{0,500}\){2,9}                  # ((word))
    | \(\s*<[^<>]*>\s*\)[-+0-9.]*                 # (<dog>), (<dog>)1.3
    | \([^()]{0,500}\)(?:[-+]{1,9}|[0-9][0-9.]*)(?!\w)  # (a word)++, (a word)1.3
    | \\[()\[\]{}]                                # \(
    | \[[^\[\]]{0,500}\]                          # [word], [a|b], [a:b:0.5]
    | \{[^{}]{0,500}\}                            # {a|b}, {word}
    | __[\w/*.-]{0,80}\w__                             # __wildcard__
    | \bembedding:[\w./-]+                        # of ComfyUI
    | (?<![\w>"])(?!c\+\+)[\w>"]{1,80}(?:\+{2,9}|-{2,9})(?=[\s,.;]|$)  # word++, word--
    | <[^<>]*>[-+]+(?=[\s,.;]|$)                  # <dog>+
    | <[^<>]*>(?::[-+]?[0-9]*\.?[0-9]+|[0-9]*\.?[0-9]+|\(\s*[0-9.]+\s*\))(?![\w:])  # <dog>:0.8, <dog>0.8, <dog>(0.8)
    | \bNegative\ prompt:                        # the text beside a picture of A1111, as is:
    | \bSteps:\s*[0-9]+,\s*Sampler:.*
    | ::\s*-?[0-9.]*                              # of Midjourney, as is:
    | (?<!\S)--[a-z]+(?:\s+[\w:.]*\d[\w:.]*)?     # --ar 3:2
    """,
    re.X | re.I,
)
_KEYWORD = re.compile(r"\b(?:BREAK|AND)\b")


def find_other_syntax(text: str) -> list[str]:
    """The pieces of a prompt that are plain text here, but weights, alternatives or options in other tools."""
    pieces = [match[0].strip() for match in _SYNTAX.finditer(text)]
    if re.search(r"[a-z]", re.sub(r"<[^<>]*>", "", text)):  # a prompt all in capitals has no keywords
        pieces += _KEYWORD.findall(text)
    return list(dict.fromkeys(pieces))


def escape_syntax(text: str) -> str:
    r"""Escape a prompt so that A1111 reads the same text: `\(`, `\[`, and its keywords as plain words."""
    escaped = re.sub(r"[\\()\[\]]", lambda match: "\\" + match[0], text)
    return _KEYWORD.sub(lambda match: match[0].lower(), escaped)
