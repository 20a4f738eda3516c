"""What scripts rely on: exit codes, which stream says what, one JSON document, the same ref for the same work."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store
from tests.support import quick_runs
from tests.support.hostile_names import HOSTILE, unsafe
from tests.support.json_schema import check

Cli = Callable[..., Any]
SIDE = 96


@pytest.fixture
def toy(project: Path) -> Path:
    """A small photo: a red square in the middle of a grey ground."""
    rgb = np.full((SIDE, SIDE, 3), 120, np.uint8)
    rgb[30:66, 30:66] = (220, 30, 30)
    return write(project / "toy.png", rgb)


@pytest.fixture
def cover(project: Path) -> Path:
    """The mask of `toy`."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[30:66, 30:66] = 255
    return write(project / "cover.png", mask)


def write(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def stored(project: Path) -> list[str]:
    return sorted(p.relative_to(project).as_posix() for p in (project / "artifacts").rglob("*.safetensors"))


def damage(path: Path, where: int) -> None:
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def forge(project: Path, **changes: Any) -> None:
    """mask/rex@1 with a record changed by hand."""
    record = Record("mask", "rex", {"rex": "dog"}, {}, {}, {}, version=1, digest="0" * 64).header() | changes
    record = {key: value for key, value in record.items() if value != "absent"}
    text = json.dumps({"__metadata__": {"objtune": json.dumps(record)}}).encode()
    path = project / "artifacts/mask/rex/v001.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def fails(done: Any, code: int, *words: str) -> None:
    """A failure in the contract's form: nothing on stdout, `error:` and `hint:` on stderr, no traceback."""
    assert done.code == code, done
    assert done.out == ""
    lines = done.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "hint"], done.err
    assert all(word in done.err for word in words), done.err


USAGE = [
    (["nonsense"], "No such command 'nonsense'"),
    (["--nonsense"], "No such option: --nonsense"),
    (["segment"], "Missing argument 'photo'"),
    (["segment", "toy.png"], "the object has no class"),
    (["segment", "toy.png", "--class", "  "], "the object has no class"),
    (["segment", "toy.png", "--class", "\ue000"], "no name can be made from the class"),
    (["segment", "toy.png", "--class", "d\x1bg"], "cannot be printed"),
    (["segment", "toy.png", "--class", "d\udcffg"], "cannot be printed"),
    (["segment", "toy.png", "--class", "dog", "--name", "Rex!"], "'Rex!' cannot be a name"),
    (["segment", "toy.png", "--class", "dog", "--name", "a", "--name", "b"], "2 names for 1 classes"),
    (["segment", "toy.png", "--class", "dog", "--class", "dog"], "two objects would have the same name"),
    (["segment", "toy.png", "--class", "dog", "--box", "1,2,3"], "--box 1,2,3 is not x0,y0,x1,y1"),
    (["segment", "toy.png", "--class", "dog", "--box", "1,2,3,nan"], "is not x0,y0,x1,y1"),
    (["segment", "toy.png", "--class", "dog", "--box", "0,0,9,9", "--box", "0,0,8,8"], "two values of --box for dog"),
    (
        ["segment", "toy.png", "--class", "dog", "--class", "mug", "--box", "0,0,9,9"],
        "names no object, and the photo has several",
    ),
    (["segment", "toy.png", "--class", "dog", "--point", "middle"], "--point middle is not x,y"),
    (["segment", "toy.png", "--class", "dog", "--set", "train.stepz=1"], "unknown key train.stepz"),
    (["segment", "toy.png", "--class", "dog", "--set", "train.max_steps"], "has no value"),
    (
        ["segment", "toy.png", "--class", "dog", "--set", "segment.edge_softness=nan"],
        "--set segment.edge_softness is nan",
    ),
    (["segment", "toy.png", "--class", "dog", "--precision", "fp8"], "fp8"),
    (["train", "--steps", "many"], "--steps is 'many'"),
    (["train"], "there is no ref"),
    (["init-embedding", "-"], "there is no ref"),
    (["train", "rex", "--class", "dog"], "belong to a photo"),
    (["train", "toy.png", "more.png", "--class", "dog", "-c", "mug"], "several objects of several photos"),
    (["train", "toy.png", "--class", "dog", "more.png", "-c", "mug", "last.png"], "last.png has no class"),
    (["train", "--class", "dog", "toy.png", "more.png", "-c", "mug"], "--class before the first photo"),
    (["train", "toy.png", "-c", "dog", "toy.png", "--class=dog"], "two photos would give an object the name dog"),
    (["train", "toy.png", "-c", "dog", "mask/x", "-c", "mug"], "mask/x is not a photo"),
    (
        ["train", "toy.png", "-c", "dog", "more.png", "-c", "mug", "--box", "cup=0,0,9,9"],
        "--box cup=0,0,9,9 is for cup",
    ),
    (["list", "masks"], "there is no kind masks"),
    (["show", "a/b/c"], "is not a ref"),
    (["list", "--project", "/nonexistent"], "/nonexistent is not a folder"),
    (["list", "--project", "x" * 300], "is not a folder"),
    (["init", "--project", "x" * 300], "is not a folder"),
    (["init", "--project", "objtune.toml"], "objtune.toml is not a folder"),
    (["generate"], "there is no prompt"),
]


