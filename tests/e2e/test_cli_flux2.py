"""Commands on a random base in FLUX.2 klein's layout, as far as they do more there than on the other families."""

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
    top = tmp_path_factory.mktemp("klein")
    return {
        "base": tiny_families.flux2_klein(top / "base"),
        "distilled": tiny_families.flux2_klein(top / "distilled", distilled=True),
    }


def test_a_distilled_sibling_draws_and_does_not_learn(
    cli: Any, project: Path, bases: dict[str, Path], dog_photo: Path
) -> None:
    """The refusal comes before anything is computed; an object of the base is drawn in the sibling's own steps, without guidance."""
    Path("objtune.toml").write_text(SETTINGS.format(base=bases["base"]).replace("num_inference_steps = 2\n", ""))
    refused = cli("train", dog_photo, *ONE, "--base", bases["distilled"])
    assert refused.code == 6 and "is distilled to few steps" in refused.err and "`--base klein`" in refused.err
    assert not list(Path("artifacts").glob("**/*.safetensors"))
    for base in ("base", "distilled"):
        done = cli("train", dog_photo, *ONE, "--base", bases[base], "--name", base, "--force")
        assert done.code == 0, done.err
    drawn = cli("generate", "a photo of <base>", "--base", bases["distilled"])
    assert drawn.code == 0 and "was learned on the base base and is drawn on distilled" in drawn.err
    record = Store.at(Path()).read_record(refs.Ref("scene", "base", 1))
    assert (record.config["num_inference_steps"], record.config["guidance_scale"]) == (4, 1.0)


def test_two_objects_of_one_photo_and_all_layers(
    cli: Any, project: Path, bases: dict[str, Path], dog_photo: Path
) -> None:
    """The attention term reads the maps of double-stream blocks; single-stream layers learn too."""
    Path("objtune.toml").write_text(SETTINGS.format(base=bases["base"]))
    both = ("--class", "cat", "--box", "dog=110,240,300,535", "--box", "cat=320,240,530,535")
    done = cli("train", dog_photo, *ONE, *both, "--set", "train.target_modules=all")
    assert done.code == 0, done.err
    record, tensors = Store.at(Path()).read(refs.Ref("adapter", "dog-cat", 1))
    assert record.metrics["attention"] > 0
    ends = {key.split(".", 3)[3].removesuffix(".lora_B.weight") for key in tensors if key.endswith("lora_B.weight")}
    assert ends >= {"attn.to_qkv_mlp_proj", "attn.to_out", "attn.to_out.0", "attn.add_k_proj", "ff.linear_in"}
    assert all(abs(tensors[key]).max() > 0 for key in tensors if "single" in key and "lora_B" in key)


def test_diffusers_alone_draws_the_exported_object(cli: Any, project: Path, bases: dict[str, Path]) -> None:
    """The self-test: from a photo to the same image, in its own pipeline, from exported files."""
    done = cli("doctor", "--base", bases["base"], "--run", "--quick", "--steps", "2", "--json")
    report = json.loads(done.out)["self_test"]
    assert done.code == 0 and report["ok"], done.err
    assert report["differences"]["mean"] < 0.1 and report["differences"]["latents"] < 1e-4


def test_a_segmented_object_is_shown_beside_the_prompt(
    cli: Any, project: Path, bases: dict[str, Path], dog_photo: Path
) -> None:
    """Without training; the record names the mask, and another mask is another scene. Other families refuse it."""
    Path("objtune.toml").write_text(SETTINGS.format(base=bases["base"]))
    for name, box in (("rex", "110,240,530,535"), ("tom", "110,240,300,535")):
        assert cli("segment", dog_photo, "--class", "dog", "--name", name, "--box", box).code == 0
    images = []
    for options in ((), ("--reference", "rex"), ("--reference", "tom"), ("--reference", "rex", "--reference", "tom")):
        done = cli("generate", "a photo of a dog on the beach", *options, "--set", "generate.guidance_scale=4")
        assert done.code == 0, done.err
        images.append(Path(done.out.split()[0]).read_bytes())
    assert len(set(images)) == 4
    record = Store.at(Path()).read_record(refs.Ref("scene", "scene", 4))
    assert [each["ref"] for each in record.inputs.values()] == ["mask/rex@1", "mask/tom@1"]
    again = cli("generate", "a photo of a dog on the beach", "--reference", "rex", "--set", "generate.guidance_scale=4")
    assert "scene/scene@2 is up to date" in again.err
    missing = cli("generate", "a dog", "--reference", "nobody")
    assert missing.code == 4 and "Traceback" not in missing.err
    refused = cli("generate", "a dog", "--reference", "rex", "--base", "toybox")
    assert refused.code == 6 and "takes no pictures beside the prompt" in refused.err
