"""LoRAs beside the objects: the images of diffusers' pipelines, files of every form, parameters, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)

# isort: split
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from objtune_cli.composition.object_loras import single_lora
from objtune_cli.generation.sampling import sample
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.interchange import lora_keys
from objtune_cli.lora import forward_hooks, layers
from objtune_cli.lora.layer_names import modules_of
from objtune_cli.models import adapter_state, loading, registry
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.families import get_family
from objtune_cli.store import refs
from objtune_cli.store.artifacts import Record
from objtune_cli.store.store import Store
from tests.support import tiny_families

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

CPU = torch.device("cpu")
ONE = ("-n", "1", "--steps", "2")
ATTENTION = ("to_q", "to_k", "to_v", "q_proj", "v_proj", "fc1")


def random_lora(model: BaseModel, seed: int, *, text_encoders: bool = True, rank: int = 3) -> dict[str, torch.Tensor]:
    """A LoRA of attention layers with an adapter's names."""
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in modules_of(model).items():
        if name.endswith(ATTENTION) and (text_encoders or name.startswith("unet.")):
            out, inside = module.weight.shape
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, inside, generator=g) * 0.3
            tensors[f"{name}.lora_B.weight"] = torch.randn(out, rank, generator=g) * 0.3
    return tensors


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("loras")
    return {
        name: getattr(tiny_families, name)(top / name, with_clip=False) if name != "sd1" else tiny_families.sd1(top / name)
        for name in ("sd1", "sdxl", "sd3")
    }  # fmt: skip


def pipeline(folder: Path, name: str) -> Any:
    import diffusers

    kind = getattr(diffusers, get_family(name).pipeline)
    pipe = kind.from_pretrained(folder, local_files_only=True, **tiny_families.LEFT_OUT[name])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_diffusers(tensors: dict[str, torch.Tensor], name: str, file: Path) -> Path:
    save_file({k: v.contiguous() for k, v in lora_keys.to_diffusers(tensors, get_family(name)).items()}, file)
    return file


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_pictures_are_those_of_diffusers_with_two_loras(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    """An object's LoRA through peft and a style of strength 0.7, both on the text encoders too."""
    model = loading.load(folders[name], CPU, torch.float32)
    style, own = random_lora(model, 1), random_lora(model, 2, rank=2)
    pipe = pipeline(folders[name], name)
    for label, tensors in (("style", style), ("own", own)):
        file = write_diffusers(tensors, name, tmp_path / f"{label}.safetensors")
        pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=label)
    pipe.set_adapters(["style", "own"], [0.7, 1.0])
    theirs = pipe(
        ["a dog"], num_inference_steps=4, guidance_scale=4.0, height=32, width=32, output_type="latent",
        generator=[torch.Generator().manual_seed(5)],
    ).images.float()  # fmt: skip
    settings = SamplingSettings(4, 4.0)
    plain = sample(model, "a dog", [5], settings)
    added = forward_hooks.added_to_base(model, [(style, 0.7)])
    with added, single_lora(model, own):
        hooked = sample(model, "a dog", [5], settings)
    torch.testing.assert_close(sample(model, "a dog", [5], settings), plain, rtol=0, atol=0)
    layers.load(model, own, "own")
    with forward_hooks.added_to_base(model, [(style, 0.7)]):
        ours = sample(model, "a dog", [5], settings)
        with adapter_state.disabled(model):
            style_alone = sample(model, "a dog", [5], settings)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    torch.testing.assert_close(hooked, theirs, rtol=0, atol=1e-4)
    assert (ours - plain).abs().max() > 0.01
    pipe.set_adapters(["style"], [0.7])
    alone = pipe(
        ["a dog"], num_inference_steps=4, guidance_scale=4.0, height=32, width=32, output_type="latent",
        generator=[torch.Generator().manual_seed(5)],
    ).images.float()  # fmt: skip
    torch.testing.assert_close(style_alone, alone, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def style(base: Path) -> dict[str, torch.Tensor]:
    return random_lora(loading.load(base, CPU, torch.float32), 1)


@pytest.fixture
def studio(cli: Callable, base: Path, style: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Callable:
    """A project with <dog> and <cup>, and one style in the names of diffusers, kohya's scripts and peft."""
    from objtune_cli.models.placeholders import class_token_embeddings

    monkeypatch.setenv("OBJTUNE_BASE", str(base))
    model = loading.load(base, CPU, torch.float32)
    for i, (name, word) in enumerate({"dog": "dog", "cup": "mug"}.items()):
        tensors = random_lora(model, 7 + i, text_encoders=False) | {
            f"token.{name}": class_token_embeddings(model, word)
        }
        record = Record("adapter", name, {name: word}, {}, {"rank": 3}, registry.resolve(str(base)).record())
        Store.at(Path()).create(record, tensors)
    write_diffusers(style, "sd1", Path("style.safetensors"))
    arrays = {k: v.numpy() for k, v in style.items()}
    kohya = {k: torch.tensor(np.asarray(v)) for k, v in lora_keys.to_kohya(arrays).items()}
    save_file(kohya, "kohya.safetensors", {"ss_network_dim": "3"})
    for network in ("unet", "text_encoder"):
        folder = Path("peft", network)
        folder.mkdir(parents=True)
        own = {
            f"base_model.model.{k.removeprefix(f'{network}.')}": v
            for k, v in style.items()
            if k.startswith(f"{network}.")
        }
        save_file(own, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 3}))
    return cli


