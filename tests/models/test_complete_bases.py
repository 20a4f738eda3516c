"""A base is whole and what it says it is: every part there and of this model, every weight out of its files; else one line with its exit code."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from objtune_cli.errors import DamagedError, IncompatibleError, MissingError, ObjtuneError, UsageError
from objtune_cli.models import base_model, hub_cache, loading, registry
from objtune_cli.models.families import component_loading, single_file
from tests.support import tiny_families, tiny_sd1

CPU = torch.device("cpu")
UNET, VAE, WORDS = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)


@pytest.fixture(scope="module")
def tops(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("whole")
    return {"sd1": tiny_sd1.build(top / "one", clip=False), "sdxl": tiny_families.sdxl(top / "xl", with_clip=False)}


@pytest.fixture
def copy(tops: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a base, to be changed."""

    def make(name: str = "sd1") -> Path:
        return shutil.copytree(tops[name], tmp_path / name, dirs_exist_ok=True)

    return make


def change(path: Path, work: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    weights = work(load_file(path))
    save_file({key: value.contiguous() for key, value in weights.items()}, path, {"format": "pt"})


def configure(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(folder: Path) -> ObjtuneError:
    """What is said of a base, by the look-up that every command begins with and by opening it."""
    with pytest.raises(ObjtuneError) as opening:
        loading.load(folder, CPU, torch.float32)
    try:
        registry.resolve(str(folder))
    except ObjtuneError as error:
        assert type(error) is type(opening.value) and error.hint
    return opening.value


@pytest.mark.parametrize(
    ("file", "lost"),
    [(UNET, "mid_block."), (VAE, "decoder.conv_out."), (WORDS, "layers.1."), (WORDS, "token_embedding")],
)
def test_missing_weights_are_refused_not_filled_with_random_numbers(
    copy: Callable[..., Path], file: str, lost: str
) -> None:
    folder = copy()
    change(folder / file, lambda weights: {key: value for key, value in weights.items() if lost not in key})
    error = refused(folder)
    assert (
        isinstance(error, DamagedError)
        and f"{file.split('/')[0]} lacks " in error.message
        and lost.strip(".") in error.message
    )


def test_a_second_text_encoder_is_as_whole(copy: Callable[..., Path]) -> None:
    folder = copy("sdxl")
    change(
        folder / "text_encoder_2/model.safetensors",
        lambda weights: {k: v for k, v in weights.items() if "text_projection" not in k},
    )
    assert "text_encoder_2 lacks text_projection.weight" in refused(folder).message


def test_weights_without_a_place_are_named(cli: Callable, project: Path, copy: Callable[..., Path]) -> None:
    folder = copy()
    change(folder / UNET, lambda weights: weights | {"time_embedding.cond_proj.weight": torch.zeros(2, 2)})
    done = cli("generate", "a dog", "-n", 1, "--steps", 2, "--base", folder)
    assert done.code == 0 and "unet of the base has 1 weights that its config does not describe" in done.err


def test_weights_of_other_shapes_than_the_config_says(copy: Callable[..., Path]) -> None:
    folder = copy()
    change(folder / UNET, lambda weights: weights | {"conv_in.weight": torch.zeros(8, 9, 3, 3)})
    error = refused(folder)
    assert (
        isinstance(error, DamagedError)
        and "unet cannot be opened: " in error.message
        and "conv_in.weight" in error.message
    )


@pytest.mark.parametrize("variant", ["fp16", "bf16", "ema"])
def test_a_folder_with_a_variant_alone_is_opened(copy: Callable[..., Path], variant: str) -> None:
    folder = copy()
    plain = registry.resolve(str(folder))
    for file in (UNET, VAE, WORDS):
        change(folder / file, lambda weights: {key: value.half() for key, value in weights.items()})
        (folder / file).rename(folder / file.replace(".safetensors", f".{variant}.safetensors"))
    found = loading.load(folder, CPU, torch.float32)
    wanted = load_file(folder / UNET.replace(".safetensors", f".{variant}.safetensors"))
    assert all(torch.equal(value, wanted[key].float()) for key, value in found.denoiser.state_dict().items())
    base = registry.resolve(str(folder))
    assert base.fingerprint != plain.fingerprint
    change(
        folder / UNET.replace(".safetensors", f".{variant}.safetensors"),
        lambda weights: weights | {"conv_in.bias": weights["conv_in.bias"] + 1},
    )
    assert registry.resolve(str(folder)).fingerprint != base.fingerprint


def test_weights_in_several_files_are_all_there(copy: Callable[..., Path]) -> None:
    folder = copy()
    whole = load_file(folder / UNET)
    names, table = ("a.safetensors", "b.safetensors"), {}
    for i, name in enumerate(names):
        part = {key: value for n, (key, value) in enumerate(sorted(whole.items())) if n % 2 == i}
        save_file(part, folder / "unet" / name, {"format": "pt"})
        table |= dict.fromkeys(part, name)
    (folder / UNET).unlink()
    index = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    found = loading.load(folder, CPU, torch.float32).denoiser.state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in found.items())
    (folder / "unet/b.safetensors").unlink()
    error = refused(folder)
    assert isinstance(error, MissingError) and error.message.endswith("missing: unet/b.safetensors")
    for said, kind in ((dict.fromkeys(table, "../x.safetensors"), DamagedError), ({}, DamagedError)):
        index.write_text(json.dumps({"weight_map": said}))
        assert isinstance(refused(folder), kind)


@pytest.mark.parametrize(
    "file", [UNET, WORDS, "tokenizer/tokenizer.json", "scheduler/scheduler_config.json", "unet/config.json"]
)
def test_pointers_of_git_lfs_are_named(copy: Callable[..., Path], file: str) -> None:
    folder = copy()
    (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    error = refused(folder)
    assert isinstance(error, DamagedError) and "Git LFS pointer" in error.message and " lfs pull`" in error.hint


@pytest.mark.parametrize("keep", [[], ["tokenizer_config.json"], ["tokenizer.json"]])
def test_a_tokenizer_without_words_is_a_missing_part(copy: Callable[..., Path], keep: list[str]) -> None:
    """The libraries would make one that knows no words."""
    folder = copy()
    for path in (folder / "tokenizer").iterdir():
        if path.name not in keep:
            path.unlink()
    error = refused(folder)
    assert isinstance(error, MissingError) and "missing: tokenizer/" in error.message


def test_a_tokenizer_of_another_model_is_refused(copy: Callable[..., Path]) -> None:
    folder = copy()
    words = folder / "tokenizer/tokenizer.json"
    table = json.loads(words.read_text())
    table["model"]["vocab"] |= {f"more{i}": 600 + i for i in range(3)}
    words.write_text(json.dumps(table))
    assert "its tokenizer has" in refused(folder).message


@pytest.mark.parametrize(
    ("part", "values", "said"),
    [
        ("unet", {"in_channels": 7}, "an upscaler"),
        ("unet", {"in_channels": 5}, "a depth-to-image model"),
        ("unet", {"out_channels": 8}, "gives 8 channels"),
        ("unet", {"time_cond_proj_dim": 256}, "time_cond_proj_dim"),
        ("unet", {"num_class_embeds": 1000}, "num_class_embeds is 1000"),
        ("unet", {"addition_embed_type": "text_time"}, "addition_embed_type is text_time"),
        ("unet", {"cross_attention_dim": 1024}, "text features of width 1024, its text encoders give 16"),
        ("unet", {"_class_name": "UNetSpatioTemporalConditionModel"}, "UNetSpatioTemporalConditionModel as its unet"),
        ("unet", {"quantization_config": {"load_in_4bit": True}}, "quantised"),
        ("vae", {"_class_name": "AutoencoderTiny"}, "an AutoencoderTiny as its vae"),
        ("vae", {"latents_mean": [0.0] * 4}, "latents_mean"),
        ("text_encoder", {"model_type": "t5"}, "another kind: t5"),
    ],
)
def test_other_kinds_of_models_are_named(
    copy: Callable[..., Path], part: str, values: dict[str, Any], said: str
) -> None:
    folder = copy()
    configure(folder / part / "config.json", **values)
    error = refused(folder)
    assert isinstance(error, IncompatibleError) and said in error.message and error.code == 6


@pytest.mark.parametrize(
    ("file", "values", "code", "said"),
    [
        ("unet/config.json", {"sample_size": [16, 8]}, 6, "frames of 16 x 8 cells, which are not square"),
        ("unet/config.json", {"sample_size": "16"}, 5, "sample_size in unet/config.json is '16'"),
        ("vae/config.json", {"scaling_factor": "0.18215"}, 5, "scaling_factor in vae/config.json is '0.18215'"),
        ("vae/config.json", {"scaling_factor": None}, 5, "scaling_factor in vae/config.json is None"),
        ("vae/config.json", {"scaling_factor": 0}, 5, "scaling_factor in vae/config.json is 0"),
        ("scheduler/scheduler_config.json", {"beta_end": 1.5}, 6, "beta_end is not below 1: 1.5"),
        (
            "scheduler/scheduler_config.json",
            {"beta_start": float("nan")},
            6,
            "beta_start is not a positive number: nan",
        ),
        (
            "scheduler/scheduler_config.json",
            {"trained_betas": [0.1, 0.2]},
            6,
            "trained_betas are not 1000 numbers between 0 and 1",
        ),
    ],
)
def test_numbers_that_nothing_can_be_drawn_with(
    copy: Callable[..., Path], file: str, values: dict[str, Any], code: int, said: str
) -> None:
    folder = copy()
    configure(folder / file, **values)
    error = refused(folder)
    assert error.code == code and said in error.message


def test_a_frame_of_two_equal_sides_is_its_side(copy: Callable[..., Path]) -> None:
    folder = copy()
    plain = registry.resolve(str(folder)).resolution
    side = json.loads((folder / "unet/config.json").read_text())["sample_size"]
    configure(folder / "unet/config.json", sample_size=[side, side])
    assert registry.resolve(str(folder)).resolution == plain == loading.load(folder, CPU, torch.float32).resolution


def test_a_config_that_the_libraries_cannot_read_is_damaged(copy: Callable[..., Path]) -> None:
    folder = copy()
    path = folder / "text_encoder/config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    error = refused(folder)
    assert isinstance(error, DamagedError) and "text_encoder/config.json cannot be read" in error.message


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("model_index.json", {"text_encoder": [None, None]}),
        ("unet/config.json", {"cross_attention_dim": tiny_families.WIDTH_2}),
    ],
)
def test_a_refiner_is_named(copy: Callable[..., Path], file: str, values: dict[str, Any]) -> None:
    folder = copy("sdxl")
    configure(folder / file, **values)
    assert "is a refiner: " in refused(folder).message


