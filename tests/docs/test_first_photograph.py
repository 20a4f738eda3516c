"""The tutorial of a first photograph: its messages are those of the commands, on photographs and on a HEIC."""

import re
import shlex
from pathlib import Path

import pillow_heif
import pytest
from PIL import Image
from skimage import data

from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "tutorial" / "first-photograph.md"
ROWS = re.findall(r"^\| `objtune ([^`]+)` \| (.+?) \|", PAGE.read_text(), re.M)


@pytest.fixture
def photographs(project: Path) -> Path:
    """A folder with the files that the page names."""
    for name in ("cat", "coffee", "astronaut"):
        Image.fromarray(getattr(data, name)()).save(f"{name}.jpg", quality=92)
    Image.new("RGB", (40, 40)).save("tiny.png")
    Path("clip.mov").write_bytes((20).to_bytes(4, "big") + b"ftypqt  \0\0\0\0qt  " + bytes(99))
    Path("scan.pdf").write_bytes(b"%PDF-1.4\n")
    return project


@pytest.mark.parametrize(("command", "message"), ROWS)
def test_messages_of_the_page_are_printed(cli, photographs: Path, command: str, message: str) -> None:
    done = cli(*shlex.split(command))
    assert done.code in (2, 3, 4, 7, 9)
    assert message in done.err
    assert "hint: " in done.err


def test_the_page_has_the_messages_of_a_first_evening() -> None:
    assert len(ROWS) >= 15


@pytest.mark.parametrize(("name", "word", "box"), [("cat", "cat", "0.1,0.02,0.98,0.99"), ("coffee", "coffee mug", "77,18,480,389"), ("astronaut", "person", "20,16,365,511")])  # fmt: skip
def test_a_box_on_a_photograph_gives_a_mask_of_what_lies_in_it(
    cli, photographs: Path, name: str, word: str, box: str
) -> None:
    from objtune_cli.store.kinds.mask import MaskArtifact
    from objtune_cli.store.refs import Ref
    from objtune_cli.store.store import Store

    heic = Path("IMG_0412.HEIC")
    pillow_heif.from_pillow(Image.fromarray(getattr(data, name)())).save(heic, quality=90)
    done = cli("segment", heic, "--class", word, "--name", "mine", "--box", box)
    assert (done.code, done.out) == (0, "mask/mine@1\n"), done.err
    assert "IMG_0412.HEIC looks like a photograph" in done.err
    mask = MaskArtifact.from_tensors(Store.at(Path()).read(Ref("mask", "mine", 1))[1]).mask > 127
    height, width = mask.shape
    x0, y0, x1, y1 = (float(v) for v in box.split(","))
    scale = (width, height) if x1 <= 1 else (1, 1)
    inside = mask[int(y0 * scale[1]) : int(y1 * scale[1]) + 1, int(x0 * scale[0]) : int(x1 * scale[0]) + 1]
    assert inside.sum() >= 0.85 * mask.sum()
