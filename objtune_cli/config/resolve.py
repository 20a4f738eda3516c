"""Resolves settings from their sources: flag > `--set section.key=value` > `OBJTUNE_…` variable > objtune.toml > default."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

from objtune_cli import paths, renamed_settings
from objtune_cli.config import styles
from objtune_cli.config.sections import OPTIONS, SECTIONS, SEEDS, Common
from objtune_cli.errors import UsageError

PREFIX = "OBJTUNE_"
NOT_RANDOM = f"{SEEDS}; seeds are never random, so that the same command gives the same result"
_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_BOOLS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False, "1": True, "0": False}

BASE_KEYS = {"base.vae": "vae", "base.parts": "base_parts", "base.prediction_type": "prediction_type", "base.prediction": "prediction", "base.clip_model": "clip_model",
             "base.tower": "tower", "base.strict": "strict_base"}  # fmt: skip
"""Other names under which `--set` accepts settings of the base."""

SAME_NAME = {key for key, renamed in renamed_settings.RENAMED.items() if renamed.key == key}
"""Settings of which only values were renamed."""

MAX_LIST_LENGTH = 180
"""Maximum length of a list of known keys in a hint; for longer lists the hint names similar keys."""
MAX_SIMILAR = 4
"""Maximum number of similar keys in the hint for an unknown key."""
ALL_SETTINGS = "all known keys are in docs/reference/settings.md"

T = TypeVar("T")


class Settings:
    """The settings of one run: reads objtune.toml and the environment once, and checks every key.

    Attributes:
        styles, negative_prompts: The tables of these names in objtune.toml.
        notes: One line for each former name in use, with the present name.
    """

    def __init__(self, file: Path, environment: Mapping[str, str] | None = None, flags: Sequence[str] = ()) -> None:
        self.file = file
        self.notes: list[str] = []
        self.table = self._table(_read(file))
        self.styles = styles.read_styles(self.table.pop("styles", {}), file.name)
        self.negative_prompts = styles.read_negative_prompts(self.table.pop("negative_prompts", {}), file.name)
        self.given = dict(self._rename(*_pair(text), "--set") for text in flags)
        env = os.environ if environment is None else environment
        self.env = self._variables({k: v for k, v in env.items() if k.startswith(PREFIX)})
        self._check_keys()

    def resolve(self, section: type[T], **flags: Any) -> T:
        """Resolve a section; flags of None are ignored.

        Raises:
            UsageError: A value has the wrong type or is out of range; names its source.
        """
        name = next((n for n, c in SECTIONS.items() if c is section), "")
        table = self.table.get(name, {}) if name else self.table
        values: dict[str, Any] = {}
        for item in fields(section):  # type: ignore[arg-type]
            key = renamed_settings.join(name, item.name)
            if item.name in table:
                where = f"{item.name} in {self.file.name}"
                values[item.name] = _located(item, _checked(item, table[item.name], where), where, self.file.parent)
            variable = _variable(name, item.name)
            if variable in self.env:
                values[item.name] = _located(
                    item, _checked(item, _from_text(item, self.env[variable], variable), variable), variable
                )
            if key in self.given:
                where = f"--set {key}"
                values[item.name] = _located(
                    item, _checked(item, _from_text(item, self.given[key], where), where), where
                )
            if flags.get(item.name) is not None:
                where = OPTIONS.get(key, f"--{item.name.replace('_', '-')}")
                value = renamed_settings.RENAMED[key].value(flags[item.name]) if key in SAME_NAME else flags[item.name]
                values[item.name] = _located(item, _checked(item, value, where), where)
        return section(**values)

    def _rename(self, key: str, value: Any, where: str) -> tuple[str, Any]:
        """A setting under its present name; a former name adds a note."""
        renamed = renamed_settings.RENAMED.get(key)
        if renamed is None:
            return key, value
        new = renamed.value(value)
        if renamed.key != key or new != value or type(new) is not type(value):
            changed = type(new) is not type(value) or new != value
            old_value, new_value = (
                (f"={value}", f"={str(new).lower() if isinstance(new, bool) else new}") if changed else ("", "")
            )
            note = f"the setting {key}{old_value} is now {renamed.key}{new_value} ({where})"
            self.notes += [note] if note not in self.notes else []
        return renamed.key, new

    def _table(self, table: dict[str, Any], section: str = "") -> dict[str, Any]:
        """The table of objtune.toml, or a section of it, with present names.

        Raises:
            UsageError: A setting has both its former and its present name.
        """
        values: dict[str, Any] = {}
        for name, value in table.items():
            if not section and name in SECTIONS and isinstance(value, dict):
                values[name] = self._table(value, name)
                continue
            key, renamed = self._rename(renamed_settings.join(section, name), value, self.file.name)
            new = key.rpartition(".")[2] if section else key
            if new in values or (new != name and new in table):
                raise UsageError(f"{self.file.name} sets {key} twice, once as {name}", f"keep {new} alone")
            values[new] = renamed
        return values

    def _variables(self, env: Mapping[str, str]) -> dict[str, Any]:
        """The environment with present names; the present name of a setting takes precedence over its former name."""
        former = {_variable(*_split(key)): key for key in renamed_settings.RENAMED}
        values: dict[str, Any] = {}
        for name, value in sorted(env.items(), key=lambda item: item[0] in former):
            key, renamed = self._rename(former.get(name, ""), value, name)
            values.setdefault(_variable(*_split(key)) if name in former else name, renamed)
        return values

    def _check_keys(self) -> None:
        top = {f.name for f in fields(Common)}
        allowed = {"": top} | {n: {f.name for f in fields(c)} for n, c in SECTIONS.items()}
        for key, value in self.table.items():
            if key in SECTIONS:
                if not isinstance(value, dict):
                    raise UsageError(
                        f"{key} in {self.file.name} is {value!r}", f"it is a section: `[{key}]`, its settings below"
                    )
                for inner in value:
                    _refuse_unknown(inner, allowed[key], f"[{key}] of {self.file.name}")
            else:
                _refuse_unknown(key, top | set(SECTIONS), self.file.name)
        for key in self.given:
            _refuse_unknown(key, {f"{s}.{k}" if s else k for s, keys in allowed.items() for k in keys}, "--set")
        variables = {_variable(section, key) for section, keys in allowed.items() for key in keys} | {
            PREFIX + "PROJECT"
        }
        for name in self.env:
            _refuse_unknown(name, variables, "the environment")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text} has no value", "for example `--set train.learning_rate=1e-3`")
    key = key.strip()
    return BASE_KEYS.get(key, key), value.strip()


def _variable(section: str, key: str) -> str:
    parts = [section.replace("-", "_"), key] if section else [key]
    return PREFIX + "_".join(parts).upper()


def _split(key: str) -> tuple[str, str]:
    """Section and name of a key."""
    section, _, name = key.rpartition(".")
    return section, name


def _refuse_unknown(key: str, allowed: set[str], where: str) -> None:
    """Refuse a key that does not exist.

    The hint lists the known keys of a short section. For others it names similar keys and the page with all of them.
    """
    if key in allowed:
        return
    from objtune_cli.config import toml_files

    section = key[: key.rfind(".") + 1]
    names = {name.removeprefix(section) for name in allowed if section and name.startswith(section)}
    if not names:  # no section, or an unknown one
        section, names = "", allowed
    name = key.removeprefix(section)
    near = toml_files.find_nearest(name, names)
    meant = f"did you mean {section}{near}? " if near else ""
    listed = _join(section, sorted(names))
    if len(listed) <= MAX_LIST_LENGTH:
        raise UsageError(f"unknown key {key} in {where}", f"{meant}known keys: {listed}")
    similar = [each for each in toml_files.find_similar(name, names, MAX_SIMILAR) if each != near]
    others = f"similar keys: {_join(section, similar)}; " if similar else ""
    raise UsageError(f"unknown key {key} in {where}", f"{meant}{others}{ALL_SETTINGS}")


def _join(section: str, names: Sequence[str]) -> str:
    return ", ".join(section + name for name in names)


def _read(file: Path) -> dict[str, Any]:
    from objtune_cli.config import toml_files  # `--help` reads no settings

    try:
        return toml_files.read(file, "correct the file, or delete it and run `objtune init`", UsageError)
    except FileNotFoundError:
        return {}


def parse_value(section: type, name: str, text: str, where: str) -> Any:
    """The value of one setting of a section from a user's text.

    Raises:
        UsageError: It has another type, or is out of range. KeyError: The section has no such setting.
    """
    item = {f.name: f for f in fields(section)}[name]
    return _located(item, _checked(item, _from_text(item, text, where), where), where)


def _located(item: Any, value: Any, where: str, folder: Path | None = None) -> Any:
    """Resolve a value that is a path relative to `folder`, the folder of its file; other values stay."""
    kind = item.metadata["path"]
    try:
        return paths.CONVERTERS[kind](value, folder) if kind else value
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", error.hint) from None


def _kind(item: Any) -> Any:
    """The type of a setting's values, without None, which means `auto`."""
    kinds = [kind for kind in get_args(item.type) if kind is not type(None)]
    return kinds[0] if isinstance(item.type, UnionType) else item.type