def draw(result: Any) -> np.ndarray:
    assert result.code == 0, result.err
    return np.asarray(Image.open(result.out.splitlines()[0])).astype(int)


def parameters(result: Any) -> str:
    return Image.open(result.out.splitlines()[0]).text["parameters"]


def latents(name: str, version: int) -> np.ndarray:
    return Store.at(Path()).read(refs.Ref("scene", name, version))[1]["latents"]


def test_every_form_of_a_file_draws_the_same(studio: Callable) -> None:
    plain = draw(studio("generate", "<dog>", *ONE))
    for i, name in enumerate(("style.safetensors", "kohya.safetensors", "peft"), 2):
        drawn = draw(studio("generate", "<dog>", *ONE, "--lora", f"{name}:0.7"))
        np.testing.assert_allclose(latents("dog", i), latents("dog", 2), rtol=0, atol=1e-4)
    assert np.abs(drawn - plain).max() > 3
    again = studio("generate", "<dog>", *ONE, "--lora", "style.safetensors:0.7", "--json")
    assert json.loads(again.out)["refs"][0]["reused"] and json.loads(again.out)["refs"][0]["ref"] == "scene/dog@2"
    assert json.loads(again.out)["loras"][0]["name"] == "style"


def test_strengths_act_and_zero_is_none(studio: Callable) -> None:
    plain = studio("generate", "<dog>", *ONE)
    off = studio("generate", "<dog>", *ONE, "--lora", "style.safetensors:0")
    assert off.out == plain.out and "strength 0 and does not act" in off.err
    config = Store.at(Path()).read_record(refs.parse("scene/dog@1")).config
    assert "loras" not in config and "lora" not in config  # the identity from before there were LoRAs
    draw(studio("generate", "<dog>", *ONE, "--lora", "style.safetensors"))
    draw(studio("generate", "<dog>", *ONE, "--lora", "style.safetensors:-1"))
    assert np.abs(latents("dog", 2) - latents("dog", 3)).max() > 0.01
    assert studio("generate", "<dog>", *ONE, "--set", "generate.lora=style.safetensors").out.endswith("v002/001.png\n")


def test_an_object_of_strength_0_is_the_class_in_that_style(studio: Callable) -> None:
    draw(studio("generate", "a <dog:0>", *ONE, "--lora", "style.safetensors:0.7"))
    draw(studio("generate", "a dog", *ONE, "--lora", "style.safetensors:0.7"))
    scenes = Store.at(Path()).list("scene")
    assert len(scenes) == 1  # the same words, the same LoRA: one scene