@pytest.mark.parametrize(
    ("args", "words"),
    USAGE,
    ids=lambda v: " ".join(v).encode("ascii", "replace").decode() if isinstance(v, list) else "",
)
def test_wrong_usage_is_2(args: list[str], words: str, cli: Cli, toy: Path, project: Path) -> None:
    fails(cli(*args), 2, words)
    assert stored(project) == []


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("stepz = 1", "unknown key stepz"),
        ("train = 3", "train in objtune.toml is 3"),
        ("[segment", "is not valid TOML"),
        ("base = 3", "base in objtune.toml is 3"),
    ],
)
def test_a_wrong_settings_file_is_2(toml: str, words: str, cli: Cli, toy: Path, project: Path) -> None:
    (project / "objtune.toml").write_text(toml)
    fails(cli("segment", toy, "--class", "dog"), 2, words)


def test_a_wrong_variable_is_2(cli: Cli, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBJTUNE_STEPS", "3")
    fails(
        cli("segment", toy, "--class", "dog"),
        2,
        "unknown key OBJTUNE_STEPS in the environment",
        "OBJTUNE_TRAIN_MAX_STEPS",
    )


def test_no_arguments_show_the_help_on_stderr(cli: Cli) -> None:
    done = cli()
    assert done.code == 2
    assert done.out == ""
    assert "Commands:" in done.err


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["segment", "--help"], ["list"], ["verify"], ["init"]], ids=" ".join
)
def test_done_is_0(args: list[str], cli: Cli) -> None:
    done = cli(*args)
    assert done.code == 0
    assert "error" not in done.err


def test_an_unusable_photo_is_3(cli: Cli, project: Path) -> None:
    (project / "words.jpg").write_text("these are words")
    (project / "empty.png").touch()
    (project / "folder.png").mkdir()
    os.mkfifo(project / "pipe.png")
    write(project / "tiny.png", np.zeros((8, 8, 3), np.uint8))
    for name, words in {
        "words.jpg": "is not a picture", "empty.png": "is empty", "folder.png": "is a folder", "pipe.png": "cannot be read",
        "tiny.png": "has 8x8 pixels", "none.png": "there is no file", "x" * 300 + ".png": "cannot be read",
    }.items():  # fmt: skip
        fails(cli("segment", name, "--class", "dog"), 3, words)
        fails(cli("train", name, "--class", "dog"), 3, words)
    fails(cli("train", "x" * 300), 2, "cannot be a name")
    assert stored(project) == []


def test_an_unusable_mask_box_or_point_is_3(cli: Cli, toy: Path, project: Path) -> None:
    write(project / "small.png", np.zeros((80, 80), np.uint8))
    for option, value, words in [
        ("--mask", "none.png", "there is no mask none.png"), ("--mask", "x" * 300, "there is no mask"),
        ("--mask", "small.png", "has 80x80 pixels, the photo 96x96"),
        ("--mask", "objtune.toml", "is empty"), ("--box", "0,0,97,96", "is not inside the photo (96x96)"), ("--box", "50,50,40,60", "is not inside"),
        ("--point", "96,10", "is not inside the photo"), ("--sam-checkpoint", "none.pth", "there is no file none.pth"),
    ]:  # fmt: skip
        fails(cli("segment", toy, "--class", "dog", option, value), 3, words)
    assert stored(project) == []