@pytest.mark.parametrize(("key", "kind"), [("conv_in.weight.absmax", torch.float32), ("conv_in.extra", torch.uint8)])
def test_quantised_weights_are_named(copy: Callable[..., Path], key: str, kind: torch.dtype) -> None:
    folder = copy()
    change(folder / UNET, lambda weights: weights | {key: torch.zeros(1, dtype=kind)})
    error = refused(folder)
    assert isinstance(error, IncompatibleError) and "quantised weights in unet" in error.message


def test_exit_codes_and_what_to_give_instead(cli: Callable, project: Path, copy: Callable[..., Path]) -> None:
    """Missing 4, damaged 5, incompatible 6; a folder in or around the base is named."""
    folder = copy()
    said = {
        folder / "unet": (4, f"it is a part of a base: `--base {folder}`"), folder.parent / "empty": (4, "give the folder"),
        folder / "model_index.json": (6, f"`--base {folder}`"), folder / "unet/config.json": (6, f"`--base {folder}`"),
        folder.parent / "models--a--b": (4, f"--base {folder.parent}/models--a--b/snapshots/0"),
    }  # fmt: skip
    (folder.parent / "empty").mkdir()
    shutil.copytree(folder, folder.parent / "models--a--b/snapshots/0")
    for path, (code, hint) in said.items():
        done = cli("generate", "a dog", "--base", path)
        assert done.code == code and hint in done.err, done.err
    (folder / "scheduler/scheduler_config.json").unlink()
    assert cli("generate", "a dog", "--base", folder).code == 4
    (folder / "scheduler/scheduler_config.json").write_text("{")
    assert cli("generate", "a dog", "--base", folder).code == 5


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SD15", "sd15"),
        ("sd1.5", "sd15"),
        ("SD-XL ", "sdxl"),
        ("https://huggingface.co/a/b-c/tree/main", "a/b-c"),
        ("sd9", ""),
        ("./sd15", ""),
    ],
)
def test_other_spellings_of_a_base_are_answered_with_its_name(name: str, meant: str) -> None:
    with pytest.raises(UsageError, match="there is no base") as caught:
        hub_cache.resolve_hub_id(name)
    assert caught.value.hint.startswith(f"did you mean `--base {meant}`? " if meant else "known: ")
    assert not meant or hub_cache.resolve_hub_id(meant)


