"""Single-file checkpoints: every weight where the folder has it, offline, and one line for what is none."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from objtune_cli.errors import DamagedError, IncompatibleError
from objtune_cli.models import families, loading, registry
from objtune_cli.models.families import bundled_tokenizers, single_file, single_file_loading
from objtune_cli.store import safetensors_format
from tests.support import full_size_configs, single_file_checkpoints, tiny_families, tiny_sd1

CPU = torch.device("cpu")
NAMES = ("sd1", "sd2", "sdxl", "sd3", "sd35")
PREDICTIONS = {"sd2": "v_prediction", "sd3": "flow", "sd35": "flow"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("files")
    found = {
        "sd2": tiny_families.sd2(top / "two", with_clip=False),
        "sdxl": tiny_families.sdxl(top / "xl", with_clip=False),
        "sd1": top / "one",
    }
    tiny_families.sd1(found["sd1"])
    for name in ("sd3", "sd35"):
        found[name] = tiny_families.sd3(top / name, with_clip=False, newer=name == "sd35")
        first = next((found[name] / "text_encoder").glob("*.safetensors"))
        weights = load_file(first)  # its projection is the identity, which files are opened with
        save_file(weights | {"text_projection.weight": torch.eye(tiny_sd1.WIDTH)}, first, {"format": "pt"})
    return found


@pytest.fixture
def one(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """The base of a family as one file, the package's configs being those of the tiny base and its tokenizer the tiny one's."""

    def make(name: str) -> Path:
        single_file_checkpoints.layout(folders[name], tmp_path / "layouts" / name)
        monkeypatch.setattr(single_file, "LAYOUTS", tmp_path / "layouts")
        monkeypatch.setattr(bundled_tokenizers, "clip_tokenizer", lambda pad: tiny_sd1.tokenizer())
        monkeypatch.setattr(bundled_tokenizers, "t5_tokenizer", tiny_families.letters)
        return single_file_checkpoints.one_file(folders[name], name, tmp_path / "model.safetensors")

    return make


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_is_the_folders(folders: dict[str, Path], one: Callable[[str], Path], name: str) -> None:
    base = registry.resolve(str(one(name)))
    assert (base.id, base.family.name, base.prediction) == ("model.safetensors", name, PREDICTIONS.get(name, "epsilon"))
    file = loading.load(base.folder, CPU, torch.float32, base.weights, base.prediction)
    folder = loading.load(folders[name], CPU, torch.float32)
    for part in ("denoiser", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
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
    assert torch.equal(file.encode_prompt(["a photo", ""]).pack(), folder.encode_prompt(["a photo", ""]).pack())


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_diffusers_alone_draws_from_a_file_what_we_draw(cli: Callable, one: Callable[[str], Path], name: str) -> None:
    done = cli("doctor", "--base", one(name), "--run", "--quick", "--steps", "2", "--json")
    report = json.loads(done.out)["self_test"]
    assert done.code == 0, report["steps"]
    assert report["differences"]["mean"] < 0.1 < report["differences"]["without_object"]


def test_the_whole_path_on_a_file(cli: Callable, one: Callable[[str], Path], dog_photo: Path, project: Path) -> None:
    base = one("sd1")
    few = (
        "--set",
        "train.max_steps=2",
        "--set",
        "train.num_augmentations=2",
        "--set",
        "prior.num_class_images=2",
        "--set",
        "prior.num_predictions=4",
        "--set",
        "train.num_teacher_samples=2",
        "--set",
        "init-embedding.steps=2",
    )
    done = cli("train", dog_photo, "--class", "dog", "--box", "110,240,530,535", "--base", base, "--no-preview", *few)
    assert done.code == 0, done.err
    drawn = cli("generate", "a photo of <dog>", "-n", 1, "--set", "generate.num_inference_steps=2", "--base", base)
    assert drawn.code == 0 and Path(drawn.out.strip()).is_file()
    copy = base.with_name("copy.safetensors")
    changed = load_file(base)
    changed["model.diffusion_model.out.2.bias"] += 1
    save_file(changed, copy)
    refused = cli("generate", "a photo of <dog>", "--strict-base", "--base", copy)
    assert refused.code == 6 and f"`--base {base}`" in refused.err
    sibling = cli("generate", "a photo of <dog>", "-n", 1, "--set", "generate.num_inference_steps=2", "--base", copy)
    assert sibling.code == 0 and "learned on the base model.safetensors and is drawn on copy.safetensors" in sibling.err


@pytest.mark.parametrize(
    ("keys", "error", "said"),
    [
        ({"lora_unet_x.lora_up.weight": (1,)}, IncompatibleError, "has no denoiser"),
        ({"model.diffusion_model.x": (1,)}, IncompatibleError, "has no text encoder"),
        (
            {"model.diffusion_model.x": (1,), "cond_stage_model.bert.x": (1,)},
            IncompatibleError,
            "of an unsupported family",
        ),
        (
            {single_file.ENTRANCE: (8, 9, 3, 3), "cond_stage_model.transformer.x": (1,), "first_stage_model.x": (1,)},
            IncompatibleError,
            "inpainting model: its denoiser takes a mask and a picture",
        ),
    ],
)
def test_files_that_are_no_base(
    tmp_path: Path, keys: dict[str, tuple[int, ...]], error: type[Exception], said: str
) -> None:
    save_file({key: torch.zeros(shape) for key, shape in keys.items()}, tmp_path / "a.safetensors")
    with pytest.raises(error, match=said):
        registry.resolve(str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    ("name", "without", "said"),
    [
        ("sd3", ("text_encoders.clip",), "has no CLIP-L, no CLIP-G"),
        ("sd35", ("text_encoders.clip_g",), "has no CLIP-G"),
        ("sd3", ("first_stage_model",), "has no VAE"),
        ("sd3", ("model.diffusion_model.joint_blocks.2.",), "its transformer has 2 blocks, 16 wide"),
        ("sd35", ("model.diffusion_model.joint_blocks.1.x_block.attn2.",), "not the medium model of SD 3 or 3.5"),
    ],
)
def test_parts_that_are_not_in_a_file_of_sd3(cli: Callable, one: Callable[[str], Path], folders: dict[str, Path], name: str, without: tuple[str, ...],
                                             said: str) -> None:  # fmt: skip
    file = single_file_checkpoints.joint_file(folders[name], one(name), *without)
    done = cli("generate", "a dog", "--base", file)
    assert done.code == 6 and said in done.err
    assert [line.split(":")[0] for line in done.err.strip().splitlines()] == ["error", "hint"]


def test_a_picture_is_drawn_from_a_file_of_sd3(cli: Callable, one: Callable[[str], Path], project: Path) -> None:
    path = one("sd3")
    done = cli("generate", "a photo of a dog", "-n", 1, "--set", "generate.num_inference_steps=2", "--base", path)
    assert done.code == 0 and Path(done.out.strip()).is_file(), done.err
    (scene,) = (project / "artifacts" / "scene").rglob("*.safetensors")
    record = safetensors_format.read_header(scene)[0]
    assert record["base"] == registry.resolve(str(path)).record() and record["base"]["prediction"] == "flow"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_t5_has_the_number_formats_of_the_folders(
    one: Callable[[str], Path], folders: dict[str, Path], dtype: torch.dtype
) -> None:
    path = one("sd3")
    base = registry.resolve(str(path))
    ours = single_file_loading.load_t5(base.family, path, base.folder, dtype)[1].state_dict()
    theirs = base.family.load_t5(folders["sd3"], dtype)[1].state_dict()
    assert ours.keys() == theirs.keys()
    assert all(value.dtype == theirs[key].dtype and torch.equal(value, theirs[key]) for key, value in ours.items())


@torch.no_grad()
def test_without_t5_its_rows_are_zeros(one: Callable[[str], Path], folders: dict[str, Path]) -> None:
    """As in a folder that has none; another base than the whole file."""
    whole = registry.resolve(str(one("sd3")))
    said = loading.load(whole.folder, CPU, torch.float32, whole.weights).encode_prompt(["a photo"]).pack()
    single_file_checkpoints.joint_file(folders["sd3"], whole.weights or Path(), "text_encoders.t5xxl")
    bare = registry.resolve(str(whole.weights))
    model = loading.load(bare.folder, CPU, torch.float32, bare.weights)
    found = model.encode_prompt(["a photo"]).pack()
    assert model.text_encoder_3 is None
    for rows in (
        slice(77),
        slice(-1, None),
    ):  # to a rounding: where weights of a mapped file lie in memory decides how they are added up
        assert torch.allclose(found[:, rows], said[:, rows], atol=1e-6, rtol=1e-5)
    assert said[:, 77:-1].any() and not found[:, 77:-1].any() and bare.fingerprint != whole.fingerprint


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_is_read_to_its_values(one: Callable[[str], Path], kind: torch.dtype) -> None:
    path = one("sd3")
    eighths = {
        key: value.to(kind) if key.startswith(single_file.T5) else value for key, value in load_file(path).items()
    }
    save_file(eighths, path)
    base = registry.resolve(str(path))
    _, encoder = single_file_loading.load_t5(base.family, path, base.folder, torch.float32)
    for key, value in encoder.state_dict().items():
        if key != "encoder.embed_tokens.weight":
            assert torch.equal(value, eighths[single_file.T5 + key].float())


@pytest.mark.parametrize("key", ["text_encoders.t5xxl.transformer.scaled_fp8", f"{single_file.UNET}x.scale_weight"])
def test_scaled_fp8_is_one_line(one: Callable[[str], Path], key: str) -> None:
    path = one("sd3")
    save_file(load_file(path) | {key: torch.ones(1)}, path)
    with pytest.raises(IncompatibleError, match="quantised weights with separate scales"):
        registry.resolve(str(path))


@pytest.mark.parametrize(
    "start", ["text_encoders.clip_g.transformer.text_projection", f"{single_file.T5}encoder.block.1.layer.0"]
)
def test_half_a_text_encoder_is_one_line(one: Callable[[str], Path], folders: dict[str, Path], start: str) -> None:
    base = registry.resolve(str(single_file_checkpoints.joint_file(folders["sd3"], one("sd3"), start)))
    with pytest.raises(DamagedError, match=r"damaged: text_encoder_[23] lacks "):
        loading.load(base.folder, CPU, torch.float32, base.weights)


def test_cut_files_and_pickles_are_one_line(one: Callable[[str], Path], tmp_path: Path) -> None:
    data = one("sd1").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    (tmp_path / "old.ckpt").write_bytes(b"PK")
    for name, error, said in (
        ("cut.safetensors", DamagedError, "cut.safetensors is damaged"),
        ("old.ckpt", IncompatibleError, "not a .safetensors file"),
    ):
        with pytest.raises(error, match=said):
            registry.resolve(str(tmp_path / name))


@pytest.mark.parametrize(("said", "prediction"), [("v", "v_prediction"), ("epsilon", "epsilon")])
def test_metadata_says_what_is_predicted(one: Callable[[str], Path], said: str, prediction: str) -> None:
    path = one("sd2")
    save_file(load_file(path), path, {"modelspec.prediction_type": said})
    assert registry.resolve(str(path)).prediction == prediction


def part_of_a_layout(folder: Path) -> torch.nn.Module:
    """Without weights."""
    import diffusers
    import transformers

    said = json.loads((folder / "config.json").read_text())
    with torch.device("meta"):
        if "_class_name" in said:
            return getattr(diffusers, said["_class_name"]).from_config(said)
        kind = getattr(transformers, said["architectures"][0])
        return kind(kind.config_class.from_pretrained(folder))


SIZES = {
    "sd1": {"unet": 859.52, "vae": 83.65, "text_encoder": 123.06}, "sd2": {"unet": 865.91, "vae": 83.65, "text_encoder": 340.39},
    "sdxl": {"unet": 2567.46, "vae": 83.65, "text_encoder": 123.06, "text_encoder_2": 694.66},
    "sd3": {"transformer": 2028.33, "vae": 83.82, "text_encoder": 123.65, "text_encoder_2": 694.66, "text_encoder_3": 4762.31},
    "sd35": {"transformer": 2243.17, "vae": 83.82, "text_encoder": 123.65, "text_encoder_2": 694.66, "text_encoder_3": 4762.31},
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_packages_configs_are_the_real_layouts(name: str) -> None:
    """Sizes that the repositories publish: parameters of each part, in millions."""
    folder = single_file.LAYOUTS / name
    assert families.detect_family(folder) is families.get_family(name)
    parts = {part: part_of_a_layout(folder / part) for part in SIZES[name]}
    assert {
        part: round(sum(p.numel() for p in network.parameters()) / 1e6, 2) for part, network in parts.items()
    } == SIZES[name]
    denoiser = parts[families.get_family(name).denoiser].config
    wanted = full_size_configs.DENOISERS.get(name) or full_size_configs.TRANSFORMERS[name]
    if name in full_size_configs.TRANSFORMERS:
        assert {key: denoiser[key] for key in wanted} == {
            k: list(v) if isinstance(v, tuple) else v for k, v in wanted.items()
        }
    assert name in full_size_configs.TRANSFORMERS or denoiser.cross_attention_dim == wanted["cross_attention_dim"]


@pytest.mark.parametrize("name", ["sd3", "sd35"])
def test_a_transformer_at_full_size_has_every_layer(name: str) -> None:
    """Written in the first repository's names, whose blocks are those of kohya's frozen list, it is read to diffusers' names and shapes."""
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    wanted = part_of_a_layout(single_file.LAYOUTS / name / "transformer").state_dict()
    written = single_file_checkpoints.joint(wanted)
    blocks = {
        key.removesuffix(".weight")
        for key in written
        if key.endswith(("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight"))
    }
    listed = set((Path(__file__).parent.parent / "interchange" / "keys" / f"{name}.txt").read_text().split())
    assert {"lora_unet_" + key.replace(".", "_") for key in blocks if key.startswith("joint_blocks.")} == listed
    read = convert_sd3_transformer_checkpoint_to_diffusers(dict(written))
    assert {key: value.shape for key, value in read.items()} == {key: value.shape for key, value in wanted.items()}
    shapes = {single_file.PATCHES: written["x_embedder.proj.weight"].shape}
    keys = {f"{single_file.UNET}{key}" for key in written} | {
        f"{start}x" for start in (*single_file.CLIPS.values(), single_file.VAE)
    }
    assert single_file._detect_sd3(Path("a"), keys, shapes[single_file.PATCHES][0]) is families.get_family(name)


def test_the_packages_second_tokenizer_is_t5s() -> None:
    """Ids as the tokenizer of T5's own folder gives them, letters of other forms and marks too."""
    words = bundled_tokenizers.t5_tokenizer()
    assert words("a photo of a dog").input_ids == [3, 9, 1202, 13, 3, 9, 1782, 1]
    assert words("Interna\u021bional \ufb01ne").input_ids == [31999, 1399, 1] and words("<extra_id_3> x").input_ids == [
        32096,
        3,
        226,
        1,
    ]
    assert words("a  b\tc").input_ids == words("a b c").input_ids == [3, 9, 3, 115, 3, 75, 1]
    assert (len(words), words.eos_token_id, words.pad_token_id, words.unk_token_id) == (32100, 1, 0, 2)


def test_the_packages_tokenizer_is_clips() -> None:
    """Ids as CLIP's own tokenizer gives them."""
    words = bundled_tokenizers.clip_tokenizer("!")
    assert words("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (len(words), words.eos_token_id, words.pad_token_id) == (49408, 49407, 0)
    assert words("Dog's 3 naïve CAFÉS!").input_ids == words("dog's 3 naïve cafés!").input_ids