def test_a_missing_artifact_is_4(cli: Cli) -> None:
    fails(cli("show", "rex"), 4, "there is no mask/rex")
    fails(cli("show", "adapter/rex@3"), 4, "there is no adapter/rex@3")
    fails(cli("init-embedding", "rex"), 4, "there is no mask/rex")
    fails(cli("train", "rex"), 4, "there is no mask/rex")
    fails(cli("export", "rex"), 4, "there is no adapter/rex")
    fails(cli("generate", "a photo of <rex>"), 4, "rex")


def test_an_ambiguous_name_is_4(cli: Cli, project: Path) -> None:
    for kind in ("mask", "embedding"):
        Store.at(project).create(Record(kind, "rex", {"rex": "dog"}, {}, {}, {}), {})
    fails(cli("show", "rex"), 4, "rex is ambiguous", "mask/rex, embedding/rex")
    assert cli("show", "mask/rex").code == 0


@pytest.mark.parametrize("command", [["list"], ["show", "rex"], ["verify"], ["init-embedding", "rex"]], ids=" ".join)
def test_a_damaged_artifact_is_5(command: list[str], cli: Cli, project: Path) -> None:
    path = Store.at(project).path(
        Store.at(project).create(Record("mask", "rex", {"rex": "dog"}, {}, {}, {}), {"mask": np.ones(9, np.uint8)})
    )
    damage(path, 9)
    before = path.read_bytes()
    fails(cli(*command), 5, str(path))
    assert path.read_bytes() == before


def test_a_pipe_or_folder_in_the_store_is_5(cli: Cli, project: Path) -> None:
    for name in ("rex", "max"):
        (project / "artifacts/mask" / name).mkdir(parents=True)
    os.mkfifo(project / "artifacts/mask/rex/v001.safetensors")
    (project / "artifacts/mask/max/v001.safetensors").mkdir()
    fails(cli("show", "rex"), 5, "not a regular file")
    fails(cli("show", "max"), 5, "not a regular file")
    fails(cli("verify"), 5, "2 of 2 artifacts")


def test_verify_notices_a_changed_input(cli: Cli, project: Path) -> None:
    store = Store.at(project)
    mask = store.create(Record("mask", "rex", {"rex": "dog"}, {}, {}, {}), {"mask": np.ones(9, np.uint8)})
    inputs = {"mask": {"ref": str(mask), "sha256": store.compute_sha256(mask)}}
    store.create(Record("embedding", "rex", {"rex": "dog"}, inputs, {}, {}), {})
    assert cli("verify").err == "2 artifacts, all intact\n"
    damage(store.path(mask), -1)
    fails(
        cli("verify"),
        5,
        "1 of 2 artifacts",
        "v001.safetensors is damaged: its bytes do not match its digest",
    )


def test_verify_notices_a_sound_file_in_the_place_of_an_input(cli: Cli, project: Path, tmp_path: Path) -> None:
    store = Store.at(project)
    mask = store.create(Record("mask", "rex", {"rex": "dog"}, {}, {}, {}), {"mask": np.ones(9, np.uint8)})
    inputs = {"mask": {"ref": str(mask), "sha256": store.compute_sha256(mask)}}
    store.create(Record("embedding", "rex", {"rex": "dog"}, inputs, {}, {}), {})
    elsewhere = Store.at(tmp_path / "other")
    other = elsewhere.create(Record("mask", "rex", {"rex": "dog"}, {}, {}, {}), {"mask": np.zeros(9, np.uint8)})
    os.replace(elsewhere.path(other), store.path(mask))
    fails(cli("verify"), 5, "1 of 2 artifacts", "is not the file that embedding/rex@1 was made from")


@pytest.mark.parametrize("command", [["list"], ["show", "rex"], ["verify"], ["init-embedding", "rex"]], ids=" ".join)
def test_a_newer_schema_is_6(command: list[str], cli: Cli, project: Path) -> None:
    forge(project, schema=4, digest="absent")
    fails(cli(*command), 6, "has schema 4; this objtune reads up to 3", "pip install -U objtune")


def test_another_kind_is_6(cli: Cli, project: Path) -> None:
    Store.at(project).create(Record("scene", "rex", {"rex": "dog"}, {}, {}, {}), {})
    fails(cli("init-embedding", "scene/rex"), 6, "scene/rex is a scene")
    fails(cli("export", "scene/rex"), 6, "scene/rex is a scene")


