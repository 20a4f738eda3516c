"""Tables written by hand: encodings, and what each kind of mistake is answered with."""

from pathlib import Path

import pytest

from objtune_cli.config import toml_files
from objtune_cli.errors import InputError, UsageError

TEXT = 'photo = "größe.jpg"\r\nn = 2\r\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_that_are_read(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(TEXT.encode(encoding))
    assert toml_files.read(file, "form") == {"photo": "größe.jpg", "n": 2}
    file.write_bytes('{"photo": "größe.jpg", "n": 2}'.encode(encoding))
    assert toml_files.read(file, "form") == {"photo": "größe.jpg", "n": 2}


def test_another_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(b"n = 2\nphoto = 'gr\xf6\xdfe.jpg'\n")
    with pytest.raises(InputError, match=r"x\.toml is not UTF-8 text: byte 18, in line 2") as caught:
        toml_files.read(file, "form")
    assert "save the text as UTF-8" in caught.value.hint


MISTAKES = [
    ("photo = “dog.jpg”", "typographic quotes"),
    ("photo = ‘dog.jpg’", "typographic quotes"),
    ('photo = "C:\\Users\\me\\dog.jpg"', r"single quotes: `photo = 'C:\Users\me\dog.jpg'`"),
    ('photo = "D:\\x.jpg"', "single quotes"),
    ("photo = dog.jpg", '`photo = "dog.jpg"`'),
    ("photo = ~/dog.jpg  # mine", '`photo = "~/dog.jpg"`'),
    ("ok = True", "`ok = true`"),
    ("photo = ", "photo has no value"),
    ("photo: dog.jpg", "each line is `key = value`"),
    ("a = 1\na = 2", "a appears twice"),
    ("[job]\na = 1\n[job]\na = 2", "`[[job]]`"),
    ('{"a": 1, "a": 2}', "keep one"),
    ("{'a': 1}", "form"),
    ("a = " + "[" * 3000, "form"),
]


@pytest.mark.parametrize(("text", "hint"), MISTAKES, ids=[m[0][:20] for m in MISTAKES])
def test_a_mistake_is_answered_with_the_form(text: str, hint: str, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        toml_files.read(file, "form", UsageError)
    assert hint in caught.value.hint, caught.value.hint
    assert str(file) in caught.value.message and "\n" not in caught.value.message


def test_the_nearest_key() -> None:
    assert toml_files.find_nearest("Photos", ("photo", "class")) == "photo"
    assert toml_files.find_nearest("max-time", ("max_time", "mask")) == "max_time"
    assert toml_files.find_nearest("colour", ("photo", "class")) == ""


def test_a_project_file_from_windows_is_read(cli, project: Path) -> None:
    (project / "objtune.toml").write_bytes("\ufeff[segment]\r\nmax_side = 512\r\n".encode())
    assert cli("list").code == 0
    (project / "objtune.toml").write_bytes(b"[segment]\nmax_image_syze = 512\n")
    done = cli("segment", "x.jpg", "--class", "dog")
    assert done.code == 2 and "did you mean max_image_size?" in done.err
