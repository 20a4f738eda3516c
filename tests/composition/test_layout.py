"""Places: given, read, and proposed from what the prompt says."""

from pathlib import Path

import pytest

from objtune_cli.composition import layout, layout_from_prompt
from objtune_cli.composition.layout import Box, Layout
from objtune_cli.composition.layout_from_prompt import propose
from objtune_cli.errors import InputError, UsageError

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

NAMES = ["rex", "cup"]


def centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def overlapping(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def of(
    prompt: str, names: list[str] = NAMES, given: dict[str, Box] | None = None, shapes: dict[str, float] | None = None
) -> Layout:
    found = propose(prompt, names, given or {}, shapes or {})
    assert list(found.boxes) == names and sorted(found.order) == sorted(names)
    assert all(0 <= b[0] < b[2] <= 1 and 0 <= b[1] < b[3] <= 1 for b in found.boxes.values())
    return found


@pytest.mark.parametrize(
    ("words", "axis", "first"),
    [
        ("<rex> and <cup>", 0, "rex"), ("<rex> next to <cup>", 0, "rex"), ("<rex> left of <cup>", 0, "rex"),
        ("<rex> to the right of <cup>", 0, "cup"), ("<rex> right of my red <cup>", 0, "cup"), ("<rex> above the <cup>", 1, "rex"),
        ("<rex> under <cup>", 1, "cup"), ("<rex> on the beach next to <cup>", 0, "rex"), ("<rex> on the right and <cup>", 0, "cup"),
        ("<rex> and, on the beach, <cup> on the left", 0, "cup"), ("<rex@2> on the left, <cup@1> at the right", 0, "rex"),
    ],
)  # fmt: skip
def test_words_say_which_side(words: str, axis: int, first: str) -> None:
    found = of(f"a photo of {words} in the snow")
    second = "cup" if first == "rex" else "rex"
    assert centre(found.boxes[first])[axis] + 0.2 < centre(found.boxes[second])[axis]
    assert centre(found.boxes[first])[1 - axis] == pytest.approx(centre(found.boxes[second])[1 - axis], abs=0.01)
    assert overlapping(*found.boxes.values()) == 0 and found.order == NAMES


@pytest.mark.parametrize(
    ("words", "front"),
    [("<rex> in front of <cup>", "rex"), ("<rex> behind <cup>", "cup"), ("<rex> wearing <cup>", "cup"),
     ("<rex> on <cup>", "rex"), ("<rex> sitting on top of the <cup>", "rex")],
)  # fmt: skip
def test_what_touches_overlaps_and_has_an_order(words: str, front: str) -> None:
    found = of(f"a photo of {words} at night")
    assert overlapping(*found.boxes.values()) > 0.03
    assert found.order[-1] == front


def test_what_is_worn_is_small_and_up_what_is_stood_on_is_below() -> None:
    worn = of("<rex> wearing <cup>").boxes
    assert centre(worn["cup"])[1] < centre(worn["rex"])[1] and overlapping(worn["cup"], worn["rex"]) == pytest.approx(
        (worn["cup"][2] - worn["cup"][0]) * (worn["cup"][3] - worn["cup"][1]), rel=0.01
    )
    ridden = of("<rex> riding <cup>").boxes
    assert ridden["rex"][3] < ridden["cup"][3] and ridden["rex"][1] < ridden["cup"][1]


def test_relations_of_three_are_read_one_by_one() -> None:
    names = ["rex", "hat", "cup"]
    found = of("<rex> wearing <hat> left of <cup>", names)
    assert overlapping(found.boxes["rex"], found.boxes["hat"]) > 0.01
    assert (
        overlapping(found.boxes["rex"], found.boxes["cup"]) == overlapping(found.boxes["hat"], found.boxes["cup"]) == 0
    )
    assert centre(found.boxes["rex"])[0] < centre(found.boxes["cup"])[0] and found.order.index(
        "hat"
    ) > found.order.index("rex")
    corner = of("<rex> left of <cup> above <hat>", ["rex", "cup", "hat"]).boxes
    assert centre(corner["rex"])[0] < centre(corner["cup"])[0] == pytest.approx(centre(corner["hat"])[0])
    assert centre(corner["cup"])[1] < centre(corner["hat"])[1]
    both = of("<rex> wearing <hat> and <cup>, <rex> again", names)  # a second mention moves nothing
    assert both.boxes == of("<rex> wearing <hat> and <cup>", names).boxes


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_any_number_stands_side_by_side(count: int) -> None:
    names = [f"o{i}" for i in range(count)]
    boxes = list(of(" and ".join(f"<{n}>" for n in names), names).boxes.values())
    assert all(overlapping(a, b) == 0 for i, a in enumerate(boxes) for b in boxes[:i])
    assert [centre(b)[0] for b in boxes] == sorted(centre(b)[0] for b in boxes)


def test_more_than_two_side_by_side_get_a_larger_picture() -> None:
    """A base draws one or two things in a picture of its own size; places that are given are of the picture as it is."""
    names = ["rex", "cup", "hat"]
    found = of("<rex>, <cup> and <hat>", names)
    assert (found.wide, found.high) == (1.5, 1.0)
    own = [round((b[2] - b[0]) * found.wide / (b[3] - b[1]), 2) for b in found.boxes.values()]
    assert own == [round(0.49 / (0.85 * 0.7), 2)] * 3  # as two in a picture of the base's own size have them
    assert (of("<rex> and <cup>").wide, of("<rex> wearing <hat>", ["rex", "hat"]).wide) == (1.0, 1.0)
    assert of("<rex>, <cup> and <hat>", names, {"rex": layout.PLACES["left"]}).wide == 1.0
    tall = of("<rex> above <cup> above <hat>", names)
    assert (tall.wide, tall.high) == (1.0, 1.5)


def test_a_place_has_the_objects_proportions() -> None:
    """In a slot of 0.49 by 0.7 a thing twice as wide as high gets 0.49 by 0.85 · 0.7; a thin one 0.85 · 0.49 by 0.7."""
    boxes = of("<rex> and <cup>", shapes={"rex": 2.0, "cup": 0.2}).boxes
    assert boxes["rex"][2] - boxes["rex"][0] == pytest.approx(0.49, abs=1e-3)
    assert boxes["rex"][3] - boxes["rex"][1] == pytest.approx(0.595, abs=1e-3)
    assert boxes["cup"][2] - boxes["cup"][0] == pytest.approx(0.4165, abs=1e-3)
    assert boxes["cup"][3] - boxes["cup"][1] == pytest.approx(0.7, abs=1e-3)
    assert boxes["rex"][3] == boxes["cup"][3]  # both stand on the floor


def test_given_places_stay_and_the_others_keep_clear_of_them() -> None:
    given = {"rex": layout.PLACES["right"]}
    found = of("<rex> and <cup>", given=given).boxes
    assert found["rex"] == given["rex"] and found["cup"][2] <= 0.5
    all_given = {"rex": (0.0, 0.0, 0.4, 0.4), "cup": (0.5, 0.5, 1.0, 1.0)}
    assert of("<rex> behind <cup>", given=all_given) == Layout(all_given, ["rex", "cup"])


def test_one_object_stands_where_it_is_said() -> None:
    assert centre(of("<rex> on the left of nothing", ["rex"]).boxes["rex"])[0] == pytest.approx(0.5)
    assert centre(of("<rex> on the left", ["rex"]).boxes["rex"])[0] < 0.3


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["rex=0,0,0.5"], "is not a place"), (["=left"], "is not a place"),
        (["rex=0.5,0.5,1.2,0.9"], "is not a place"), (["rex=0.5,0.5,0.4,0.9"], "is not a place"), (["rex=0.5,0.5,0.52,0.9"], "too small for a place"),
        (["rex=nan,0,1,1"], "is not a place"),
    ],
)  # fmt: skip
def test_what_is_no_place_is_refused(texts: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        layout.parse_places(texts)


@pytest.mark.parametrize("name", ["rex", "<rex>", "rex@2", "<rex@2>"])
def test_an_object_of_a_place_is_named_as_in_a_prompt(name: str) -> None:
    assert layout.parse_places([f"{name}=left"]) == {"rex": [layout.PLACES["left"]]}


def test_every_mention_gets_one_place_at_most() -> None:
    left, right = [layout.PLACES[side] for side in ("left", "right")]
    mentions = {"rex": ["rex", "rex-2"], "cup": ["cup"]}
    assert layout.assign_places({"rex": [left, right]}, mentions) == {"rex": left, "rex-2": right}
    assert layout.assign_places({"rex": [right], "cat": [left]}, mentions) == {"rex": right, "cat": left}
    with pytest.raises(UsageError, match="2 places for cup, but the prompt names <cup> once"):
        layout.assign_places({"cup": [left, right]}, mentions)


def test_places_must_belong_to_objects_of_the_prompt_one_each() -> None:
    with pytest.raises(InputError, match="does not mention <cat>"):
        layout.check_places({"cat": layout.PLACES["left"]}, NAMES)
    with pytest.raises(UsageError, match="rex and cup have the same place"):
        layout.check_places({"rex": layout.PLACES["left"], "cup": layout.PLACES["left"]}, NAMES)


def test_a_layout_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "scene.toml"
    file.write_text('rex = "left"\ncup = [0.5, 0.4, 0.95, 0.9]\ndog = ["left", [0.5, 0, 1, 1]]\n')
    assert layout.read_file(file) == {
        "rex": [layout.PLACES["left"]],
        "cup": [(0.5, 0.4, 0.95, 0.9)],
        "dog": [layout.PLACES["left"], (0.5, 0, 1, 1)],
    }
    file.write_bytes('\ufeff{"rex": "left", "cup": [0.5, 0.4, 0.95, 0.9]}'.encode())
    assert list(layout.read_file(file)) == ["rex", "cup"]
    for wrong in ("[place]\nrex = 'left'", "rex = 3"):
        file.write_text(wrong)
        with pytest.raises(InputError, match=r"(place|rex) in .*scene\.toml is"):
            layout.read_file(file)
    file.write_text("rex = ")
    with pytest.raises(InputError, match="is not valid TOML"):
        layout.read_file(file)


def test_the_picture_shows_every_place_in_its_colour() -> None:
    found = Layout({"rex": (0.1, 0.2, 0.5, 0.9), "cup": (0.4, 0.4, 0.9, 0.9)}, ["cup", "rex"])
    assert layout.render(found, (128, 192)).shape == (256, 384, 3)
    picture = layout.render(found, (64, 64))
    assert picture.shape == (256, 256, 3)
    x, y = round(0.1 * 255), round(0.5 * 255)
    assert tuple(picture[y, x]) == (0xD6, 0x28, 0x28)
    x = round(0.9 * 255)
    assert tuple(picture[y, x]) == (0x2A, 0x6F, 0xDB)
    assert tuple(picture[y, round(0.5 * 255)]) == (0xD6, 0x28, 0x28)  # rex is in front of cup's tint


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a photo of <dog> next to <cup> on the beach", "a photo of <dog> and <cup> on the beach"),
        ("<dog> is to the left of the <cup@2>", "<dog> and the <cup@2>"),
        ("<a> above <b>, <c> beside a <d>", "<a> and <b>, <c> and a <d>"),
        ("<dog> in front of <cup>", "<dog> in front of <cup>"),
        ("<dog> wearing <hat> next to a tree", "<dog> wearing <hat> next to a tree"),
        ("a cat next to <dog>", "a cat next to <dog>"),
    ],
)
def test_places_are_drawn_and_not_said(prompt: str, told: str) -> None:
    assert layout_from_prompt.scene_prompt(prompt) == told


