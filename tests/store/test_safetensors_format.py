"""The safetensors header: exact bytes out, and everything that is not one of ours refused."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objtune_cli.errors import DamagedError, IncompatibleError, MissingError
from objtune_cli.store import safetensors_format
from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store

GOLDEN = (
    rb'{"__metadata__":{"objtune":"{\"class\":\"K\xc3\xa4se\",\"schema\":1}"},'
    rb'"a":{"data_offsets":[0,6],"dtype":"U8","shape":[2,3]},"b":{"data_offsets":[6,10],"dtype":"F32","shape":[]}}'
).replace(rb"\xc3\xa4", "ä".encode())


def file_of(tmp_path: Path, tensors: dict[str, Any], body: bytes, metadata: Any = None) -> Path:
    """A file with any header at all."""
    return raw_file(tmp_path, json.dumps({"__metadata__": metadata or {"objtune": "{}"}, **tensors}).encode(), body)


def raw_file(tmp_path: Path, text: bytes, body: bytes = b"") -> Path:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def u8(*offsets: int, shape: Any = None, dtype: Any = "U8") -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [offsets[1] - offsets[0]] if shape is None else shape,
        "data_offsets": list(offsets),
    }


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A published artifact with three tensors, one of them empty."""
    record = Record(
        "mask", "rex", {"rex": "dog"}, {"photo": {"ref": "", "sha256": "0" * 64}}, {"edge": 0.5}, {}, {"area": 0.25}
    )
    tensors = {
        "rgb": np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
        "mask": np.ones((2, 2), np.float32),
        "none": np.zeros((0, 4), np.int64),
    }
    return Store.at(tmp_path).path(Store.at(tmp_path).create(record, tensors))


def test_golden_bytes() -> None:
    done = safetensors_format.encode_header({"schema": 1, "class": "Käse"}, {"b": ("F32", ()), "a": ("U8", (2, 3))})
    assert done[8:].rstrip(b" ") == GOLDEN
    assert int.from_bytes(done[:8], "little") == len(done) - 8
    assert len(done) % 8 == 0
    assert len(done) - 8 - len(GOLDEN) < 8


def test_canonical_text_does_not_depend_on_the_order_of_making() -> None:
    one = safetensors_format.canonical_json({"b": 1, "a": {"d": [1.5, None], "c": "ü"}})
    assert (
        one
        == safetensors_format.canonical_json({"a": {"c": "ü", "d": [1.5, None]}, "b": 1})
        == '{"a":{"c":"ü","d":[1.5,null]},"b":1}'
    )


def test_canonical_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        safetensors_format.canonical_json({"loss": float("nan")})


def test_golden_artifact(tmp_path: Path) -> None:
    """Recipe: the format of schema 3 written by hand; a change here is a new schema."""
    ref = Store.at(tmp_path).create(
        Record("mask", "rex", {"rex": "dog"}, {}, {"edge": 0.5}, {}),
        {"mask": np.array([[0, 255]], np.uint8)},
    )

    def written(digest: str) -> bytes:
        record = (
            f'{{"base":{{}},"class":"dog","config":{{"edge":0.5}},"digest":"{digest}","inputs":{{}},"kind":"mask","metrics":{{}},'
            '"name":"rex","objects":{"rex":"dog"},"schema":3,"tools":{},"version":1}'
        )
        text = (
            '{"__metadata__":{"objtune":'
            + json.dumps(record)
            + '},"mask":{"data_offsets":[0,2],"dtype":"U8","shape":[1,2]}}'
        )
        text += " " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text.encode() + b"\x00\xff"

    digest = hashlib.sha256(written("0" * 64)).hexdigest()
    assert Store.at(tmp_path).path(ref).read_bytes() == written(digest)
    assert digest == "6549b80e3e984766b030adfd489932c274da1fe7953c98ead0aa943480bdb40d"


def test_round_trip(small: Path) -> None:
    record, layout, size = safetensors_format.read_header(small)
    assert record["objects"] == {"rex": "dog"}
    assert record["version"] == 1
    assert size == small.stat().st_size
    assert {name: spec for name, (spec, _) in layout.items()} == {
        "rgb": ("U8", (2, 2, 3)),
        "mask": ("F32", (2, 2)),
        "none": ("I64", (0, 4)),
    }
    assert layout["rgb"][1] == size - 12


