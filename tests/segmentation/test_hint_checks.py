"""Boxes and points as people write them, and masks that do not agree with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objtune_cli.cli.object_options import parse_numbers
from objtune_cli.errors import InputError, UsageError
from objtune_cli.images.photo import Photo
from objtune_cli.segmentation import hint_checks as hints
from objtune_cli.segmentation.from_hints import Target
from objtune_cli.segmentation.hint_checks import PhotoSize

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

FRAME = PhotoSize(640, 480)


def placed(frame: PhotoSize = FRAME, **said: Any) -> tuple[Target, list[str]]:
    notes: list[str] = []
    return hints.to_pixels(Target("dog", "rex", **said), frame, notes.append), notes


def refused(frame: PhotoSize = FRAME, **said: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        placed(frame, **said)
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        "110,240,530,430.5",
        "[110, 240, 530, 430.5]",
        "(110 240 530 430.5)",
        "110;240;530;430.5",
        " 110 , 240 , 530 , 430.5 ",
        "110\t240\t530\t430.5",
        "1.1e2,240,530,430.5",
    ],
)
def test_numbers_in_any_form(text: str) -> None:
    assert parse_numbers(text, 4, "--box", "x0,y0,x1,y1") == (110, 240, 530, 430.5)


def test_per_cent_are_fractions() -> None:
    assert parse_numbers("10%,20%,60%,100%", 4, "--box", "x0,y0,x1,y1") == pytest.approx((0.1, 0.2, 0.6, 1))
    target, _ = placed(points=((parse_numbers("100%,50%", 2, "--point", "x,y")),))
    assert target.points == ((639, 240),)


@pytest.mark.parametrize(
    "text",
    [
        "1,2,3",
        "1,2,3,4,5",
        "a,b,c,d",
        "nan,1,2,3",
        "inf,1,2,3",
        "",
        "[]",
        "10%,20,30,40",
        "1,2,3,120%",
        "%,%,%,%",
        "1e9,1,2,3",
        "10,5,20,5,30",
    ],
)
def test_what_is_no_box_is_refused_with_one_that_works(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_numbers(text, 4, "--box", "x0,y0,x1,y1")
    example = caught.value.hint.split("--box ")[1].strip("`")
    target, _ = placed(PhotoSize(64, 64), box_xyxy=parse_numbers(example, 4, "--box", "x0,y0,x1,y1"))
    assert target.box_xyxy == pytest.approx((12.8, 12.8, 51.2, 51.2), abs=0.01)


def test_fractions_become_pixels_with_a_note() -> None:
    target, notes = placed(box_xyxy=(0.25, 0.5, 0.75, 1), points=((0.5, 0.75),), negative_points=((0.0, 0.1),))
    assert target.box_xyxy == (160, 240, 480, 480)
    assert target.points == ((320, 360),)
    assert target.negative_points == ((0, 48),)
    assert notes == [
        "the box of rex in fractions of the photo is 160,240,480,480 in pixels",
        "points of rex in fractions of the photo are 320,360 and 0,48 in pixels",
    ]
    assert placed(box_xyxy=(0, 0, 1, 1))[0].box_xyxy == (0, 0, 640, 480)


def test_pixels_stay_what_they_are() -> None:
    """Their records are those of finished work."""
    for said in (
        {"box_xyxy": (0.0, 0.0, 640.0, 480.0)},
        {"box_xyxy": (0.5, 0.5, 1.5, 200.0)},
        {"points": ((0.0, 0.0), (1.0, 1.0), (639.0, 479.0)), "negative_points": ((0.5, 12.0),)},
        {},
    ):
        target, notes = placed(**said)
        assert target == Target("dog", "rex", **said)
        assert notes == []


def test_a_box_a_little_outside_is_clipped() -> None:
    assert placed(box_xyxy=(-0.4, 10, 640.4, 480.9)) == (Target("dog", "rex", (0, 10, 640, 480)), [])
    target, notes = placed(box_xyxy=(-3, 10, 200, 300))
    assert target.box_xyxy == (0, 10, 200, 300)
    assert "clipped" in notes[0]
    assert placed(points=((5, 5),), negative_points=((-0.5, 3),))[0] == Target("dog", "rex", None, ((5, 5),), ((0, 3),))


@pytest.mark.parametrize(
    "box", [(-20, 10, 200, 300), (10, 10, 700, 300), (10, -9, 30, 30), (700, 10, 800, 30), (-5, -5, -1, -1)]
)
def test_a_box_outside_is_refused(box: tuple[float, ...]) -> None:
    error = refused(box_xyxy=box)
    assert "is not inside the photo (640x480)" in error.message
    assert "{:g},{:g},{:g},{:g}".format(*box) in error.message


def test_corners_in_another_order_are_refused_with_what_they_may_mean() -> None:
    error = refused(box_xyxy=(300, 200, 100, 150))
    assert error.message.startswith("the box 300,200,100,150 is not inside the photo (640x480): x1,y1 has to be right")
    assert "`--box 100,150,300,200`" in error.hint
    assert "`--box 300,200,400,350`" in error.hint
    assert refused(box_xyxy=(600, 200, 100, 300)).hint == "with its corners in order `--box 100,200,600,300`"
    assert (
        "`--box 0.2,0.2,0.8,0.8`"
        in refused(box_xyxy=(100, 100, 100, 100)).hint + refused(box_xyxy=(600, 400, 600, 400)).hint
    )


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_box_of_the_photo_as_it_is_stored(orientation: int, tmp_path: Path) -> None:
    """The hint says the same box as the photo is shown: turned by Pillow, here."""
    from PIL import Image, ImageOps

    stored = Image.new("L", (640, 480))
    stored.paste(255, (500, 300, 620, 460))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    shown = ImageOps.exif_transpose(Image.open(tmp_path / "a.png")).getbbox()
    error = refused(PhotoSize(480, 640, orientation), box_xyxy=(500, 300, 620, 460))
    assert "`--box {},{},{},{}`".format(*shown) in error.hint
    assert "before its EXIF rotation" in error.hint


def test_a_point_outside_is_refused() -> None:
    for dot in ((700, 10), (-2, 10), (10, 482), (640, 10)):
        assert "is not inside the photo (640x480)" in refused(points=(dot,)).message
        assert "is not inside the photo (640x480)" in refused(points=((5, 5),), negative_points=(dot,)).message


PHOTO = Photo(np.zeros((480, 640, 3), np.uint8), None, "", ())


def cover(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """A rectangle at half the photo's size."""
    found = np.zeros((240, 320), np.uint8)
    found[y0:y1, x0:x1] = 255
    return found