def test_libraries_print_nothing_about_a_base(project: Path, copy: Callable[..., Path]) -> None:
    """In a process of its own: here pytest takes what loggers, progress bars and warnings print."""
    folder = copy()
    configure(
        folder / "scheduler/scheduler_config.json",
        _class_name="EulerDiscreteScheduler",
        steps_offset=0,
        clip_sample=True,
    )
    line = [sys.executable, "-P", "-m", "objtune_cli", "-q", "generate", "a dog", "-n", "1", "--steps", "2"]
    done = subprocess.run([*line, "--base", folder], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, ["artifacts/scene/scene/v001/001.png"], "")


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text_encoder", "eos_token_id", "last"),
        ("text_encoder", "num_hidden_layers", "two"),
        ("unet", "norm_num_groups", "many"),
        ("unet", "attention_head_dim", {}),
        ("vae", "norm_num_groups", []),
        ("vae", "norm_num_groups", True),
        ("unet", "norm_eps", "small"),
        ("unet", "layers_per_block", -1),
        ("unet", "mid_block_scale_factor", 10**30),
        ("unet", "_diffusers_version", 1),
        ("text_encoder", "layer_norm_eps", None),
        ("text_encoder", "eos_token_id", None),
    ],
)
def test_a_config_value_of_another_type_is_damage(
    copy: Callable[..., Path], part: str, key: str, value: object
) -> None:
    folder = copy()
    configure(folder / part / "config.json", **{key: value})
    error = refused(folder)
    assert isinstance(error, DamagedError) and f"damaged: {part} cannot be opened: " in error.message


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("unet", "sample_size", 1),
        ("unet", "in_channels", [4]),
        ("vae", "latent_channels", "four"),
        ("vae", "up_block_types", []),
        ("vae", "block_out_channels", 8),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_damage(
    copy: Callable[..., Path], part: str, key: str, value: object
) -> None:
    folder = copy()
    configure(folder / part / "config.json", **{key: value})
    assert isinstance(refused(folder), DamagedError)


