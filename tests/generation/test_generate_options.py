"""Options of drawing: seeds of other tools, sizes, strengths; one adapter merged alone."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from objtune_cli.lora import layers
from objtune_cli.models import base_spec, families, loading, registry
from objtune_cli.models.families import single_file
from objtune_cli.models.placeholders import class_token_embeddings
from objtune_cli.store import refs
from objtune_cli.store.artifacts import Record
from objtune_cli.store.store import Store
from objtune_cli.workflow import trained_objects

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

ONE = ("-n", "1", "--steps", "1")
QUICK = (*ONE, "--retries", "0", "--set", "compose.refine_strength=0", "--set", "compose.presence_check=false")
"""Scenes without a closer look and without the check of presence."""


@pytest.fixture(scope="module")
def weights(base: Path) -> dict[str, torch.Tensor]:
    """A LoRA that shows, and two vectors of a token before the class word's own."""
    model = loading.load(base, torch.device("cpu"), torch.float32)
    layers.add(model, 2, "attention", seed=0)
    g = torch.Generator().manual_seed(1)
    lora = {k: torch.randn(v.shape, generator=g) * 0.3 for k, v in layers.state_dict(model).items()}
    own = class_token_embeddings(model, "dog")
    return lora | {"token": torch.cat([own[:2] + torch.randn(2, own.shape[1], generator=g) * 0.2, own])}


