"""As much of JSON Schema as docs/schemas/ uses; a keyword that is not known here is an error, so that no rule goes unchecked."""

import json
import re
from typing import Any

from tests.conftest import REPOSITORY

SCHEMAS = REPOSITORY / "docs" / "schemas"
TYPES = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "null": lambda v: v is None,
}
SILENT = {"$schema", "$defs", "title", "description"}


def check(value: Any, name: str, part: str = "") -> None:
    """Assert that a document is what `docs/schemas/<name>.json` (or its `$defs/<part>`) says."""
    whole = json.loads((SCHEMAS / f"{name}.json").read_text())
    _check(value, whole["$defs"][part] if part else whole, whole, part or name)


def _fits(value: Any, rule: Any, whole: Any) -> bool:
    try:
        _check(value, rule, whole, "")
    except AssertionError:
        return False
    return True


def _check(value: Any, rule: Any, whole: Any, where: str) -> None:
    for keyword, wanted in rule.items():
        if keyword in PLAIN:
            PLAIN[keyword](value, wanted, where)
        elif keyword in NESTED:
            NESTED[keyword](value, wanted, rule, whole, where)
        else:
            assert keyword in SILENT, f"keyword {keyword} of {where} is not checked"


def _type(value: Any, wanted: Any, where: str) -> None:
    kinds = wanted if isinstance(wanted, list) else [wanted]
    assert any(TYPES[kind](value) for kind in kinds), f"{where} is {value!r}, not {kinds}"


def _required(value: Any, wanted: Any, where: str) -> None:
    assert set(wanted) <= set(value), f"{where} lacks {sorted(set(wanted) - set(value))}"


def _enum(value: Any, wanted: Any, where: str) -> None:
    assert value in wanted, f"{where} is {value!r}, not one of {wanted}"


def _pattern(value: Any, wanted: Any, where: str) -> None:
    assert re.search(wanted, value), f"{where} is {value!r}, not {wanted}"


def _minimum(value: Any, wanted: Any, where: str) -> None:
    assert value >= wanted, f"{where} is {value}, below {wanted}"


def _reference(value: Any, wanted: Any, _rule: Any, whole: Any, where: str) -> None:
    assert wanted.startswith("#/$defs/"), wanted
    _check(value, whole["$defs"][wanted.removeprefix("#/$defs/")], whole, where)


def _properties(value: Any, wanted: Any, _rule: Any, whole: Any, where: str) -> None:
    for key in set(wanted) & set(value):
        _check(value[key], wanted[key], whole, f"{where}.{key}")


def _additional(value: Any, wanted: Any, rule: Any, whole: Any, where: str) -> None:
    more = set(value) - set(rule.get("properties", {}))
    assert wanted is not False or not more, f"{where} has {sorted(more)} too"
    for key in more:
        _check(value[key], wanted, whole, f"{where}.{key}")


def _items(value: Any, wanted: Any, _rule: Any, whole: Any, where: str) -> None:
    for i, item in enumerate(value):
        _check(item, wanted, whole, f"{where}[{i}]")


def _one_of(value: Any, wanted: Any, _rule: Any, whole: Any, where: str) -> None:
    assert sum(_fits(value, each, whole) for each in wanted) == 1, f"{where} fits not exactly one of the forms"


PLAIN = {
    "type": _type, "required": _required, "enum": _enum, "const": lambda v, w, where: _enum(v, [w], where), "pattern": _pattern,
    "minimum": _minimum,
}  # fmt: skip
NESTED = {
    "$ref": _reference,
    "properties": _properties,
    "additionalProperties": _additional,
    "items": _items,
    "oneOf": _one_of,
}
