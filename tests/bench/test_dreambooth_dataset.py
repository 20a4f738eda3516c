"""The layout of DreamBooth's data set: what is read of it, and what is refused in one line before any model is opened."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from objtune_cli.bench import dreambooth_dataset
from objtune_cli.errors import InputError
from tests.support import fake_dreambooth

LIVE = ("cat", "dog")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three subjects of two small photos each; the first one's class has two words, the last is alive."""
    return fake_dreambooth.write(
        tmp_path / "dataset", {"teddy_bear": "mug", "cup": "mug", "dog2": "dog"}, photos=2, count=3, side=64
    )


def subjects(folder: Path, count: int | None = None, chosen: str = "") -> list[dreambooth_dataset.DreamBoothSubject]:
    return dreambooth_dataset.read_subjects(folder, count, chosen, LIVE)


def listing(folder: Path) -> Path:
    return folder / dreambooth_dataset.LISTING


def test_subjects_in_the_tables_order_with_their_prompts(photos: Path) -> None:
    listing(photos).write_text(listing(photos).read_text().replace("teddy_bear,mug", "teddy_bear,stuffed animal"))
    found = subjects(photos)
    assert [(s.name, s.kind) for s in found] == [("teddy_bear", "stuffed animal"), ("cup", "mug"), ("dog2", "dog")]
    objects, live = fake_dreambooth.prompts(3)
    assert [s.prompts for s in found] == [tuple(objects), tuple(objects), tuple(live)]
    assert [[p.name for p, _ in s.photos] for s in found] == [["00.jpg", "01.jpg"]] * 3
    assert {s.train_photo.name for s in found} == {"00.jpg"} and len(
        {digest for s in found for _, digest in s.photos}
    ) == 6
    assert (
        found[0].prompts_for("<teddy_bear>")[0] == "a <teddy_bear> on the beach"
        and found[0].prompts_for("mug")[0] == "a mug on the beach"
    )
    assert [s.name for s in subjects(photos, 2)] == ["teddy_bear", "cup"]


def test_the_listing_as_its_authors_wrote_it(photos: Path) -> None:
    """Python's own lines, double quotes, prompts without `.format`, a byte order mark and Windows' line ends."""
    text = (
        "\ufeffClasses\r\n\r\nsubject_name,class\r\ndog2, dog\r\n\r\nPrompts\r\n\r\nObject Prompts\r\n\r\nprompt_list = [\r\n"
        "'a red {0} {1}'.format(unique_token, class_token),\r\n]\r\n\r\nLive Subject Prompts\r\n\r\nprompt_list = [\r\n"
        "'a {0} {1} in a chef outfit'.format(unique_token, class_token),\r\n\"a {0} {1} in the dog's house\",\r\n'a wet {0} {1}'\r\n]\r\n"
    )
    listing(photos).write_bytes(text.encode())
    for name in ("teddy_bear", "cup"):
        shutil.rmtree(photos / name)
    (only,) = subjects(photos)
    assert only.prompts == ("a {0} {1} in a chef outfit", "a {0} {1} in the dog's house", "a wet {0} {1}")


def test_another_photo_may_be_learned(photos: Path) -> None:
    assert [subjects(photos, 1, chosen)[0].train_photo.name for chosen in ("01", "01.jpg", "00")] == [
        "01.jpg",
        "01.jpg",
        "00.jpg",
    ]
    with pytest.raises(InputError, match="teddy_bear has no photo 07") as caught:
        subjects(photos, 1, "07")
    assert caught.value.hint == "it has 00.jpg, 01.jpg"


def test_a_mask_beside_the_photo_is_no_photo(photos: Path) -> None:
    Image.new("L", (64, 64), 255).save(photos / "cup" / "00.mask.png")
    assert [s.mask and s.mask.name for s in subjects(photos)] == [None, "00.mask.png", None]
    assert len(subjects(photos)[1].photos) == 2
    Image.new("L", (64, 80), 255).save(photos / "cup" / "00.mask.png")
    with pytest.raises(InputError, match="00.mask.png has 64x80 pixels, the photo 64x64"):
        subjects(photos)