def test_configs_of_the_families_have_the_types_that_the_libraries_declare() -> None:
    """Published bases have such configs, with null for false and lists for tuples."""
    kinds: dict[str, Any] = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "transformer": diffusers.SD3Transformer2DModel,
        "text_encoder": transformers.CLIPTextModel,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
        "text_encoder_3": transformers.T5EncoderModel,
    }
    paths = [path for path in sorted(single_file.LAYOUTS.glob("*/*/config.json")) if path.parent.name in kinds]
    assert len(paths) >= 20
    for path in paths:
        component_loading.check_config(kinds[path.parent.name], path.parent.parent, path.parent.name)


@pytest.mark.parametrize("steps", [1000, 999])
@pytest.mark.parametrize("kind", ["PNDMScheduler", "DDIMScheduler"])
def test_as_many_steps_as_the_noise_has_levels(kind: str, steps: int) -> None:
    """With an offset of 1, as Stable Diffusion has it, the first of a thousand steps would be at timestep 1000."""
    sampler = getattr(diffusers, kind)(steps_offset=1, **({"skip_prk_steps": True} if kind[0] == "P" else {}))
    if steps == 1000:
        with pytest.raises(UsageError, match="cannot take 1000 steps: it would begin at timestep 1000"):
            base_model.set_steps(sampler, steps)
    else:
        assert base_model.set_steps(sampler, steps) in (steps, steps + 1)


def test_a_tokenizer_without_a_padding_token_is_damaged(copy: Callable[..., Path]) -> None:
    folder = copy()
    configure(folder / "tokenizer/tokenizer_config.json", pad_token=None)
    assert "no padding token" in refused(folder).message


@pytest.mark.parametrize(
    "text", ['"text"', "[]", "null", "{}", '{"added_tokens": 7}', '{"added_tokens": [], "model": 7}']
)
def test_tokenizer_files_with_json_of_another_shape_are_damaged(copy: Callable[..., Path], text: str) -> None:
    folder = copy()
    (folder / "tokenizer/tokenizer.json").write_text(text)
    error = refused(folder)
    assert isinstance(error, DamagedError) and "\n" not in error.message and "damaged" in error.message


@pytest.mark.parametrize("limit", [0, -1, 2, "many", [77]])
def test_a_tokenizer_that_leaves_no_room_for_a_word_is_damaged(copy: Callable[..., Path], limit: object) -> None:
    folder = copy()
    configure(folder / "tokenizer/tokenizer_config.json", model_max_length=limit)
    error = refused(folder)
    assert isinstance(error, DamagedError) and "\n" not in error.message and "token" in error.message


def test_errors_without_a_message_are_named_by_their_kind() -> None:
    with pytest.raises(ValueError, match="AssertionError"), component_loading.translate_errors():
        raise AssertionError
    with pytest.raises(FileNotFoundError), component_loading.translate_errors():  # a missing file stays one
        raise FileNotFoundError