def test_a_mask_that_agrees_with_its_hints() -> None:
    found = cover(50, 50, 150, 150)
    for said in (
        {"box_xyxy": (100, 100, 300, 300)}, {"box_xyxy": (110, 110, 310, 310)}, {"box_xyxy": (70, 70, 340, 340)}, {"points": ((110, 200), (299, 299))},
        {"points": ((200, 200),), "negative_points": ((40, 40), (301, 301))}, {},
    ):  # fmt: skip
        assert hints.find_disagreement(found, Target("dog", "rex", **said), PHOTO) == ("", ""), said


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"box_xyxy": (320, 320, 600, 470)}, "only 0% of the mask lies in its box"), ({"box_xyxy": (100, 100, 200, 300)}, "only 5"),
        ({"box_xyxy": (90, 90, 600, 310)}, "fills only 39%"), ({"points": ((400, 400),)}, "the point 400,400 is not on the mask"),
        ({"points": ((200, 200),), "negative_points": ((210, 210),)}, "the point 210,210 of `--negative-point` is on the mask"),
    ],
)  # fmt: skip
def test_a_mask_that_does_not(said: dict[str, Any], words: str) -> None:
    problem, advice = hints.find_disagreement(cover(50, 50, 150, 150), Target("dog", "rex", **said), PHOTO)
    assert words in problem
    assert "--" in advice


