"""What a base does not say of itself, or lacks, is given or refused: VAE, prediction type, marks of one-file checkpoints; objects on other bases of the family."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from objtune_cli.errors import IncompatibleError, MissingError
from objtune_cli.interchange import hub
from objtune_cli.models import loading, registry
from objtune_cli.models.base_spec import BaseSpec
from objtune_cli.models.families import bundled_tokenizers, single_file, single_file_loading
from objtune_cli.store import safetensors_format
from tests.support import single_file_checkpoints, tiny_families, tiny_sd1

CPU = torch.device("cpu")
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("given")
    found = {
        "sd1": tiny_families.sd1(top / "one"),
        "sd2": tiny_families.sd2(top / "two", with_clip=False),
        "sdxl": tiny_families.sdxl(top / "xl", with_clip=False),
    }
    for name, folder in found.items():
        single_file_checkpoints.layout(folder, top / "layouts" / name)
    return found


@pytest.fixture
def one(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A base as one file, some of its keys changed, with metadata."""
    monkeypatch.setattr(single_file, "LAYOUTS", folders["sd1"].parent / "layouts")
    monkeypatch.setattr(bundled_tokenizers, "clip_tokenizer", lambda pad: tiny_sd1.tokenizer())

    def make(name: str, more: tuple[str, ...] = (), without: str = "", said: dict[str, str] | None = None) -> Path:
        path = single_file_checkpoints.one_file(folders[name], name, tmp_path / f"{name}.safetensors")
        weights = {
            key: value.clone() for key, value in load_file(path).items() if not without or not key.startswith(without)
        }
        save_file(weights | {key: torch.zeros(1) for key in more}, path, said)
        return path

    return make


def scheduler_of(base: BaseSpec) -> dict:
    return loading.load(
        base.folder, CPU, torch.float32, base.weights, base.prediction_override, base.vae
    ).scheduler.config


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_marks_of_v_prediction_and_zero_snr(one: Callable[..., Path], family: str) -> None:
    plain, marked = (registry.resolve(str(one(family, more))) for more in ((), ("v_pred", "ztsnr")))
    assert (plain.prediction, plain.zero_snr, marked.prediction, marked.zero_snr) == (
        "epsilon",
        False,
        "v_prediction",
        True,
    )
    config = scheduler_of(marked)
    assert (config["prediction_type"], config["rescale_betas_zero_snr"], config["timestep_spacing"]) == (
        "v_prediction",
        True,
        "trailing",
    )
    model = loading.load(marked.folder, CPU, torch.float32, marked.weights)
    assert float(model.alpha_bar[-1]) == 0 and marked.record()["noise"] == "zero-snr" and "noise" not in plain.record()


@pytest.mark.parametrize(
    ("more", "said", "text"),
    [
        (("edm_mean", "edm_std"), None, "another kind of noise (edm_mean"),
        (("edm_vpred.sigma_max",), None, "another kind of noise (edm_vpred.sigma_max"),
        (("ztsnr",), None, "zero terminal SNR but predicts epsilon"),
        ((), {"modelspec.prediction_type": "x0"}, "has the unknown prediction type x0"),
    ],
)
def test_other_noise_is_refused(
    cli: Callable, project: Path, one: Callable[..., Path], more: tuple[str, ...], said: dict | None, text: str
) -> None:
    done = cli("generate", "a dog", "--base", one("sdxl", more, said=said))
    assert done.code == 6 and text in done.err


def test_a_file_that_does_not_say_what_it_predicts(cli: Callable, project: Path, one: Callable[..., Path]) -> None:
    """Of the second family both kinds are common: what is taken is said, and can be said by hand."""
    path = one("sd2")
    done = cli("generate", "a dog", "-n", 1, "--steps", 1, "--base", path)
    assert done.code == 0 and "does not name its prediction type; v_prediction is assumed" in done.err
    by_hand = registry.resolve(str(path), prediction="epsilon")
    assert scheduler_of(by_hand)["prediction_type"] == "epsilon" == by_hand.record()["prediction"] and not by_hand.notes
    assert (
        by_hand.fingerprint
        != registry.resolve(str(path)).fingerprint
        == registry.resolve(str(path), prediction="v").fingerprint
    )