@pytest.mark.parametrize(
    ("prompt", "first", "second"),
    [
        ("a photo of <rex> and <cup> on the beach", "a photo of <rex> on the beach", "a photo of <cup> on the beach"),
        ("<rex> next to the <cup@2>, oil on canvas", "<rex>, oil on canvas", "<cup@2>, oil on canvas"),
        ("<rex> wearing <cup> in the snow", "<rex> in the snow", "<cup> in the snow"),
        ("<rex> wearing a red hat in front of a <cup>", "<rex> wearing a red hat", "<cup>"),
        ("<rex> on the left, <cup> on the right, at night", "<rex>, at night", "<cup>, at night"),
        (
            "a drawing of <rex> with a ball and <cup> with a straw",
            "a drawing of <rex> with a ball with a straw",
            "a drawing of <cup> with a straw",
        ),
    ],
)
def test_what_is_said_of_one_object_alone(prompt: str, first: str, second: str) -> None:
    """What follows the last object is of the scene, or cannot be told from it."""
    assert (layout_from_prompt.object_prompt(prompt, "rex"), layout_from_prompt.object_prompt(prompt, "cup")) == (
        first,
        second,
    )


def test_of_three_objects_each_is_said_alone() -> None:
    prompt = "a photo of <a> on top of <b> with wheels and <c> in the desert"
    assert [layout_from_prompt.object_prompt(prompt, name) for name in "abc"] == [
        "a photo of <a> in the desert",
        "a photo of <b> with wheels in the desert",
        "a photo of <c> in the desert",
    ]
