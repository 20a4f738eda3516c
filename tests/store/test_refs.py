"""Refs: what people type, read back exactly or refused."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objtune_cli.errors import IncompatibleError, MissingError, UsageError
from objtune_cli.store import refs
from objtune_cli.store.refs import KINDS, Ref, check_name, make_name, parse
from objtune_cli.store.store import Store

steady = settings(deadline=None, derandomize=True, database=None)
good_names = st.from_regex(refs.NAME_PATTERN, fullmatch=True).filter(
    lambda n: not refs._RESERVED.fullmatch(n) and not n.endswith(".")
)
good_refs = st.builds(Ref, st.sampled_from(KINDS), good_names, st.integers(0, 10**9 - 1))
like_refs = st.lists(
    st.sampled_from(["mask", "adapter", "other", "/", "@", "rex", "1", "0", "007", " ", "\n", "<", ".", "-", "A"]),
    max_size=8,
).map("".join)


@steady
@given(good_refs)
def test_text_and_back(ref: Ref) -> None:
    assert parse(str(ref)) == ref
    assert parse(f" {ref}\n", ref.kind) == ref


@steady
@given(good_refs)
def test_file_and_back(ref: Ref) -> None:
    if ref.version:
        artifacts, kind, name, file = ref.key.split("/")
        assert (artifacts, kind, name) == ("artifacts", ref.kind, ref.name)
        assert refs.parse_file_name(file) == (ref.version, "safetensors")
        assert refs.parse_file_name(ref.tombstone_key.rpartition("/")[2]) == (ref.version, "gone")


@steady
@given(st.text() | like_refs, st.sampled_from([None, *KINDS]))
def test_any_text_is_a_ref_or_an_error_of_ours(text: str, kind: str | None) -> None:
    try:
        ref = parse(text, kind)
    except (UsageError, IncompatibleError) as error:
        assert error.message
        assert error.hint
    else:
        assert ref.kind in KINDS
        assert check_name(ref.name) == ref.name
        assert parse(str(ref)) == ref


@steady
@given(st.text())
def test_a_slug_is_a_name_or_an_error_of_ours(word: str) -> None:
    try:
        name = make_name(word)
    except UsageError as error:
        assert error.hint
    else:
        assert check_name(name) == name
        assert make_name(name) == name


@steady
@given(st.text())
def test_a_name_cannot_leave_its_folder(text: str) -> None:
    try:
        name = check_name(text)
    except UsageError:
        return
    path = Path("store") / "mask" / name / "v001.safetensors"
    assert path.parts == ("store", "mask", text, "v001.safetensors")
    assert text not in (".", "..")


@pytest.mark.parametrize(
    ("text", "kind", "ref"),
    [
        ("mask/rex@2", None, Ref("mask", "rex", 2)),
        ("rex@2", "adapter", Ref("adapter", "rex", 2)),
        ("rex", "scene", Ref("scene", "rex")),
        ("mask/rex@007", None, Ref("mask", "rex", 7)),
        ("mask/rex@0", None, Ref("mask", "rex")),
        ("  rex\n", "mask", Ref("mask", "rex")),
        ("prior/a.b-c_d", None, Ref("prior", "a.b-c_d")),
    ],
)
def test_refs_that_are_read(text: str, kind: str | None, ref: Ref) -> None:
    assert parse(text, kind) == ref


@pytest.mark.parametrize(
    "text",
    ["", "rex@", "rex@x", "rex@-1", "rex@1@2", "@1", "/rex", "mask/", "mask/rex/", "masks/rex", "mask/../x", "mask/Rex", "../rex", "mask/re x",
     "mask/rex@" + "9" * 5000, "mask/" + "x" * 65, "mask/rex@\u0661", "mask/rex\n@1", "\x00", "-rf"],
    ids=lambda t: repr(t[:20]),
)  # fmt: skip
def test_refs_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a ref|cannot be a name"):
        parse(text, "mask")


def test_a_name_alone_needs_a_kind() -> None:
    with pytest.raises(UsageError, match="'rex' does not say its kind") as caught:
        parse("rex")
    assert "mask/rex" in caught.value.hint


def test_another_kind_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="mask/rex is a mask, not an adapter"):
        parse("mask/rex", "adapter")


@pytest.mark.parametrize(
    "name",
    [
        "con",
        "nul",
        "com1",
        "lpt9.txt",
        "aux.tar.gz",
        "rex.",
        ".hidden",
        "-x",
        "Rex",
        "r\u00e9x",
        "",
        "a b",
        "x" * 65,
        "a/b",
        "a\n",
    ],
)
def test_names_that_break_somewhere_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a name"):
        check_name(name)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("dog", "dog"),
        ("Coffee mug", "coffee-mug"),
        ("  Caf\u00e9 cup! ", "cafe-cup"),
        ("console", "console"),
        ("x" * 80, "x" * 64),
        ("7 of 9", "7-of-9"),
        ("\u72ac", "quan"),
    ],
)
def test_slugs(word: str, name: str) -> None:
    assert make_name(word) == name


@pytest.mark.parametrize("word", ["", "!!!", "\ue000", "con"])
def test_words_without_a_slug(word: str) -> None:
    with pytest.raises(UsageError, match="no name can be made|cannot be a name"):
        make_name(word)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store by file names alone: nothing here opens a file."""
    for name in (
        "mask/rex/v001", "mask/rex/v002", "mask/rex/v010", "mask/rex/v1000", "embedding/rex/v001", "adapter/cup/v003", "mask/empty/note",
        "mask/rex/v0011", "mask/rex/v000", "mask/rex/.v004", "mask/Upper/v001", "stranger/rex/v001",
    ):  # fmt: skip
        path = tmp_path / "artifacts" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "artifacts" / "mask" / "file").touch()
    (tmp_path / "artifacts" / "mask" / "rex" / "v001").mkdir()
    return Store.at(tmp_path)


