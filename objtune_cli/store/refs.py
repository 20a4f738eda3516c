"""Refs, `kind/name@version`: how people name an artifact, and the keys of its files."""

import hashlib
import re
import unicodedata
from dataclasses import dataclass

from objtune_cli.errors import IncompatibleError, UsageError
from objtune_cli.store import KINDS

ARTIFACTS = "artifacts/"
"""Prefix of the keys of artifacts."""
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
_REF = re.compile(r"(?:(?P<kind>[a-z]+)/)?(?P<name>[^/@]+)(?:@(?P<version>[0-9]{1,9}))?")
_FILE = re.compile(r"v(?!000\.)([0-9]{3}|[1-9][0-9]{3,8})\.(safetensors|gone)")


@dataclass(frozen=True, slots=True)
class Ref:
    """One version of one artifact; `version` 0 stands for the newest."""

    kind: str
    name: str
    version: int = 0

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}" + (f"@{self.version}" if self.version else "")

    @property
    def key(self) -> str:
        """Key of the artifact's file."""
        return f"{self._stem}.safetensors"

    @property
    def tombstone_key(self) -> str:
        """Key of the tombstone that remains of a removed version."""
        return f"{self._stem}.gone"

    @property
    def images_key(self) -> str:
        """Key of the folder of images beside the artifact's file; ends with `/`."""
        return f"{self._stem}/"

    @property
    def _stem(self) -> str:
        return f"{ARTIFACTS}{self.kind}/{self.name}/v{self.version:03d}"


def check_name(name: str) -> str:
    """Return a name that is valid.

    Raises:
        UsageError: Not lower case letters, digits, `.`, `_`, `-` (at most 64), or reserved by an
            operating system.
    """
    if NAME_PATTERN.fullmatch(name) and not is_reserved(name) and not name.endswith("."):
        return name
    if is_reserved(name):
        raise UsageError(
            f"{name!r} cannot be a name: Windows reserves it", f"use another, for example `my-{name.partition('.')[0]}`"
        )
    near = _ascii(name)
    example = f", for example `{near}`" if near and near != name and not is_reserved(near) else ""
    raise UsageError(
        f"{name!r} cannot be a name",
        f"use lower case letters, digits, `.`, `_` and `-`, starting with a letter or digit, at most 64{example}",
    )


def is_reserved(name: str) -> bool:
    """Whether Windows reserves a lower-case name, with any ending, for a device."""
    return _RESERVED.fullmatch(name) is not None


def make_name(word: str) -> str:
    """Turn a class word into a name: "Coffee mug" to "coffee-mug", "собака" to "sobaka".

    Raises:
        UsageError: No letter or digit is left, or an operating system reserves the name.
    """
    name = _ascii(word)
    if not name:
        raise UsageError(
            f"no name can be made from the class {word!r}", "give one with `--name`, for example `--name rex`"
        )
    if is_reserved(name):
        raise UsageError(
            f"{name!r}, made from the class, cannot be a name: Windows reserves it",
            f"give another with `--name`, for example `--name my-{name}`",
        )
    return check_name(name)


def name_of_class(word: str) -> str:
    """The name of a class's own artifacts, such as its prior; every class word has one."""
    name = _ascii(word) or hashlib.sha256(word.encode()).hexdigest()[:8]
    return name if name == _ascii(word) and not is_reserved(name) else f"class-{name}"


def _ascii(word: str) -> str:
    """Letters and digits of a word in ASCII, with dashes for other characters; scripts other than Latin are transliterated."""
    parts = unicodedata.normalize("NFKD", word)
    plain = parts.encode("ascii", "ignore").decode()
    if any(_is_foreign(c) for c in parts) or not re.search("[A-Za-z0-9]", plain):
        from anyascii import anyascii

        plain = anyascii(word).replace("'", "")
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:64]


def _is_foreign(character: str) -> bool:
    """Whether it is a letter or digit of another script than Latin."""
    return (
        not character.isascii()
        and unicodedata.category(character) in ("Lu", "Ll", "Lt", "Lo", "Nd")
        and not unicodedata.name(character, "").startswith("LATIN")
    )


def with_article(kind: str) -> str:
    return f"{'an' if kind[0] in 'ae' else 'a'} {kind}"


def parse(text: str, kind: str | None = None) -> Ref:
    """Parse a ref; `kind` is the kind of a text that names none.

    Raises:
        UsageError: Not a ref. IncompatibleError: a ref of another kind.
    """
    match = _REF.fullmatch(text.strip())
    named_kind = match and match["kind"]
    if match is None or (named_kind and named_kind not in KINDS):
        raise UsageError(f"{text!r} is not a ref", "a ref is `kind/name@version`, `name@2` or `name`")
    if kind and named_kind and named_kind != kind:
        raise IncompatibleError(
            f"{text} is {with_article(named_kind)}, not {with_article(kind)}",
            f"`objtune list {kind}` shows what there is",
        )
    if not (named_kind or kind):
        raise UsageError(f"{text!r} does not say its kind", f"one of {', '.join(f'{k}/{text}' for k in KINDS)}")
    return Ref(named_kind or kind or "", check_name(match["name"]), int(match["version"] or 0))


def parse_file_name(name: str) -> tuple[int, str] | None:
    """Version and suffix (`safetensors`, or `gone` for a tombstone) of a file in an artifact's folder; None for other files."""
    match = _FILE.fullmatch(name)
    return (int(match[1]), match[2]) if match else None
