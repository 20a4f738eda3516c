"""From a photo, class words and hints to masks: by the command, on the toybox, against drawn truth."""

import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from objtune_cli.segmentation import quality_gate
from objtune_cli.store.store import Store
from objtune_cli.toybox import renderer, world
from objtune_cli.toybox.world import DIALS

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

ROOM = 4


def _scene(seed: int, kinds: tuple[str, ...], side: int = 320) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    instances = tuple(world.sample_instance(rng, DIALS["medium"], kind=k, held_out=True) for k in kinds)
    rgb, covers = renderer.render(
        world.sample_scene(rng, DIALS["medium"], instances=instances, background="grass"), side
    )
    return rgb, [c > 127 for c in covers]


def _write(path: Path, rgb: np.ndarray) -> Path:
    cv2.imwrite(str(path), rgb[..., ::-1] if rgb.ndim == 3 else rgb)
    return path


def _mask(ref: str) -> tuple[np.ndarray, dict]:
    store = Store.at(Path())
    found = store.find(ref, ("mask",))
    record, tensors = store.read(found)
    return tensors["mask"] > 127, dict(record.metrics)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def _box(mask: np.ndarray) -> str:
    ys, xs = mask.nonzero()
    return f"{xs.min() - 1},{ys.min() - 1},{xs.max() + 2},{ys.max() + 2}"


@pytest.fixture(autouse=True)
def cached_segmentation() -> None:
    """Nothing is known from before: looking is what is tested here."""


