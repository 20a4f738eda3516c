"""Random settings, jobs and layout files: what a file says is what is done, or one line says what it should say."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from objtune_cli.composition import layout
from objtune_cli.config.sections import SECTIONS, Segment
from objtune_cli.errors import ObjtuneError
from objtune_cli.workflow import job_file
from tests.support.fuzzing import Entrance, entrance, figures, tries  # noqa: F401  (a fixture)

ENCODINGS = (*["utf-8"] * 8, "utf-8-sig", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "utf-32")
NEWLINES = (*["\n"] * 4, "\r\n", "\r\n", "\r")
ODD = st.sampled_from(
    [
        "1",
        "-1",
        "0.5",
        "nan",
        "inf",
        "true",
        '""',
        '"x"',
        "[]",
        "{}",
        "[1, 2]",
        "1979-05-27",
        "9" * 30,
        "1e400",
        "'C:\\dog'",
        '"C:\\Users"',
        "“dog”",
        "~",
        '"~/x"',
        "\x00",
        "0x10",
    ]
)


def literal(item: Any) -> Any:
    """A strategy of TOML values for a setting: mostly right."""
    kind, low, high = item.type, item.metadata["low"], item.metadata["high"]
    low, high = (-1e6 if low is None else low), (1e6 if high is None else high)
    if get_origin(kind) is not None:
        right = st.sampled_from([f'"{each}"' for each in get_args(kind)])
    elif kind is int:
        right = st.integers(int(low), int(high)).map(str)
    elif kind is float:
        right = st.floats(low, high).map(lambda v: f"{v:.6f}")
    else:
        right = st.just('""')
    return st.one_of(right, right, right, ODD)


@st.composite
def settings_files(draw: Any) -> bytes:
    """An objtune.toml as some editor saves it."""
    lines = []
    for section in draw(st.lists(st.sampled_from([*SECTIONS, "segmentation", ""]), max_size=3, unique=True)):
        lines.append(f"[{section}]" if section else "")
        items = fields(SECTIONS.get(section, Segment))
        for item in draw(st.lists(st.sampled_from(items), max_size=3, unique_by=lambda each: each.name)):
            name = draw(st.sampled_from([item.name] * 6 + [item.name.upper(), item.name + "s"]))
            lines.append(f"{name} = {draw(literal(item))}")
    text = draw(st.sampled_from(NEWLINES)).join(["# été ✓", *lines, ""])
    return text.encode(draw(st.sampled_from(ENCODINGS)), errors="replace")


@tries(2500, 25)
@given(data=settings_files(), number=st.integers(0, 255))
def check_settings(place: Entrance, data: bytes, number: int) -> None:
    folder = place.empty()
    (folder / "objtune.toml").write_bytes(data)
    rgb = np.full((64, 160, 3), 120, np.uint8)
    rgb[10:40, 20:50] = (number, 30, 30)
    Image.fromarray(rgb).save(folder / "photo.png")
    cover = np.zeros((64, 160), np.uint8)
    cover[10:40, 20:50] = 255
    Image.fromarray(cover).save(folder / "mask.png")
    done = place.run("segment", "photo.png", "--class", "dog", "--mask", "mask.png")
    assert done.code in (0, 2, 3, 7), (data, done.err)
    if done.code:
        return
    record, tensors = place.load("mask", "dog")
    text = next(data.decode(code) for code in ("utf-8-sig", "utf-16", "utf-32") if _decodes(data, code))
    said = re.search(r"\[segment\][^\[]*\bmax_side = ([0-9]+)", text.replace("\r", "\n"))
    if said:
        assert record.config["max_side"] == int(said[1])
    assert max(tensors["rgb"].shape[:2]) == min(160, record.config["max_side"])


def _decodes(data: bytes, code: str) -> bool:
    try:
        return "été" in data.decode(code)
    except UnicodeError:
        return False


def test_settings_files(entrance: Entrance, record_property: Any) -> None:  # noqa: F811
    check_settings(entrance)
    figures(entrance, record_property, "settings files")


KEYS = (
    "photo",
    "class",
    "name",
    "mask",
    "box",
    "point",
    "refine_mask",
    "select",
    "rough",
    "which",
    "prompts",
    "n",
    "seed",
    "base",
    "set",
    "max_time",
    "steps",
    "Photo",
)
RIGHT = {
    "photo": '"dog.jpg"', "class": '"dog"', "name": '"rex"', "mask": '"m.png"', "box": '"1,2,30,40"', "point": '"3,4"', "refine_mask": '"m.png"', "select": '"left"', "rough": '"m.png"', "which": '"left"', "prompts": '["a <rex>"]', "n": "2",
    "seed": "7", "base": '"toybox"', "set": '["train.learning_rate=1e-3"]', "max_time": '"45m"', "steps": "20", "Photo": '"x"',
}  # fmt: skip


@st.composite
def jobs_files(draw: Any) -> tuple[bytes, dict[str, str]]:
    """A jobs file of one job with mostly right values, and these."""
    said = {
        key: draw(st.one_of(st.just(RIGHT[key]), st.just(RIGHT[key]), st.just(RIGHT[key]), ODD))
        for key in draw(st.sets(st.sampled_from(KEYS[:-2]), max_size=6)) | {"photo", "class"}
    }
    if draw(st.integers(0, 9)) == 0:
        said |= {key: RIGHT[key] for key in draw(st.sampled_from([("steps",), ("Photo",)]))}
    header = draw(st.sampled_from(["[[job]]"] * 8 + ["[job]", "[[jobs]]", "", "[[job]]\n[[job]]"]))
    text = "\n".join([header, *(f"{key} = {value}" for key, value in said.items()), ""])
    return text.replace("\n", draw(st.sampled_from(NEWLINES))).encode(
        draw(st.sampled_from(ENCODINGS)), errors="replace"
    ), said


@tries(4000, 40)
@given(item=jobs_files())
def check_jobs(place: Entrance, item: tuple[bytes, dict[str, str]]) -> None:
    data, said = item
    folder = place.empty()
    file = folder / "jobs.toml"
    file.write_bytes(data)
    try:
        found = job_file.read_jobs(file)
    except ObjtuneError as error:
        place.codes[f"exit {error.code}"] += 1
        assert error.code in (2, 3) and "\n" not in error.message and error.hint, (data, error.message, error.hint)
        return
    place.codes["accepted"] += 1
    train = found[0].commands[0]
    assert train[0] == "train" and train[-1].endswith("dog.jpg") is (said["photo"] == RIGHT["photo"])
    for key, option in {
        "seed": "--seed=7",
        "max_time": "--max-time=45m",
        "select": "--select=left",
        "set": "--set=train.learning_rate=1e-3",
        "box": "--box=1,2,30,40",
    }.items():
        if said.get(key) == RIGHT[key]:
            assert option in train, (key, train)
    if "mask" in said and said["mask"] == RIGHT["mask"]:
        assert f"--mask={folder / 'm.png'}" in train


def test_jobs_files(entrance: Entrance, record_property: Any) -> None:  # noqa: F811
    check_jobs(entrance)
    figures(entrance, record_property, "jobs files")


PLACES = st.sampled_from(
    [
        '"left"',
        "[0.1, 0.1, 0.5, 0.9]",
        '"0.1,0.1,0.5,0.9"',
        "[1, 2]",
        "[nan, 0, 1, 1]",
        "[0.5, 0.5, 0.1, 0.1]",
        '"middle"',
        "[-1, 0, 2, 1]",
        "[10, 20, 300, 400]",
    ]
)

PLACED = st.sampled_from(["rex", "cup", '"rex"', "Rex", '"<rex>"'])


@st.composite
def layouts(draw: Any) -> bytes:
    """A layout file of up to three places."""
    lines = [f"{draw(PLACED)} = {draw(st.one_of(PLACES, PLACES, PLACES, ODD))}" for _ in range(draw(st.integers(0, 3)))]
    text = draw(st.sampled_from(NEWLINES)).join(
        [draw(st.sampled_from([""] * 6 + ["[places]", "# a comment"])), *lines, ""]
    )
    return text.encode(draw(st.sampled_from(ENCODINGS)), errors="replace")


@tries(2500, 20)
@given(data=layouts())
def check_layout(place: Entrance, data: bytes) -> None:
    file = Path(place.empty()) / "scene.toml"
    file.write_bytes(data)
    try:
        found = layout.read_file(file)
    except ObjtuneError as error:
        place.codes[f"exit {error.code}"] += 1
        assert error.code in (2, 3) and "\n" not in error.message and error.hint, (data, error.message, error.hint)
        return
    place.codes["accepted"] += 1
    for box in (box for boxes in found.values() for box in boxes):
        assert len(box) == 4 and all(0 <= v <= 1 for v in box) and box[0] < box[2] and box[1] < box[3], (data, box)


def test_layout_files(entrance: Entrance, record_property: Any) -> None:  # noqa: F811
    check_layout(entrance)
    figures(entrance, record_property, "layout files")
