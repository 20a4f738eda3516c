"""Random shapes and the hints drawn on them: what the small segmenter learns from is what it says it is."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before segment-anything asks for it)
from objtune_cli.segmentation import sam_models
from objtune_cli.toybox import random_shapes
from objtune_cli.toybox.recipe import segmenter
from objtune_cli.toybox.recipe.presets import CPU


@pytest.mark.parametrize("seed", range(12))
def test_masks_of_a_picture_share_no_pixel_and_a_seed_names_it(seed: int) -> None:
    rgb, masks = random_shapes.sample_picture(np.random.default_rng(seed), 96)
    again, _ = random_shapes.sample_picture(np.random.default_rng(seed), 96)
    assert rgb.shape == (96, 96, 3) and rgb.dtype == np.uint8 and np.array_equal(rgb, again)
    assert 1 <= len(masks) <= 4
    assert np.stack(masks).astype(int).sum(0).max() <= 255 + len(masks)


def test_a_shape_looks_like_its_mask() -> None:
    """Without the shape the picture would be another one exactly where the mask is."""
    seen = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        ground = random_shapes.texture(rng, 96)
        rgb, masks = random_shapes.sample_picture(np.random.default_rng(seed), 96)
        cover = np.stack(masks).max(0)
        far = cv2.dilate((cover > 0).astype(np.uint8), np.ones((41, 41), np.uint8)) == 0  # beyond shadows
        if far.any():
            seen += int(np.array_equal(rgb[far], ground[far]))
    assert seen > 5


def test_hints_say_what_they_mean() -> None:
    for seed in range(6):
        given = segmenter.sample_batch(np.random.default_rng(seed), 3, 96)
        pictures, hints = given["pointed"].shape[:2]
        assert (
            (pictures, hints) == (3, segmenter.HINTS)
            and given["rgb"].shape == (3, 3, 96, 96)
            and given["rgb"].max() > 1
        )
        for b in range(pictures):
            for k in range(hints):
                for (x, y), sign in zip(given["points"][b, k].tolist(), given["signs"][b, k].tolist(), strict=True):
                    assert (given["pointed"][b, k, int(y), int(x)] > 0.5) == (sign == 1)
                x0, _, _, y1 = (float(v) for v in given["boxes"][b, k])
                ys, xs = (given["boxed"][b, k] > 0.5).nonzero(as_tuple=True)
                room = 0.1 * max(float(xs.max() - xs.min()), float(ys.max() - ys.min())) + 1.5
                assert abs(x0 - float(xs.min())) <= room and abs(y1 - float(ys.max()) - 1) <= room
                rough = torch.nn.functional.interpolate(given["rough"][b, k][None], (96, 96))[0, 0] > 0
                true = given["boxed"][b, k] > 0.5
                if true.sum() > 400:
                    assert float((rough & true).sum() / (rough | true).sum()) > 0.4


def test_rows_decoded_together_are_those_decoded_alone() -> None:
    """The decoder is made for one picture; several at once must not see each other."""
    torch.manual_seed(0)
    network = sam_models.build_sam(
        replace(sam_models.Dims(), side=64, depth=1, global_attn_indexes=(0,), width=32, prompt=32, mlp=32)
    ).eval()
    given = segmenter.sample_batch(np.random.default_rng(1), 2, 64)
    with torch.no_grad():
        seen = network.image_encoder(given["rgb"])
        together, quality = segmenter.decode_masks(network, seen, boxes=given["boxes"])
        for b in range(2):
            sparse, dense = network.prompt_encoder(points=None, boxes=given["boxes"][b], masks=None)
            alone, said = network.mask_decoder.predict_masks(
                seen[b : b + 1], network.prompt_encoder.get_dense_pe(), sparse, dense
            )
            torch.testing.assert_close(together[b], alone)
            torch.testing.assert_close(quality[b], said)


def test_a_fast_sampling_then_published_weights_open(tmp_path: Path) -> None:
    preset = replace(CPU, segmenter_steps=2, segmenter_batch=2)
    network = segmenter.train(tmp_path, preset)
    segmenter.publish(network, tmp_path / "out", preset, "abc")
    model, name = sam_models.load_embedded(tmp_path / "out")
    assert name == "toybox-sam"
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[key], atol=2e-3, rtol=2e-3)
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < 8 << 20
    found = segmenter.evaluate(network, preset, count=2)
    assert found and all(0 <= v <= 1 for v in found.values())
