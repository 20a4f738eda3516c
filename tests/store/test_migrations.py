"""Every released schema opens: fixtures written by the program of that schema, and the digest that schema 2 added."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objtune_cli import renamed_settings
from objtune_cli.errors import DamagedError, IncompatibleError
from objtune_cli.models import registry
from objtune_cli.store import migrations, safetensors_format
from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import Ref, parse
from objtune_cli.store.store import Store

FIXTURES = Path(__file__).parent / "fixtures"
REX = Record("mask", "rex", {"rex": "dog"}, {}, {"edge": 0.5}, {}, {"area": 0.25})
FLIPS = (0x01, 0x10, 0x80, 0xFF)


@pytest.fixture
def old(tmp_path: Path) -> Store:
    """A store of schema 1: mask/rex@1 and embedding/rex@1."""
    shutil.copytree(FIXTURES / "schema1", tmp_path / "artifacts")
    return Store.at(tmp_path)


def test_there_is_a_fixture_of_every_schema_before_this() -> None:
    assert {p.name for p in FIXTURES.iterdir()} == {f"schema{n}" for n in range(1, migrations.SCHEMA)}


def test_schema_1_opens(old: Store) -> None:
    record, tensors = old.read(Ref("mask", "rex", 1))
    assert (record.schema, record.digest, record.metrics) == (migrations.SCHEMA, "", {"area": 0.25})
    assert tensors["mask"].tolist() == [[0, 255]]
    record, tensors = old.read(Ref("embedding", "rex", 1))
    assert tensors["text_encoder"].tolist() == [[0, 1, 2], [3, 4, 5]]
    mask = Ref("mask", "rex", 1)
    assert record.inputs == {"mask": {"ref": str(mask), "sha256": old.compute_sha256(mask)}}
    assert old.verify(mask) == (old.read_record(mask), old.compute_sha256(mask))


def test_work_of_schema_1_is_reused(old: Store) -> None:
    record = old.read_record(Ref("mask", "rex", 1))
    wanted = Record("mask", "rex", record.objects, record.inputs, record.config, record.base)
    assert old.find_identical(wanted) == Ref("mask", "rex", 1)
    assert old.create(wanted, {}).version == 2


def test_migrations_leave_the_file_and_the_given_record_alone(old: Store) -> None:
    path = old.path(Ref("mask", "rex", 1))
    raw = safetensors_format.read_header(path)[0]
    before, data = dict(raw), path.read_bytes()
    assert migrations.migrate(raw, path)["schema"] == migrations.SCHEMA
    assert raw == before
    assert path.read_bytes() == data


def test_every_flipped_byte_of_an_artifact_is_noticed(tmp_path: Path) -> None:
    """F7 in short: every place of a small file, four masks, and the file is as it was afterwards."""
    store = Store.at(tmp_path)
    ref = store.create(REX, {"mask": np.arange(64, dtype=np.uint8)})
    path = store.path(ref)
    data = path.read_bytes()
    store.verify(ref)
    path.chmod(0o644)
    with path.open("r+b") as file:
        for place, byte in enumerate(data):
            for flip in FLIPS:
                file.seek(place)
                file.write(bytes([byte ^ flip]))
                file.flush()
                with pytest.raises(DamagedError, match=r"v001\.safetensors is damaged"):
                    store.verify(ref)
            file.seek(place)
            file.write(bytes([byte]))
            file.flush()
    assert store.verify(ref)[0].name == "rex"


def test_a_newer_schema_that_is_whole_is_newer_and_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.at(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "SCHEMA", migrations.SCHEMA + 1)
        ref = store.create(REX, {})
    with pytest.raises(IncompatibleError, match=f"has schema {migrations.SCHEMA + 1}"):
        store.verify(ref)


def test_load_without_a_recorded_digest_checks_the_files_own(tmp_path: Path) -> None:
    store = Store.at(tmp_path)
    ref = store.create(REX, {"mask": np.ones(64, np.uint8)})
    path = store.path(ref)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\2")
    assert store.read_record(ref).name == "rex"
    with pytest.raises(DamagedError, match="its bytes do not match its digest"):
        store.read(ref)


# Schema 2: settings under their former names.

IDENTITIES = {
    "mask/rex@1": "segment.edge_softness", "embedding/rex@1": "append_class_token", "prior/dog@1": "mixed_prompts", "adapter/rex@1": "fix_embedding_norm",
    "adapter/rex-half@1": "method", "scene/rex@1": "guidance_scale", "scene/rex@2": "bounded_self_attention",
}  # fmt: skip
"""Artifacts of the fixture, and a setting of each under its name of today."""
SEGMENT = ("--set", "segment.segmenter=grabcut", "--set", "segment.edge_softness=0.02")
EMBED = ("steps=2", "append_class_token=false", "text_weight=0.5", "init=prototype")
TRAIN = ("max_steps=2", "rank=1", "target_modules=cross-kv", "num_augmentations=2", "num_teacher_samples=2", "self_evaluation=false", "fix_embedding_norm=false",
         "multiple_templates=false", "context_words=placeholder", "loss_region=mask", "prior_target=noise", "sample_vae_latents=false", "early_stopping=off",
         "original_view_prob=0.1")  # fmt: skip
PRIOR = ("num_class_images=1", "num_predictions=2", "mixed_prompts=false")
COMPOSE = ("presence_check=false", "paste=box", "bounded_self_attention=true", "refine_strength=0.5")


def _set(section: str, *pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", f"{section}.{pair}")]


@pytest.fixture
def schema2(project: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of schema 2, and a base that says it is the one of that project."""
    for part in (FIXTURES / "schema2").iterdir():
        (shutil.copytree if part.is_dir() else shutil.copy)(part, project / part.name)
    of_then = Store.at(project).read_record(Ref("adapter", "rex", 1)).base
    resolve = registry.resolve
    monkeypatch.setattr(
        registry, "resolve", lambda *a, **k: replace(resolve(*a, **k), fingerprint=of_then["fingerprint"])
    )
    return project