def test_the_safetensors_library_reads_it(small: Path) -> None:
    from safetensors import safe_open

    with safe_open(small, "numpy") as file:
        assert set(file.keys()) == {"rgb", "mask", "none"}
        assert np.array_equal(file.get_tensor("rgb"), np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
        assert json.loads(file.metadata()["objtune"])["class"] == "dog"


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    from safetensors.numpy import save

    path = tmp_path / "theirs.safetensors"
    path.write_bytes(save({"x": np.ones((3, 2), np.float16)}, {"objtune": '{"schema":1}'}))
    record, layout, _ = safetensors_format.read_header(path)
    assert record == {"schema": 1}
    assert layout["x"][0] == ("F16", (3, 2))


def test_every_truncation_is_noticed(small: Path) -> None:
    data = small.read_bytes()
    cut = small.with_name("cut")
    cut.write_bytes(data)
    for length in reversed(range(len(data))):
        os.truncate(cut, length)
        with pytest.raises(DamagedError, match="is damaged"):
            safetensors_format.read_header(cut)


def test_trailing_bytes_are_noticed(small: Path, tmp_path: Path) -> None:
    longer = tmp_path / "longer"
    longer.write_bytes(small.read_bytes() + b"\0")
    with pytest.raises(DamagedError, match="bytes of tensors where the header says"):
        safetensors_format.read_header(longer)


def test_every_flipped_header_byte_is_noticed_or_harmless(small: Path) -> None:
    """No mutation of the header may end in anything but an error of ours or a readable record."""
    data = small.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    store, ref = Store.at(small.parents[3]), Ref("mask", "rex", 1)
    small.chmod(0o644)
    refused = 0
    for place in range(end):
        flip = (0x01, 0x20, 0x80)[place % 3]
        small.write_bytes(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
        try:
            store.read(ref)
        except (DamagedError, IncompatibleError):
            refused += 1
    assert refused > end / 2
    small.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    assert store.read(ref, digest)[0].name == "rex"


@pytest.mark.parametrize(
    ("tensors", "body"),
    [
        pytest.param({"a": u8(0, 4)}, 3, id="short body"),
        pytest.param({"a": u8(0, 4)}, 5, id="long body"),
        pytest.param({"a": u8(0, 2), "b": u8(3, 5)}, 5, id="hole"),
        pytest.param({"a": u8(1, 3)}, 3, id="hole at the start"),
        pytest.param({"a": u8(0, 3), "b": u8(2, 4)}, 4, id="overlap"),
        pytest.param({"a": u8(0, 3), "b": u8(0, 3)}, 3, id="the same bytes twice"),
        pytest.param({"a": u8(0, 4, shape=[3])}, 4, id="shape and offsets disagree"),
        pytest.param({"a": u8(0, 4, shape=[-2, -2])}, 4, id="negative sides"),
        pytest.param({"a": u8(0, 4, shape=[4.0])}, 4, id="float side"),
        pytest.param({"a": u8(0, 1, shape=[True])}, 1, id="boolean side"),
        pytest.param({"a": u8(0, 4, shape=4)}, 4, id="shape is a number"),
        pytest.param({"a": u8(0, 0, shape=[0, 2**62])}, 0, id="empty but huge"),
        pytest.param({"a": u8(0, 4, dtype="F8_E4M3")}, 4, id="unknown type"),
        pytest.param({"a": u8(0, 4, dtype=["U8"])}, 4, id="type is a list"),
        pytest.param({"a": u8(4, 0, shape=[0])}, 4, id="backwards"),
        pytest.param({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0.0, 4.0]}}, 4, id="float offsets"),
        pytest.param({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4, 8]}}, 4, id="three offsets"),
        pytest.param({"a": {"dtype": "U8", "shape": [4], "data_offsets": "04"}}, 4, id="offsets are text"),
        pytest.param({"a": {"dtype": "U8", "shape": [4]}}, 4, id="no offsets"),
        pytest.param({"a": {"shape": [4], "data_offsets": [0, 4]}}, 4, id="no type"),
        pytest.param({"a": [1, 2]}, 4, id="tensor is a list"),
        pytest.param({"a": None}, 4, id="tensor is null"),
        pytest.param({f"t{i}": u8(0, 0) for i in range(safetensors_format.MAX_TENSORS + 1)}, 0, id="too many tensors"),
    ],
)
def test_bad_layouts_are_damage(tensors: dict[str, Any], body: int, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"hostile\.safetensors is damaged"):
        safetensors_format.read_header(file_of(tmp_path, tensors, b"\0" * body))


@pytest.mark.parametrize(
    "metadata",
    [{"other": "{}"}, {"objtune": 3}, {"objtune": "[]"}, {"objtune": "3"}, {"objtune": "{"}, {"objtune": '{"a":1,"a":2}'}, {"objtune": '{"a":NaN}'},
     [1], "objtune", 7],
    ids=repr,
)  # fmt: skip
def test_bad_metadata_is_damage(metadata: Any, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="is damaged"):
        safetensors_format.read_header(file_of(tmp_path, {}, b"", metadata))


