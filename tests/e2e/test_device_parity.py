"""The path of `train`, `generate`, `compose` and `evaluate` on a device that is not the processor: nothing of the two is mixed, and both give the same."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from objtune_cli.store import refs
from objtune_cli.store.store import Store
from tests.conftest import Result
from tests.support import fake_device, tiny_families, tiny_sd1

pytestmark = [pytest.mark.usefixtures("fast_sampling", "cached_segmentation"), pytest.mark.commands]

FEW = ("init-embedding.steps=2", "train.max_steps=3", "train.rank=2", "train.num_augmentations=3", "train.num_teacher_samples=2", "prior.num_class_images=2", "prior.num_predictions=4", "generate.num_inference_steps=3",
       "compose.max_retries=1", "segment.min_class_probability=0", "segment.min_score_margin=-99", "segment.min_score=-99")  # fmt: skip
Run = Callable[..., Result]


@pytest.fixture
def both(cli: Run, monkeypatch: pytest.MonkeyPatch, dog_photo: Path) -> Callable[..., None]:
    """`both("train", …)`: the command in a project of each device; exit code 0."""
    for name, left in (("mask", 160), ("other", 460)):
        mask = np.zeros((640, 640), np.uint8)
        mask[120:520, left : left + 280] = 255
        Image.fromarray(mask).save(f"{name}.png")
    fake_device.used(monkeypatch)
    for name in ("here", "there"):
        Path(name).mkdir()
        Path(name, "objtune.toml").touch()

    def run(*words: object) -> None:
        given = [*words, *(word for each in FEW for word in ("--set", each)), "--precision", "fp32"]
        assert cli(*given, "--project", "here", "--device", "cpu").code == 0
        with fake_device.device() as device:
            done = cli(*given, "--project", "there", "--device", device)
        assert done.code == 0, done.err[-3000:]

    return run


def _same(kind: str, name: str, version: int = 1) -> None:
    """The tensors of an artifact of both projects, but for rounding."""
    (_, one), (_, two) = (Store.at(Path(side)).read(refs.Ref(kind, name, version)) for side in ("here", "there"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        np.testing.assert_allclose(two[key], value, rtol=1e-3, atol=1e-4, err_msg=f"{kind}/{name} {key}")


def test_a_device_refuses_what_a_gpu_refuses() -> None:
    """Or all that follows would prove nothing."""
    with fake_device.device() as device:
        there = torch.ones(2, 3, device=device)
        for mixed in (lambda: there + torch.ones(2, 3), lambda: there @ torch.ones(3, 2), lambda: torch.cat([there, torch.ones(1, 3)]),
                      lambda: torch.nn.functional.embedding(torch.tensor([0]), there), lambda: there.numpy()):  # fmt: skip
            with pytest.raises((RuntimeError, TypeError)):
                mixed()
        assert (
            (2 * there).sum().item() == 12
            and (there * torch.tensor(2.0)).cpu().tolist() == [[2, 2, 2]] * 2
            and there[torch.tensor([0])].shape == (1, 3)
        )
        leaf = torch.ones(3, device=device, requires_grad=True)
        (leaf * there).sum().backward()
        assert leaf.grad is not None and leaf.grad.device == device and leaf.grad.cpu().tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "family", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow), pytest.param("sd3", marks=pytest.mark.slow)]
)
def test_an_object_is_learned_and_drawn(
    both: Callable[..., None], tmp_path: Path, dog_photo: Path, family: str
) -> None:
    """The first of them is judged and shown too."""
    base = (
        tiny_sd1.build(tmp_path / "base", clip=True)
        if family == "sd1"
        else getattr(tiny_families, family)(tmp_path / "base")
    )
    shown = () if family == "sd1" else ("--no-preview", "--set", "train.self_evaluation=false")
    both("train", dog_photo, "--class", "dog", "--mask", "mask.png", "--base", base, *shown)
    for kind in ("embedding", "prior", "adapter"):
        _same(kind, "dog")
    both("generate", "a photo of <dog> on the beach", "-n", "1", "--base", base)
    _same("scene", "dog")


@pytest.mark.slow
def test_objects_are_learned_together_and_composed(both: Callable[..., None], base: Path, dog_photo: Path) -> None:
    """With the term on where words look, in four rows that are computed again; two photos side by side."""
    alone = ("--base", base, "--no-preview", "--set", "train.self_evaluation=false")
    both(
        "train",
        dog_photo,
        "--class",
        "dog",
        "--class",
        "mug",
        "--name",
        "a",
        "--name",
        "b",
        "--mask",
        "a=mask.png",
        "--mask",
        "b=other.png",
        *alone,
        "--set",
        "train.gradient_checkpointing=on",
    )
    _same("adapter", "a-b")
    both(
        "train",
        dog_photo,
        "--class",
        "dog",
        "--name",
        "x",
        "--mask",
        "mask.png",
        dog_photo,
        "--class",
        "mug",
        "--name",
        "y",
        "--mask",
        "other.png",
        *alone,
    )
    _same("adapter", "x"), _same("adapter", "y")
    both("compose", "<x> next to <y> on the beach", "-n", "1", "--base", base)
    _same("scene", "x-y")
