"""Uploads, masks, hints and command lines of the page."""

import shlex
from pathlib import Path

import pytest

from objtune_cli import api
from objtune_cli.errors import InputError
from objtune_cli.ui import command_lines
from objtune_cli.ui.command_lines import TrainingObject, TrainingPhoto
from objtune_cli.ui.hints import BoxHint, PhotoHints, PointHint, Stroke
from objtune_cli.ui.object_fields import Wanted, group_wanted
from objtune_cli.ui.workspace import Workspace


@pytest.fixture
def workspace(project: Path) -> Workspace:
    """The workspace of an empty project, without a queue."""
    return Workspace(api.project(project), project, queue=None)  # type: ignore[arg-type]


def test_an_upload_is_kept_once_under_a_plain_name(workspace: Workspace, dog_photo: Path) -> None:
    data = dog_photo.read_bytes()
    assert workspace.add_photo("../../a dog;rm -rf.jpg", data) == "a-dog-rm--rf.jpg"
    assert workspace.add_photo("a dog;rm -rf.jpg", data) == "a-dog-rm--rf.jpg"
    other = dog_photo.with_name("mug.jpg").read_bytes()
    assert workspace.add_photo("a dog;rm -rf.jpg", other) == "a-dog-rm--rf-2.jpg"
    assert workspace.add_photo("C:\\photos\\.hidden", data) == "hidden.jpg"
    assert sorted(path.name for path in workspace.photos.iterdir()) == sorted(workspace.list_photos())
    assert workspace.open_photo("hidden.jpg").rgb.shape == (640, 640, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"<svg></svg>", "an SVG drawing"),
        (b"%PDF-1.7", "a PDF document"),
        (b"GIF89a", "cannot|not a"),
    ],
)
def test_an_upload_that_is_no_photo_is_refused_as_on_the_command_line(
    workspace: Workspace, data: bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        workspace.add_photo("x.jpg", data)
    assert refused.value.message.startswith("x.jpg") and list(workspace.photos.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "../x.mask.png", "/etc/passwd", "x.png", "a/b.mask.png"])
def test_other_files_are_no_masks(workspace: Workspace, name: str) -> None:
    with pytest.raises(InputError):
        workspace.locate_mask(name)


def test_a_mask_is_found_again(workspace: Workspace) -> None:
    import numpy as np

    path = workspace.save_mask("../a photo.jpg", "rex", np.full((4, 6), 255, np.uint8))
    assert path == workspace.photos / "a-photo-rex.mask.png" == workspace.locate_mask(path.name)
    assert workspace.list_photos() == []


def test_hints_are_in_pixels_of_the_file() -> None:
    hints = PhotoHints("a.jpg", scale=0.5, size=(100, 80))
    hints.actions = [
        BoxHint((1, 2, 3, 4)),
        PointHint((10, 20)),
        PointHint((5, 5), is_object=False),
        BoxHint((10, 10, 50, 60)),
    ]
    target = hints.target("dog", "rex")
    assert target.box_xyxy == (20, 20, 100, 120)
    assert (target.points, target.negative_points) == (((20, 40),), ((10, 10),))
    words = command_lines.build("segment", ["a.jpg"], hints.options())
    assert words == ["segment", "a.jpg", "--box", "20,20,100,120", "--point", "20,40", "--negative-point", "10,10"]


def test_strokes_add_to_the_mask_and_take_from_it() -> None:
    hints = PhotoHints("a.jpg", scale=1, size=(40, 40))
    assert hints.mask() is None
    hints.actions = [Stroke(((5, 20), (35, 20)), 6, adds=True)]
    assert hints.mask()[20, 20] == 255 and hints.mask()[5, 5] == 0
    hints.actions.append(Stroke(((20, 20),), 8, adds=False))
    assert hints.mask()[20, 20] == 0 and hints.mask()[20, 8] == 255


def test_points_beside_the_object_alone_are_no_hint() -> None:
    hints = PhotoHints("a.jpg", scale=1, size=(10, 10), actions=[PointHint((1, 1), is_object=False)])
    assert not hints.can_sketch and hints.target("dog", "dog").has_no_hint


@pytest.mark.parametrize("prompt", ["--force", "-n 99", "a photo; rm -rf ~", "$(id)", "`id`", "it's <rex>", "--"])
def test_a_prompt_is_one_word_that_is_no_option(prompt: str) -> None:
    words = command_lines.build("generate", [prompt], {"-n": 2, "--negative": prompt, "--strength": 0.5, "--size": ""})
    assert shlex.split(command_lines.show(words)) == ["objtune", *words]
    assert words[-1] == prompt if prompt.startswith("-") else words[1] == prompt
    assert prompt.startswith("-") == ("--" in words[:-1])
    assert f"--negative={prompt}" in words if prompt.startswith("-") else ["--negative", prompt] == words[4:6]


def test_text_is_one_line_of_visible_characters() -> None:
    assert command_lines.clean_text("a\n\tb \x1b[31m\u202ec\ud800") == "a b [31mc"


def test_photos_are_followed_by_their_masks() -> None:
    photos = [TrainingPhoto("a.jpg", "a.mask.png"), TrainingPhoto("b.jpg")]
    rex = TrainingObject(photos, "dog", "rex")
    words = command_lines.train([rex], {"--steps": 5, "--seed": None})
    assert command_lines.show(words) == "objtune train a.jpg --mask a.mask.png b.jpg --class dog --name rex --steps 5"


def test_several_objects_are_one_command_as_the_command_line_reads_it(project: Path) -> None:
    from objtune_cli.cli.app import COMMANDS
    from objtune_cli.cli.option_groups import KEY
    from objtune_cli.cli.options import Invocation
    from objtune_cli.cli.photo_groups import parse_requests
    from objtune_cli.cli.runner import load_command

    for name in ("a", "c"):
        (project / f"{name}.mask.png").write_bytes(b"")
    dog = TrainingObject([TrainingPhoto("a.jpg", "a.mask.png"), TrainingPhoto("b.jpg")], "dog", "rex")
    mug = TrainingObject([TrainingPhoto("c.jpg", "c.mask.png")], "mug", "mug")
    words = command_lines.train([dog, mug], {"--steps": 5})
    parsed = load_command("train", *COMMANDS["train"]).make_context("train", words[1:], obj=Invocation())
    groups = parse_requests([Path("a.jpg"), Path("b.jpg"), Path("c.jpg")], parsed.params, parsed.meta[KEY], print)
    read = [[(each.photo.name, each.targets[0].class_word, each.targets[0].name) for each in group] for group in groups]
    assert read == [[("a.jpg", "dog", "rex"), ("b.jpg", "dog", "rex")], [("c.jpg", "mug", "mug")]]


def test_photos_of_an_address_are_grouped_by_class_and_name() -> None:
    objects = group_wanted(
        ["a.jpg", "b.jpg", "c.jpg"], ["a.png", "", "c.png"], ["dog", "dog", "mug"], ["rex", "rex", ""]
    )
    assert objects == [
        Wanted("dog", "rex", {"a.jpg": "a.png", "b.jpg": ""}),
        Wanted("mug", "", {"c.jpg": "c.png"}),
    ]
    assert group_wanted(["a.jpg", "b.jpg"], [], ["dog"], ["rex"]) == [Wanted("dog", "rex", {"a.jpg": "", "b.jpg": ""})]
    assert group_wanted([], [], ["dog"], []) == [Wanted("dog")] and group_wanted([], [], [], []) == [Wanted()]