def test_adapters_and_files_of_the_project_are_found_by_name(studio: Callable) -> None:
    Path("loras").mkdir()
    Path("style.safetensors").rename("loras/ink, blue.safetensors")
    result = studio("generate", "<dog>", *ONE, "--lora", "ink, blue:0.5", "--lora", "cup:0.25")
    assert draw(result).shape == (32, 32, 3)
    text = parameters(result)
    assert text.startswith("<dog> <lora:ink_blue:0.5> <lora:cup:0.25>\n")
    record = Store.at(Path()).read_record(refs.parse("scene/dog@1"))
    assert [source["ref"] for role, source in record.inputs.items() if role.startswith("lora.")] == [
        "",
        "adapter/cup@1",
    ]
    assert str(Path.cwd()) not in json.dumps(record.header())


def test_parameters_name_it_with_the_hash_of_civitai(studio: Callable) -> None:
    import hashlib

    text = parameters(studio("generate", "<dog>", *ONE, "--lora", "kohya.safetensors:0.7"))
    data = Path("kohya.safetensors").read_bytes()
    digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()[:12]
    assert f"kohya: {digest}" in text and "<lora:kohya:0.7>" in text
    scene = studio("compose", "<dog> and <cup>", *ONE, "--retries", 0, "--set", "compose.presence_check=false",
                   "--lora", "kohya.safetensors:0.7")  # fmt: skip
    assert f"kohya: {digest}" in parameters(scene) and "<lora:kohya:0.7>" in parameters(scene)
    plain = studio("compose", "<dog> and <cup>", *ONE, "--retries", 0, "--set", "compose.presence_check=false")
    assert np.abs(draw(plain) - draw(scene)).max() > 3
    Path(scene.out.strip()).unlink()
    again = studio("compose", "<dog> and <cup>", *ONE, "--retries", 0, "--set", "compose.presence_check=false",
                   "--lora", "kohya.safetensors:0.7")  # fmt: skip
    assert again.out == scene.out and f"kohya: {digest}" in parameters(again)  # decoded again


def test_what_cannot_act_is_refused_in_one_line(studio: Callable, folders: dict[str, Path], tmp_path: Path) -> None:
    xl = random_lora(loading.load(folders["sdxl"], CPU, torch.float32), 1)
    write_diffusers(xl, "sdxl", Path("xl.safetensors"))
    odd = load_file("style.safetensors") | {"unet.conv_norm_out.hada_w1_a": torch.ones(2, 2)}
    save_file(odd, "odd.safetensors")
    save_file({"emb_params": torch.ones(2, 16)}, "word.safetensors")
    Path("text.safetensors").write_text("hello")
    Path("model.pt").write_bytes(b"\x80\x02}q\x00.")
    for value, code, said in (
        ("xl.safetensors:0.7", 6, "xl.safetensors is for another base"),
        ("odd.safetensors", 6, "odd.safetensors"),
        ("word.safetensors", 3, "word.safetensors"),
        ("text.safetensors", 3, "text.safetensors is text"),
        ("model.pt", 3, "model.pt is a pickle"),
        ("style.safetensors:11", 2, "the strength of the LoRA style.safetensors is 11"),
        ("style.safetensors:nan", 2, "strength of the LoRA style.safetensors is 'nan'"),
        ("style.safetensors:strong", 2, "is 'strong'"),
        ("nobody.safetensors", 4, "there is no LoRA nobody.safetensors"),
        ("nobody", 4, "there is no LoRA nobody"),
        ("org/name", 4, "there is no LoRA org/name"),
        ("https://example.org/a.safetensors:0.5", 3, "is an address"),
        ("adapter/nobody", 4, "there is no adapter/nobody"),
    ):
        for command in ("generate", "compose"):
            result = studio(command, "<dog>", *ONE, "--lora", value)
            assert result.code == code and said in result.err and result.err.count("error:") == 1, (value, result.err)
            assert "Traceback" not in result.err
    twice = studio("generate", "<dog>", *ONE, "--lora", "style.safetensors", "--lora", "style.safetensors:0.5")
    assert twice.code == 2 and "the LoRA style is named twice" in twice.err
    assert not Store.at(Path()).list("scene")