def test_a_box_of_width_and_height_is_suggested() -> None:
    _, advice = hints.find_disagreement(cover(0, 0, 20, 20), Target("dog", "rex", (200, 100, 300, 220)), PHOTO)
    assert "if it is x,y,width,height, give `--box 200,100,500,320`" in advice


def test_a_rough_mask_lies_on_what_was_found() -> None:
    rough = cover(40, 40, 160, 160)
    target = Target("dog", "rex", rough_mask=Path("rough.png"))
    assert hints.find_disagreement(cover(50, 50, 150, 150), target, PHOTO, rough) == ("", "")
    assert hints.find_disagreement(cover(50, 50, 250, 200), target, PHOTO, cover(60, 60, 80, 180)) == (
        "",
        "",
    )  # a scribble on it
    assert "share 0%" in hints.find_disagreement(cover(200, 50, 300, 150), target, PHOTO, rough)[0]


@pytest.fixture
def toy(project: Path) -> Path:
    from PIL import Image

    rgb = np.full((200, 300, 3), 120, np.uint8)
    rgb[80:160, 60:180] = (220, 30, 30)
    Image.fromarray(rgb).save("toy.png")
    return Path("toy.png")


def test_fractions_are_the_box_in_pixels(cli: Callable[..., Any], toy: Path) -> None:
    """The same work, so the same version."""
    line = ("segment", toy, "--class", "mug", "--set", "segment.segmenter=grabcut", "--box")
    assert cli(*line, "60,80,180,160").out == "mask/mug@1\n"
    done = cli(*line, "0.2,0.4,0.6,0.8")
    assert (done.code, done.out) == (0, "mask/mug@1\n")
    assert "in fractions of the photo is 60,80,180,160 in pixels" in done.err


def test_a_box_around_the_whole_photo_is_told_to_be_close(
    cli: Callable[..., Any], toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to give a box, which was given."""
    from objtune_cli.segmentation.grabcut import GrabCut
    from objtune_cli.segmentation.types import Proposal

    monkeypatch.setattr(GrabCut, "predict", lambda self, hints: Proposal(np.ones((200, 300), bool), 0.9))
    done = cli("segment", toy, "--class", "mug", "--set", "segment.segmenter=grabcut", "--box", "0,0,300,200")
    assert done.code == 9
    assert (
        "hint: a box is x0,y0,x1,y1 in pixels of this photo (300x200), close around the object; or give `--mask M.png`"
        in done.err
    )


@pytest.mark.parametrize(
    "option", ["--box=rex=60,80,180,160", "--point=Mug 2=60,80", "--mask=rex=toy.png", "--refine-mask=rex=toy.png"]
)
def test_a_hint_for_an_object_that_is_not_there_is_refused(option: str, cli: Callable[..., Any], toy: Path) -> None:
    done = cli("segment", toy, "--class", "mug", option)
    assert done.code == 2
    assert "and no `--class` or `--name` is called that" in done.err and "objects of this photo: mug" in done.err


def test_a_mask_whose_file_name_has_an_equals_sign_is_read(cli: Callable[..., Any], toy: Path) -> None:
    Path("a=b.png").write_bytes(toy.read_bytes())
    assert "a=b.png is the photo itself" in cli("segment", toy, "--class", "mug", "--mask", "a=b.png").err


def test_a_result_outside_its_box_is_not_published(
    cli: Callable[..., Any], toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from objtune_cli.segmentation.grabcut import GrabCut
    from objtune_cli.segmentation.types import Proposal

    elsewhere = np.zeros((200, 300), bool)
    elsewhere[80:160, 60:180] = True
    monkeypatch.setattr(GrabCut, "predict", lambda self, hints: Proposal(elsewhere, 0.9))
    line = ("segment", toy, "--class", "mug", "--set", "segment.segmenter=grabcut", "--box", "200,10,290,70")
    done = cli(*line)
    assert done.code == 9
    assert "no usable mask of the mug: only 0% of the mask lies in its box" in done.err
    assert not Path("artifacts/mask").exists()
    forced = cli(*line, "--force")
    assert forced.code == 0
    assert "kept although only 0%" in forced.err