@pytest.fixture
def pair(cli, tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    """A photo of a dog on the left and a mug on the right, in a fresh project."""
    rgb, covers = _scene(6, ("dog", "mug"))
    assert cli("init").code == 0
    return _write(tmp_path / "pair.png", rgb), covers


def test_the_class_word_finds_its_object(cli, pair):
    photo, covers = pair
    for word, cover in zip(("dog", "mug"), covers, strict=True):
        done = cli("segment", photo, "--class", word, "--json")
        assert done.code == 0, done.err
        mask, metrics = _mask(f"mask/{word}")
        assert _iou(mask, cover) > 0.9
        assert metrics["found_by"] == "toybox-sam" and metrics["likeness"] > 0.3 and metrics["margin"] > 0.7
        assert {"area", "cells", "pieces", "border", "quality"} <= set(metrics)


def test_two_classes_at_once_share_no_pixel(cli, pair):
    photo, covers = pair
    assert cli("segment", photo, "--class", "mug", "--class", "dog").code == 0
    dog, mug = _mask("mask/dog")[0], _mask("mask/mug")[0]
    assert _iou(dog, covers[0]) > 0.9 and _iou(mug, covers[1]) > 0.9 and not (dog & mug).any()


def test_which_of_two_dogs(cli, tmp_path):
    rgb, covers = _scene(0, ("dog", "dog"))
    cli("init")
    photo = _write(tmp_path / "dogs.png", rgb)
    unsure = cli("segment", photo, "--class", "dog")
    assert unsure.code == 9 and "something else is as much a dog" in unsure.err and "--select" in unsure.err
    assert not Path("artifacts/mask").exists() and Path(".objtune/rejected/dog.png").exists()
    for which, cover in zip(("left", "right"), covers, strict=True):
        assert cli("segment", photo, "--class", "dog", "--select", which).code == 0
        assert _iou(_mask("mask/dog")[0], cover) > 0.9


def test_what_is_not_there_is_refused_with_a_picture_and_advice(cli, pair):
    photo, _ = pair
    done = cli("segment", photo, "--class", "house")
    assert done.code == 9 and "no usable mask of the house" in done.err and "--box" in done.err
    assert Path(".objtune/rejected/house.png").exists() and not Path("artifacts/mask").exists()
    kept = cli("segment", photo, "--class", "house", "--force")
    assert kept.code == 0 and "kept although" in kept.err


def test_hints_of_every_kind_find_the_object(cli, pair, tmp_path):
    photo, (dog, mug) = pair
    depth = cv2.distanceTransform(dog.astype(np.uint8), cv2.DIST_L2, 5)
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    rough = _write(tmp_path / "rough.png", cv2.dilate(dog.astype(np.uint8) * 255, np.ones((9, 9), np.uint8)))
    mug_y, mug_x = (int(v.mean()) for v in mug.nonzero())
    for hints in (
        ("--box", _box(dog)), ("--point", f"{x},{y}"), ("--refine-mask", rough), ("--box", _box(dog), "--point", f"{x},{y}"),
        ("--point", f"{x},{y}", "--negative-point", f"{mug_x},{mug_y}"),
    ):  # fmt: skip
        done = cli("segment", photo, "--class", "dog", *hints)
        assert done.code == 0, done.err
        assert _iou(_mask("mask/dog")[0], dog) > 0.85, hints
    assert len(list(Path("artifacts/mask/dog").glob("*.safetensors"))) == 5  # each hint is other work


def test_boxes_of_several_objects(cli, pair):
    photo, covers = pair
    done = cli(
        "segment",
        photo,
        "--class",
        "dog",
        "--class",
        "mug",
        "--box",
        f"mug={_box(covers[1])}",
        "--box",
        f"dog={_box(covers[0])}",
    )
    assert (
        done.code == 0 and _iou(_mask("mask/dog")[0], covers[0]) > 0.9 and _iou(_mask("mask/mug")[0], covers[1]) > 0.9
    )


def test_the_outline_is_soft(cli, pair):
    photo, _ = pair
    cli("segment", photo, "--class", "dog")
    cover = Store.at(Path()).read(Store.at(Path()).find("mask/dog", ("mask",)))[1]["mask"]
    soft = (cover > 8) & (cover < 247)
    assert 0.001 < soft.mean() < 0.05


def test_a_rotated_photo_takes_hints_as_it_is_shown(cli, pair, tmp_path):
    from PIL import Image

    photo, (dog, _) = pair
    turned = Image.open(photo).transpose(Image.Transpose.ROTATE_90)  # to be shown turned back: orientation 6
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", quality=97, exif=exif)
    assert cli("segment", tmp_path / "turned.jpg", "--class", "dog", "--box", _box(dog)).code == 0
    assert _iou(_mask("mask/dog")[0], dog) > 0.9


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_two_of_one_class_are_named_from_left_to_right(cli, tmp_path, names):
    rgb, covers = _scene(0, ("dog", "dog"))
    cli("init")
    command = (
        "segment",
        _write(tmp_path / "dogs.png", rgb),
        "--class",
        "dog",
        "--class",
        "dog",
        "--name",
        names[0],
        "--name",
        names[1],
    )
    assert cli(*command).code == 0
    for name, cover in zip(names, covers, strict=True):
        assert _iou(_mask(f"mask/{name}")[0], cover) > 0.9


def test_another_objects_hint_makes_both_masks_again(cli, pair):
    """Each pixel is one object's: a mask found beside another box is another mask."""
    photo, (dog, mug) = pair
    line = ("segment", photo, "--class", "dog", "--class", "mug", "--box", f"dog={_box(dog)}", "--box")
    assert cli(*line, f"mug={_box(mug)}").out == "mask/dog@1\nmask/mug@1\n"
    x0, y0, x1, y1 = (int(v) for v in _box(mug).split(","))
    assert cli(*line, f"mug={x0 + 2},{y0},{x1},{y1}").out == "mask/dog@2\nmask/mug@2\n"


def test_grabcut_by_the_class_word_passes_the_gate(cli, tmp_path):
    """It knows no quality of its masks; the gate does not hold that against them."""
    rgb, (mug,) = _scene(8, ("mug",))
    cli("init")
    done = cli("segment", _write(tmp_path / "mug.png", rgb), "--class", "mug", "--segmenter", "grabcut")
    assert done.code == 0, done.err
    assert _iou(_mask("mask/mug")[0], mug) > 0.9


def test_a_photo_with_transparency_needs_no_base(cli, pair, tmp_path):
    photo, (dog, _) = pair
    rgba = np.dstack([cv2.imread(str(photo)), dog.astype(np.uint8) * 255])
    cv2.imwrite(str(tmp_path / "cut.png"), rgba)
    assert cli("segment", tmp_path / "cut.png", "--class", "dog", "--base", "sd15").code == 0


def test_grabcut_on_demand(cli, pair):
    photo, (dog, _) = pair
    done = cli("segment", photo, "--class", "dog", "--segmenter", "grabcut", "--box", _box(dog), "--json")
    assert json.loads(done.out)["metrics"]["mask/dog@1"]["found_by"] == "grabcut"


def test_without_a_clip_only_the_picture_speaks(cli, bare_base, tmp_path):
    rgb, (dog,) = _scene(6, ("dog",))
    done = cli("segment", _write(tmp_path / "dog.png", rgb), "--class", "dog", "--base", bare_base)
    assert done.code == 0, done.err
    mask, metrics = _mask("mask/dog")
    assert _iou(mask, dog) > 0.8 and "likeness" not in metrics


def test_a_mask_needs_no_base(cli, pair):
    """A base that is not on this machine stops nothing that a hint can tell."""
    photo, (dog, _) = pair
    done = cli("segment", photo, "--class", "dog", "--box", _box(dog), "--base", "sd15")
    assert done.code == 0 and "cells" not in _mask("mask/dog")[1]


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (["--box", "dog=0,0,999,50"], 3, "is not inside the photo (320x320)"),
        (["--negative-point", "mug=5,500", "--point", "mug=5,5"], 3, "the point 5,500 is not inside"),
        (["--negative-point", "dog=5,5"], 2, "dog has only negative points"),
        (["--refine-mask", "dog=small.png"], 3, "small.png has 64x64 pixels, the photo 320x320"),
        (["--refine-mask", "dog=black.png"], 3, "the rough mask black.png is empty"),
        (["--refine-mask", "dog=none.png"], 3, "there is no mask none.png"),
        (["--mask", "dog=white.png", "--box", "dog=1,1,9,9"], 2, "dog has a mask and other hints"),
        (["--mask", "dog=white.png", "--mask", "mug=white.png"], 3, "claim the same region"),
        (["--box", "dog=100,100,300,300", "--box", "mug=100,100,300,300"], 3, "claim the same region"),
        (["--sam-checkpoint", "white.png"], 3, "is not a readable checkpoint"),
    ],
)  # fmt: skip
def test_bad_hints_get_a_line_and_write_nothing(cli, pair, given, code, said):
    photo, _ = pair
    _write(Path("small.png"), np.full((64, 64), 255, np.uint8))
    _write(Path("black.png"), np.zeros((320, 320), np.uint8))
    white = np.zeros((320, 320), np.uint8)
    white[100:200, 100:200] = 255
    _write(Path("white.png"), white)
    done = cli("segment", photo, "--class", "dog", "--class", "mug", *given)
    assert done.code == code and said in done.err and done.err.count("\n") <= 2, done.err
    assert not Path("artifacts/mask").exists()


