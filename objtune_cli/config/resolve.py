"""The layers that a setting comes from: flag > `--set section.key=value` > `OBJTUNE_…` variable > objtune.toml > default."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from objtune_cli import paths
from objtune_cli.config.sections import SECTIONS, SEEDS, Common
from objtune_cli.errors import UsageError

PREFIX = "OBJTUNE_"
NOT_RANDOM = f"{SEEDS}; no seed is drawn at random here, so that the same command makes the same again"
_KINDS = {int: "a whole number", float: "a number", str: "text"}

BASE_KEYS = {"base.vae": "vae", "base.prediction": "prediction", "base.tower": "tower", "base.strict": "strict_base"}
"""Settings of the base that `--set` also takes under these names."""

T = TypeVar("T")


class Settings:
    """The layers of one run: reads objtune.toml and the environment once, checks every key."""

    def __init__(self, file: Path, environment: Mapping[str, str] | None = None, given: Sequence[str] = ()) -> None:
        self.file = file
        self.table = _read(file)
        self.given = dict(_pair(text) for text in given)
        env = os.environ if environment is None else environment
        self.env = {k: v for k, v in env.items() if k.startswith(PREFIX)}
        self._check_keys()

    def resolve(self, section: type[T], **flags: Any) -> T:
        """A section's dataclass with every layer applied; a flag of None was not given.

        Raises:
            UsageError: A value of the wrong type or out of range; names the place it came from.
        """
        name = next((n for n, c in SECTIONS.items() if c is section), "")
        table = self.table.get(name, {}) if name else self.table
        values: dict[str, Any] = {}
        for item in fields(section):  # type: ignore[arg-type]
            if item.name in table:
                where = f"{item.name} in {self.file.name}"
                values[item.name] = _located(item, _checked(item, table[item.name], where), where, self.file.parent)
            variable = _variable(name, item.name)
            if variable in self.env:
                values[item.name] = _located(
                    item, _checked(item, _from_text(item, self.env[variable], variable), variable), variable
                )
            key = f"{name}.{item.name}" if name else item.name
            if key in self.given:
                where = f"--set {key}"
                values[item.name] = _located(
                    item, _checked(item, _from_text(item, self.given[key], where), where), where
                )
            if flags.get(item.name) is not None:
                where = f"--{item.name.replace('_', '-')}"
                values[item.name] = _located(item, _checked(item, flags[item.name], where), where)
        return section(**values)

    def _check_keys(self) -> None:
        top = {f.name for f in fields(Common)}
        known = {"": top} | {n: {f.name for f in fields(c)} for n, c in SECTIONS.items()}
        for key, value in self.table.items():
            if key in SECTIONS:
                if not isinstance(value, dict):
                    raise UsageError(
                        f"{key} in {self.file.name} is {value!r}", f"it is a section: `[{key}]`, its settings below"
                    )
                for inner in value:
                    _refuse_unknown(inner, known[key], f"[{key}] of {self.file.name}")
            else:
                _refuse_unknown(key, top | set(SECTIONS), self.file.name)
        for key in self.given:
            _refuse_unknown(key, {f"{s}.{k}" if s else k for s, keys in known.items() for k in keys}, "--set")
        variables = {_variable(section, key) for section, keys in known.items() for key in keys} | {PREFIX + "PROJECT"}
        for name in self.env:
            _refuse_unknown(name, variables, "the environment")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text} has no value", "for example `--set train.lr=1e-3`")
    key = key.strip()
    return BASE_KEYS.get(key, key), value.strip()


def _variable(section: str, key: str) -> str:
    parts = [section.replace("-", "_"), key] if section else [key]
    return PREFIX + "_".join(parts).upper()


def _refuse_unknown(key: str, known: set[str], where: str) -> None:
    if key not in known:
        from objtune_cli.config import toml_files

        near = toml_files.nearest(key, known)
        raise UsageError(
            f"unknown key {key} in {where}",
            f"{f'did you mean {near}? ' if near else ''}known keys: {', '.join(sorted(known))}",
        )


def _read(file: Path) -> dict[str, Any]:
    from objtune_cli.config import toml_files  # `--help` reads no settings

    try:
        return toml_files.read(file, "correct the file, or delete it and run `objtune init`", UsageError)
    except FileNotFoundError:
        return {}


def _located(item: Any, value: Any, where: str, folder: Path | None = None) -> Any:
    """A setting's value, a path where it is one; `folder`: of the file that says it."""
    kind = item.metadata["path"]
    try:
        return paths.CONVERTERS[kind](value, folder) if kind else value
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", error.hint) from None


def _from_text(item: Any, text: str, where: str) -> Any:
    try:
        return item.type(text) if item.type in (int, float) else text
    except ValueError:
        raise UsageError(f"{where} is {text!r}", f"{_KINDS[item.type]} is needed") from None


def _checked(item: Any, value: Any, where: str) -> Any:
    kind = item.type
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise UsageError(f"{where} is {value!r}", f"one of {', '.join(filter(None, get_args(kind)))}")
        return value
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UsageError(f"{where} is {value!r}", f"{_KINDS[kind]} is needed")
    low, high = item.metadata["low"], item.metadata["high"]
    if kind is float and not math.isfinite(value):
        raise UsageError(f"{where} is {value}", "a finite number is needed")
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"{low} or more" if high is None else f"{high} or less" if low is None else f"from {low} to {high}"
        raise UsageError(f"{where} is {value}", NOT_RANDOM if item.name == "seed" and value == -1 else bounds)
    return value
