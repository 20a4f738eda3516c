"""How a user's text becomes a path, and that every entrance reads it the same way."""

from dataclasses import fields
from pathlib import Path

import pytest

from objtune_cli import paths
from objtune_cli.config.resolve import Settings
from objtune_cli.config.sections import SECTIONS, Common, Segment
from objtune_cli.errors import UsageError
from tests.conftest import REPOSITORY


@pytest.fixture
def home(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a photo, and a working folder that has no file."""
    folder = project.parent / "home"
    (folder / "my dog.jpg").write_bytes((REPOSITORY / "docs/examples/photo.jpg").read_bytes())
    monkeypatch.setenv("HOME", str(folder))
    return folder


def test_the_forms_of_one_path(home: Path) -> None:
    wanted = home / "my dog.jpg"
    forms = ["~/my dog.jpg", '"~/my dog.jpg"', f"'{wanted}'", f"“{wanted}”", f" {wanted}\n", f"file://{home}/my%20dog.jpg", f"file://localhost{home}/my%20dog.jpg",
             f"file:{home}/my%20dog.jpg", f"{home}/my\\ dog.jpg", f"{home}\\my dog.jpg"]  # fmt: skip
    assert [form for form in forms if paths.to_path(form) != wanted] == []
    assert paths.to_path(Path(forms[5])) == wanted, "also after pathlib took a slash away"
    assert paths.to_path("~root") == Path("~root").expanduser()
    assert paths.to_path("a/b.jpg") == Path("a/b.jpg")
    assert paths.to_path("a/b.jpg", home) == home / "a/b.jpg"
    assert paths.to_path("/a.jpg", home) == Path("/a.jpg")


def test_a_file_of_exactly_that_name_comes_first(home: Path) -> None:
    for name in ("'x'", " x ", "a\\b", "file:x"):
        Path(name).touch()
        assert paths.to_path(name) == Path(name)
    assert paths.to_path("~/x") == home / "x"
    assert paths.to_path("./~/x") == Path("./~/x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("a\0b", "cannot be a path"),
        ("~nobody-at-all/x", "no home folder for ~nobody-at-all"),
    ],
)
def test_what_is_no_path(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        paths.to_path(text)
    assert caught.value.hint


def test_a_model_is_a_path_only_where_it_is_one(home: Path) -> None:
    (home / "org" / "name").mkdir(parents=True)
    assert paths.to_model("org/name", home) == str(home / "org/name")
    for name in ("sd15", "toybox", "org/other", "openai/clip-vit-base-patch32", ""):
        assert paths.to_model(name, home) == name
    (home / "toybox").mkdir()
    assert paths.to_model("toybox", home) == "toybox"
    assert paths.to_model("~/none") == str(home / "none")
    assert paths.to_model("./none", home) == str(home / "none")
    assert paths.to_model("none.safetensors", home) == str(home / "none.safetensors")
    assert (
        paths.to_model_list("org/name, openai/clip-vit-large-patch14", home)
        == f"{home}/org/name,openai/clip-vit-large-patch14"
    )


def test_hub_ids() -> None:
    assert paths.is_hub_id("openai/clip-vit-base-patch32")
    assert [
        name for name in ("~/x", "/x", "./x", "a/b/c", "x", "a/b.safetensors", "file:/x") if paths.is_hub_id(name)
    ] == []


def test_every_setting_that_may_be_a_path_says_so() -> None:
    for section in (Common, *SECTIONS.values()):
        for item in fields(section):
            words = item.metadata["help"].lower()
            speaks = item.type is str and any(
                word in words for word in ("folder", "checkpoint", "hub id", "file", ".py")
            )
            assert bool(item.metadata["path"]) == speaks or item.name == "shard", f"{section.__name__}.{item.name}"
            assert item.metadata["path"] in ("", *paths.CONVERTERS)


def test_paths_in_objtune_toml_start_at_its_folder(home: Path) -> None:
    (home / "tiny").mkdir()
    file = home / "objtune.toml"
    file.write_text(
        'base = "tiny"\ntower = "tiny,openai/clip"\n[segment]\nsam_checkpoint = "sam.pth"\n[bench]\nclip_model = "~/clip"\n'
    )
    settings = Settings(file, environment={})
    assert settings.resolve(Common).base == str(home / "tiny")
    assert settings.resolve(Common).clip_model == f"{home / 'tiny'},openai/clip"
    assert settings.resolve(Segment).sam_checkpoint == str(home / "sam.pth")
    said = Settings(
        file, environment={"OBJTUNE_BASE": "~/x", "OBJTUNE_SEGMENT_SAM_CHECKPOINT": "a.pth"}, flags=["base=~/y"]
    )
    assert said.resolve(Common).base == str(home / "y")
    assert said.resolve(Common, base="~/z").base == str(home / "z")
    assert said.resolve(Segment).sam_checkpoint == "a.pth"
    with pytest.raises(UsageError, match=r"--set base: ~nobody-at-all/x: there is no home folder"):
        Settings(file, environment={}, flags=["base=~nobody-at-all/x"]).resolve(Common)


def test_home_folders_at_every_entrance(cli, home: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What bash passes on as it stands: `--project=~/p`, `--mask dog=~/m.png`, `--events=~/e`, OBJTUNE_PROJECT=~/p in a file."""
    assert cli("init", "--project=~/proj").code == 0
    assert (home / "proj/objtune.toml").exists()
    assert cli("list", "--project=~/proj", "--events=~/e.jsonl").code == 0
    assert (home / "e.jsonl").exists()
    assert cli("--events=~/f.jsonl", "--project=~/proj", "list").code == 0
    assert (home / "f.jsonl").exists()
    monkeypatch.setenv("OBJTUNE_PROJECT", "~/other")
    assert cli("init").code == 0
    assert (home / "other/objtune.toml").exists()
    done = cli("segment", "~/my dog.jpg", "--class", "dog", "--mask", "dog=~/none.png")
    assert done.code == 3 and f"there is no mask {home}/none.png" in done.err
    (project / "jobs.toml").write_text("[[job]]\nphoto = '~/my dog.jpg'\nclass = 'dog'\n")
    assert not (project / "~").exists()


def test_init_makes_the_project_that_the_variable_names(cli, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "objtune.toml").unlink()
    monkeypatch.setenv("OBJTUNE_PROJECT", "foo")
    done = cli("init")
    assert done.code == 0 and "foo" in done.err
    assert (project / "foo/objtune.toml").exists() and not (project / "objtune.toml").exists()
    assert cli("init", "--project", "bar").code == 0, "an option comes before the variable"
    assert (project / "bar/objtune.toml").exists()


@pytest.mark.parametrize(
    "line",
    [
        ("--project", "", "list"),
        ("list", "--project="),
        ("segment", "a.jpg", "--class", "dog", "--mask="),
        ("generate", "x", "--out", ""),
    ],
)
def test_an_empty_path_is_refused(line: tuple[str, ...], cli) -> None:
    done = cli(*line)
    assert done.code == 2 and "is empty" in done.err and "hint: " in done.err


def test_an_empty_value_behind_a_double_dash_is_no_option(cli) -> None:
    assert cli().code == 2
    assert "is empty" not in cli("show", "--", "--project=").err


def test_an_artifact_knows_no_path(cli, home: Path, project: Path) -> None:
    """However the mask's photo, the checkpoint and the detector are written: the same artifact, found again, without the folder's place."""
    (home / "owl").mkdir()
    (home / "owl/config.json").write_text("{}")
    (project / "m.png").write_bytes(_mask())
    forms = ("~/owl", str(home / "owl"), f"file://{home}/owl", f"{home}/./owl/")
    for number, form in enumerate(forms):
        done = cli(
            "segment",
            "~/my dog.jpg" if number % 2 else f"file:{home}/my%20dog.jpg",
            "--class",
            "dog",
            "--mask",
            "./m.png" if number else f"'{project}/m.png'",
            "--set",
            f"segment.detector={form}",
        )
        assert (done.code, done.out) == (0, "mask/dog@1\n"), done.err
        assert ("is up to date" in done.err) == bool(number)
    data = (project / "artifacts/mask/dog/v001.safetensors").read_bytes()
    assert str(home).encode() not in data and b"owl" in data


def _mask() -> bytes:
    """A mask of the example photo's size, an ellipse around its dog."""
    import io

    import numpy as np
    from PIL import Image

    photo = np.asarray(Image.open(REPOSITORY / "docs/examples/photo.jpg"))
    height, width = photo.shape[:2]
    y, x = np.mgrid[:height, :width]
    inside = ((x - width / 2) / (width / 4)) ** 2 + ((y - height / 2) / (height / 4)) ** 2 < 1
    out = io.BytesIO()
    Image.fromarray((inside * 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def test_a_base_is_itself_however_it_is_written(home: Path) -> None:
    from objtune_cli.models import registry

    forms = (
        "toybox",
        registry.TOYBOX_FOLDER,
        f"{registry.TOYBOX_FOLDER}/",
        f"file://{registry.TOYBOX_FOLDER}",
        f"'{registry.TOYBOX_FOLDER}'",
    )
    found = [registry.resolve(str(form)) for form in forms]
    assert len({base.fingerprint for base in found}) == 1
    assert {base.id for base in found[1:]} == {registry.TOYBOX_FOLDER.name}