def test_show_prints_the_overlays_path(cli, pair):
    photo, _ = pair
    cli("segment", photo, "--class", "dog")
    done = cli("show", "mask/dog")
    assert done.code == 0 and "overlay.png" in done.out + done.err


def test_the_same_photo_again_opens_no_model(cli, pair, monkeypatch):
    from objtune_cli.segmentation import from_class_word

    photo, _ = pair
    first = cli("segment", photo, "--class", "dog")
    monkeypatch.setattr(from_class_word, "segment_objects", None)
    again = cli("segment", photo, "--class", "dog")
    assert again.code == 0 and again.out == first.out


def test_a_point_on_a_part_finds_the_whole(cli, tmp_path):
    """A point on a dog's leg: the class word says that the dog is meant."""
    cli("init")
    rgb, (dog,) = _scene(4, ("dog",))
    ys, xs = dog.nonzero()
    leg = (ys > np.quantile(ys, 0.9)) & (xs < np.median(xs))
    x, y = int(np.median(xs[leg])), int(np.median(ys[leg]))
    assert dog[y, x]
    done = cli("segment", _write(tmp_path / "dog.png", rgb), "--class", "dog", "--point", f"{x},{y}", "--force")
    mask, metrics = _mask(done.out.strip())
    assert _iou(mask, dog) > 0.8 and {"likeness", "score"} <= metrics.keys()


