"""No picture that is no picture: NaN, infinity and pictures of one colour never become an artifact, and the message names the part."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from objtune_cli.config.sections import Common
from objtune_cli.models import base_model, loading
from objtune_cli.store import artifacts
from objtune_cli.store.artifacts import Record
from objtune_cli.store.project import Project
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store
from objtune_cli.workflow.context import StageContext

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

NAN, INF = float("nan"), float("inf")
TRAIN = (
    "--class", "dog", "--mask", "mask.png", "--set", "init-embedding.steps=2", "--set", "train.num_augmentations=2", "--set", "prior.num_class_images=1", "--set", "prior.num_predictions=2",
    "--set", "train.num_teacher_samples=2", "--set", "train.rank=2", "--set", "train.self_evaluation=false", "--steps", 2, "--no-preview",
)  # fmt: skip


def scale(name: str, *factors: float) -> Callable[[dict], None]:
    def change(weights: dict) -> None:
        for factor in factors:
            weights[name] *= factor

    return change


def put(name: str, value: float) -> Callable[[dict], None]:
    def change(weights: dict) -> None:
        weights[name].view(-1)[0] = value

    return change


def paint(value: float) -> Callable[[dict], None]:
    """A VAE whose pictures are all of one colour."""

    def change(weights: dict) -> None:
        weights["decoder.conv_out.weight"] *= 0
        weights["decoder.conv_out.bias"].fill_(value)

    return change


def both(*changes: Callable[[dict], None]) -> Callable[[dict], None]:
    def change(weights: dict) -> None:
        for each in changes:
            each(weights)

    return change


BASES: dict[str, tuple[str, Callable[[dict], None]]] = {
    "denoiser NaN": ("unet", put("conv_out.bias", NAN)),
    "denoiser inf": ("unet", put("conv_in.weight", -INF)),
    "denoiser large": ("unet", scale("conv_out.weight", 1e38)),
    "denoiser large in fp16": ("unet", scale("conv_in.weight", 1e6)),
    "text NaN": ("text_encoder", put("final_layer_norm.weight", NAN)),
    "decoder NaN": ("vae", put("decoder.conv_in.weight", NAN)),
    "decoder large": ("vae", both(scale("decoder.conv_in.weight", 1e36), scale("decoder.conv_out.weight", 1e10))),
    "decoder large in fp16": ("vae", scale("decoder.conv_in.weight", 1e6)),
    "decoder black": ("vae", paint(-1.0)),
    "encoder NaN": ("vae", put("encoder.conv_in.weight", NAN)),
    "encoder large": ("vae", both(scale("encoder.conv_in.weight", 1e30), scale("encoder.conv_out.weight", 1e30))),
    "encoder large in fp16": ("vae", scale("encoder.conv_in.weight", 1e6)),
}


@pytest.fixture(scope="module")
def changed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A base of `BASES`, written once."""
    root = tmp_path_factory.mktemp("changed")

    def folder(name: str) -> Path:
        made = root / name.replace(" ", "-")
        if not made.exists():
            shutil.copytree(base, made)
            part, change = BASES[name]
            file = next((made / part).glob("*.safetensors"))
            weights = load_file(file)
            change(weights)
            save_file(weights, file, metadata={"format": "pt"})
        return made

    return folder


@pytest.fixture
def photo(project: Path) -> Path:
    """A small photo, and its mask beside it."""
    shown = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 20:44] = 255
    Image.fromarray(mask).save(project / "mask.png")
    Image.fromarray(shown).save(project / "photo.png")
    return project / "photo.png"


def generate(cli: Callable, base: Path, *more: object) -> Any:
    return cli("generate", "a dog", "-n", 2, "--steps", 1, "--base", base, *more)


def pixels(project: Path, version: int) -> np.ndarray:
    return np.stack(
        [np.asarray(Image.open(p)) for p in sorted((project / f"artifacts/scene/scene/v{version:03d}").glob("*.png"))]
    )