@pytest.mark.parametrize(
    ("family", "text", "prediction"),
    [
        ("sd1", 'model:\n  params:\n    parameterization: "v"\n', "v_prediction"),
        ("sd2", "model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n", "epsilon"),
        ("sdxl", "scaling_config:\n  target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling\n", "v_prediction"),
        ("sd1", "something: else\n", "epsilon"),
    ],
)
def test_a_config_beside_a_file_says_what_it_predicts(
    one: Callable[..., Path], family: str, text: str, prediction: str
) -> None:
    """As A1111 and ComfyUI read it; what the user or the file itself says goes before."""
    path = one(family)
    plain = registry.resolve(str(path))
    path.with_suffix(".yaml").write_text(text)
    found = registry.resolve(str(path))
    assert found.scheduler["prediction_type"] == prediction and (
        family != "sd1" or scheduler_of(found)["prediction_type"] == prediction
    )
    assert (found.fingerprint == plain.fingerprint) == (prediction == plain.prediction)
    assert registry.resolve(str(path), prediction=plain.prediction).fingerprint == plain.fingerprint
    assert registry.resolve(str(one(family, said={"modelspec.prediction_type": "epsilon"}))).prediction == "epsilon"


def test_a_prediction_by_hand_helps_where_the_file_says_one_that_is_not_known(one: Callable[..., Path]) -> None:
    for path in (one("sdxl", ("ztsnr",)), one("sd1", said={"modelspec.prediction_type": "x"})):
        with pytest.raises(IncompatibleError, match=r"epsilon|prediction type x") as caught:
            registry.resolve(str(path))
        assert "--set prediction_type=v_prediction" in caught.value.hint
        assert registry.resolve(str(path), prediction="v").scheduler["prediction_type"] == "v_prediction"


@pytest.mark.parametrize("ending", [".sft", ".ckpt"])
def test_a_safetensors_file_under_another_ending(one: Callable[..., Path], ending: str) -> None:
    """Its weights count in the fingerprint as those of any other."""
    path = one("sd1").rename(one("sd1").with_suffix(ending))
    plain = registry.resolve(str(path))
    assert loading.load(plain.folder, CPU, torch.float32, path).denoiser.config.in_channels == 4
    weights = load_file(path)
    save_file({key: value + 1 for key, value in weights.items()}, path)
    assert registry.resolve(str(path)).fingerprint != plain.fingerprint


def test_vaes_of_any_ending_make_other_bases(folders: dict[str, Path], tmp_path: Path) -> None:
    weights, prints = load_file(folders["sd1"] / VAE), set()
    for name, by in (("a.SAFETENSORS", 0), ("a.SAFETENSORS", 1), ("a.sft", 0), ("a.sft", 1)):
        save_file({key: value + by for key, value in weights.items()}, tmp_path / name)
        prints.add(registry.resolve(str(folders["sd1"]), vae=str(tmp_path / name)).fingerprint)
    assert len(prints) == 4


def test_the_prediction_of_a_folder_is_said_by_hand(folders: dict[str, Path]) -> None:
    plain, same, other = (registry.resolve(str(folders["sd1"]), prediction=said) for said in ("", "epsilon", "v"))
    assert (
        plain.record() == same.record()
        and other.record()["prediction"] == "v_prediction"
        and other.fingerprint != plain.fingerprint
    )
    assert scheduler_of(other)["prediction_type"] == "v_prediction"