def test_versions_names_and_every(store: Store) -> None:
    assert store.list_versions("mask", "rex") == [1, 2, 10, 1000]
    assert store.list_versions("mask", "nobody") == store.list_versions("mask", "file") == []
    assert store.list_names("mask") == ["rex"]
    assert store.list_names("scene") == []
    assert [str(r) for r in store.list()] == [
        "mask/rex@1", "mask/rex@2", "mask/rex@10", "mask/rex@1000", "embedding/rex@1", "adapter/cup@3",
    ]  # fmt: skip
    assert [str(r) for r in store.list("adapter")] == ["adapter/cup@3"]
    assert all(store.path(r).exists() for r in store.list())


def test_resolve_takes_the_newest_or_the_named(store: Store) -> None:
    assert store.resolve(Ref("mask", "rex")).version == 1000
    assert store.resolve(Ref("mask", "rex", 2)).version == 2


@pytest.mark.parametrize(
    ("ref", "hint"),
    [
        (Ref("mask", "rex", 3), "versions of rex: 1, 2, 10, 1000"),
        (Ref("mask", "max"), "known: rex"),
        (Ref("scene", "rex"), "this project has no scene yet"),
    ],
)
def test_resolve_says_what_there_is(ref: Ref, hint: str, store: Store) -> None:
    with pytest.raises(MissingError, match=f"there is no {ref}") as caught:
        store.resolve(ref)
    assert hint in caught.value.hint


def test_find_by_name_alone(store: Store) -> None:
    assert store.find("cup") == Ref("adapter", "cup", 3)
    assert store.find("rex@2", ("mask", "adapter")) == Ref("mask", "rex", 2)
    assert store.find("mask/rex") == Ref("mask", "rex", 1000)


def test_find_refuses_to_guess(store: Store) -> None:
    with pytest.raises(MissingError, match="rex is ambiguous") as caught:
        store.find("rex")
    assert caught.value.hint == "say which: mask/rex, embedding/rex"
    with pytest.raises(IncompatibleError, match="mask/rex is a mask"):
        store.find("mask/rex", ("adapter", "embedding"))
    with pytest.raises(MissingError, match="there is no mask/nobody"):
        store.find("nobody")
