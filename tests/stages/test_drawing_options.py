"""Options of drawing: seeds of other tools."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from objtune_cli import bases
from objtune_cli.models import adapter
from objtune_cli.models import stack as stacks
from objtune_cli.models.tokens import class_rows
from objtune_cli.store import artifact
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