def test_records_of_schema_2_are_read_under_the_names_of_today(schema2: Path) -> None:
    for text, name in IDENTITIES.items():
        record = Store.at(schema2).read_record(parse(text))
        assert record.schema == migrations.SCHEMA and name.rpartition(".")[2] in record.config, record.config
        section = {"mask": "segment", "embedding": "init-embedding", "prior": "prior", "scene": "generate"}.get(
            record.kind, "train"
        )
        assert not [
            key for key in record.config if renamed_settings.present_key(f"{section}.{key}") != f"{section}.{key}"
        ]
    train = Store.at(schema2).read_record(parse("adapter/rex@1")).config
    assert (train["fix_embedding_norm"], train.get("context_words", "placeholder")) == (
        False,
        "placeholder",
    )
    assert (train["loss_region"], train["prior_target"], train["learning_rate"]) == ("mask", "noise", 1e-4)


def test_work_of_schema_2_is_found_by_the_same_commands(schema2: Path, base: Path, cli: Callable[..., Any]) -> None:
    """Every stage of the fixture, asked for again with the names of today, is there already."""
    on = ("--base", base, "--device", "cpu", "--precision", "fp32")
    stages = {
        "mask/rex@1": ("segment", "photo.png", "--class", "dog", "--name", "rex", "--mask", "mask.png", *SEGMENT, "--base", base),
        "embedding/rex@1": ("init-embedding", "rex", *_set("init-embedding", *EMBED), *on),
        "adapter/rex@1": ("train", "embedding/rex", *_set("train", *TRAIN), *_set("prior", *PRIOR), "--no-preview", *on),
        "scene/rex@1": ("generate", "a photo of <rex> at night", "-n", 1, "--steps", 2, *_set("generate", "guidance_scale=2"), "--negative", "blue", *on),
        "scene/rex@2": ("compose", "<rex> and <rex>", "--place", "rex=left", "--place", "rex-2=right", "-n", 1, "--steps", 2, "--retries", 0, *_set("compose", *COMPOSE), *on),
        "adapter/rex-half@1": ("merge", "rex=0.5", "--name", "rex-half"),
    }  # fmt: skip
    for ref, words in stages.items():
        done = cli(*words, "--json")
        assert done.code == 0, done.err
        assert [(r["ref"], r["reused"]) for r in json.loads(done.out)["refs"]] == [(ref, True)], ref


def test_a_changed_setting_of_schema_2_makes_other_work(schema2: Path, base: Path, cli: Callable[..., Any]) -> None:
    done = cli("segment", "photo.png", "--class", "dog", "--name", "rex", "--mask", "mask.png", *SEGMENT[:-1], "segment.edge_softness=0.03", "--base", base, "--json")  # fmt: skip
    assert [(r["ref"], r["reused"]) for r in json.loads(done.out)["refs"]] == [("mask/rex@2", False)]
