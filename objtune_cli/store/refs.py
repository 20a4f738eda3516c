"""`kind/name@version`: what people type, and where it lies."""

import hashlib
import json
import os
import re
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

from objtune_cli.errors import DamagedError, IncompatibleError, MissingError, UsageError
from objtune_cli.store import KINDS

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

    def path(self, root: Path) -> Path:
        """Its file below the artifacts folder."""
        return root / f"{self.kind}/{self.name}/v{self.version:03d}.safetensors"


def check_name(name: str) -> str:
    """The name if it may be used.

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
    """Whether Windows keeps a lower-case name, with any ending, for a device."""
    return _RESERVED.fullmatch(name) is not None


def make_name(word: str) -> str:
    """A class word as a name: "Coffee mug" to "coffee-mug", "собака" to "sobaka".

    Raises:
        UsageError: Nothing usable is left, or an operating system reserves the name.
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
    """A name for what belongs to a class and to no object; every class has one."""
    name = _ascii(word) or hashlib.sha256(word.encode()).hexdigest()[:8]
    return name if name == _ascii(word) and not is_reserved(name) else f"class-{name}"


def _ascii(word: str) -> str:
    """Letters and digits of a word in ASCII, with a dash where others stood; other scripts than Latin are transliterated."""
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


def _with_article(kind: str) -> str:
    return f"{'an' if kind[0] in 'ae' else 'a'} {kind}"


def parse(text: str, kind: str | None = None) -> Ref:
    """Read a ref; `kind` is taken where the text names none.

    Raises:
        UsageError: Not a ref. IncompatibleError: a ref of another kind.
    """
    match = _REF.fullmatch(text.strip())
    given = match and match["kind"]
    if match is None or (given and given not in KINDS):
        raise UsageError(f"{text!r} is not a ref", "a ref is `kind/name@version`, `name@2` or `name`")
    if kind and given and given != kind:
        raise IncompatibleError(
            f"{text} is {_with_article(given)}, not {_with_article(kind)}", f"`objtune list {kind}` shows what there is"
        )
    if not (given or kind):
        raise UsageError(f"{text!r} does not say its kind", f"one of {', '.join(f'{k}/{text}' for k in KINDS)}")
    return Ref(given or kind or "", check_name(match["name"]), int(match["version"] or 0))


def _list_files(root: Path, kind: str, name: str) -> dict[int, set[str]]:
    """Every number of a name, with the suffixes of what lies under it."""
    found: dict[int, set[str]] = {}
    try:
        entries = os.listdir(root / kind / name)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    for match in filter(None, map(_FILE.fullmatch, entries)):
        found.setdefault(int(match[1]), set()).add(match[2])
    return found


def list_versions(root: Path, kind: str, name: str) -> list[int]:
    """Published versions, rising."""
    return sorted(number for number, suffixes in _list_files(root, kind, name).items() if "safetensors" in suffixes)


def used_versions(root: Path, kind: str, name: str) -> list[int]:
    """Numbers that are or were published, rising: a number is given once."""
    return sorted(_list_files(root, kind, name))


def tombstone_path(root: Path, ref: Ref) -> Path:
    """Where the tombstone of a removed version lies."""
    return ref.path(root).with_suffix(".gone")


def read_tombstone(root: Path, ref: Ref) -> dict[str, str] | None:
    """The tombstone of a removed version: {"ref", "sha256", "moved"}; None where there is none.

    Raises:
        DamagedError: It cannot be read.
    """
    path = tombstone_path(root, ref)
    try:
        said = json.loads(path.read_bytes())
        return {key: str(said[key]) for key in ("ref", "sha256", "moved")}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError):
        raise DamagedError(
            f"{path} is damaged", "restore it from a copy; it only says what became of a removed version"
        ) from None


def list_names(root: Path, kind: str) -> list[str]:
    """Names with at least one version, sorted."""
    return list(dict.fromkeys(ref.name for ref in list_refs(root, kind)))


def list_refs(root: Path, kind: str | None = None) -> list[Ref]:
    """All published artifacts, by kind, name, version."""
    found = []
    for each in (kind,) if kind else KINDS:
        folder = root / each
        here = sorted(filter(NAME_PATTERN.fullmatch, os.listdir(folder))) if folder.is_dir() else []
        found += [Ref(each, name, version) for name in here for version in list_versions(root, each, name)]
    return found


def resolve(root: Path, ref: Ref) -> Ref:
    """The ref with its version filled in.

    Raises:
        MissingError: No such artifact; the hint lists what is there.
    """
    have = list_versions(root, ref.kind, ref.name)
    if ref.version in have or (have and not ref.version):
        return replace(ref, version=ref.version or have[-1])
    gone = read_tombstone(root, ref) if ref.version else None
    if gone and gone["moved"]:
        return resolve(root, parse(gone["moved"]))
    if gone:
        raise MissingError(f"{ref} was removed", f"versions of {ref.name}: {', '.join(map(str, have)) or 'none'}")
    if have:
        raise MissingError(f"there is no {ref}", f"versions of {ref.name}: {', '.join(map(str, have))}")
    known = list_names(root, ref.kind)
    hint = f"known: {', '.join(known)}" if known else f"this project has no {ref.kind} yet; `objtune list` shows all"
    raise MissingError(f"there is no {ref}", hint)


def find(root: Path, text: str, kinds: tuple[str, ...] = KINDS) -> Ref:
    """The artifact a text names, looking through `kinds` where it names no kind.

    Raises:
        MissingError: None, or several kinds, have that name.
    """
    if "/" in text or len(kinds) == 1:
        ref = parse(text, None if "/" in text else kinds[0])
        if ref.kind not in kinds:
            raise IncompatibleError(f"{text} is {_with_article(ref.kind)}", f"wanted: {', '.join(kinds)}")
        return resolve(root, ref)
    wanted = parse(text, kinds[0])
    hits = [k for k in kinds if list_versions(root, k, wanted.name)]
    if len(hits) > 1:
        raise MissingError(f"{text} is ambiguous", "say which: " + ", ".join(f"{k}/{text}" for k in hits))
    return resolve(root, replace(wanted, kind=hits[0] if hits else kinds[0]))