def test_a_file_without_a_vae_takes_a_given_one(
    cli: Callable, project: Path, one: Callable[..., Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    path = one("sd1", without="first_stage_model.")
    refused = cli("generate", "a dog", "--base", path)
    assert refused.code == 6 and f"{path} has no VAE" in refused.err and "--set vae=" in refused.err
    whole = load_file(single_file_checkpoints.one_file(folders["sd1"], "sd1", tmp_path / "whole.safetensors"))
    bare = {
        key.removeprefix("first_stage_model."): value
        for key, value in whole.items()
        if key.startswith("first_stage_model.")
    }
    save_file(bare, tmp_path / "vae.safetensors")
    for given in (folders["sd1"], folders["sd1"] / "vae", folders["sd1"] / VAE, tmp_path / "vae.safetensors"):
        done = cli("generate", "a dog", "-n", 1, "--steps", 2, "--base", path, "--set", f"base.vae={given}")
        assert done.code == 0, done.err
    shown = [loading.load(base.folder, CPU, torch.float32, base.weights, "", base.vae).vae.state_dict()
             for base in (registry.resolve(str(path), vae=str(given)) for given in (folders["sd1"], folders["sd1"] / VAE, tmp_path / "vae.safetensors"))]  # fmt: skip
    wanted = load_file(folders["sd1"] / VAE)
    assert all(torch.equal(weights[key], wanted[key]) for weights in shown for key in wanted)


def test_a_folder_takes_another_vae_which_makes_it_another_base(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["sd1"], tmp_path / "one")
    other = shutil.copytree(folder / "vae", tmp_path / "other")
    weights = load_file(folder / VAE)
    save_file(
        weights | {"decoder.conv_out.bias": weights["decoder.conv_out.bias"] + 1},
        other / "diffusion_pytorch_model.safetensors",
        {"format": "pt"},
    )
    plain, changed = registry.resolve(str(folder)), registry.resolve(str(folder), vae=str(other))
    assert changed.fingerprint != plain.fingerprint and changed.record()["vae"] == "other"
    model = loading.load(folder, CPU, torch.float32, vae=changed.vae)
    model.offload_vae()
    assert torch.equal(model.vae.decoder.conv_out.bias, weights["decoder.conv_out.bias"] + 1)
    side = plain.resolution
    shutil.rmtree(folder / "vae")
    with pytest.raises(MissingError, match="missing: vae/"):
        registry.resolve(str(folder))
    assert registry.resolve(str(folder), vae=str(other)).resolution == side


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"scaling_factor": 0.13025}, "its scaling_factor is 0.13025"),
        ({"_class_name": "AutoencoderTiny"}, "an AutoencoderTiny"),
    ],
)
def test_a_vae_of_another_family_is_refused(
    folders: dict[str, Path], one: Callable[..., Path], tmp_path: Path, values: dict, said: str
) -> None:
    other = shutil.copytree(folders["sd1"] / "vae", tmp_path / "other")
    config = other / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    for base in (folders["sd1"], one("sd1")):
        with pytest.raises(IncompatibleError, match=said):
            registry.resolve(str(base), vae=str(other))


def test_vaes_that_are_none(cli: Callable, project: Path, folders: dict[str, Path]) -> None:
    for given, code in (
        (folders["sd1"] / "unet/diffusion_pytorch_model.safetensors", 6),
        ("./nowhere", 4),
        ("some/vae", 7),
        (folders["sd1"] / "tokenizer", 4),
    ):
        done = cli("generate", "a dog", "--base", folders["sd1"], "--set", f"vae={given}")
        assert done.code == code and done.err.startswith("error: "), (given, done.err)


def test_old_names_of_the_text_encoder(one: Callable[..., Path], folders: dict[str, Path]) -> None:
    path = one("sd1")
    save_file(
        {
            key.replace(single_file_loading.TEXT_MODEL, single_file_loading.OLD_TEXT_MODEL): value
            for key, value in load_file(path).items()
        },
        path,
    )
    base = registry.resolve(str(path))
    found = loading.load(base.folder, CPU, torch.float32, path).text_encoder.state_dict()
    wanted = loading.load(folders["sd1"], CPU, torch.float32).text_encoder.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_layers_that_a_file_lacks(cli: Callable, project: Path, one: Callable[..., Path]) -> None:
    for lost, part in (("cond_stage_model.transformer.text_model.encoder.layers.1.", "text_encoder"), ("model.diffusion_model.middle_block.1.", "unet"),
                       ("first_stage_model.decoder.conv_out.", "vae")):  # fmt: skip
        done = cli("generate", "a dog", "--base", one("sd1", without=lost))
        assert done.code == 5 and part in done.err and "Traceback" not in done.err, done.err


