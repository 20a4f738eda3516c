"""The keys of a jobs file: their kinds of values, their former names, and hints where one is wrong."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from objtune_cli import renamed_settings
from objtune_cli.config import toml_files
from objtune_cli.config.sections import MAX_SEED, SECTIONS, SEEDS
from objtune_cli.errors import InputError
from objtune_cli.workflow.photo_keys import HINTS

_TEXT, _TEXTS, _NUMBER, _PLACE, _SETTINGS = "text", "texts", "number", "place", "settings"
_DECIMAL, _FLAG, _NUMBERS, _TABLES = "decimal", "flag", "numbers", "tables"
SAMPLING_KEYS: dict[str, tuple[str, str]] = {
    "seed": (_NUMBER, "0"), "seeds": (_NUMBERS, "[1, 2, 3]"), "n": (_NUMBER, "4"), "lora": (_TEXTS, '"style.safetensors:0.7"'), "negative": (_TEXT, '"blurry"'),
    "style": (_TEXTS, '"watercolor"'), "wildcards": (_TEXT, '"wildcards"'), "guidance": (_DECIMAL, "7.5"), "strength": (_DECIMAL, "0.8"),
    "scheduler": (_TEXT, '"euler_a"'), "out": (_TEXT, '"images"'), "format": (_TEXT, '"webp"'), "no_metadata": (_FLAG, "true"),
    "name_pattern": (_TEXT, '"{object}-{seed}"'),
}  # fmt: skip
"""What a job may say about the images of `generate`, `compose` and `place`."""
SIZE_KEYS: dict[str, tuple[str, str]] = {
    "size": (_TEXT, '"832x1216"'), "aspect": (_TEXT, '"3:2"'), "width": (_NUMBER, "832"), "height": (_NUMBER, "1216"),
}  # fmt: skip
GENERATE_KEYS: dict[str, tuple[str, str]] = {
    "from": (_TEXT, '"picture.png"'), "change": (_DECIMAL, "0.4"), "reference": (_TEXTS, '"rex"'), "best": (_NUMBER, "4"), "grid": (_TEXTS, '"strength=0.6,0.8,1"'), "sheet": (_TEXT, '"sheet.png"'),
    "adapter": (_TEXT, '"rex@2"'),
}  # fmt: skip
RETRY_KEYS: dict[str, tuple[str, str]] = {
    "retries": (_NUMBER, "4"),
    "strict": (_FLAG, "true"),
    "base": (_TEXT, '"sd15"'),
}
STEPS_KEY = {"steps": (_NUMBER, "30")}
"""Of a table that draws; in a job it would be unclear whether steps of training are meant."""
COMPOSE_KEYS: dict[str, tuple[str, str]] = {
    "prompt": (_TEXT, '"<rex> and <cup>"'), "places": (_PLACE, '{rex = "left"}'), "layout": (_TEXT, '"layout.toml"'), **SAMPLING_KEYS, **SIZE_KEYS, **STEPS_KEY, **RETRY_KEYS,
}  # fmt: skip
PLACE_KEYS: dict[str, tuple[str, str]] = {
    "prompt": (_TEXT, '"<rex>"'), "into": (_TEXT, '"table.jpg"'), "at": (_PLACE, '"left"'), "mask": (_TEXT, '"where.png"'), "replace": (_TEXT, '"dog"'),
    "change": (_DECIMAL, "0.8"), **SAMPLING_KEYS, **STEPS_KEY, **RETRY_KEYS,
}  # fmt: skip
TABLE_KEYS = {"compose": COMPOSE_KEYS, "place": PLACE_KEYS}
"""Keys of the tables in a job."""
KEYS: dict[str, tuple[str, str]] = {
    "photo": (_TEXTS, '"photos/rex.jpg"'), "class": (_TEXTS, '"dog"'), "name": (_TEXTS, '"rex"'), "mask": (_TEXTS, '"rex.png"'),
    "box": (_PLACE, '"110,240,530,530"'), "point": (_PLACE, '"320,240"'), "negative_point": (_PLACE, '"20,40"'), "refine_mask": (_TEXTS, '"rex.png"'),
    "select": (_TEXT, '"largest"'), "prompts": (_TEXTS, '"a photo of <rex> on the beach"'), "base": (_TEXT, '"sd15"'),
    "device": (_TEXT, '"cuda:0"'), "precision": (_TEXT, '"bf16"'), "set": (_SETTINGS, '"train.max_steps=20"'), "max_time": (_TEXT, '"45m"'),
    "prompts_file": (_TEXT, '"prompts.txt"'), "compose": (_TABLES, '{prompt = "<rex> and <cup>"}'), "place": (_TABLES, '{prompt = "<rex>", into = "table.jpg"}'),
    **SAMPLING_KEYS, **SIZE_KEYS, **GENERATE_KEYS,
}  # fmt: skip
"""What a job may say, and what `[defaults]` may say for all of them: the kind of value, and an example."""
KINDS = {
    _TEXT: "a text", _TEXTS: "a text, or a list of texts", _NUMBER: "a whole number", _PLACE: "a text, or numbers",
    _SETTINGS: "a text, a list of texts, or a table", _DECIMAL: "a number", _FLAG: "true or false", _NUMBERS: "a list of whole numbers",
    _TABLES: "a table, or a list of tables",
}  # fmt: skip
_CHECKS: dict[str, Callable[[Any], bool]] = {
    _TEXT: lambda value: isinstance(value, str),
    _NUMBER: lambda value: type(value) is int,
    _DECIMAL: lambda value: type(value) in (int, float),
    _FLAG: lambda value: type(value) is bool,
    _NUMBERS: lambda value: isinstance(value, list) and bool(value) and all(type(each) is int for each in value),
}
"""Kinds whose values stay as they are, each with its check."""
OTHER_NAMES = {
    "image": "photo", "picture": "photo", "file": "photo", "path": "photo", "input": "photo", "prompt": "prompts", "count": "n", "bbox": "box",
    "category": "class", "label": "class", "model": "base", "negative_prompt": "negative", "styles": "style", "wildcard": "wildcards", "settings": "set", "options": "set", "config": "set",
}  # fmt: skip
"""What people write for a key."""
FORMER_KEYS = {"not_point": "negative_point", "rough": "refine_mask", "which": "select"}
"""Former keys, accepted with a note, to those of today."""
JOB_EXAMPLE = 'for example `[[job]]`, below it `photo = "rex.jpg"` and `class = "dog"`'


def rename_keys(table: dict[str, Any], file: Path, note: Callable[[str], None]) -> None:
    """Give former keys of all jobs their names of today, with one note for each former key.

    Raises:
        InputError: A job has both names of a key.
    """
    jobs = table["job"] if isinstance(table.get("job"), list) else []
    for former, today in FORMER_KEYS.items():
        owners = [job for job in [table.get("defaults"), *jobs] if isinstance(job, dict) and former in job]
        for job in owners:
            if today in job:
                raise InputError(f"a job of {file} has {former} and {today}", f"keep {today} alone")
            job[today] = job.pop(former)
        if owners:
            note(f"the key {former} is now {today} ({file.name})")


def check_job(job: Any, where: str, keys: Mapping[str, tuple[str, str]] = KEYS) -> dict[str, Any]:
    """A job's table with texts, numbers of places and settings as lists of texts.

    Args:
        keys: What it may say.

    Raises:
        InputError: An unknown key, or a value of another type.
    """
    if not isinstance(job, dict):
        raise InputError(f"{where} is not a table", JOB_EXAMPLE)
    for key, value in job.items():
        if key not in keys:
            raise InputError(
                f"unknown key {key} in {where}",
                f"{_suggest_key(key, value, keys)}known keys: {', '.join(sorted(keys))}",
            )
    return {key: _parse_value(key, value, where, keys) for key, value in job.items()}


def _suggest_key(key: str, value: Any, keys: Mapping[str, tuple[str, str]]) -> str:
    """Suggest what an unknown key probably means; empty if nothing is near."""
    setting = "" if key.lower() in OTHER_NAMES or keys is not KEYS else _find_setting(key, value)
    if setting:
        return f'settings go into `set`: `set = "{setting}"`; '
    near = OTHER_NAMES.get(key.lower(), "")
    near = near if near in keys else toml_files.find_nearest(key, keys)
    return f"did you mean `{near} = {keys[near][1]}`? " if near else ""


def _find_setting(key: str, value: Any) -> str:
    """The setting `section.key=value` that a job's key names, or a table of one section; empty if there is none."""
    name, owners = key.replace("-", "_"), ["train", *SECTIONS]
    if isinstance(value, dict) and name.replace("_", "-") in SECTIONS and value:
        owners = [name.replace("_", "-")]
        name, value = next(iter(value.items()))
    setting_names = {f"{section}.{f.name}" for section, kind in SECTIONS.items() for f in fields(kind)}
    keys = (renamed_settings.present_key(f"{section}.{name}") for section in owners)
    setting = next((each for each in keys if each in setting_names), "")
    return f"{setting}={_setting_text(value)}" if setting else ""