def test_a_job_names_loras_from_its_own_folder(project: Path) -> None:
    from objtune_cli.workflow.job_file import read_jobs

    folder = project / "jobs"
    folder.mkdir()
    (folder / "style.safetensors").touch()
    (folder / "jobs.toml").write_text(
        '[[job]]\nphoto = "rex.jpg"\nclass = "dog"\nprompts = "<dog>"\nlora = ["style.safetensors:0.7", "cup"]\n'
    )
    (job,) = read_jobs(folder / "jobs.toml")
    assert [word for word in job.commands[1] if word.startswith("--lora")] == [
        f"--lora={folder / 'style.safetensors'}:0.7",
        "--lora=cup",
    ]


def test_a_repository_of_the_hub_is_found_in_the_cache(
    studio: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "0" * 40
    snapshot = tmp_path / "cache/models--org--lcm-lora-sdv1-5/snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs/main").write_text(commit)
    Path("style.safetensors").rename(snapshot / "pytorch_lora_weights.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("org/lcm-lora-sdv1-5", "org/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors:1"):
        result = studio("generate", "<dog>", *ONE, "--lora", name)
        assert "<lora:lcm-lora-sdv1-5:1>" in parameters(result) and "Sampler: LCM" in parameters(result)
    assert studio("generate", "<dog>", *ONE, "--lora", "org/lcm-lora-sdv1-5/other.safetensors").code == 4


def test_tags_of_a_prompt_act_on_its_images_alone(studio: Callable) -> None:
    Path("loras").mkdir()
    Path("style.safetensors").rename("loras/style.safetensors")
    both = studio("generate", "a <dog> <lora:style:0.7>", "a <dog>", *ONE)
    assert both.code == 0, both.err
    first, second = both.out.splitlines()
    assert Image.open(first).text["parameters"].startswith("a <dog> <lora:style:0.7>\n")
    assert Image.open(second).text["parameters"].startswith("a <dog>\n")
    assert (
        studio("generate", "a <dog>", *ONE, "--lora", "style:0.7").out.strip() == first
    )  # one scene, however it is said
    assert np.abs(np.asarray(Image.open(first)).astype(int) - np.asarray(Image.open(second))).max() > 3
    missing = studio("generate", "a <dog> <lora:nobody:0.7>", *ONE)
    assert missing.code == 4 and "there is no LoRA nobody" in missing.err
    wild = studio("generate", "a <dog> <lora:style:70>", *ONE)
    assert wild.code == 2 and "the strength of the LoRA style is 70" in wild.err


def test_a_lora_that_breaks_the_images_is_named(studio: Callable) -> None:
    wild = {
        "unet.conv_out.lora_A.weight": torch.full((1, 8, 3, 3), 6e4),
        "unet.conv_out.lora_B.weight": torch.full((4, 1, 1, 1), 6e4),
    }
    save_file(wild, "wild.safetensors")
    result = studio("generate", "<dog>", *ONE, "--lora", "wild.safetensors:10")
    assert result.code == 9 and "with the LoRA wild" in result.err and not Store.at(Path()).list("scene")


def test_the_library_takes_them_too(studio: Callable, base: Path) -> None:
    import objtune_cli
    from objtune_cli.errors import UsageError

    ctx = objtune_cli.project(".", base=str(base))
    (result,) = objtune_cli.generate(ctx, "<dog>", n=1, lora=["style.safetensors:0.7", "cup"], scheduler="Euler a")
    text = Image.open(result.images[0]).text["parameters"]
    assert text.startswith("<dog> <lora:style:0.7> <lora:cup:1>\n") and "Sampler: Euler a" in text
    with pytest.raises(UsageError, match="generate has no setting lroa"):
        objtune_cli.generate(ctx, "<dog>", lroa="style.safetensors")
