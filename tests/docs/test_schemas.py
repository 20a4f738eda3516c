"""docs/schemas/: every command has a form, and the checker of these tests can say no."""

import json
from typing import Any

import pytest

from objtune_cli.cli.app import COMMANDS
from tests.support.json_schema import SCHEMAS, check

PLAIN: dict[str, Any] = {"command": "segment", "refs": [], "images": [], "metrics": {}, "seconds": 0.5}
ONE = {"ref": "mask/rex@1", "path": "/a", "sha256": "0" * 64, "reused": False}


def test_every_command_has_a_form() -> None:
    whole = json.loads((SCHEMAS / "output.json").read_text())
    assert {n for n in whole["$defs"] if n not in ("ref", "artifact", "record", "error")} == set(COMMANDS)
    assert [each["$ref"].rsplit("/", 1)[1] for each in whole["oneOf"]] == [
        "error",
        *(n for n in whole["$defs"] if n in COMMANDS),
    ]


def test_what_fits() -> None:
    check(PLAIN, "output")
    check(PLAIN | {"refs": [ONE], "metrics": {"mask/rex@1": {"area": 0.5}}}, "output", "segment")
    check({"command": "show", "error": {"code": 4, "message": "m", "hint": ""}}, "output")


@pytest.mark.parametrize(
    "value",
    [
        [], {}, PLAIN | {"command": "segments"}, PLAIN | {"more": 1}, PLAIN | {"seconds": "1"}, PLAIN | {"seconds": -1}, PLAIN | {"refs": [{}]},
        PLAIN | {"refs": [ONE | {"sha256": "0"}]}, PLAIN | {"refs": [ONE | {"ref": "mask/rex"}]}, PLAIN | {"refs": [ONE | {"reused": 0}]},
        PLAIN | {"metrics": {"mask/rex@1": 3}}, {"command": "x", "error": {"code": 0, "message": "m", "hint": ""}}, PLAIN | {"command": "train"},
    ],
    ids=repr,
)  # fmt: skip
def test_what_does_not_fit(value: Any) -> None:
    with pytest.raises(AssertionError):
        check(value, "output")