def test_files_of_other_kinds_say_what_they_are(
    cli: Callable, project: Path, one: Callable[..., Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    said = {
        tmp_path / "lora.safetensors": f"`objtune import {tmp_path}/lora.safetensors ", folders["sd1"] / VAE: "it is a VAE: `--set vae=",
        folders["sd1"] / "unet/diffusion_pytorch_model.safetensors": "it is a denoiser alone", one("sdxl", ("conditioner.embedders.0.model.x",), "conditioner."): "is a refiner",
    }  # fmt: skip
    for path, text in said.items():
        done = cli("generate", "a dog", "--base", path)
        assert done.code == 6 and text in done.err, done.err


def test_an_object_is_drawn_on_other_bases_of_its_family(
    cli: Callable, project: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another VAE, weights saved again, a config that differs, no clip/: with a note; strictly: refused, with a hint that works."""
    own = shutil.copytree(folders["sd1"], project / "own")
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    save_file(
        {f"unet.{layer}.lora_A.weight": torch.ones(2, 16), f"unet.{layer}.lora_B.weight": torch.ones(8, 2)},
        tmp_path / "lora.safetensors",
    )
    assert cli("import", tmp_path / "lora.safetensors", "--class", "dog", "--base", "own").code == 0
    line = ("generate", "a photo of <dog>", "-n", 1, "--steps", 1, "--base")
    assert "learned on" not in cli(*line, "own").err

    def changed(name: str, work: Callable[[Path], object]) -> str:
        work(shutil.copytree(own, project / name))
        return name

    def another_vae(folder: Path) -> None:
        weights = load_file(folder / VAE)
        save_file(
            weights | {"decoder.conv_out.bias": weights["decoder.conv_out.bias"] + 0.1}, folder / VAE, {"format": "pt"}
        )

    def another_config(folder: Path) -> None:
        path = folder / "scheduler/scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"_diffusers_version": "0.1"}))

    def another_denoiser(folder: Path) -> None:
        path = folder / "unet/diffusion_pytorch_model.safetensors"
        save_file({key: value * 1.01 for key, value in load_file(path).items()}, path, {"format": "pt"})

    works = (another_vae, another_config, another_denoiser)
    siblings = [changed(work.__name__, work) for work in works]
    for name in siblings:
        done = cli(*line, name)
        assert (
            done.code == 0
            and f"adapter/dog@1 was learned on the base own and is drawn on {name}, another base of Stable Diffusion 1.x"
            in done.err
        )
        assert (
            safetensors_format.read_header(Path(done.out.strip()).parent.with_suffix(".safetensors"))[0]["base"]
            == registry.resolve(name).record()
        )
    for strict in (("--strict-base",), ("--set", "strict_base=true")):
        done = cli(*line, siblings[0], *strict)
        assert done.code == 6 and "hint: add `--base ./own`, or make it again" in done.err
    for given in (f"vae={siblings[0]}", "prediction_type=v"):
        key = given.split("=", maxsplit=1)[0]
        done = cli(*line, "own", "--set", given, "--strict-base")
        assert done.code == 6 and f"hint: leave the setting `{key}` out" in done.err
    assert "is drawn on own with the setting `prediction_type`" in cli(*line, "own", "--set", "prediction_type=v").err
    tiny_sd1.build(project / "small", clip=False)
    for base, why in (("toybox", "its words have 16 numbers"), ("small", "")):
        done = cli(*line, base)
        assert (done.code, "`--base ./own`" in done.err) == ((6, True) if why else (0, False)) and why in done.err, (
            done.err
        )
    assert cli(*line, folders["sdxl"]).code == 6
    monkeypatch.chdir(tmp_path)
    shutil.move(own, tmp_path / "elsewhere")
    assert "add `--base` with the path of the folder own, or" in cli(*line, "toybox", "--project", project).err


def test_a_variant_is_fetched_where_there_is_nothing_else() -> None:
    files = ["unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors",
             "text_encoder/model.fp16-00001-of-00002.safetensors", "text_encoder/model.safetensors.index.fp16.json"]  # fmt: skip
    assert hub.redundant_variants(files) == ("vae/diffusion_pytorch_model.fp16.safetensors",)