def _parse_value(key: str, value: Any, where: str, keys: Mapping[str, tuple[str, str]]) -> Any:
    kind, example = keys[key]
    if key == "seed" and type(value) is int and not 0 <= value <= MAX_SEED:
        raise InputError(f"{key} in {where} is {value}", f"a whole number, {SEEDS}")
    if kind in _CHECKS and _CHECKS[kind](value):
        return value
    tables = [value] if isinstance(value, dict) else value
    if kind == _TABLES and isinstance(tables, list) and tables and all(isinstance(each, dict) for each in tables):
        return [check_job(each, f"{key} in {where}", TABLE_KEYS[key]) for each in tables]
    parsed = None if kind in (*_CHECKS, _TABLES) else _parse_list(key, kind, value)
    if not parsed:
        raise InputError(f"{key} in {where} is {value!r}", f"{KINDS[kind]} is needed: `{key} = {example}`")
    return parsed


def _parse_list(key: str, kind: str, value: Any) -> list[str] | None:
    """A value of several texts; None where it is of another type."""
    if key == "box":
        value = (
            {name: _join_numbers(each) for name, each in value.items()}
            if isinstance(value, dict)
            else _join_numbers(value)
        )
    if kind == _SETTINGS and isinstance(value, dict):
        return [f"{name}={_setting_text(each)}" for name, each in _flatten_settings(value)]
    if key in (*HINTS, "places") and isinstance(value, dict):
        pairs = [f"{name}={text}" for name, each in value.items() for text in _parse_texts(kind, each) or [""]]
        return pairs if all(text.partition("=")[2] for text in pairs) else None
    return _parse_texts(kind, value)


def _parse_texts(kind: str, value: Any) -> list[str] | None:
    """A value as texts, the numbers of a place with commas; None where it is of another type."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        return None
    if kind == _PLACE and value and all(type(v) in (int, float) for v in value):
        return [",".join(map(_setting_text, value))]
    each = [
        _parse_texts(kind, v) if kind == _PLACE and isinstance(v, list) else [v] if isinstance(v, str) else None
        for v in value
    ]
    return None if None in each else [text for texts in each for text in texts or []]


def _join_numbers(value: Any) -> Any:
    """Two corners of a box as its four numbers; anything else as it is."""
    is_pair = isinstance(value, list) and len(value) == 2 and all(isinstance(v, list) and len(v) == 2 for v in value)
    return [*value[0], *value[1]] if is_pair else value


def _flatten_settings(table: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested tables under their dotted keys."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten_settings(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _setting_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
