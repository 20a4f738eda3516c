"""Every released schema opens: fixtures written by the program of that schema, and the digest that schema 2 added."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from objtune_cli.errors import DamagedError, IncompatibleError
from objtune_cli.store import migrations, safetensors_format
from objtune_cli.store.artifacts import Record, file_sha256, find_identical, load, publish, read_record, verify
from objtune_cli.store.refs import Ref

FIXTURES = Path(__file__).parent / "fixtures"
REX = Record("mask", "rex", {"rex": "dog"}, {}, {"edge": 0.5}, {}, {"area": 0.25})
FLIPS = (0x01, 0x10, 0x80, 0xFF)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store of schema 1: mask/rex@1 and embedding/rex@1."""
    shutil.copytree(FIXTURES / "schema1", tmp_path / "artifacts")
    return tmp_path / "artifacts"


def test_there_is_a_fixture_of_every_schema_before_this() -> None:
    assert {p.name for p in FIXTURES.iterdir()} == {f"schema{n}" for n in range(1, migrations.SCHEMA)}


def test_schema_1_opens(old: Path) -> None:
    record, tensors = load(old, Ref("mask", "rex", 1))
    assert (record.schema, record.digest, record.metrics) == (migrations.SCHEMA, "", {"area": 0.25})
    assert tensors["mask"].tolist() == [[0, 255]]
    record, tensors = load(old, Ref("embedding", "rex", 1))
    assert tensors["text_encoder"].tolist() == [[0, 1, 2], [3, 4, 5]]
    mask = Ref("mask", "rex", 1)
    assert record.inputs == {"mask": {"ref": str(mask), "sha256": file_sha256(mask.path(old))}}
    assert verify(old, mask) == (read_record(old, mask), file_sha256(mask.path(old)))


def test_work_of_schema_1_is_reused(old: Path) -> None:
    record = read_record(old, Ref("mask", "rex", 1))
    wanted = Record("mask", "rex", record.objects, record.inputs, record.config, record.base)
    assert find_identical(old, wanted) == Ref("mask", "rex", 1)
    assert publish(old, wanted, {}).version == 2


def test_migrations_leave_the_file_and_the_given_record_alone(old: Path) -> None:
    path = Ref("mask", "rex", 1).path(old)
    raw = safetensors_format.read_header(path)[0]
    before, data = dict(raw), path.read_bytes()
    assert migrations.migrate(raw, path)["schema"] == migrations.SCHEMA
    assert raw == before
    assert path.read_bytes() == data


def test_every_flipped_byte_of_an_artifact_is_noticed(tmp_path: Path) -> None:
    """F7 in short: every place of a small file, four masks, and the file is as it was afterwards."""
    root = tmp_path / "artifacts"
    ref = publish(root, REX, {"mask": np.arange(64, dtype=np.uint8)})
    path = ref.path(root)
    data = path.read_bytes()
    verify(root, ref)
    path.chmod(0o644)
    with path.open("r+b") as file:
        for place, byte in enumerate(data):
            for flip in FLIPS:
                file.seek(place)
                file.write(bytes([byte ^ flip]))
                file.flush()
                with pytest.raises(DamagedError, match=r"v001\.safetensors is damaged"):
                    verify(root, ref)
            file.seek(place)
            file.write(bytes([byte]))
            file.flush()
    assert verify(root, ref)[0].name == "rex"


def test_a_newer_schema_that_is_whole_is_newer_and_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "artifacts"
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "SCHEMA", 3)
        ref = publish(root, REX, {})
    with pytest.raises(IncompatibleError, match="has schema 3"):
        verify(root, ref)


def test_load_without_a_recorded_digest_checks_the_files_own(tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    ref = publish(root, REX, {"mask": np.ones(64, np.uint8)})
    path = ref.path(root)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\2")
    assert read_record(root, ref).name == "rex"
    with pytest.raises(DamagedError, match="its bytes are not those that its digest is of"):
        load(root, ref)
