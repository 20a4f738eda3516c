"""Commands on a random base in Z-Image's layout, as far as they do more there than on the other families."""

import json
from pathlib import Path
from typing import Any

import pytest

from objtune_cli.store import refs
from objtune_cli.store.store import Store
from tests.e2e.test_cli_families import SETTINGS
from tests.support import tiny_families

pytestmark = [pytest.mark.usefixtures("fast_sampling", "cached_segmentation"), pytest.mark.commands]
ONE = ("--class", "dog", "--no-preview", "--set", "train.self_evaluation=false")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("z-image")
    return {"base": tiny_families.z_image(top / "base"), "turbo": tiny_families.z_image(top / "turbo", distilled=True)}


def test_the_turbo_draws_and_does_not_learn(cli: Any, project: Path, bases: dict[str, Path], dog_photo: Path) -> None:
    """The refusal comes before anything is computed; an object of the base is drawn in the sibling's own steps, without guidance."""
    Path("objtune.toml").write_text(SETTINGS.format(base=bases["base"]).replace("num_inference_steps = 2\n", ""))
    refused = cli("train", dog_photo, *ONE, "--base", bases["turbo"])
    assert refused.code == 6 and "is distilled to few steps" in refused.err and "`--base z-image`" in refused.err
    assert not list(Path("artifacts").glob("**/*.safetensors"))
    done = cli("train", dog_photo, *ONE, "--name", "rex", "--set", "train.target_modules=all")
    assert done.code == 0, done.err
    _, tensors = Store.at(Path()).read(refs.Ref("adapter", "rex", 1))
    learned = [key for key in tensors if key.endswith("lora_B.weight")]
    assert len(learned) == 6 * 7
    ours = [key for key in learned if "context_refiner.1" not in key]
    assert all(abs(tensors[key]).max() > 0 for key in ours)
    drawn = cli("generate", "a photo of <rex>", "--base", bases["turbo"])
    assert drawn.code == 0 and "was learned on the base base and is drawn on turbo" in drawn.err
    record = Store.at(Path()).read_record(refs.Ref("scene", "rex", 1))
    assert (record.config["num_inference_steps"], record.config["guidance_scale"]) == (8, 1.0)


def test_two_objects_of_one_photo(cli: Any, project: Path, bases: dict[str, Path], dog_photo: Path) -> None:
    """The attention term reads the maps of the blocks over image and prompt."""
    Path("objtune.toml").write_text(SETTINGS.format(base=bases["base"]))
    both = ("--class", "cat", "--box", "dog=110,240,300,535", "--box", "cat=320,240,530,535")
    done = cli("train", dog_photo, *ONE, *both)
    assert done.code == 0, done.err
    assert Store.at(Path()).read_record(refs.Ref("adapter", "dog-cat", 1)).metrics["attention"] > 0


def test_diffusers_alone_draws_the_exported_object(cli: Any, project: Path, bases: dict[str, Path]) -> None:
    """The self-test: from a photo to the same image, in its own pipeline, from exported files; and both files come back by import."""
    done = cli("doctor", "--base", bases["base"], "--run", "--quick", "--steps", "2", "--json")
    report = json.loads(done.out)["self_test"]
    assert done.code == 0 and report["ok"], done.err
    assert report["differences"]["mean"] < 0.1 and report["differences"]["latents"] < 1e-4


def test_exported_lora_comes_back(cli: Any, project: Path, bases: dict[str, Path], dog_photo: Path) -> None:
    """Under the names of diffusers, and of kohya's scripts and ComfyUI; on another family it is refused by name."""
    Path("objtune.toml").write_text(SETTINGS.format(base=bases["base"]))
    assert cli("train", dog_photo, *ONE, "--name", "rex").code == 0
    store = Store.at(Path())
    _, own = store.read(refs.Ref("adapter", "rex", 1))
    for form in ("diffusers", "kohya"):
        (file,) = cli("export", "rex", "--format", form, "--out", f"out-{form}").out.split()
        done = cli("import", file, "--class", "dog", "--name", form)
        assert done.code == 0, done.err
        _, tensors = store.read(refs.Ref("adapter", form, 1))
        layers = [key for key in own if ".lora_" in key]
        assert layers and all(abs(tensors[key] - own[key]).max() < 1e-6 for key in layers)
        refused = cli("import", file, "--class", "dog", "--name", "other", "--base", "toybox")
        assert refused.code == 6 and "`--base z-image`" in refused.err, refused.err