@pytest.fixture
def studio(cli, base: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Callable:
    """A project with <dog>, <cup> and a joint adapter of <rex> and <mat>; the tiny base is its base."""
    monkeypatch.setenv("OBJTUNE_BASE", str(base))
    for name, held in {"dog": {"dog": "dog"}, "cup": {"cup": "mug"}, "pair": {"rex": "dog", "mat": "mat"}}.items():
        lora = {k: v * (1 if name == "dog" else -1) for k, v in weights.items() if k != "token"}
        tokens = {f"token.{o}": weights["token"] for o in held}
        Store.at(Path()).create(
            Record("adapter", name, held, {}, {"rank": 2}, registry.resolve(str(base)).record()),
            lora | tokens,
        )
    return cli


def drawn(result) -> list[np.ndarray]:
    assert result.code == 0, result.err
    return [np.asarray(Image.open(path)) for path in result.out.splitlines()]


def latents(result) -> np.ndarray:
    *_, name, version, _ = Path(result.out.splitlines()[0]).parts
    return Store.at(Path()).read(refs.Ref("scene", name, int(version[1:])))[1]["latents"]


def parameters(result) -> list[str]:
    return [Image.open(path).text["parameters"] for path in result.out.splitlines()]


def test_seeds_of_other_tools_are_taken_and_none_is_cut_to_32_bits(studio):
    """ComfyUI's have 16 digits and more; torch alone would read the low 32 bits and draw 2^50 as 0."""
    shown = {}
    for seed in (0, 3698135662, 1125899906842624, 2**64 - 1):
        result = studio("generate", "<dog>", *ONE, "--seed", seed)
        assert f"Seed: {seed}," in parameters(result)[0]
        shown[seed] = drawn(result)[0].tobytes()
    assert len(set(shown.values())) == 4
    two = studio("generate", "<dog>", "-n", 2, "--steps", 1, "--seed", 2**64 - 1)
    assert [p.tobytes() for p in drawn(two)] == [shown[2**64 - 1], shown[0]] and "Seed: 0," in parameters(two)[
        1
    ]  # the seed after the last one
    scene = studio("compose", "<dog> and <cup>", *QUICK, "--seed", 2**64 - 1, "--json")
    assert json.loads(scene.out)["metrics"]["scene/dog-cup@1"]["seeds"] == [2**64 - 1]


def test_a_seed_that_is_none_is_refused_in_one_line(studio):
    for line in (
        ("generate", "<dog>"),
        ("compose", "<dog>"),
        ("train", "photo.jpg", "--class", "dog"),
        ("evaluate", "dog"),
        ("bench",),
    ):
        result = studio(*line, "--seed", -1)
        assert result.code == 2 and "error: --seed is -1" in result.err and "seeds are never random" in result.err
    assert studio("generate", "<dog>", "--seed", 2**64).code == 2


def test_pictures_have_the_size_that_is_asked_for(studio):
    """Portrait and landscape, said in three ways, are the same work; the base's own size is what it was."""
    tall = studio("generate", "<dog>", *ONE, "--width", 32, "--height", 48)
    assert drawn(tall)[0].shape == (48, 32, 3) and "Size: 32x48," in parameters(tall)[0]
    assert "multiples" not in tall.err
    for line in (("--size", "32x48"), ("--size", " 32 × 48 px "), ("--height", 48), ("--set", "generate.height=48")):
        assert studio("generate", "<dog>", *ONE, *line).out == tall.out
    wide = studio("generate", "<dog>", *ONE, "--size", "64x32")
    assert drawn(wide)[0].shape == (32, 64, 3) and wide.out != tall.out
    own = studio("generate", "<dog>", *ONE)
    assert drawn(own)[0].shape == (32, 32, 3)
    assert (
        studio("generate", "<dog>", *ONE, "--size", "32x32").out == own.out
        and studio("generate", "<dog>", *ONE, "--width", 0).out == own.out
    )
    config = Store.at(Path()).read_record(refs.parse("scene/dog@3")).config
    assert "width" not in config and "height" not in config  # the same identity as before there were sizes
    Path(tall.out.strip()).unlink()
    assert drawn(studio("generate", "<dog>", *ONE, "--height", 48))[0].shape == (48, 32, 3)  # decoded again


def test_sizes_are_rounded_with_a_note_and_refused_in_one_line(studio):
    odd = studio("generate", "<dog>", *ONE, "--size", "50x35")
    assert (
        drawn(odd)[0].shape == (32, 48, 3)
        and "pictures are 48x32 px, not 50x35: this base draws multiples of 8 px" in odd.err
    )
    assert studio("generate", "<dog>", *ONE, "--size", "48x32").out == odd.out
    tiny_one = studio("generate", "<dog>", *ONE, "--size", "1x1")
    assert drawn(tiny_one)[0].shape == (8, 8, 3) and "trained on pictures of 32x32 px" in tiny_one.err
    for line, said in (
        (("--size", "16:9"), "--size is '16:9'"), (("--size", "512"), "--size is '512'"), (("--size", "0x64"), "--size is '0x64'"), (("--size", "-8x8"), "--size is '-8x8'"),
        (("--size", "64x64", "--width", 32), "differ"), (("--width", -8), "--width is -8"), (("--height", 8193), "--height is 8193"), (("--size", "99999x8"), "is 99999"),
    ):  # fmt: skip
        for command in ("generate", "compose"):
            result = studio(command, "<dog>", *line)
            assert result.code == 2 and said in result.err and "Traceback" not in result.err


def test_scenes_have_the_size_that_is_asked_for(studio):
    line = ("compose", "<dog> and <cup> and <rex>", *QUICK)
    free = studio(*line)
    assert drawn(free)[0].shape == (32, 48, 3)  # three side by side need the room
    for size, shape in (("32x32", (32, 32, 3)), ("32x64", (64, 32, 3))):
        result = studio(*line, "--size", size)
        assert drawn(result)[0].shape == shape and f"Size: {size}," in parameters(result)[0] and result.out != free.out
    assert np.asarray(Image.open(Path(result.out.strip()).with_name("layout.png"))).shape[:2] == (512, 256)
    placed = studio("compose", "<dog> and <cup>", "--place", "dog=top", "--place", "cup=bottom", *QUICK, "--height", 48)
    assert drawn(placed)[0].shape == (48, 32, 3)


def test_a_base_says_what_sides_it_draws_before_it_is_loaded(base):
    found, model = registry.resolve(str(base)), loading.load(base, torch.device("cpu"), torch.float32)
    assert (found.resolution, found.size_multiple, found.vae_scale_factor) == (
        model.resolution,
        model.size_multiple,
        model.vae_scale_factor,
    )
    for name, expected in {
        "sd1": (512, 64, 8192),
        "sd2": (768, 64, 8192),
        "sdxl": (1024, 32, 8192),
        "sd3": (1024, 16, 3072),
    }.items():
        whole = replace(
            found, folder=single_file.LAYOUTS / name, family=families.get_family("" if name == "sd1" else name)
        )
        assert (whole.resolution, whole.size_multiple, whole.largest_side) == expected


def test_an_object_is_drawn_as_strong_as_it_is_said(studio):
    """1 is what it was, 0 is the base's class to the bit, and what lies between is neither."""
    plain = studio("generate", "a photo of <dog>", *ONE)
    for same in (("a photo of <dog:1>",), ("a photo of <dog:1.0>",), ("a photo of <dog>", "--strength", 1)):
        assert studio("generate", *same, *ONE).out == plain.out  # the same work
    assert "strengths" not in Store.at(Path()).read_record(refs.parse("scene/dog@1")).config
    of_class = studio("generate", "a photo of a dog", *ONE)
    for none in (("a photo of <dog:0>",), ("a photo of <dog>", "--strength", 0)):
        result = studio("generate", *none, *ONE)
        assert result.out == of_class.out and "instead of" not in result.err
    half = studio("generate", "a photo of <dog:0.5>", *ONE)
    for same in (("a photo of <Dog:.5>",), ("a photo of <dog@1: 0.50 >",)):
        assert studio("generate", *same, *ONE).code == 0
    assert (
        studio("generate", "a photo of <dog>", *ONE, "--strength", 0.5).out
        == half.out
        == studio("generate", "a photo of <dog>", *ONE, "--set", "generate.strength=0.5").out
    )
    assert parameters(half)[0].startswith("a photo of <dog:0.5>\n")
    none, some, whole = (latents(r) for r in (of_class, half, plain))
    assert all(np.abs(a - b).max() > 2e-3 for a, b in ((none, some), (some, whole), (none, whole)))
    together = studio("generate", "<dog:0.5>", "<cup:0.3> and <dog>", *ONE)  # several strengths in one command
    alone = [studio("generate", prompt, *ONE, "--force") for prompt in ("<dog:0.5>", "<cup:0.3> and <dog>")]
    assert [p.tobytes() for p in drawn(together)] == [drawn(r)[0].tobytes() for r in alone]


def test_a_scene_has_the_strengths_that_are_said(studio):
    line = ("--place", "dog=left", "--place", "cup=right", *QUICK)
    plain, weak = (studio("compose", prompt, *line) for prompt in ("<dog> and <cup>", "<dog:0.4> and <cup>"))
    assert drawn(weak)[0].tobytes() != drawn(plain)[0].tobytes() and parameters(weak)[0].startswith(
        "<dog:0.4> and <cup>\n"
    )
    assert studio("compose", "<dog:1> and <cup>", *line).out == plain.out
    one = studio("generate", "<dog> and <dog:0.4>", *ONE)
    assert "the strength 0.4 of one <dog> in the prompt applies to every <dog> there" in one.err and parameters(one)[
        0
    ].startswith("<dog:0.4> and <dog:0.4>\n")
    assert "of one" not in weak.err
    joint = studio("compose", "<rex:0.5> and <mat>", *QUICK)
    assert joint.code == 0  # each in its place, though they share a file
    nobody = studio("compose", "<dog:0>", *ONE)
    assert nobody.code == 3 and "names no trained object" in nobody.err


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (("<dog:2.1>",), 3, "<dog:2.1> has no strength"), (("<dog:-1>",), 3, "<dog:-1> has no strength"), (("<dog:nan>",), 3, "has no strength"),
        (("<dog:0,8>",), 3, "`<dog:0.8>`"), (("<dog:0.5> and <dog:0.6>",), 3, "the strengths 0.5 and 0.6"), (("<nobody:0.5>",), 4, "no trained object <nobody>"),
        (("<rex:0.5> and <mat>",), 3, "share one LoRA, adapter/pair@1"), (("<dog>", "--negative", "<cup:0.5>"), 3, "the negative prompt has a strength for <cup>"),
        (("<dog>", "--strength", 3), 2, "--strength is 3"), (("<dog>", "--strength", "nan"), 2, "--strength is nan"), (("<word:0.5>",), 3, "<word> is a token without LoRA"),
        (("<lora:dog:0.8>",), 3, "write `<dog>`"),
    ],
)  # fmt: skip
def test_strengths_that_cannot_be(studio, weights, base, line, code, said):
    Store.at(Path()).create(
        Record("adapter", "word", {"word": "dog"}, {}, {}, registry.resolve(str(base)).record()),
        {"token.word": weights["token"]},
    )
    result = studio("generate", *line, *ONE)
    assert (result.code, result.out) == (code, "") and said in result.err and "Traceback" not in result.err


