"""The store as one object: its four verbs."""

from pathlib import Path

import numpy as np
import pytest

from objtune_cli.errors import MissingError, UsageError
from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store


def test_create_read_list_delete(tmp_path: Path) -> None:
    store = Store.at(tmp_path)
    assert list(store.list()) == []
    record = Record("mask", "rex", {"rex": "dog"}, {}, {}, {})
    first, second = (store.create(record, {"x": np.full(3, i, np.uint8)}) for i in range(2))
    assert [first, second] == [Ref("mask", "rex", 1), Ref("mask", "rex", 2)] == list(store.list("mask"))
    found, tensors = store.read(second, store.compute_sha256(second))
    assert found == store.read_record(second) and tensors["x"].tolist() == [1, 1, 1]
    store.delete(second)
    assert list(store.list()) == [first] and list(store.list("prior")) == []
    with pytest.raises(MissingError):
        store.read(second)
    assert store.create(record, {"x": np.ones(3)}).version == 3  # a version is used once


def test_what_others_were_made_from_is_deleted_only_by_force(tmp_path: Path) -> None:
    store = Store.at(tmp_path)
    mask = store.create(Record("mask", "rex", {"rex": "dog"}, {}, {}, {}), {"x": np.ones(3)})
    inputs = {"mask": {"ref": str(mask), "sha256": store.compute_sha256(mask)}}
    store.create(Record("embedding", "rex", {"rex": "dog"}, inputs, {}, {}), {"x": np.ones(3)})
    with pytest.raises(UsageError, match="was made from"):
        store.delete(mask)
    store.delete(mask, force=True)
    assert [ref.kind for ref in store.list()] == ["embedding"]
