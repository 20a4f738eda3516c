"""Options of drawing: seeds of other tools, sizes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from objtune_cli import bases, families
from objtune_cli.families import single
from objtune_cli.models import adapter
from objtune_cli.models import stack as stacks
from objtune_cli.models.tokens import class_rows
from objtune_cli.store import artifact, refs
from objtune_cli.store.artifact import Record

ONE = ("-n", "1", "--steps", "1")


@pytest.fixture(scope="module")
def weights(base: Path) -> dict[str, torch.Tensor]:
    """A LoRA that shows, and two vectors of a token before the class word's own."""
    stack = stacks.load(base, torch.device("cpu"), torch.float32)
    adapter.add(stack, 2, "attention", seed=0)
    g = torch.Generator().manual_seed(1)
    lora = {k: torch.randn(v.shape, generator=g) * 0.3 for k, v in adapter.tensors(stack).items()}
    own = class_rows(stack, "dog")
    return lora | {"token": torch.cat([own[:2] + torch.randn(2, own.shape[1], generator=g) * 0.2, own])}


@pytest.fixture
def studio(cli, base: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Callable:
    """A project with <dog>, <cup> and a joint adapter of <rex> and <mat>; the tiny base is its base."""
    monkeypatch.setenv("OBJTUNE_BASE", str(base))
    for name, objects in {"dog": {"dog": "dog"}, "cup": {"cup": "mug"}, "pair": {"rex": "dog", "mat": "mat"}}.items():
        lora = {k: v * (1 if name == "dog" else -1) for k, v in weights.items() if k != "token"}
        tokens = {f"token.{o}": weights["token"] for o in objects}
        artifact.publish(Path("artifacts"), Record("adapter", name, objects, {}, {"rank": 2}, bases.find(str(base)).record()), lora | tokens)
    return cli


def drawn(result) -> list[np.ndarray]:
    assert result.code == 0, result.err
    return [np.asarray(Image.open(path)) for path in result.out.splitlines()]


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
    assert [p.tobytes() for p in drawn(two)] == [shown[2**64 - 1], shown[0]] and "Seed: 0," in parameters(two)[1]  # the seed after the last one
    scene = studio("compose", "<dog> and <cup>", *ONE, "--retries", 0, "--seed", 2**64 - 1, "--json")
    assert json.loads(scene.out)["metrics"]["scene/dog-cup@1"]["seeds"] == [2**64 - 1]


def test_a_seed_that_is_none_is_refused_in_one_line(studio):
    for line in (("generate", "<dog>"), ("compose", "<dog>"), ("train", "photo.jpg", "--class", "dog"), ("evaluate", "dog"), ("bench",)):
        result = studio(*line, "--seed", -1)
        assert result.code == 2 and "error: --seed is -1" in result.err and "no seed is drawn at random" in result.err
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
    assert studio("generate", "<dog>", *ONE, "--size", "32x32").out == own.out and studio("generate", "<dog>", *ONE, "--width", 0).out == own.out
    config = artifact.read_record(Path("artifacts"), refs.parse("scene/dog@3")).config
    assert "width" not in config and "height" not in config  # the same identity as before there were sizes
    Path(tall.out.strip()).unlink()
    assert drawn(studio("generate", "<dog>", *ONE, "--height", 48))[0].shape == (48, 32, 3)  # decoded again


def test_sizes_are_rounded_with_a_note_and_refused_in_one_line(studio):
    odd = studio("generate", "<dog>", *ONE, "--size", "50x35")
    assert drawn(odd)[0].shape == (32, 48, 3) and "pictures are 48x32 px, not 50x35: this base draws multiples of 8 px" in odd.err
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
    line = ("compose", "<dog> and <cup> and <rex>", *ONE, "--retries", 0, "--set", "compose.check=none")
    free = studio(*line)
    assert drawn(free)[0].shape == (32, 48, 3)  # three side by side need the room
    for size, shape in (("32x32", (32, 32, 3)), ("32x64", (64, 32, 3))):
        result = studio(*line, "--size", size)
        assert drawn(result)[0].shape == shape and f"Size: {size}," in parameters(result)[0] and result.out != free.out
    assert np.asarray(Image.open(Path(result.out.strip()).with_name("layout.png"))).shape[:2] == (512, 256)
    placed = studio("compose", "<dog> and <cup>", "--place", "dog=top", "--place", "cup=bottom", *ONE, "--retries", 0, "--height", 48)
    assert drawn(placed)[0].shape == (48, 32, 3)


def test_a_base_says_what_sides_it_draws_before_it_is_loaded(base):
    found, stack = bases.find(str(base)), stacks.load(base, torch.device("cpu"), torch.float32)
    assert (found.side, found.unit, found.factor) == (stack.size, stack.unit, stack.factor)
    for name, expected in {"sd1": (512, 64, 8192), "sd2": (768, 64, 8192), "sdxl": (1024, 32, 8192), "sd3": (1024, 16, 3072)}.items():
        whole = replace(found, folder=single.LAYOUTS / name, family=families.named("" if name == "sd1" else name))
        assert (whole.side, whole.unit, whole.largest_side) == expected
