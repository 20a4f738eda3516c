"""Cut-outs for the image tower: what they show, what counts as nothing, and what the loss says."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before transformers asks for it)
from objtune_cli.models.clip import BACKGROUND_LABELS
from objtune_cli.models.registry import TOYBOX_FOLDER
from objtune_cli.toybox.recipe import clip_cutouts
from objtune_cli.toybox.world import DIALS

MEDIUM = DIALS["medium"]


@pytest.fixture(scope="module")
def drawn() -> clip_cutouts.Bank:
    return clip_cutouts.render_bank(MEDIUM, 3, 12, 96)


def test_a_scene_is_the_same_for_every_count(drawn: clip_cutouts.Bank) -> None:
    few = clip_cutouts.render_bank(MEDIUM, 3, 4, 96)
    assert few.scenes == drawn.scenes[:4]
    assert all(
        np.array_equal(a, b)
        for a, b in zip(clip_cutouts.render_bank(MEDIUM, 3, 4, 96, processes=2).pictures, few.pictures, strict=True)
    )
    assert np.array_equal(few.pictures, drawn.pictures[:4]) and np.array_equal(few.owner, drawn.owner[:4])


def test_every_object_that_is_seen_has_its_number(drawn: clip_cutouts.Bank) -> None:
    assert all(owner.max() <= len(scene.objects) for owner, scene in zip(drawn.owner, drawn.scenes, strict=True))
    assert all(owner.any() for owner in drawn.owner)


def test_worn_masks_stay_on_their_object(drawn: clip_cutouts.Bank) -> None:
    rng = np.random.default_rng(0)
    exact = (drawn.owner[0] == 1).astype(np.uint8)
    for _ in range(40):
        mask = clip_cutouts.distort_mask(exact, rng) > 0.5
        assert (mask & (exact > 0)).sum() / (mask | (exact > 0)).sum() > 0.6


def test_nothing_is_no_object(drawn: clip_cutouts.Bank) -> None:
    rng = np.random.default_rng(0)
    for i in range(60):
        row = i % len(drawn.scenes)
        mask = clip_cutouts.cut_background(drawn, row, rng) > 0.5
        assert mask.any()
        for k in range(int(drawn.owner[row].max())):
            own = drawn.owner[row] == k + 1
            assert (mask & own).sum() / (mask | own).sum() < 0.5


def test_cut_outs_come_with_their_class_and_words(drawn: clip_cutouts.Bank) -> None:
    shown, label, words = clip_cutouts.cut(drawn, np.arange(12), MEDIUM, np.random.default_rng(1), 32)
    assert shown.shape == (12, 3, 32, 32) and shown.min() >= 0 and shown.max() <= 1
    assert (label >= 0).any() and (label < 0).any()
    assert all(MEDIUM.classes[k] in text for k, text in zip(label.tolist(), words, strict=True) if k >= 0)


def test_likeness_loss_by_hand() -> None:
    """Orthogonal words: a vector on one has logit SHARPNESS there and 0 elsewhere."""
    told = torch.eye(2 + len(BACKGROUND_LABELS))
    z = math.exp(clip_cutouts.SHARPNESS) + len(told) - 1
    right = -math.log(math.exp(clip_cutouts.SHARPNESS) / z)
    assert float(clip_cutouts.likeness_loss(told[:1], told, torch.tensor([0]))) == pytest.approx(right, abs=1e-6)
    assert float(clip_cutouts.likeness_loss(told[:1], told, torch.tensor([1]))) == pytest.approx(
        clip_cutouts.SHARPNESS + right, rel=1e-5
    )
    nothing = -math.log((math.exp(clip_cutouts.SHARPNESS) + len(BACKGROUND_LABELS) - 1) / z)
    assert float(clip_cutouts.likeness_loss(told[3:4], told, torch.tensor([-1]))) == pytest.approx(nothing, abs=1e-6)


def test_publishing_changes_the_image_tower_alone(tmp_path: Path) -> None:
    from transformers import CLIPModel

    folder = tmp_path / "base"
    shutil.copytree(TOYBOX_FOLDER / "clip", folder / "clip")
    shutil.copy(TOYBOX_FOLDER / "toybox.json", folder)
    clip = CLIPModel.from_pretrained(folder / "clip", local_files_only=True)
    with torch.no_grad():
        for p in clip.parameters():
            p.add_(0.25)
    before = load_file(folder / "clip" / "model.safetensors")
    clip_cutouts.publish(clip, folder, "abc", 7)
    after = load_file(folder / "clip" / "model.safetensors")
    assert before.keys() == after.keys() and all(after[k].dtype == v.dtype for k, v in before.items())
    changed = {k for k, v in before.items() if not np.array_equal(v, after[k])}
    assert changed == {k for k in before if k.startswith(("vision_model.", "visual_projection."))} - {
        "vision_model.embeddings.position_ids"
    }
    assert json.loads((folder / "toybox.json").read_text())["cutouts"] == {"steps": 7, "commit": "abc"}