def test_a_point_on_what_the_base_does_not_know_needs_no_likeness(cli, tmp_path):
    cli("init")
    rgb, (mug,) = _scene(5, ("mug",))
    ys, xs = mug.nonzero()
    done = cli(
        "segment",
        _write(tmp_path / "mug.png", rgb),
        "--class",
        "teapot",
        "--point",
        f"{int(xs.mean())},{int(ys.mean())}",
    )
    assert "likeness" not in _mask(done.out.strip())[1]


def test_given_masks_are_read_as_people_make_them(cli, tmp_path):
    """Two values, inverted, erased, of another size, drawn on the photo as it is stored: each is the object."""
    from PIL import Image

    rgb, (mug,) = _scene(5, ("mug",))
    cli("init")
    photo, cover = _write(tmp_path / "mug.png", rgb), mug.astype(np.uint8) * 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(rgb[:200]))).save("turned.png", exif=exif)
    cut = mug[:200]
    for name, picture, said, source, truth in (
        ("ones", cover // 255, "0 and 1 of 255", photo, mug), ("inverted", 255 - cover, "it looks inverted", photo, mug),
        ("erased", np.dstack([rgb[..., ::-1], 255 - cover]), "it looks inverted", photo, mug), ("half", cv2.resize(cover, (160, 160), interpolation=cv2.INTER_AREA), "scaled from 160x160", photo, mug),
        ("raw", np.ascontiguousarray(np.rot90(cover[:200])), "rotated as the photo is", Path("turned.png"), cut),
    ):  # fmt: skip
        cv2.imwrite(f"{name}.png", picture)
        done = cli("segment", source, "--class", "mug", "--name", name, "--mask", f"{name}.png")
        assert done.code == 0 and said in done.err, done.err
        assert _iou(_mask(f"mask/{name}")[0], truth) > 0.97, name


@pytest.mark.parametrize("option", ["--mask", "--refine-mask"])
def test_what_is_no_mask_is_refused(cli, tmp_path, option):
    photo = _write(tmp_path / "mug.png", _scene(5, ("mug",))[0])
    cli("init")
    done = cli("segment", photo, "--class", "mug", option, photo)
    assert done.code == 3 and "is the photo itself, not a mask of it" in done.err and "--box" in done.err


def test_the_bytes_of_a_mask_artifact_stay(cli, dog_photo):
    """Of the example photo and a mask, as the first release wrote them: later work refers to these bytes."""
    y, x = np.mgrid[:640, :640]
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits((x - 320) ** 2 + 2 * (y - 385) ** 2 < 200**2, axis=1))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 640, 640, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 0)),
        (b"IEND", b""),
    )
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    Path("m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    done = json.loads(cli("segment", dog_photo, "--class", "dog", "--mask", "m.png", "--json").out)
    assert done["refs"][0]["sha256"] == "76f667d51508e34e13f55199f9de45173cffcaee1529e76b65d5e1a82df9f6c4"


def test_an_outline_is_no_filled_mask(cli, tmp_path):
    rgb, (mug,) = _scene(5, ("mug",))
    cli("init")
    photo = _write(tmp_path / "mug.png", rgb)
    line = (
        cv2.morphologyEx(
            cv2.morphologyEx(mug.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((15, 15))),
            cv2.MORPH_GRADIENT,
            np.ones((3, 3)),
        )
        * 255
    )
    for option, picture in (("--mask", line), ("--mask", 255 - line), ("--refine-mask", line)):
        done = cli("segment", photo, "--class", "mug", option, _write(Path("line.png"), picture))
        assert done.code == 9 and "it is an outline, a line of at most" in done.err and "filled" in done.err
        assert not Path("artifacts/mask").exists()


def test_a_thin_line_in_a_small_photo_is_an_outline():
    ring = np.zeros((72, 96), np.uint8)
    cv2.circle(ring, (48, 36), 10, 255, 1)
    assert "it is an outline" in quality_gate.explain_outline(ring)
    cv2.circle(ring, (48, 36), 10, 255, 6)  # a ring of its own thickness is an object
    assert not quality_gate.explain_outline(ring)


@pytest.mark.parametrize("scale", [0.45, 0.5, 0.6, 0.75, 0.9, 1.33, 2])
def test_an_outline_torn_by_scaling_is_no_filled_mask(cli, tmp_path, scale):
    """Nearest neighbour at half the size leaves dashes of a line of one pixel; these surround an empty middle."""
    cli("init")
    rgb = np.full((72, 96, 3), 90, np.uint8)
    for axes, angle in (((20, 9), 0), ((14, 14), 0), ((23, 12), 35)):
        ellipse = cv2.ellipse(np.zeros((72, 96), np.uint8), (48, 36), axes, angle, 0, 360, 255, -1)
        line = ellipse & ~cv2.erode(ellipse, np.ones((3, 3)))
        size = (round(96 * scale), round(72 * scale))
        Image.fromarray(line).resize(size, Image.Resampling.NEAREST).save("line.png")
        rgb[ellipse > 0] = (210, 60, 50)
        photo = _write(tmp_path / "photo.png", rgb)
        done = cli("segment", photo, "--class", "mug", "--mask", "line.png", "--segmenter", "grabcut")
        assert done.code == 9 and ("it is an outline" in done.err or "pieces" in done.err), (axes, done.err)


SIZE = 256
THIN_OBJECTS = {
    "stick": [[(30, 200), (220, 40)]],
    "two sticks": [[(30, 100), (220, 100)], [(30, 150), (220, 150)]],
    "hook": [[(40, 40), (40, 200), (200, 200)]],
    "cross": [[(30, 128), (220, 128)], [(128, 30), (128, 220)]],
    "rake": [[(20, 200), (230, 200)], *([(x, 100), (x, 200)] for x in range(20, 231, 14))],
    "five candles": [[(x, 60), (x, 200)] for x in range(30, 230, 45)],
    "tongs": [[(60, 40), (60, 200), (190, 200), (190, 40)]],
    "zigzag": [[(20 + 20 * i, 60 + i % 2 * 120) for i in range(11)]],
}
"""Lines of objects that are thin themselves."""


@pytest.mark.parametrize("name", THIN_OBJECTS)
def test_thin_objects_are_no_outlines(name):
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    for line in THIN_OBJECTS[name]:
        cv2.polylines(canvas, [np.array(line, np.int32)], False, 255, 5)
    assert not quality_gate.explain_outline(canvas)


def test_an_outline_with_gaps_is_an_outline():
    for start, end, thin in ((20, 340, True), (60, 300, False)):  # an arc that is half open is a hook
        arc = cv2.ellipse(np.zeros((SIZE, SIZE), np.uint8), (128, 128), (90, 60), 0, start, end, 255, 5)
        assert bool(quality_gate.explain_outline(arc)) == thin
    house = np.array(
        [(40, 220), (40, 120), (128, 40), (216, 120), (216, 220), (150, 220), (150, 150), (106, 150), (106, 220)]
    )
    torn = cv2.polylines(np.zeros((SIZE, SIZE), np.uint8), [house.astype(np.int32)], True, 255, 3)
    torn[150:170] = 0
    assert quality_gate.explain_outline(torn)
