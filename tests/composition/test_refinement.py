"""A closer look at the objects of a scene: what is cut out and laid back, what the noise is, whose adapter draws."""

from pathlib import Path

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)

# isort: split
import cv2
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline

from objtune_cli.composition import object_loras, refinement, region_masks
from objtune_cli.composition.presence import crop_to_box
from objtune_cli.composition.refinement import CROP_MARGIN, RefinedObject, RefinementSettings
from objtune_cli.generation.sampling import resample, sample
from objtune_cli.generation.settings import SamplingSettings
from objtune_cli.lora import layers
from objtune_cli.models import loading
from objtune_cli.models.base_model import BaseModel
from objtune_cli.segmentation.grabcut import GrabCut
from objtune_cli.segmentation.types import Hints

PROMPT = "a photo of a dog"
LEFT, RIGHT = (0.02, 0.25, 0.5, 0.95), (0.5, 0.25, 0.98, 0.95)


def smooth(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Pictures (2, 3, H, W) in [-1, 1] without a sharp edge."""
    coarse = torch.rand((2, 3, 4, 4), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True).clamp(
        -1, 1
    )


def lora(tiny_base: Path, seed: int = 0) -> dict[str, torch.Tensor]:
    other = loading.load(tiny_base, torch.device("cpu"), torch.float32)
    layers.add(other, 2, "all", seed=0)
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(v.shape, generator=g) * 0.3 for k, v in layers.state_dict(other).items()}


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (48, 40)])
@pytest.mark.parametrize("box", [LEFT, (0.3, 0.1, 0.55, 0.9), (0.0, 0.0, 1.0, 1.0)])
def test_what_is_cut_out_and_laid_back_is_where_it_was(size: tuple[int, int], box: tuple[float, ...]) -> None:
    pictures = smooth(*size)
    view = crop_to_box((pictures + 1) / 2, box, 128, CROP_MARGIN) * 2 - 1
    share = region_masks.region_weights([box], size)[0]
    back = refinement.paste(pictures, view, box, share, whole=True)
    assert float((back - pictures).abs().max()) < 0.06
    marked = refinement.paste(pictures, torch.ones_like(view), box, share, whole=True)
    assert torch.equal(marked[..., share == 0], pictures[..., share == 0]) and torch.allclose(
        marked[..., share == 1], torch.ones(())
    )


def test_of_two_that_overlap_the_front_one_is_whole() -> None:
    boxes = [(0.1, 0.1, 0.7, 0.9), (0.4, 0.2, 0.9, 0.8)]
    own = region_masks.region_weights(boxes, (50, 50))
    shown = torch.zeros(1, 3, 50, 50)
    for value, box, share in zip((-1.0, 1.0), boxes, own, strict=True):
        shown = refinement.paste(shown, torch.full((1, 3, 20, 20), value), box, share, whole=True)
    assert float(shown[0, 0, 25, 27]) == 1 and float(shown[0, 0, 25, 8]) == -1 and float(shown[0, 0, 2, 2]) == 0


GROUND, OTHER, RED, BLUE = (-0.2, 0.6, 0.1), (0.0, 0.8, 0.3), (0.9, -0.8, -0.8), (-0.8, -0.8, 0.9)


def disc(
    side: int, middle: tuple[float, float], radius: float, colour: tuple[float, ...], ground: tuple[float, ...]
) -> torch.Tensor:
    """A disc on one colour, (1, 3, side, side); middle and radius in px."""
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    inside = ((x - middle[0]) ** 2 + (y - middle[1]) ** 2).sqrt() <= radius
    return torch.where(inside, torch.tensor(colour)[:, None, None], torch.tensor(ground)[:, None, None])[None]


@pytest.mark.parametrize("side", [64, 160, 400])
@pytest.mark.parametrize(("middle", "radius"), [((0.5, 0.5), 0.2), ((0.45, 0.55), 0.12), ((0.5, 0.5), 0.28)])
def test_the_object_is_laid_back_without_the_ground_around_it(
    side: int, middle: tuple[float, float], radius: float
) -> None:
    """A red disc of 0.2 in the scene, a blue one on another green in the closer look: all of the blue is there, nothing of the red, and the scene's green is as it was."""
    box = (0.1, 0.1, 0.9, 0.9)
    reach = 0.8 * (1 + CROP_MARGIN)
    scene = disc(side, (0.5 * side, 0.5 * side), 0.2 * side, RED, GROUND)
    close = disc(128, *(tuple(128 * ((m - 0.5) / reach + 0.5) for m in middle), 128 * radius / reach), BLUE, OTHER)
    share = region_masks.region_weights([box], (side, side))[0]
    shown = refinement.paste(scene, close, box, share)
    red, blue = (float((shown - torch.tensor(c)[:, None, None]).abs().amax(1).lt(0.35).sum()) for c in (RED, BLUE))
    assert red == 0 and blue == pytest.approx(torch.pi * (radius * side) ** 2, rel=0.2)
    y, x = torch.meshgrid(*[(torch.arange(side) + 0.5) / side] * 2, indexing="ij")
    far = (
        torch.minimum(
            ((x - 0.5) ** 2 + (y - 0.5) ** 2).sqrt() - 0.2,
            ((x - middle[0]) ** 2 + (y - middle[1]) ** 2).sqrt() - radius,
        )
        > 0.18
    )
    torch.testing.assert_close(shown[..., far], scene[..., far], rtol=0, atol=2e-3)
    whole = refinement.paste(scene, close, box, share, whole=True)
    corner = int(0.2 * side)
    assert torch.allclose(
        whole[0, :, corner, corner], torch.tensor(OTHER), atol=0.05
    )  # all of the place brings its ground along
    assert torch.equal(refinement.paste(scene, close, box, share), shown)


@pytest.mark.parametrize("seed", range(3))
def test_where_no_outline_is_found_all_of_the_place_is_laid_back(seed: int) -> None:
    """Nothing stands out in one colour."""
    flat = torch.full((1, 3, 64, 64), -0.5 + 0.4 * seed)
    close, share = torch.full((1, 3, 32, 32), 0.9), region_masks.region_weights([LEFT], (64, 64))[0]
    torch.testing.assert_close(
        refinement.paste(flat, close, LEFT, share), refinement.paste(flat, close, LEFT, share, whole=True)
    )


@pytest.mark.parametrize("size", [(64, 96), (48, 40)])
@pytest.mark.parametrize(
    "box", [(0.5, 0.5, 0.505, 0.9), (0.995, 0.0, 1.0, 1.0), (0.0, 0.99, 0.02, 1.0), (0.2, 0.2, 0.21, 0.21)]
)
def test_a_place_of_a_pixel_or_less_has_an_outline_of_some_kind(box: tuple[float, ...], size: tuple[int, int]) -> None:
    pictures = smooth(*size)
    found = refinement.paste_masks(pictures, pictures.flip(-1), box)
    assert found.shape == (2, 1, *size) and bool(((found >= 0) & (found < 1.001)).all())


def test_pieces_of_an_object_belong_to_it_and_specks_do_not() -> None:
    """A mug's handle of 12 % of its body beside it, and a sun of 2 %; a picture that is segmented has one piece."""
    rgb = np.full((160, 160, 3), (90, 200, 120), np.uint8)
    for x, y, r in ((60, 90, 40), (125, 90, 14), (130, 20, 5)):
        cv2.circle(rgb, (x, y), r, (220, 30, 30), -1)
    found = {}
    for apart in (1.0, 0.03):
        cutter = GrabCut()
        cutter.min_piece_share, cutter.core_radius = apart, 0.0
        cutter.set_image(rgb)
        found[apart] = cutter.predict(Hints((4, 4, 156, 156))).mask
    assert [[bool(mask[y, x]) for x, y in ((60, 90), (125, 90), (130, 20))] for mask in found.values()] == [
        [True, False, False],
        [True, True, False],
    ]


@pytest.mark.parametrize("scheduler", ["auto", "ddim", "euler", "dpm++"])
@pytest.mark.parametrize(("strength", "taken"), [(0.5, 4), (0.01, 1), (1.0, 8)])
def test_steps_from_the_middle_are_those_of_diffusers(
    model: BaseModel, scheduler: str, strength: float, taken: int
) -> None:
    start = sample(model, PROMPT, [1, 2], SamplingSettings(3, 1.0))
    counted: list[tuple[int, int]] = []
    ours = resample(
        model,
        start,
        PROMPT,
        [5, 6],
        strength,
        SamplingSettings(8, 3.0, scheduler, negative_prompt="a cat"),
        lambda done, total: counted.append((done, total)),
    )
    assert counted == [(i + 1, taken) for i in range(taken)] and ours.isfinite().all()
    plain = model.pipeline(
        "ddim" if scheduler == "auto" else scheduler
    )  # the base's own, PNDM, cannot begin in the middle
    parts = {
        "text_encoder": None,
        "tokenizer": None,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    pipe = StableDiffusionImg2ImgPipeline(vae=model.vae, unet=model.denoiser, scheduler=plain.scheduler, **parts)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        image=start, strength=max(strength, 1 / 8), num_inference_steps=8, guidance_scale=3.0, output_type="latent",
        generator=[torch.Generator().manual_seed(s) for s in (5, 6)],
        prompt_embeds=model.encode_prompt([PROMPT] * 2).sequence, negative_prompt_embeds=model.encode_prompt(["a cat"] * 2).sequence,
    ).images  # fmt: skip
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_little_noise_changes_little_and_wears_nothing_out(model: BaseModel) -> None:
    start = sample(model, PROMPT, [1], SamplingSettings(4, 1.0))
    moved = [
        float((resample(model, start, PROMPT, [3], strength, SamplingSettings(20, 1.0)) - start).abs().mean())
        for strength in (0.05, 0.5, 1.0)
    ]
    assert moved[0] < 0.3 * moved[1] < 0.3 * moved[2] * 1.5
    assert torch.equal(sample(model, PROMPT, [1], SamplingSettings(4, 1.0)), start)


def test_alone_the_adapter_acts_as_pefts_own(model: BaseModel, tiny_base: Path) -> None:
    weights = lora(tiny_base)
    z, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([700, 20])
    told = model.encode_prompt([PROMPT, "a cat on the beach"])
    with torch.no_grad():
        before = model.predict(z, t, told)
        with object_loras.single_lora(model, weights):
            ours = model.predict(z, t, told)
        assert torch.equal(model.predict(z, t, told), before)
        layers.load(model, weights)
        theirs = model.predict(z, t, told)
    assert float((ours - before).abs().max()) > 1e-2
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_scenes_are_made_again_of_what_was_kept(model: BaseModel, tiny_base: Path) -> None:
    """In a wide picture; each object by its own adapter and prompt; the order is from the back to the front."""
    latents = sample(model, "a dog and a cat", [1, 2], SamplingSettings(3, 2.0, height=64, width=96))
    objects = [
        RefinedObject("a", lora(tiny_base, 1), LEFT, PROMPT),
        RefinedObject("b", {}, (0.4, 0.3, 0.8, 0.9), "a cat"),
    ]
    told: list[tuple[str, int, int]] = []
    close, shown = refinement.refine_objects(
        model,
        latents,
        objects,
        [7, 8],
        RefinementSettings(0.5, SamplingSettings(4, 2.0)),
        lambda *step: told.append(step),
    )
    assert told == [("a", 1, 2), ("a", 2, 2), ("b", 1, 2), ("b", 2, 2)]
    assert {name: z.shape for name, z in close.items()} == {name: (2, 4, 8, 8) for name in "ab"}
    assert torch.equal(refinement.composite(model, latents, close, {o.name: o.box for o in objects}), shown)
    plain = model.decode_latents(latents)
    entire, all_of_it = refinement.refine_objects(
        model,
        latents,
        objects,
        [7, 8],
        RefinementSettings(0.5, SamplingSettings(4, 2.0), whole=True),
        lambda *step: None,
    )
    assert torch.equal(
        refinement.composite(model, latents, entire, {o.name: o.box for o in objects}, whole=True), all_of_it
    )
    free = region_masks.region_weights([o.box for o in objects], (64, 96)).sum(0) == 0
    assert torch.equal(shown[..., free], plain[..., free]) and float((shown - plain).abs().max()) > 0.05
    one, _ = refinement.refine_objects(
        model, latents[:1], objects, [7], RefinementSettings(0.5, SamplingSettings(4, 2.0)), lambda *_: None
    )
    torch.testing.assert_close(one["a"][0], close["a"][0], rtol=0, atol=1e-3)
    assert torch.equal(refinement.composite(model, latents, {}, {}), plain.cpu())