SOUND = b'{"__metadata__":{"objtune":"{}"}}'


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"null", id="null"),
        pytest.param(b'"text"', id="text"),
        pytest.param(b" " + SOUND, id="space first"),
        pytest.param(SOUND + b"\0", id="NUL padding"),
        pytest.param(SOUND + b"{}", id="two documents"),
        pytest.param(SOUND.decode().encode("utf-16-le"), id="UTF-16"),
        pytest.param(SOUND.replace(b"{}", b"{\xff}"), id="not UTF-8"),
        pytest.param(b'{"__metadata__":{"objtune":"{}"},"__metadata__":{"objtune":"{}"}}', id="metadata twice"),
        pytest.param(
            b'{"__metadata__":{"objtune":"{}"},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
            b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', id="tensor twice"
        ),
        pytest.param(b'{"__metadata__":{"objtune":"{}"},"a":' + b"[" * 100_000, id="deep nesting"),
        pytest.param(b'{"__metadata__":{"objtune":"{}"},"a":' + b"9" * 5000 + b"}", id="very long number"),
        pytest.param(b"{}", id="no metadata"),
    ],
)  # fmt: skip
def test_bad_headers_are_damage(text: bytes, tmp_path: Path) -> None:
    assert safetensors_format.read_header(raw_file(tmp_path, SOUND))[0] == {}
    with pytest.raises(DamagedError, match="is damaged"):
        safetensors_format.read_header(raw_file(tmp_path, text))


@pytest.mark.parametrize("length", [safetensors_format.MAX_HEADER + 1, 2**63, 2**64 - 1])
def test_oversized_length_is_refused_before_reading(length: int, tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little") + b"{")
        file.truncate(8 + safetensors_format.MAX_HEADER + 64)
    with pytest.raises(DamagedError, match=f"header of {length} bytes"):
        safetensors_format.read_header(path)


def test_pipes_folders_and_dead_links_do_not_block(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts" / "mask" / "rex"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "v001.safetensors")
    (folder / "v002.safetensors").mkdir()
    (folder / "v003.safetensors").symlink_to(folder / "v003.safetensors")
    (folder / "v004.safetensors").symlink_to(tmp_path / "nowhere")
    for version in (1, 2, 3):
        with pytest.raises(DamagedError, match=f"v00{version}.safetensors is"):
            Store.at(tmp_path).read_record(Ref("mask", "rex", version))
    with pytest.raises(MissingError, match=r"there is no .*v004"):
        Store.at(tmp_path).read_record(Ref("mask", "rex", 4))


def forged(tmp_path: Path, **changes: Any) -> Store:
    """A store with mask/rex@1, its record changed by hand."""
    record = Record("mask", "rex", {"rex": "dog"}, {}, {}, {}, version=1, digest="0" * 64).header() | changes
    record = {k: v for k, v in record.items() if v != "absent"}
    path = tmp_path / "artifacts" / "mask" / "rex" / "v001.safetensors"
    path.parent.mkdir(parents=True)
    text = json.dumps({"__metadata__": {"objtune": json.dumps(record)}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    return Store.at(tmp_path)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="has schema 4; this objtune reads up to 3") as caught:
        forged(tmp_path, schema=4, surprise="unknown").read_record(Ref("mask", "rex", 1))
    assert "pip install -U objtune" in caught.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": "absent"}, {"schema": "1"}, {"schema": True}, {"schema": 0}, {"schema": -1}, {"digest": "absent"}, {"digest": ""}, {"digest": 7}, {"digest": "0" * 63 + "A"},
        {"name": "absent"}, {"name": "max"}, {"kind": "adapter"}, {"version": 2},
        {"version": True}, {"objects": ["dog"]}, {"objects": {"rex": 3}}, {"inputs": {"photo": "x"}}, {"inputs": {"photo": {"ref": ""}}}, {"base": None},
        {"base": {"id": 3}}, {"config": []}, {"metrics": 0}, {"tools": "torch"}, {"config": {"lr": float("inf")}}, {"config": {"prompt": "\ud800"}},
    ],
    ids=repr,
)  # fmt: skip
def test_a_forged_record_is_damage(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"v001\.safetensors"):
        forged(tmp_path, **changes).read_record(Ref("mask", "rex", 1))


def test_unknown_keys_of_the_same_schema_are_ignored(tmp_path: Path) -> None:
    assert forged(tmp_path, extra=1).read_record(Ref("mask", "rex", 1)).class_word == "dog"