@pytest.mark.parametrize(
    ("name", "more", "code", "said"),
    [
        ("denoiser NaN", (), 5, ["the denoiser of the base in", "first in conv_out.bias", "another `--base`"]),
        ("denoiser inf", ("--precision", "fp16"), 5, ["the denoiser of the base in", "conv_in.weight"]),
        (
            "denoiser large",
            (),
            9,
            [
                "the denoiser gives latents beyond any range in fp32 (pictures 1, 2 of 2, seeds 0, 1)",
                "another `--base`",
            ],
        ),
        ("denoiser large in fp16", ("--precision", "fp16"), 9, ["too large for fp16", "`--precision fp32`"]),
        ("text NaN", (), 5, ["the text encoder of the base in", "final_layer_norm.weight"]),
        ("decoder NaN", (), 5, ["the VAE decoder contains NaN", "decoder", "another `--base`"]),
        ("decoder NaN", ("--precision", "fp16"), 5, ["the VAE decoder contains NaN"]),
        ("decoder large", (), 9, ["the VAE decoder gives NaN or infinite values in fp32", "another VAE"]),
        (
            "decoder large",
            ("--precision", "bf16"),
            9,
            ["the VAE decoder gives NaN or infinite values in fp32", "another VAE"],
        ),
        ("decoder black", (), 9, ["pictures 1, 2 of 2 are of one colour", "`--force` keeps it"]),
    ],
)
def test_generate_refuses_what_is_no_picture(
    cli, changed, project: Path, name: str, more: tuple, code: int, said: list[str]
) -> None:
    found = generate(cli, changed(name), *more)
    assert (found.code, found.out) == (code, ""), found.err
    assert all(text in found.err for text in said), found.err
    assert "Traceback" not in found.err and not (project / "artifacts" / "scene").exists()


def test_a_vae_that_overflows_in_half_decodes_in_float32(cli, changed, project: Path) -> None:
    """With a note; the same pixels as float32 decodes of these latents, and drawn anew where float32 is asked for."""
    base = changed("decoder large in fp16")
    half = generate(cli, base, "--precision", "fp16")
    assert half.code == 0 and half.err.count("the VAE decoder overflows in fp16: the VAE now computes in fp32") == 1, (
        half.err
    )
    record, arrays = Store.at(project).read(Ref("scene", "scene", 1))
    assert record.tools["precision"] == "fp16"
    from objtune_cli.generation.sampling import to_uint8

    whole = loading.load(base, torch.device("cpu"), torch.float32)
    assert np.array_equal(
        to_uint8(whole.decode_latents(torch.from_numpy(arrays["latents"].copy()))).numpy(), pixels(project, 1)
    )
    assert "scene@1 is up to date" in generate(cli, base, "--precision", "fp16").err
    single = generate(cli, base, "--precision", "fp32")
    assert single.code == 0 and "scene/scene/v002" in single.out and "up to date" not in single.err
    assert "precision" not in Store.at(project).read_record(Ref("scene", "scene", 2)).tools
    for again, version in (("fp32", 2), ("auto", 2), ("fp16", 1)):
        assert f"scene@{version} is up to date" in generate(cli, base, "--precision", again).err, again
    assert "v003" in generate(cli, base, "--precision", "bf16").out


def test_work_of_earlier_versions_serves_auto_and_fp32(cli, base: Path, project: Path) -> None:
    assert generate(cli, base).code == 0
    assert all("scene@1 is up to date" in generate(cli, base, "--precision", p).err for p in ("auto", "fp32"))


def test_reuse_finds_the_number_format_that_was_asked_for(tmp_path: Path) -> None:
    """What nobody asked for is found by auto first; what says nothing is float32 or of an earlier version."""
    made = {1: {}, 2: {"precision": "fp16"}, 3: {"precision": "auto bf16"}, 4: {}}
    record = Record("prior", "dog", {"dog": "dog"}, {}, {}, {})
    found: dict[tuple[int, str], int] = {}
    for last, tools in made.items():
        Store.at(tmp_path).create(replace(record, tools=tools), {"latents": torch.ones(1)})
        for asked in ("auto", "fp32", "bf16", "fp16"):
            ctx = StageContext(Project(tmp_path), None, Common(precision=asked), None)  # type: ignore[arg-type]
            ref = ctx.find(record, computed=True)
            found[last, asked] = ref.version if ref else 0
    assert [found[last, "auto"] for last in made] == [1, 1, 3, 3]
    assert [found[last, "fp32"] for last in made] == [1, 1, 1, 4]
    assert [found[last, "bf16"] for last in made] == [0, 0, 3, 3]
    assert [found[last, "fp16"] for last in made] == [0, 2, 2, 2]


def test_one_colour_is_kept_by_force_alone(cli, changed, project: Path) -> None:
    base = changed("decoder black")
    forced = generate(cli, base, "--force")
    assert forced.code == 0 and "pictures 1, 2 of 2 are of one colour" in forced.err
    assert Store.at(project).read_record(Ref("scene", "scene", 1)).metrics["one_colour"] == [0, 1]
    assert "scene@1 is up to date" in generate(cli, base).err


def test_a_black_picture_of_an_earlier_version_is_drawn_again(cli, base: Path, project: Path) -> None:
    assert generate(cli, base).code == 0
    file = project / "artifacts/scene/scene/v001/002.png"
    Image.new("RGB", (32, 32)).save(file)
    again = generate(cli, base)
    assert (
        again.code == 0
        and "scene@1 is not used again: picture 2 of 2 is of one colour" in again.err
        and "v002" in again.out
    )


