"""`objtune place` through the command line, on the tiny base."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from objtune_cli.store import refs
from objtune_cli.store.store import Store

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

AT = (0.4, 0.25, 0.9, 0.75)
QUICK = ("--steps", 2, "-n", 2, "--retries", 0)


@pytest.fixture
def placing(cli, base, trained_artifacts):
    """`cli` in a project with <dog> and <cup> and the photo `table.png`, 160x120 px."""
    Path("objtune.toml").write_text(f'base = "{base}"\n')
    shutil.copytree(trained_artifacts, "artifacts")
    table = np.random.default_rng(0).integers(90, 160, (120, 160, 3), dtype=np.uint8)
    Image.fromarray(table).save("table.png")
    return cli


def at(*box: float) -> str:
    return ",".join(map(str, box))


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_the_rest_of_the_photo_keeps_its_bytes(placing) -> None:
    result = placing("place", "<cup>", "--into", "table.png", "--at", at(*AT), *QUICK, "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    paths = document["images"]["scene/cup@1"] if isinstance(document["images"], dict) else document["images"]
    before = pixels("table.png")
    inside = np.zeros(before.shape[:2], bool)
    inside[30:90, 64:144] = True
    after = [pixels(path) for path in paths]
    assert len(after) == 2 and not np.array_equal(*after)
    for each in after:
        assert np.array_equal(each[~inside], before[~inside]) and not np.array_equal(each[inside], before[inside])
    text = Image.open(paths[0]).text
    assert "Size: 160x120" in text["parameters"]
    record = Store.at(Path()).read_record(refs.Ref("scene", "cup", 1))
    assert record.config["region"] == [64, 30, 144, 90] and record.inputs["photo"]["sha256"]
    assert set(record.metrics) >= {"seeds", "presence", "leakage"}


def test_a_placement_is_reused_and_deleted_pictures_come_back(placing) -> None:
    command = ("place", "a photo of <cup>", "--into", "table.png", "--at", at(*AT), *QUICK)
    first = placing(*command)
    paths = [Path(line) for line in first.out.split()]
    before = [path.read_bytes() for path in paths]
    paths[1].unlink()
    again = placing(*command)
    assert again.code == 0 and again.out == first.out and [path.read_bytes() for path in paths] == before
    other = placing(*command, "--change", 0.5)
    assert "scene/cup/v002" in other.out
    assert placing("verify").code == 0


@pytest.mark.parametrize("paste", ["object", "region"])
def test_masks_and_class_words_are_regions(placing, paste: str) -> None:
    mask = np.zeros((120, 160), np.uint8)
    mask[40:100, 20:90] = 255
    Image.fromarray(mask).save("mask.png")
    result = placing(
        "place", "<cup>", "--into", "table.png", "--mask", "mask.png", *QUICK, "--set", f"place.paste={paste}"
    )
    assert result.code == 0, result.err
    before = pixels("table.png")
    for path in result.out.split():
        assert np.array_equal(pixels(path)[mask == 0], before[mask == 0])


def test_what_is_there_is_replaced(placing, dog_photo: Path) -> None:
    gate = (
        "--set",
        "segment.min_class_probability=0",
        "--set",
        "segment.min_score_margin=-99",
        "--set",
        "segment.min_score=-99",
    )
    result = placing("place", "<cup>", "--into", dog_photo, "--replace", "dog", *QUICK, *gate)
    assert result.code == 0, result.err
    record = Store.at(Path()).read_record(refs.Ref("scene", "cup", 1))
    assert record.inputs["mask"]["ref"].startswith("mask/dog@")
    x0, y0, x1, y1 = record.config["region"]
    before, after = pixels(dog_photo), pixels(result.out.split()[0])
    inside = np.zeros(before.shape[:2], bool)
    inside[y0:y1, x0:x1] = True
    assert np.array_equal(after[~inside], before[~inside])


def test_in_a_photograph_the_object_is_cut_out_by_what_knows_photographs(placing) -> None:
    """Without a model for photographs GrabCut takes the place of the embedded one, as in `segment`, and is named once."""
    from skimage import data

    Image.fromarray(data.cat()[:, :300]).save("cat.png")
    result = placing("place", "<cup>", "--into", "cat.png", "--at", at(*AT), *QUICK)
    assert result.code == 0 and result.err.count("the segmenter is GrabCut") == 1, result.err
    again = placing("place", "<cup>", "--into", "cat.png", "--at", at(*AT), *QUICK, "--set", "place.paste=region")
    assert again.code == 0 and "segmenter" not in again.err


def test_a_place_is_proposed(placing) -> None:
    result = placing("place", "<cup>", "--into", "table.png", *QUICK)
    assert result.code == 0 and "placed by default: --at " in result.err


BAD = {
    "no object": (("a mug",), 3, "names no trained object"),
    "two objects": (("<dog> and <cup>",), 3, "`place` takes one object"),
    "unknown object": (("<fish>",), 4, "<fish>"),
    "no photo": (("<cup>", "--into", "gone.png"), 3, "gone.png"),
    "place outside": (("<cup>", "--at", "0.5,0.5,1.5,1"), 2, "not a place in the picture"),
    "too small": (("<cup>", "--at", "0.5,0.5,0.56,0.56"), 3, "at least 16x16 pixels"),
    "mask of another shape": (("<cup>", "--mask", "square.png"), 3, "the photo 160x120"),
    "empty mask": (("<cup>", "--mask", "black.png"), 3, "black.png"),
    "change": (("<cup>", "--change", "1.5"), 2, "--change is 1.5"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(placing, name: str) -> None:
    Image.new("L", (64, 64), 255).save("square.png")
    Image.new("L", (160, 120), 0).save("black.png")
    words, code, message = BAD[name]
    into = () if "--into" in words else ("--into", "table.png")
    result = placing("place", *words, *into, *QUICK)
    assert result.code == code, result.err
    assert message in result.err and not Path("artifacts/scene").exists()


def test_a_missing_object_is_drawn_again_from_another_seed(placing, monkeypatch) -> None:
    """A seed whose likeness the check finds too low is followed by the next; the better of both stays."""
    from objtune_cli.composition import presence

    line = ("place", "<cup>", "--into", "table.png", "--at", at(*AT), "--steps", 2, "-n", 1)
    store, likeness = Store.at(Path()), []
    for seed in range(3):
        single = placing(*line, "--seed", seed, "--retries", 0)
        assert single.code == 0 and "attempt 2" not in single.err
        likeness.append(store.read_record(refs.Ref("scene", "cup", seed + 1)).metrics["leakage"][0][0][0])
    missed = next(seed for seed in (0, 1) if likeness[seed] < likeness[seed + 1])
    monkeypatch.setattr(presence, "MIN_LIKENESS", sum(likeness[missed : missed + 2]) / 2)
    again = placing(*line, "--seed", missed, "--retries", 1, "--force")
    assert again.code == 0 and "place, attempt 2" in again.err
    metrics = store.read_record(refs.Ref("scene", "cup", 4)).metrics
    assert metrics["seeds"] == [missed + 1] and metrics["leakage"] == [[[likeness[missed + 1]]]]
    strict = placing(*line, "--seed", missed, "--retries", 0, "--strict", "--force")
    assert strict.code == 9 and "for every seed" in strict.err and not Path("artifacts/scene/cup/v005").exists()
