"""Models opened and layers made by several threads: what the libraries change for all of them meanwhile reaches no other's work."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from objtune_cli.lora import layers as adapter
from objtune_cli.models import clip, loading, registry
from objtune_cli.runtime import load_lock
from objtune_cli.segmentation import sam_models
from tests.support import tiny_sd1

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd1.build(tmp_path_factory.mktemp("loading") / "tiny", clip=True)


def _while_opening(base: Path, work: Callable[[], Any], count: int) -> list[Any]:
    """What `work` gives, time and again, while another thread opens the base and its CLIP."""
    over, wrong = threading.Event(), []

    def opening() -> None:
        while not over.is_set():
            try:
                clip.load(base / "clip", loading.load(base, CPU, torch.float32))
            except Exception as error:
                wrong.append(error)

    other = threading.Thread(target=opening)
    other.start()
    try:
        found = [work() for _ in range(count)]
    finally:
        over.set()
        other.join()
    assert not wrong, wrong[0]
    return found


def test_layers_made_while_a_base_is_opened_have_values_and_always_the_same(base: Path) -> None:
    """Opened meanwhile, they once lay on `meta`, or were not started: two photos of one command failed, rarely."""
    base_model, number = loading.load(base, CPU, torch.float32), iter(range(1000))

    def made() -> list[torch.Tensor]:
        return [p.detach().clone() for p in adapter.add(base_model, 2, "attention", 0, f"lora{next(number)}")]

    first = made()
    for layers in _while_opening(base, made, 12):
        assert all(a.device == CPU and torch.equal(a, b) for a, b in zip(layers, first, strict=True))


def test_so_does_a_segmenter(base: Path) -> None:
    for model, _ in _while_opening(base, lambda: sam_models.load_embedded(registry.TOYBOX_SEGMENTER), 3):
        assert {p.device for p in model.parameters()} == {CPU}


def test_the_default_format_stays_what_it_is_while_half_precision_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other threads draw their noise meanwhile."""
    from transformers import CLIPModel, CLIPTextModel

    folder = tiny_sd1.build(tmp_path / "half", clip=True)
    for kind, part in ((CLIPModel, "clip"), (CLIPTextModel, "text_encoder")):
        kind.from_pretrained(folder / part).half().save_pretrained(folder / part)
    seen: set[torch.dtype] = set()
    change = torch.set_default_dtype
    monkeypatch.setattr(torch, "set_default_dtype", lambda dtype: (seen.add(dtype), change(dtype)))
    clip.load(folder / "clip", loading.load(folder, CPU, torch.float32))
    assert seen <= {torch.float32}, seen


def test_the_lock_is_taken_again_by_its_holder() -> None:
    with load_lock.LOAD_LOCK, load_lock.LOAD_LOCK:
        pass