def edited(folder: Path, old: str, new: str) -> None:
    text = listing(folder).read_text()
    assert old in text
    listing(folder).write_text(text.replace(old, new))


def _pipe(folder: Path) -> None:
    listing(folder).unlink()
    os.mkfifo(listing(folder))


def _cut(folder: Path) -> None:
    text = listing(folder).read_text()
    listing(folder).write_text(text[: text.index("Live Subject Prompts")])


BROKEN: dict[str, Callable[[Path], object]] = {
    "missing": lambda folder: folder.with_name("nowhere"),
    "a file": listing,
    "empty": lambda folder: shutil.copytree(folder, folder.with_name("empty"), ignore=lambda place, names: names),
    "no listing": lambda folder: listing(folder).unlink(),
    "a pipe": _pipe,
    "bytes": lambda folder: listing(folder).write_bytes(b"\xff\xfe\x00") and None,
    "no subject": lambda folder: listing(folder).write_text("Classes\n\nsubject_name,class\n") and None,
    "no prompt": lambda folder: edited(folder, "{0} {1}", "it"),
    "other place": lambda folder: edited(folder, "'a {0} {1} on the beach'", "'a {1} {0} on the beach'"),
    "no live prompt": _cut,
    "no class": lambda folder: edited(folder, "cup,mug\n", ""),
    "empty class": lambda folder: edited(folder, "cup,mug\n", "cup,\n"),
    "name": lambda folder: edited(folder, "cup,mug\n", "My Cup,mug\n"),
    "no photo": lambda folder: [path.unlink() for path in (folder / "cup").iterdir()] and None,
    "no folder": lambda folder: shutil.rmtree(folder / "cup"),
    "unreadable": lambda folder: (folder / "cup" / "01.jpg").write_bytes(b"no picture") and None,
    "small": lambda folder: Image.new("RGB", (40, 40)).save(folder / "cup" / "01.jpg"),
}
"""One thing wrong with a folder; what returns a path means that one instead."""
WAYS = {
    "missing": "nowhere is not a folder", "a file": "is not a folder", "empty": "there is no file", "no listing": "there is no file",
    "a pipe": "cannot be read: not a regular file", "bytes": "is not UTF-8 text", "no subject": "has no subject and class",
    "no prompt": "no `{0} {1}` in the prompt", "other place": "line 13: no `{0} {1}` in the prompt", "no live prompt": "no prompt under `Live Subject Prompts` for dog2",
    "no class": "has no class for cup", "empty class": "line 5: cup has no class", "name": "line 5: 'My Cup' cannot be a name", "no photo": "cup has no photo",
    "no folder": "cup has no photo", "unreadable": "01.jpg is not a picture", "small": "01.jpg has 40x40 pixels",
}  # fmt: skip


@pytest.mark.parametrize("way", BROKEN)
def test_another_layout_is_3_in_one_line(way: str, photos: Path) -> None:
    with pytest.raises(InputError) as caught:
        subjects(BROKEN[way](photos) or photos)
    assert (
        WAYS[way] in caught.value.message
        and caught.value.code == 3
        and caught.value.hint
        and "\n" not in caught.value.message
    )


def test_nothing_is_opened_for_what_is_refused(photos: Path, project: Path) -> None:
    """By the command itself: no torch, nothing written."""
    (photos / "cup" / "01.jpg").write_bytes(b"no picture")
    code = "import sys\nfrom objtune_cli.cli.app import run\ncode = run(sys.argv[1:])\nassert 'torch' not in sys.modules\nsys.exit(code)"
    command = [sys.executable, "-c", code, "bench", "dreambooth", str(photos), "--methods", "objtune"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, "") and "01.jpg is not a picture" in done.stderr, done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"] and not Path("bench").exists()