def test_a_store_that_cannot_be_written_is_7(cli: Cli, toy: Path, cover: Path, project: Path) -> None:
    (project / "artifacts").write_text("in the way")
    fails(cli("segment", toy, "--class", "dog", "--mask", cover), 7, "artifacts cannot be written")


def test_a_full_disk_is_7(cli: Cli, toy: Path, cover: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        fails(cli("segment", toy, "--class", "dog", "--mask", cover), 7, "no space left")
    assert stored(project) == []
    assert not [p for p in (project / ".objtune").rglob("*") if p.is_file()]
    assert cli("segment", toy, "--class", "dog", "--mask", cover).code == 0


@pytest.mark.parametrize("colour", [(120, 120, 120), (200, 30, 30)])
def test_a_mask_nobody_should_train_on_is_9(colour: tuple[int, int, int], cli: Cli, project: Path) -> None:
    plain = write(project / "plain.png", np.full((SIDE, SIDE, 3), colour, np.uint8))
    done = cli("segment", plain, "--class", "dog")
    assert done.code == 9, done
    assert done.out == ""
    assert "error: no usable mask of the dog" in done.err
    rejected = project / ".objtune" / "rejected" / "dog.png"
    assert str(rejected) in done.err
    with Image.open(rejected) as picture:
        assert picture.size == (SIDE, SIDE)
    assert stored(project) == []


@pytest.mark.parametrize(
    ("area", "words"), [(0, "nothing was found"), (1, "it covers"), (SIDE * SIDE, "it covers 100% of the photo")]
)
def test_the_gate_looks_at_given_masks_too(area: int, words: str, cli: Cli, toy: Path, project: Path) -> None:
    mask = np.zeros(SIDE * SIDE, np.uint8)
    mask[:area] = 255
    given = write(project / "given.png", mask.reshape(SIDE, SIDE))
    fails(cli("segment", toy, "--class", "dog", "--mask", given), 9, words)
    kept = cli("segment", toy, "--class", "dog", "--mask", given, "--force")
    if not area:  # nothing can be learned from nothing
        fails(kept, 9, words)
        return
    assert (kept.code, kept.out) == (0, "mask/dog@1\n")
    assert "kept although" in kept.err


def test_a_bug_is_1_with_a_traceback(cli: Cli, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object) -> None:
        raise ZeroDivisionError("oh\x1b[31m")

    monkeypatch.setattr("objtune_cli.segmentation.segment.run", broken)
    done = cli("segment", toy, "--class", "dog")
    assert done.code == 1
    assert "Traceback" in done.err
    assert "this is a bug in objtune; please report it" in done.err
    assert "\x1b" not in done.err


FAILURES = [
    ["nonsense"],
    ["segment"],
    ["segment", "none.png", "--class", "dog"],
    ["show", "rex"],
    ["list", "--nonsense"],
    ["train"],
    [],
]


@pytest.mark.parametrize("args", FAILURES, ids=" ".join)
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_json_of_a_failure(args: list[str], first: bool, cli: Cli) -> None:
    done = cli("--json", *args) if first else cli(*args, "--json")
    document = json.loads(done.out)
    assert set(document) == {"command", "error"}
    assert set(document["error"]) == {"code", "message", "hint"}
    assert document["error"]["code"] == done.code != 0
    check(document, "output", "error")
    assert done.err.startswith("error: ")


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_json_of_a_success(first: bool, cli: Cli, toy: Path, cover: Path, project: Path) -> None:
    line = ["segment", toy, "--class", "dog", "--mask", cover]
    done = cli("--json", *line) if first else cli(*line, "--json")
    document = json.loads(done.out)
    check(document, "output", "segment")
    path = project / "artifacts/mask/dog/v001.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert document["refs"] == [{"ref": "mask/dog@1", "path": str(path), "sha256": digest, "reused": False}]
    assert document["images"] == [str(path.with_suffix("") / "overlay.png")]
    assert document["metrics"]["mask/dog@1"]["area"] == pytest.approx(36 * 36 / SIDE**2, abs=1e-6)
    again = json.loads(cli(*line, "--json").out)
    assert again["refs"][0] == document["refs"][0] | {"reused": True}
    assert again["images"] == document["images"]
    assert again["metrics"]["mask/dog@1"].items() >= document["metrics"]["mask/dog@1"].items()


LIGHT = [
    ["list"], ["verify"], ["show", "dog"], ["init"], ["bases"], ["list", "adapter"], ["doctor", "--quick"], ["gc"], ["rm", "dog"], ["mv", "dog", "rex"],
]  # fmt: skip


@pytest.mark.parametrize("args", LIGHT, ids=" ".join)
def test_json_of_every_light_command(args: list[str], cli: Cli, toy: Path, cover: Path) -> None:
    cli("segment", toy, "--class", "dog", "--mask", cover)
    done = cli(*args, "--json", "--quiet")
    document = json.loads(done.out)
    check(document, "output", args[0])
    assert (done.code, done.err) == (0, "")


def test_stdout_is_the_ref_alone_and_quiet_is_quiet(cli: Cli, toy: Path, cover: Path) -> None:
    done = cli("segment", toy, "--class", "dog", "--mask", cover)
    assert done.out == "mask/dog@1\n"
    assert "overlay.png" in done.err
    line = ["segment", toy, "--class", "dog", "--mask", cover]
    for args in ([*line, "--quiet"], ["-q", *line], [*line, "-q", "--force"]):
        done = cli(*args)
        assert done.code == 0
        assert done.err == ""
    assert cli("-q", "verify").err == ""


def test_quiet_keeps_errors(cli: Cli) -> None:
    fails(cli("-q", "show", "rex"), 4, "there is no mask/rex")


def test_project_stands_before_or_after(cli: Cli, toy: Path, cover: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    line = ["segment", toy, "--class", "dog", "--mask", cover]
    assert cli("--project", other, "init").code == 0
    assert cli("--project", other, *line).out == "mask/dog@1\n"
    assert cli(*line, "--project", other, "--force").out == "mask/dog@2\n"
    assert cli("list").out == ""
    assert cli("list", "--project", other).out == cli("--project", other, "list").out != ""


def test_the_environment_names_the_project_too(
    cli: Cli, toy: Path, cover: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    cli("init", "--project", other)
    monkeypatch.setenv("OBJTUNE_PROJECT", str(other))
    cli("segment", toy, "--class", "dog", "--mask", cover)
    assert stored(other) == ["artifacts/mask/dog/v001.safetensors"]


def test_the_project_is_found_upwards(
    cli: Cli, toy: Path, cover: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = project / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    cli("segment", toy, "--class", "dog", "--mask", cover)
    assert stored(project) == ["artifacts/mask/dog/v001.safetensors"]


def test_list_is_tabs_off_a_terminal(cli: Cli, toy: Path, cover: Path) -> None:
    cli("segment", toy, "--class", "dog", "--name", "rex", "--mask", cover)
    assert cli("list").out == "mask/rex@1\tdog\t\t\n"
    shown = dict(line.split("\t") for line in cli("show", "rex").out.splitlines())
    assert shown["ref"] == "mask/rex@1"
    assert shown["objects.rex"] == "dog"
    assert shown["metrics.found_by"] == "mask"
    assert shown["picture"].endswith("overlay.png")


def test_the_same_work_is_reused_and_force_makes_a_version(cli: Cli, toy: Path, cover: Path, project: Path) -> None:
    line = ["segment", toy, "--class", "dog", "--mask", cover]
    first = cli(*line)

    def state() -> dict[str, tuple[int, int]]:
        return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(project.rglob("*")) if p.is_file()}

    before = state()
    again = cli(*line)
    assert again.code == 0
    assert again.out == first.out == "mask/dog@1\n"
    assert "mask/dog@1 is up to date" in again.err
    assert state() == before
    assert cli(*line, "--force").out == "mask/dog@2\n"
    assert cli(*line).out == "mask/dog@2\n"
    assert cli(*line, "--set", "segment.max_image_size=200").out == "mask/dog@3\n"
    assert stored(project) == [f"artifacts/mask/dog/v00{n}.safetensors" for n in (1, 2, 3)]


def test_another_hint_is_other_work(cli: Cli, toy: Path) -> None:
    line = ["segment", toy, "--class", "dog", "--box"]
    assert cli(*line, "24,24,72,72").out == "mask/dog@1\n"
    assert cli(*line, "22,22,74,74").out == "mask/dog@2\n"
    assert cli(*line, "24,24,72,72").out == "mask/dog@1\n"
    assert cli(*line, "24,24,72,72", "--point", "48,48").out == "mask/dog@3\n"


def test_equal_work_in_two_projects_is_equal_bytes(cli: Cli, toy: Path, cover: Path, tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two words"):
        cli("init", "--project", tmp_path / name)
        document = json.loads(
            cli("segment", toy, "--class", "dog", "--mask", cover, "--json", "--project", tmp_path / name).out
        )
        digests.add(document["refs"][0]["sha256"])
    assert len(digests) == 1


def test_a_given_mask_is_taken_as_it_is(cli: Cli, toy: Path, cover: Path, project: Path) -> None:
    cli("segment", toy, "--class", "dog", "--mask", cover)
    record, tensors = Store.at(project).read(Ref("mask", "dog", 1))
    with Image.open(cover) as mask, Image.open(toy) as rgb:
        assert np.array_equal(tensors["mask"], np.asarray(mask))
        assert np.array_equal(tensors["rgb"], np.asarray(rgb))
    assert record.metrics["found_by"] == "mask"
    assert record.inputs["photo"]["sha256"] == hashlib.sha256(toy.read_bytes()).hexdigest()
    assert record.inputs["mask"]["sha256"] == hashlib.sha256(cover.read_bytes()).hexdigest()


def test_transparency_serves_as_the_mask(cli: Cli, toy: Path, cover: Path, project: Path) -> None:
    with Image.open(toy) as rgb, Image.open(cover) as mask:
        write(project / "cut.png", np.dstack([np.asarray(rgb), np.asarray(mask)]))
    assert cli("segment", "cut.png", "--class", "dog").code == 0
    record, tensors = Store.at(project).read(Ref("mask", "dog", 1))
    assert record.metrics["found_by"] == "alpha"
    with Image.open(cover) as mask:
        assert np.array_equal(tensors["mask"], np.asarray(mask))


@pytest.mark.parametrize("hint", [["--box", "24,24,72,72"], ["--point", "48,48"], []], ids=["box", "point", "none"])
def test_the_square_is_found(hint: list[str], cli: Cli, toy: Path, cover: Path, project: Path) -> None:
    """Intersection over union with the true square; 0.9 lets the outline be off by less than a pixel."""
    assert cli("segment", toy, "--class", "toy", "--segmenter", "grabcut", *quick_runs.NO_GATE, *hint).code == 0
    record, tensors = Store.at(project).read(Ref("mask", "toy", 1))
    assert record.metrics["found_by"] == "grabcut"
    found = tensors["mask"] > 127
    with Image.open(cover) as mask:
        true = np.asarray(mask) > 127
    assert (found & true).sum() / (found | true).sum() > 0.9


def test_two_objects_of_one_photo(cli: Cli, project: Path) -> None:
    rgb = np.full((SIDE, 2 * SIDE, 3), 120, np.uint8)
    rgb[30:66, 20:56] = (220, 30, 30)
    rgb[30:66, 130:166] = (30, 60, 220)
    photo = write(project / "two.png", rgb)
    done = cli(
        "segment",
        photo,
        "--class",
        "dog",
        "--class",
        "mug",
        "--name",
        "rex",
        "--box",
        "mug=120,20,176,76",
        "--box",
        "dog=10,20,66,76",
    )
    assert (done.code, done.out) == (0, "mask/rex@1\nmask/mug@1\n"), done.err
    for name, column, word in (("rex", 38, "dog"), ("mug", 148, "mug")):
        record, tensors = Store.at(project).read(Ref("mask", name, 1))
        assert record.objects == {name: word}
        assert tensors["mask"][48, column] == 255
        assert tensors["mask"][48, 186 - column] == 0


def test_the_example_photo(cli: Cli, dog_photo: Path, project: Path) -> None:
    done = cli("segment", dog_photo, "--class", "dog")
    assert (done.code, done.out) == (0, "mask/dog@1\n")
    record, tensors = Store.at(project).read(Ref("mask", "dog", 1))
    assert tensors["rgb"].shape == (640, 640, 3)
    assert 0.05 < record.metrics["area"] < 0.4
    assert record.metrics["pieces"] == 1


def test_photos_are_kept_at_most_as_large_as_asked(cli: Cli, toy: Path, project: Path) -> None:
    with Image.open(toy) as image:
        image.resize((480, 480)).save("large.png")
    cli("segment", "large.png", "--class", "dog", "--set", "segment.max_image_size=240", "--box", "120,120,360,360")
    _, tensors = Store.at(project).read(Ref("mask", "dog", 1))
    assert tensors["rgb"].shape == (240, 240, 3)
    assert tensors["mask"].shape == (240, 240)
    assert tensors["mask"][120, 120] == 255
    assert tensors["mask"][20, 20] == 0


def test_nothing_of_the_place_is_in_an_artifact(cli: Cli, toy: Path, cover: Path, project: Path) -> None:
    cli("segment", toy, "--class", "dog", "--mask", cover)
    data = b"".join(p.read_bytes() for p in (project / "artifacts").rglob("*") if p.is_file())
    for word in (str(project), str(Path.home()), os.uname().nodename, "toy.png", "cover.png"):
        assert word.encode() not in data, word


def test_refs_are_read_from_stdin(cli: Cli) -> None:
    fails(cli("init-embedding", "-", stdin="\n mask/rex \n"), 4, "there is no mask/rex")
    fails(cli("init-embedding", stdin="mask/max\n"), 4, "there is no mask/max")


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
@pytest.mark.parametrize("form", [[], ["--json"], ["--verbose"]], ids=["plain", "json", "verbose"])
def test_hostile_file_names_do_not_reach_the_terminal(
    name: str, form: list[str], cli: Cli, cover: Path, project: Path
) -> None:
    done = cli("segment", *form, "--class", "dog", "--", name)
    assert done.code == 3, done
    assert unsafe(done.out + done.err) == []
    write(Path("new.png"), np.zeros((SIDE, SIDE, 4), np.uint8)).rename(name)
    done = cli("segment", *form, "--class", "dog", "--mask", cover, "--", name)
    assert done.code == 0, done
    assert unsafe(done.out + done.err) == []
    if form == ["--json"]:
        json.loads(done.out)


def test_hostile_words_elsewhere_do_not_reach_the_terminal(cli: Cli) -> None:
    for args in (
        ["show", "\x1b[31m"],
        ["\x1b[31m"],
        ["list", "\x1b[31m"],
        ["--\x1b[31m"],
        ["segment", "a.png", "--box", "\x1b[31m", "--class", "x"],
    ):
        done = cli(*args)
        assert done.code == 2
        assert unsafe(done.out + done.err) == []


@pytest.mark.parametrize(
    "variables",
    [{"GITHUB_ACTIONS": "1"}, {"FORCE_COLOR": "1", "PY_COLORS": "1"}, {"NO_COLOR": "1", "GITHUB_ACTIONS": "1"}],
    ids=str,
)
def test_no_escapes_when_piped(variables: dict[str, str], cli: Cli, toy: Path, cover: Path, project: Path) -> None:
    cli("segment", toy, "--class", "dog", "--mask", cover)
    for line in (
        "--help",
        "train --help",
        "list",
        "show dog",
        "show nobody",
        "--nonsense",
        "verify",
        "doctor --quick",
        "gc",
        "rm none",
        "run none",
    ):
        done = subprocess.run(
            [sys.executable, "-m", "objtune_cli", *line.split()],
            cwd=project,
            env={**os.environ, **variables},
            capture_output=True,
            timeout=60,
        )
        assert done.stdout + done.stderr
        assert b"\x1b" not in done.stdout + done.stderr, line


def test_a_closed_pipe_is_quiet(cli: Cli, toy: Path, cover: Path, project: Path) -> None:
    cli("segment", toy, "--class", "dog", "--mask", cover)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "objtune_cli", "list"], cwd=project, stdout=writer, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == b""


def test_nothing_ever_asks() -> None:
    """No prompt is in the package: what a command needs, it is given."""
    import ast

    import objtune_cli

    forms = ("input", "getpass.getpass", "typer.prompt", "typer.confirm", "click.prompt", "click.confirm")
    asked = [
        f"{path.name}:{node.lineno}"
        for path in Path(objtune_cli.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in forms
    ]
    assert asked == []
