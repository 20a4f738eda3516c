"""How the photos of a `train` command line are grouped by object, and which lines are refused."""

from pathlib import Path
from typing import Any

import pytest

from objtune_cli.cli.commands import train as command
from objtune_cli.cli.object_options import PhotoRequest


@pytest.fixture
def parse(cli: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function from a command line to its groups; nothing is segmented or trained."""
    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "m.png", "n.png"):
        (project / name).touch()
    seen: list[list[list[PhotoRequest]]] = []
    monkeypatch.setattr(command, "_train", lambda ctx, requests, *_: seen.append(requests) or [])

    def run(line: str) -> Any:
        done = cli("train", *line.split())
        return seen.pop() if done.code == 0 else done

    return run


def _names(groups: list[list[PhotoRequest]]) -> list[tuple[list[str], list[str]]]:
    """Of each group the photos and the names of the objects; every photo of a group has the same objects."""
    found = []
    for group in groups:
        names = [[target.name for target in request.targets] for request in group]
        assert all(own == names[0] for own in names)
        found.append(([Path(request.photo).name for request in group], names[0]))
    return found


@pytest.mark.parametrize(
    ("line", "groups"),
    [
        ("a.jpg --class dog", [("a", "dog")]),
        ("a.jpg b.jpg --class dog", [("ab", "dog")]),
        ("a.jpg --class dog b.jpg", [("ab", "dog")]),
        ("--class dog a.jpg b.jpg", [("ab", "dog")]),
        ("a.jpg b.jpg c.jpg -c dog --name rex", [("abc", "rex")]),
        ("a.jpg --name rex b.jpg -c dog c.jpg", [("abc", "rex")]),
        ("a.jpg -c dog b.jpg -c mug", [("a", "dog"), ("b", "mug")]),
        ("a.jpg b.jpg -c dog c.jpg -c mug", [("ab", "dog"), ("c", "mug")]),
        ("a.jpg -c dog b.jpg c.jpg -c mug", [("a", "dog"), ("bc", "mug")]),
        ("a.jpg b.jpg -c dog c.jpg d.jpg -c dog --name max", [("ab", "dog"), ("cd", "max")]),
        ("a.jpg -c dog -c mug", [("a", "dog mug")]),
        ("a.jpg -c dog -c mug b.jpg -c car", [("a", "dog mug"), ("b", "car")]),
        ("a.jpg b.jpg -c dog a.jpg b.jpg -c mug", [("ab", "dog"), ("ab", "mug")]),
    ],
)
def test_photos_join_the_next_that_has_a_class(line: str, groups: list[tuple[str, str]], parse: Any) -> None:
    expected = [([f"{letter}.jpg" for letter in photos], names.split()) for photos, names in groups]
    assert _names(parse(line)) == expected


def test_hints_stay_with_their_photo(parse: Any) -> None:
    (group,) = parse("a.jpg --mask m.png b.jpg --box dog=1,2,30,40 --select left c.jpg --class dog --point 3,4 d.jpg")
    a, b, c, d = (request.targets[0] for request in group)
    assert (a.mask, b.mask, c.mask, d.mask) == (Path("m.png"), None, None, None)
    assert (a.box_xyxy, b.box_xyxy, c.points, d.points) == (None, (1, 2, 30, 40), ((3, 4),), ())
    assert [request.select for request in group] == [None, "left", None, None]


def test_a_selection_before_the_photos_is_of_all(parse: Any) -> None:
    (group,) = parse("--select left a.jpg b.jpg --select right --class dog")
    assert [request.select for request in group] == ["left", "right"]


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("a.jpg b.jpg -c dog -c mug", "several objects of several photos", "`a.jpg b.jpg --class dog a.jpg b.jpg"),
        ("a.jpg b.jpg -c dog -c mug c.jpg -c car", "several objects of several photos", "for each object"),
        ("a.jpg b.jpg", "a.jpg has no class", "behind it"),
        ("a.jpg -c dog b.jpg -c mug c.jpg", "c.jpg has no class", "behind it"),
        ("a.jpg --name rex b.jpg", "a.jpg has no class", "behind it"),
        ("a.jpg b.jpg -c dog --name rex --name max", "2 names for 1 classes", "`--name`"),
        ("--mask m.png a.jpg b.jpg -c dog", "--mask before the first photo", "follow it"),
        ("--class dog a.jpg b.jpg -c mug", "--class before the first photo", "follow it"),
        ("a.jpg -c dog b.jpg -c dog", "two photos would give an object the name dog", "`a.jpg b.jpg --class dog`"),
        ("a.jpg --box 1,2,3 b.jpg -c dog", "--box 1,2,3 is not x0,y0,x1,y1", "pixels"),
        ("a.jpg --mask m.png --point 1,2 b.jpg -c dog", "dog has a mask and other hints", "--refine-mask"),
        ("a.jpg mask/dog -c dog", "mask/dog is not a photo", "refs"),
    ],
)
def test_lines_that_are_refused(line: str, message: str, hint: str, parse: Any) -> None:
    done = parse(line)
    assert done.code == 2 and done.out == "" and f"error: {message}" in done.err and hint in done.err, done.err


def test_a_folder_stands_for_its_photos(parse: Any, project: Path) -> None:
    folder = project / "rex"
    folder.mkdir()
    for name in ("2.HEIC", "10.png", "1.jpg", "notes.txt", ".hidden.jpg"):
        (folder / name).touch()
    (folder / "more.jpg").mkdir()
    for line in ("rex --class dog", "--class dog rex"):
        assert _names(parse(line)) == [(["1.jpg", "10.png", "2.HEIC"], ["dog"])]
    assert _names(parse("rex a.jpg -c dog b.jpg -c mug")) == [
        (["1.jpg", "10.png", "2.HEIC", "a.jpg"], ["dog"]),
        (["b.jpg"], ["mug"]),
    ]
    (group,) = parse("rex --class dog --select left")
    assert [request.select for request in group] == ["left"] * 3
    for line, said in {
        "rex --class dog --mask m.png": "--mask behind rex, which has 3 photos",
        "rex --class dog --class mug": "several objects of several photos",
    }.items():
        assert said in parse(line).err


def test_other_files_of_a_folder_are_noted_once_and_an_empty_one_is_refused(
    cli: Any, parse: Any, project: Path
) -> None:
    folder = project / "rex"
    folder.mkdir()
    (folder / "notes.txt").touch()
    empty = cli("train", "rex", "--class", "dog")
    assert empty.code == 3 and "error: rex is a folder without photos" in empty.err
    (folder / "1.jpg").touch()
    done = cli("train", "rex", "--class", "dog")
    assert done.code == 0 and done.err.count("are no photos and are skipped: notes.txt") == 1
    (group,) = parse("rex --class dog --mask m.png")  # of a folder with one photo, as of the photo
    assert group[0].targets[0].mask is not None