def test_a_scene_without_pictures_that_decodes_to_one_colour_is_drawn_again(
    cli, base: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert generate(cli, base).code == 0
    shutil.rmtree(project / "artifacts/scene/scene/v001")
    decode = base_model.BaseModel.decode_latents
    monkeypatch.setattr(
        base_model.BaseModel, "decode_latents", lambda self, latents: torch.zeros_like(decode(self, latents))
    )
    again = generate(cli, base)
    assert (
        again.code == 9
        and "scene@1 is not used again: pictures 1, 2 of 2 are of one colour" in again.err
        and "up to date" not in again.err
    )
    monkeypatch.undo()


def test_too_much_guidance_is_not_the_bases_fault(cli, base: Path) -> None:
    for guidance in ("1e30", "3e38"):
        found = generate(cli, base, "--guidance", guidance, "--steps", 2)
        assert found.code == 9 and "a guidance of " in found.err and "lower `--guidance`" in found.err, found.err


def test_latents_of_an_earlier_version_that_are_not_finite_are_drawn_again(
    cli, base: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert generate(cli, base).code == 0
    store = Store.at(project)
    record, arrays = store.read(Ref("scene", "scene", 1))
    bad = arrays["latents"].copy()
    bad[1, 0, 0, 0] = NAN
    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "check_finite", lambda record, arrays: None)
        store.create(record, {"latents": bad})
    intact = generate(cli, base)
    assert intact.code == 0 and "scene@2 is not used again: latents contains NaN" in intact.err and "v001" in intact.out
    assert "scene/scene@1 is up to date" in intact.err
    store.delete(Ref("scene", "scene", 1))
    again = generate(cli, base)
    assert again.code == 0 and "scene@2 is not used again: latents contains NaN" in again.err and "v003" in again.out


@pytest.mark.parametrize(
    ("name", "more", "code", "said"),
    [
        ("denoiser NaN", (), 5, ["the denoiser of the base in"]),
        (
            "denoiser large",
            (),
            9,
            ["the denoiser gives NaN or infinite values in fp32 (picture 1 of 1, seed 0)", "another `--base`"],
        ),
        ("text NaN", (), 5, ["the text encoder of the base in"]),
        ("encoder NaN", (), 5, ["the VAE encoder contains NaN"]),
        ("encoder large", (), 9, ["the VAE encoder gives NaN or infinite values in fp32", "another VAE"]),
    ],
)
def test_train_names_the_part_and_not_the_rate(
    cli, changed, photo: Path, project: Path, name: str, more: tuple, code: int, said: list[str]
) -> None:
    found = cli("train", photo, "--base", changed(name), *TRAIN, *more)
    assert (found.code, found.out) == (code, ""), found.err
    assert all(text in found.err for text in said) and "rate" not in found.err and "diverged" not in found.err, (
        found.err
    )
    assert not (project / "artifacts" / "adapter").exists()


@pytest.mark.parametrize(
    ("setting", "code", "said"),
    [
        ("train.learning_rate=1e30", 9, ["training diverged at step 1: ", "`--set train.learning_rate=2.5e+29`"]),
        ("train.learning_rate=1e39", 2, ["train.learning_rate is 1e+39", "from 0 to 1e+30"]),
        ("init-embedding.relative_lr=1e38", 2, ["init-embedding.relative_lr is 1e+38"]),
        ("init-embedding.image_weight=1e300", 2, ["init-embedding.image_weight is 1e+300"]),
        ("train.prior_loss_weight=1e300", 2, ["train.prior_loss_weight is 1e+300", "from 0 to 1000000"]),
    ],
)
def test_settings_that_no_training_survives(
    cli, base: Path, photo: Path, project: Path, setting: str, code: int, said: list[str]
) -> None:
    found = cli("train", photo, "--base", base, *TRAIN, "--set", setting)
    assert (found.code, found.out) == (code, "") and all(text in found.err for text in said), found.err
    assert "Traceback" not in found.err and not (project / "artifacts" / "adapter").exists()


def test_a_preview_of_one_colour_is_told(cli, changed, photo: Path, project: Path) -> None:
    done = cli(
        "train",
        photo,
        "--base",
        changed("decoder black"),
        *(each for each in TRAIN if each != "--no-preview"),
        "--set",
        "generate.num_inference_steps=1",
    )
    assert done.code == 0 and "5 of 5 preview pictures are of one colour" in done.err, done.err
    scene = cli(
        "compose",
        "<dog> on the beach",
        "-n",
        1,
        "--steps",
        1,
        "--place",
        "dog=left",
        "--base",
        changed("decoder black"),
    )
    assert (scene.code, scene.out) == (9, "") and "the picture is of one colour" in scene.err, scene.err


def test_train_knows_the_precision_that_was_asked_for(cli, changed, photo: Path, project: Path) -> None:
    line = ("train", photo, "--base", changed("encoder large in fp16"), *TRAIN)
    half = cli(*line, "--precision", "fp16")
    assert half.code == 0 and "the VAE encoder overflows in fp16" in half.err, half.err
    assert cli(*line, "--precision", "fp32").out == "adapter/dog@2\n"
    assert [cli(*line, "--precision", p, "--json").out.count('"reused": true') for p in ("fp16", "fp32")] == [1, 1]
    assert sorted(p.name for p in (project / "artifacts/prior/dog").iterdir()) == [
        "v001.safetensors",
        "v002.safetensors",
    ]
    assert len(list((project / "artifacts/embedding/dog").iterdir())) == 1


@pytest.fixture
def stored(
    cli, base: Path, photo: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """Puts the adapter <rex> into the store with some tensors changed, whatever a later version checks."""
    assert cli("train", photo, "--name", "rex", "--base", base, *TRAIN).code == 0
    store = Store.at(project)
    record, arrays = store.read(Ref("adapter", "rex", 1))

    def put_in(value: float, end: str) -> None:
        changed = {name: np.full_like(array, value) if name.endswith(end) else array for name, array in arrays.items()}
        with monkeypatch.context() as patch:
            patch.setattr(artifacts, "check_finite", lambda record, arrays: None)
            store.create(record, changed)

    return put_in


def test_an_adapter_that_gives_no_numbers(cli, base: Path, stored, project: Path, tmp_path: Path) -> None:
    """Values in the file: damaged. Values that come of it while it draws: its name, not the base's. In every command that draws with it."""
    stored(NAN, "lora_B.weight")
    lines = [
        ("generate", "<rex>", "-n", 1),
        ("compose", "<rex> on the beach", "-n", 1, "--place", "rex=left"),
        ("evaluate", "rex"),
    ]
    for line in lines:
        found = (
            cli(*line, "--base", base, "--set", "generate.num_inference_steps=1")
            if line[0] != "evaluate"
            else cli(*line, "--base", base)
        )
        assert (found.code, found.out) == (
            5,
            "",
        ) and "adapter/rex@2 contains NaN or infinite values, first in" in found.err, found.err
    assert cli("export", "adapter/rex@2", "--format", "kohya", "--out", tmp_path / "out").code == 5
    stored(1e38, "lora_B.weight")
    for line in lines[:2]:
        found = cli(*line, "--base", base, "--set", "generate.num_inference_steps=1")
        assert (found.code, found.out) == (
            9,
            "",
        ) and "the adapter of <rex> gives NaN or infinite values in fp32" in found.err, found.err
    stored(1e30, "token.rex")
    found = cli(*lines[0], "--base", base, "--steps", 1)
    assert (found.code, found.out) == (
        9,
        "",
    ) and "the adapter of <rex> gives NaN or infinite values in fp32" in found.err, found.err
    assert not (project / "artifacts" / "scene").exists()


def test_a_second_picture_alone_is_named(cli, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from objtune_cli.generation import sampling

    noise = sampling._sample_noise
    monkeypatch.setattr(
        sampling,
        "_sample_noise",
        lambda made, shape: (
            noise(made, shape) * torch.tensor([NAN if g.initial_seed() == 7 else 1.0 for g in made]).view(-1, 1, 1, 1)
        ),
    )
    found = generate(cli, base, "--seed", 6, "--json")
    assert found.code == 9 and "(picture 2 of 2, seed 7)" in json.loads(found.out)["error"]["message"]


def test_numbers_of_json_are_numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from objtune_cli.cli import console
    from objtune_cli.workflow.metric_loggers import JsonLinesLogger

    console.print_json({"rows": [{"mean": NAN, "low": -INF, "n": 1}], "leakage": ((0.5, NAN),), "seconds": 0.25})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "rows": [{"mean": None, "low": None, "n": 1}],
        "leakage": [[0.5, None]],
        "seconds": 0.25,
    }
    log = JsonLinesLogger(tmp_path / "log", "train")
    log.write("step", loss=NAN, matrix=[[INF, 1.0]], by={"a": -INF})
    log.close(0)
    assert (
        json.loads((tmp_path / "log").read_text().splitlines()[1], parse_constant=pytest.fail).items()
        >= {"loss": None, "matrix": [[None, 1.0]], "by": {"a": None}}.items()
    )