def test_one_adapter_is_made_weaker_under_a_new_name(studio):
    assert studio("merge", "dog=0.7", "--name", "d07").out == "adapter/d07@1\n"
    store = Store.at(Path())
    (_, old), (_, new) = (store.read(refs.parse(f"adapter/{name}@1")) for name in ("dog", "d07"))
    assert old.keys() == new.keys()
    assert all(
        np.array_equal(new[k], v * np.float32(0.7) if k.endswith("lora_B.weight") else v) for k, v in old.items()
    )
    assert studio("merge", "dog", "--name", "d1").code == 0
    assert all(
        np.array_equal(store.read(refs.parse("adapter/d1@1"))[1][k], v) for k, v in old.items()
    )  # a weight of 1 is the object itself
    said = studio("generate", "a photo of <dog:0.7>", *ONE)
    by_name, by_adapter = (
        studio("generate", "a photo of <d07>", *ONE),
        studio("generate", "a photo of <dog>", "--adapter", "d07", *ONE),
    )
    assert drawn(by_name)[0].tobytes() == drawn(by_adapter)[0].tobytes() == drawn(said)[0].tobytes()
    both = studio("compose", "<dog> and <d07>", "--place", "dog=left", "--place", "d07=right", *QUICK)
    assert both.code == 0 and "scene/dog-d07" in both.out
    for form in ("kohya", "embedding"):
        assert studio("export", "d07", "--format", form, "--out", "out").code == 0
    exported = load_file("out/d07.safetensors")
    assert any(
        np.allclose(exported[k].numpy(), v)
        for k in exported
        if k.endswith("lora_up.weight")
        for n, v in new.items()
        if n.endswith("lora_B.weight")
    )
    assert Path("out/dog-objtune.safetensors").is_file()
    assert studio("merge", "dog=0.5", "--name", "d07").out == "adapter/d07@2\n"  # and again with another weight
    assert (
        studio("merge", "pair=0.5", "--name", "p05").code == 0
        and studio("generate", "<rex>", "--adapter", "p05", *ONE).code == 0
    )


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (("dog=0.7",), 2, "alone cannot be merged"), (("dog=0.7", "--name", "dog"), 2, "dog is the name of a trained object"),
        (("dog=0.7", "--name", "cup"), 2, "cup is the name of a trained object"), (("dog=0", "--name", "d0"), 2, "a weight of 0 removes"),
        (("dog", "dog=0.5", "--name", "d"), 2, "adapter/dog@1 is given twice"), (("dog=1e39", "--name", "d"), 2, "is infinite"), (("dog=x", "--name", "d"), 2, "the weight of dog is 'x'"),
        (("word=0.5", "--name", "w"), 6, "contains only a token"),
    ],
)  # fmt: skip
def test_merges_of_one_that_cannot_be(studio, weights, base, line, code, said):
    Store.at(Path()).create(
        Record("adapter", "word", {"word": "dog"}, {}, {}, registry.resolve(str(base)).record()),
        {"token.word": weights["token"]},
    )
    result = studio("merge", *line)
    assert (result.code, result.out) == (code, "") and said in result.err and "hint: " in result.err


