"""Several seeds, grids, contact sheets, the best of many, and variations of a picture, through the command line on the tiny base."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from objtune_cli.errors import InputError, UsageError
from objtune_cli.evaluation.best_images import ImageScore, class_prompt, rank
from objtune_cli.generation import image_size, variants
from objtune_cli.images import contact_sheet, png
from objtune_cli.store import refs
from objtune_cli.store.store import Store
from objtune_cli.workflow.context import StageContext

QUICK = ("--steps", 2)
PROMPT = "a photo of <dog> in the snow"


@pytest.fixture
def drawing(cli, base, trained_artifacts):
    Path("objtune.toml").write_text(f'base = "{base}"\n')
    shutil.copytree(trained_artifacts, "artifacts")
    return cli


def pictures(out: str) -> list[bytes]:
    return [np.asarray(Image.open(line)).tobytes() for line in out.split()]


def test_each_seed_is_its_own_scene(drawing) -> None:
    several = drawing("generate", PROMPT, *QUICK, "--seed", "5,9")
    one = drawing("generate", PROMPT, *QUICK, "--seed", "9", "-n", 1)
    assert several.code == 0 and len(several.out.split()) == 2 and several.out.split()[1] == one.out.strip()


def test_a_grid_draws_what_single_commands_draw_and_loads_the_base_once(drawing, monkeypatch) -> None:
    loads = []
    load = StageContext.load_base_model
    monkeypatch.setattr(StageContext, "load_base_model", lambda ctx, **how: loads.append(1) or load(ctx, **how))
    grid = drawing(
        "generate", PROMPT, *QUICK, "--grid", "strength=0.5,1", "--grid", "seed=1,2,3", "--sheet", "s.png", "--json"
    )
    assert grid.code == 0, grid.err
    document = json.loads(grid.out)
    assert len(loads) == 1 and len(document["refs"]) == 6 and document["sheets"] == ["s.png"]
    assert Image.open("s.png").width > 2 * 32 and Image.open("s.png").height > 3 * 32
    single = drawing("generate", PROMPT, *QUICK, "--strength", 0.5, "--seed", 3, "-n", 1)
    assert Path(single.out.strip()).resolve() == Path(document["images"][4]) and len(loads) == 1
    again = drawing("generate", PROMPT, *QUICK, "--grid", "steps=2,3", "--sheet", "s.png")
    assert again.code == 0 and Path("s-2.png").is_file()  # nothing is overwritten


def test_the_best_images_are_kept_with_their_scores(drawing) -> None:
    result = drawing("generate", PROMPT, *QUICK, "-n", 3, "--best", 2, "--out", "kept", "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert (
        [each["image"] for each in document["best"]]
        == document["images"]
        == sorted(document["images"], key=document["images"].index)
    )
    assert len(document["images"]) == len(list(Path("kept").iterdir())) == 2
    assert all("object" in each for each in document["best"]) and "the best 2 of 3 images" in result.err
    assert len(list(Path("artifacts/scene/dog/v001").glob("0*.png"))) == 3  # the others stay in the project


def test_the_prompt_is_judged_by_its_words_alone(drawing) -> None:
    result = drawing(
        "generate",
        "a photo of (<dog>:1.3) in {the snow|the sun} BREAK [blurry], \\(soft\\)",
        *QUICK,
        "-n",
        3,
        "--best",
        2,
        "--seed",
        1,
    )
    assert result.code == 0, result.err
    store = Store.at(Path())
    prompts = [class_prompt(store.read_record(refs.Ref("scene", "dog", i + 1))) for i in range(3)]
    words = {f"a photo of a dog in {place} blurry, (soft)" for place in ("the snow", "the sun")}
    assert set(prompts) <= words, prompts


def test_ranks() -> None:
    scores = [ImageScore(0.9, 0.2), ImageScore(0.1, 0.9), ImageScore(0.8, 0.3), ImageScore(0.5, 0.1)]
    assert rank(scores) == [0, 2, 3, 1]  # without its object an image is last
    assert rank([ImageScore(None, 0.1), ImageScore(None, 0.4)]) == [1, 0]
    with pytest.raises(InputError, match="nothing to choose"):
        rank([ImageScore(None, None)] * 2)


def test_variations_of_a_picture(drawing, dog_photo: Path) -> None:
    small = np.asarray(Image.open(dog_photo).convert("RGB").resize((96, 64)))
    Image.fromarray(small).save("start.png")
    command = ("generate", PROMPT, *QUICK, "--from", "start.png", "-n", 2)
    little, much = drawing(*command, "--change", 0.02), drawing(*command, "--change", 1)
    assert little.code == much.code == 0, little.err + much.err
    record = Store.at(Path()).read_record(refs.Ref("scene", "dog", 1))
    assert record.config["change"] == 0.02 and record.inputs["photo"]["sha256"]
    width, height = Image.open(little.out.split()[0]).size
    assert width > height  # the picture's shape, not a square
    again = drawing(*command, "--change", 1)
    assert again.out == much.out and "v002" in again.out
    plain = drawing("generate", PROMPT, *QUICK, "-n", 2)
    assert "change" not in Store.at(Path()).read_record(refs.Ref("scene", "dog", 3)).config and plain.code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seed", "1,x"), "--seed is '1,x'"),
        (("--seed", "-1"), "--seed"),
        (("--seed", "3,3"), "one seed twice"),
        (("--grid", "strength"), "--grid is 'strength'"),
        (("--grid", "colour=1,2"), "names colour"),
        (("--grid", "strength=1,9"), "--grid strength"),
        (("--grid", "steps=1,2", "--grid", "steps=3"), "given 2 times"),
        (("--grid", "strength=1", "--seed", "1,2"), "make the seeds an axis"),
        (("--best", "4"), "--best is 4 of 4 images"),
        (("--best", "2", "--grid", "steps=1,2"), "--best and --grid"),
        (("--change", "0.5"), "without a picture"),
        (("--from", "gone.png"), "gone.png"),
        (("--aspect", "20:1"), "--aspect is '20:1'"),
        (("--aspect", "3:2", "--size", "64x64"), "--aspect and a size"),
        (("--sheet", "x.gif"), "--sheet is 'x.gif'"),
    ],
)  # fmt: skip
def test_bad_options_are_one_line_and_draw_nothing(drawing, options: tuple[str, ...], message: str) -> None:
    result = drawing("generate", PROMPT, *QUICK, *options)
    assert result.code in (2, 3) and message in result.err and not Path("artifacts/scene").exists()


class Base:
    """A base of a side and a unit."""

    def __init__(self, resolution: int, size_multiple: int) -> None:
        self.resolution, self.size_multiple, self.largest_side = resolution, size_multiple, 4 * resolution


class Context:
    def __init__(self, base: Base) -> None:
        self.base = base


@pytest.mark.parametrize(
    ("side", "ratio", "expected"),
    [
        (1024, 1, (1024, 1024)), (1024, 3 / 2, (1216, 832)), (1024, 16 / 9, (1344, 768)), (1024, 2 / 3, (832, 1216)), (1024, 21 / 9, (1536, 640)),
        (512, 3 / 2, (608, 416)), (128, 3 / 2, (152, 104)),
    ],
)  # fmt: skip
def test_the_usual_shapes_are_those_that_bases_were_trained_in(
    side: int, ratio: float, expected: tuple[int, int]
) -> None:
    assert image_size.fit_aspect(Context(Base(side, 8)), ratio) == expected  # type: ignore[arg-type]


@given(st.sampled_from([(1024, 8), (1024, 16), (512, 8), (768, 8), (128, 8)]), st.floats(0.25, 4))
def test_every_shape_has_a_size(base: tuple[int, int], ratio: float) -> None:
    width, height = image_size.fit_aspect(Context(Base(*base)), ratio)  # type: ignore[arg-type]
    assert width % base[1] == height % base[1] == 0 and 0.7 * base[0] ** 2 <= width * height <= base[0] ** 2
    assert abs(np.log(width / height / ratio)) < 0.2 or max(width, height) >= 1.8 * base[0]


@pytest.mark.parametrize(("text", "ratio"), [("3:2", 1.5), ("16/9", 16 / 9), ("1.5", 1.5), (" 2 x 3 ", 2 / 3)])
def test_ways_to_write_a_shape(text: str, ratio: float) -> None:
    assert image_size.parse_aspect(text) == pytest.approx(ratio)
    for bad in ("0:1", "3:0", "wide", "-1", "1:9"):
        with pytest.raises(UsageError, match="--aspect"):
            image_size.parse_aspect(bad)


def test_a_sheet_has_all_pictures_and_labels(tmp_path: Path) -> None:
    files = []
    for i, colour in enumerate(((250, 0, 0), (0, 250, 0), (0, 0, 250))):
        files.append(tmp_path / f"{i}.png")
        files[-1].write_bytes(png.encode_png(np.full((64, 96, 3), colour, np.uint8)))
    sheet = contact_sheet.draw([files[:2], files[2:]], ["strength 0.5", "strength 1"], ["seed 1", "seed 2"])
    for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250)):
        assert (sheet == colour).all(-1).sum() == 64 * 96
    assert (sheet.sum(-1) < 200).sum() > 100  # letters
    assert variants.parse_axes(["strength=0.5, 1"])[0].labels == ["strength 0.5", "strength 1"]
