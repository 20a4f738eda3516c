"""`doctor`: says what is there and what is missing, loads no torch for what needs none, and fails where work would."""

import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objtune_cli.store.artifacts import Record
from objtune_cli.store.store import Store
from tests.support.json_schema import check
from tests.test_architecture import loaded_by

Cli = Callable[..., Any]


def checks(done: Any) -> dict[str, dict[str, str]]:
    document = json.loads(done.out)
    check(document, "output", "doctor")
    return {c["what"]: c for c in document["checks"]}


def test_a_sound_machine(cli: Cli, project: Path) -> None:
    Store.at(project).create(Record("mask", "rex", {"rex": "dog"}, {}, {}, {}), {"mask": np.ones(9, np.uint8)})
    done = cli("doctor", "--json")
    found = checks(done)
    assert done.code == 0
    assert (found["store"]["said"], found["leftovers"]["state"]) == ("1 artifacts, all headers valid", "ok")
    assert (found["base toybox"]["state"], found["segmenter"]["state"], found["cpu"]["state"]) == ("ok", "ok", "ok")
    assert found["base sd15"]["state"] == "missing"
    assert "objtune fetch --base sd15" in found["base sd15"]["remedy"]
    assert found["torch"]["said"].startswith("2.")
    assert all(c["remedy"] for c in found.values() if c["state"] != "ok")
    lines = cli("doctor", "--quick").out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [
        what for what in found if what not in ("libraries", "cpu", "gpu", "mps") and "cuda" not in what
    ]


def test_libraries_are_imported_and_every_device_computes_a_step(
    cli: Cli, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = checks(cli("doctor", "--json"))
    assert found["libraries"]["state"] == "ok"
    assert "a training step works in fp32" in found["cpu"]["said"]

    def fail(device: str, dtype: object) -> str:
        return "no kernel" if dtype in failing else ""

    from objtune_cli.doctor import checks as health
    from objtune_cli.runtime import tiny_step

    monkeypatch.setattr(tiny_step, "find_failure", fail)
    failing = [tiny_step.FORMATS["fp16"]]
    half = checks(cli("doctor", "--json"))["cpu"]
    assert half["state"] == "ok" and half["said"].endswith("works in fp32, bf16; fp16 fails: no kernel")
    failing = list(tiny_step.FORMATS.values())
    done = cli("doctor", "--json")
    assert (done.code, checks(done)["cpu"]["state"]) == (7, "bad")
    monkeypatch.setattr(health, "LIBRARIES", ("torch", "no_such_library"))
    broken = checks(cli("doctor", "--json"))["libraries"]
    assert (broken["state"], broken["remedy"]) == ("bad", "pip install --force-reinstall no_such_library")


def test_a_tiny_step_fails_where_a_device_does() -> None:
    from objtune_cli.runtime import tiny_step

    assert tiny_step.find_failure("cpu", tiny_step.FORMATS["fp32"]) == ""
    assert tiny_step.find_failure("cuda:99", tiny_step.FORMATS["fp32"])


def test_what_a_base_needs_is_one_table(cli: Cli, base: Path) -> None:
    done = cli("doctor", "--base", "sdxl", "--quick", "--json")
    found = checks(done)
    assert (done.code, found["base sdxl"]["state"]) == (7, "bad")
    needed = ("base sdxl", "CLIP vision encoder 1", "CLIP vision encoder 2", "segmenter")
    assert {found[what]["remedy"] for what in needed} == {"objtune fetch --base sdxl"}
    assert {found[f"{name} of evaluate"]["remedy"] for name in ("CLIP", "DINO")} == {
        "objtune fetch --base sdxl --with-metrics"
    }
    assert "base sd15" not in found
    toybox = cli("doctor", "--base", "toybox", "--quick", "--json")
    there = checks(toybox)
    assert toybox.code == 0
    assert {there[what]["state"] for what in ("base toybox", "CLIP vision encoder", "segmenter")} == {"ok"}
    own = checks(cli("doctor", "--base", base, "--quick", "--json"))
    assert own["CLIP vision encoder"]["said"] == str(base / "clip")
    assert (own["segmenter"]["state"], own["segmenter"]["remedy"]) == (
        "missing",
        f"objtune fetch --model {own['segmenter']['said'].split()[0]}",
    )


def test_quick_loads_no_torch(project: Path) -> None:
    done = loaded_by("doctor", "--quick", folder=project)
    assert done.stderr == "loaded [] code 0\n"


def test_no_project_is_said_with_its_command(cli: Cli, project: Path) -> None:
    (project / "objtune.toml").unlink()
    found = checks(cli("doctor", "--quick", "--json"))
    assert (found["project"]["state"], found["project"]["remedy"]) == ("missing", "objtune init")
    assert list(project.iterdir()) == []


def test_a_damaged_store_is_bad(cli: Cli, project: Path) -> None:
    path = Store.at(project).path(Store.at(project).create(Record("mask", "rex", {"rex": "dog"}, {}, {}, {}), {}))
    path.chmod(0o644)
    path.write_bytes(b"broken")
    done = cli("doctor", "--quick", "--json")
    found = checks(done)
    assert (done.code, found["store"]["state"]) == (7, "bad")
    assert str(path) in found["store"]["said"]
    assert f"bad: store: {path} is damaged" in cli("doctor", "--quick").err


def test_little_room_is_bad(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(10**12, 10**12 - 10**6, 10**6)
    )
    done = cli("doctor", "--quick", "--json")
    assert (done.code, checks(done)["disk"]["remedy"]) == (7, "`objtune gc` deletes what nothing uses")


def test_leftovers_and_a_lost_checkpoint_are_said(cli: Cli, project: Path) -> None:
    (project / ".objtune/tmp").mkdir(parents=True)
    (project / ".objtune/tmp/00000000.1.2").touch()
    os.utime(project / ".objtune/tmp/00000000.1.2", (1e9, 1e9))
    (project / "objtune.toml").write_text('[segment]\nsam_checkpoint = "none.pth"\n')
    found = checks(cli("doctor", "--quick", "--json"))
    assert (found["leftovers"]["said"], found["leftovers"]["remedy"]) == ("1 files of killed commands", "objtune gc")
    assert (found["segmenter"]["state"], found["segmenter"]["said"]) == ("bad", f"there is no {project / 'none.pth'}")