def _from_text(item: Any, text: Any, where: str) -> Any:
    kind = _kind(item)
    if type(text) is not str or text == item.metadata["auto"]:
        return text
    if kind is bool:
        return _BOOLS.get(text.lower(), text)
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError:
        raise UsageError(f"{where} is {text!r}", f"{_needed(item, kind)} is needed") from None


def _needed(item: Any, kind: Any) -> str:
    word = item.metadata["auto"]
    return f"{_KINDS[kind]}, or {word}," if word and kind is not str else _KINDS[kind]


def _checked(item: Any, value: Any, where: str) -> Any:
    kind, word = _kind(item), item.metadata["auto"]
    if word and type(value) is str and value == word:
        return item.default
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise UsageError(f"{where} is {value!r}", f"one of {', '.join(filter(None, (word, *get_args(kind))))}")
        return value
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UsageError(f"{where} is {value!r}", f"{_needed(item, kind)} is needed")
    if "read" in item.metadata:
        try:
            return item.metadata["read"](value)
        except ValueError as error:
            raise UsageError(f"{where} is {value!r}", str(error)) from None
    low, high = item.metadata["low"], item.metadata["high"]
    if kind is float and not math.isfinite(value):
        raise UsageError(f"{where} is {value}", "a finite number is needed")
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"{low} or more" if high is None else f"{high} or less" if low is None else f"from {low} to {high}"
        raise UsageError(f"{where} is {value}", NOT_RANDOM if item.name == "seed" and value == -1 else bounds)
    return value