def test_pictures_of_others_are_not_overwritten(studio):
    Path("album").mkdir()
    Path("album/dog-001-001.png").write_bytes(b"a holiday")
    first = studio("generate", "<dog>", *ONE, "--out", "album")
    assert first.out == "album/dog-001-001-2.png\n" and Path("album/dog-001-001.png").read_bytes() == b"a holiday"
    assert studio("generate", "<dog>", *ONE, "--out", "album").out == first.out  # the same picture lies there once
    assert len(list(Path("album").iterdir())) == 2


@pytest.mark.parametrize("command", ["generate", "compose"])
def test_a_folder_that_cannot_take_pictures_is_refused_before_they_are_drawn(studio, command, monkeypatch):
    from objtune_cli.workflow.context import StageContext

    monkeypatch.setattr(StageContext, "load_base_model", lambda self, **_: pytest.fail("the base was loaded"))
    for out, said in (
        ("new.png", "new.png is the name of an image file"),
        ("objtune.toml", "objtune.toml is a file, not a folder"),
        ("objtune.toml/x", "is a file, not a folder"),
    ):
        result = studio(command, "<dog>", *ONE, "--out", out)
        assert result.code == 2 and said in result.err and "hint: " in result.err and not Path("new.png").exists()


def test_biases_of_an_imported_lora_are_as_strong_as_its_product():
    weights = {"unet.a.lora_A.weight": 1.0, "unet.a.lora_B.weight": 2.0, "unet.a.lora_B.bias": 4.0, "token.dog": 8.0}
    assert trained_objects.scale_lora(weights, 0.5) == {
        "unet.a.lora_A.weight": 1.0,
        "unet.a.lora_B.weight": 1.0,
        "unet.a.lora_B.bias": 2.0,
        "token.dog": 8.0,
    }
    assert trained_objects.scale_lora(weights, 1) is weights


def test_a_scene_of_many_is_no_wider_than_the_base_draws(studio, monkeypatch):
    monkeypatch.setattr(base_spec.BaseSpec, "largest_side", 40)  # SD 3 knows 3072 px of places
    assert drawn(studio("compose", "<dog> and <cup> and <rex>", *QUICK))[0].shape == (32, 40, 3)
