"""Single-file checkpoints: every weight where the folder has it, offline, and one line for what is none."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from objtune_cli import bases, families
from objtune_cli.errors import IncompatibleError, InputError
from objtune_cli.families import single
from objtune_cli.models import stack as stacks
from tests import kin, layouts, ldm, tiny

CPU = torch.device("cpu")
NAMES = ("sd1", "sd2", "sdxl", "sd3", "sd35")
PREDICTIONS = {"sd2": "v_prediction", "sd3": "flow", "sd35": "flow"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("files")
    found = {"sd2": kin.sd2(top / "two", with_clip=False), "sdxl": kin.sdxl(top / "xl", with_clip=False), "sd1": top / "one"}
    kin.sd1(found["sd1"])
    for name in ("sd3", "sd35"):
        found[name] = kin.sd3(top / name, with_clip=False, newer=name == "sd35")
        first = next((found[name] / "text_encoder").glob("*.safetensors"))
        weights = load_file(first)  # its projection is the identity, which files are opened with
        save_file(weights | {"text_projection.weight": torch.eye(tiny.WIDTH)}, first, {"format": "pt"})
    return found


@pytest.fixture
def one(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """The base of a family as one file, the package's configs being those of the tiny base and its tokenizer the tiny one's."""

    def make(name: str) -> Path:
        ldm.layout(folders[name], tmp_path / "layouts" / name)
        monkeypatch.setattr(single, "LAYOUTS", tmp_path / "layouts")
        monkeypatch.setattr(single, "tokenizer", lambda pad: tiny.tokenizer())
        monkeypatch.setattr(single, "reader_tokenizer", kin.letters)
        return ldm.one_file(folders[name], name, tmp_path / "model.safetensors")

    return make


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_is_the_folders(folders: dict[str, Path], one: Callable[[str], Path], name: str) -> None:
    base = bases.find(str(one(name)))
    assert (base.id, base.family.name, base.prediction) == ("model.safetensors", name, PREDICTIONS.get(name, "epsilon"))
    file = stacks.load(base.folder, CPU, torch.float32, base.weights, base.prediction)
    folder = stacks.load(folders[name], CPU, torch.float32)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        ours, theirs = getattr(file, part), getattr(folder, part)
        if theirs is None:
            assert ours is None
            continue
        wanted = theirs.state_dict()
        assert ours.state_dict().keys() == wanted.keys()
        assert all(torch.equal(value, wanted[key]) for key, value in ours.state_dict().items()), part
    assert file.prediction == folder.prediction == base.record().get("prediction", "epsilon")
    if folder.prediction != "flow":
        assert torch.equal(file.alpha_bar, folder.alpha_bar)
    assert torch.equal(file.encode(["a photo", ""]), folder.encode(["a photo", ""]))


def test_the_whole_path_on_a_file(cli: Callable, one: Callable[[str], Path], dog_photo: Path, project: Path) -> None:
    base = one("sd1")
    few = (
        "--set",
        "train.steps=2",
        "--set",
        "train.views=2",
        "--set",
        "prior.samples=2",
        "--set",
        "prior.entries=4",
        "--set",
        "init-embedding.steps=2",
    )
    done = cli("train", dog_photo, "--class", "dog", "--box", "40,40,600,600", "--base", base, "--no-preview", *few)
    assert done.code == 0, done.err
    drawn = cli("generate", "a photo of <dog>", "-n", 1, "--set", "generate.steps=2", "--base", base)
    assert drawn.code == 0 and Path(drawn.out.strip()).is_file()
    copy = base.with_name("copy.safetensors")
    changed = load_file(base)
    changed["model.diffusion_model.out.2.bias"] += 1
    save_file(changed, copy)
    assert cli("generate", "a photo of <dog>", "--base", copy).code == 6


@pytest.mark.parametrize(
    ("keys", "error", "said"),
    [
        ({"lora_unet_x.lora_up.weight": (1,)}, InputError, "holds no denoiser"),
        ({"model.diffusion_model.x": (1,)}, IncompatibleError, "of no family"),
        (
            {single.ENTRANCE: (8, 9, 3, 3), "cond_stage_model.transformer.x": (1,)},
            IncompatibleError,
            "inpainting model: its denoiser takes 9",
        ),
    ],
)
def test_files_that_are_no_base(tmp_path: Path, keys: dict[str, tuple[int, ...]], error: type[Exception], said: str) -> None:
    save_file({key: torch.zeros(shape) for key, shape in keys.items()}, tmp_path / "a.safetensors")
    with pytest.raises(error, match=said):
        bases.find(str(tmp_path / "a.safetensors"))


def test_cut_files_and_pickles_are_one_line(one: Callable[[str], Path], tmp_path: Path) -> None:
    data = one("sd1").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    (tmp_path / "old.ckpt").write_bytes(b"PK")
    for name, said in (("cut.safetensors", "no whole safetensors file"), ("old.ckpt", "no .safetensors file")):
        with pytest.raises(InputError, match=said):
            bases.find(str(tmp_path / name))


@pytest.mark.parametrize(("said", "prediction"), [("v", "v_prediction"), ("epsilon", "epsilon")])
def test_metadata_says_what_is_predicted(one: Callable[[str], Path], said: str, prediction: str) -> None:
    path = one("sd2")
    save_file(load_file(path), path, {"modelspec.prediction_type": said})
    assert bases.find(str(path)).prediction == prediction


def test_the_packages_configs_are_the_real_layouts() -> None:
    """Sizes that the repositories publish: parameters of each part, in millions."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    wanted = {"sd1": (859.52, 83.65, 123.06), "sd2": (865.91, 83.65, 340.39), "sdxl": (2567.46, 83.65, 123.06, 694.66)}
    for name, sizes in wanted.items():
        folder = single.LAYOUTS / name
        assert families.of(folder) is families.named(name)
        with torch.device("meta"):
            parts = [
                UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet")),
                AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae")),
                CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder")),
            ]
            if name == "sdxl":
                parts.append(CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(folder / "text_encoder_2")))
        assert [round(sum(p.numel() for p in part.parameters()) / 1e6, 2) for part in parts] == list(sizes)
        assert parts[0].config.cross_attention_dim == layouts.DENOISERS[name]["cross_attention_dim"]


def test_the_packages_tokenizer_is_clips() -> None:
    """Ids as CLIP's own tokenizer gives them."""
    words = single.tokenizer("!")
    assert words("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (len(words), words.eos_token_id, words.pad_token_id) == (49408, 49407, 0)
    assert words("Dog's 3 naïve CAFÉS!").input_ids == words("dog's 3 naïve cafés!").input_ids
