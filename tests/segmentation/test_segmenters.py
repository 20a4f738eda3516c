"""GrabCut on drawn scenes of known truth; segment-anything built small from its own modules."""

import pickle
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from objtune_cli.errors import InputError
from objtune_cli.models import registry
from objtune_cli.segmentation import promptable, sam_models
from objtune_cli.segmentation.grabcut import GrabCut
from objtune_cli.segmentation.sam import SegmentAnything
from objtune_cli.segmentation.sam_models import load_official
from objtune_cli.segmentation.segmenters import SegmenterChoice, load_segmenter
from objtune_cli.segmentation.types import Hints, Proposal
from objtune_cli.toybox import renderer, world

SIDE = 256


def _scene(seed: int, kind: str, background: str, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """A lone object, and where it is."""
    rng = np.random.default_rng(seed)
    instance = world.sample_instance(rng, kind=kind)
    scene = world.sample_scene(rng, instances=(instance,), background=background)
    picture, (cover,) = renderer.render(scene, side)
    return picture, cover > 127


def _cut(picture: np.ndarray, hints: Hints) -> np.ndarray:
    segmenter = GrabCut()
    segmenter.set_image(picture)
    return segmenter.predict(hints).mask


def _by(checkpoint: Path, picture: np.ndarray, hints: Hints) -> np.ndarray:
    segmenter = SegmentAnything(*load_official(checkpoint))
    segmenter.set_image(picture)
    return segmenter.predict(hints).mask


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def _box(mask: np.ndarray, room: float = 3) -> tuple[float, float, float, float]:
    ys, xs = mask.nonzero()
    return float(xs.min() - room), float(ys.min() - room), float(xs.max() + 1 + room), float(ys.max() + 1 + room)


SCENES = [
    (0, "dog", "grass"),
    (1, "cat", "snow"),
    (2, "car", "beach"),
    (3, "house", "desert"),
    (4, "fish", "wood"),
    (5, "mug", "snow"),
]


@pytest.mark.parametrize("scene", SCENES, ids=lambda s: s[1])
def test_grabcut_from_a_box(scene: tuple[int, str, str]) -> None:
    picture, truth = _scene(*scene)
    found = _cut(picture, Hints(box_xyxy=_box(truth)))
    assert found.shape == truth.shape and found.dtype == bool
    assert _iou(found, truth) > 0.9


@pytest.mark.parametrize("scene", SCENES[:3], ids=lambda s: s[1])
def test_grabcut_from_a_point(scene: tuple[int, str, str]) -> None:
    picture, truth = _scene(*scene)
    depth = cv2.distanceTransform(truth.astype(np.uint8), cv2.DIST_L2, 5)
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    found = _cut(picture, Hints(points=((float(x), float(y)),)))
    assert found[y, x]
    assert _iou(found, truth) > 0.8


@pytest.mark.parametrize("scene", SCENES[:3], ids=lambda s: s[1])
def test_grabcut_without_a_hint_finds_the_object_in_the_middle(scene: tuple[int, str, str]) -> None:
    picture, truth = _scene(*scene)
    assert _iou(_cut(picture, Hints()), truth) > 0.8


def _discs(*discs: tuple[int, int, int], side: tuple[int, int] = (200, 260)) -> np.ndarray:
    """Red discs (x, y, radius) on noisy green."""
    noise = np.random.default_rng(0).integers(-6, 7, (*side, 3))
    picture = np.clip(np.array([60, 150, 70]) + noise, 0, 255).astype(np.uint8)
    for x, y, r in discs:
        cv2.circle(picture, (x, y), r, (200, 40, 40), -1)
    return picture


def _disc(x: int, y: int, r: int, side: tuple[int, int] = (200, 260)) -> np.ndarray:
    rows, columns = np.mgrid[: side[0], : side[1]]
    return (columns - x) ** 2 + (rows - y) ** 2 <= r * r


def test_specks_in_the_box_are_left_out() -> None:
    picture = _discs((130, 100, 40), (60, 40, 3), (70, 150, 4), (200, 60, 3))
    found = _cut(picture, Hints(box_xyxy=(50, 30, 215, 165)))
    assert _iou(found, _disc(130, 100, 40)) > 0.97
    assert not found[40, 60] and not found[150, 70] and not found[60, 200]


def test_small_holes_are_filled_large_ones_stay() -> None:
    holes = _disc(105, 100, 2) | _disc(150, 100, 20)  # 0.1 % and 11 % of the disc
    picture = np.where(holes[..., None], _discs(), _discs((130, 100, 60)))
    found = _cut(picture, Hints(box_xyxy=(60, 30, 200, 170)))
    assert found[100, 105]
    assert not found[100, 150]


def test_a_point_chooses_between_two_objects() -> None:
    picture = _discs((70, 100, 30), (190, 100, 40))
    for x, y, r in ((70, 100, 30), (190, 100, 40)):
        assert _iou(_cut(picture, Hints(points=((x, y),))), _disc(x, y, r)) > 0.95


def test_the_middle_counts_more_than_size() -> None:
    picture = _discs((130, 105, 28), (235, 30, 34))
    assert _iou(_cut(picture, Hints()), _disc(130, 105, 28)) > 0.95


def test_two_points_take_both_pieces() -> None:
    picture = _discs((70, 100, 30), (190, 100, 30))
    found = _cut(picture, Hints(box_xyxy=(30, 60, 230, 140), points=((70, 100), (190, 100))))
    assert _iou(found, _disc(70, 100, 30) | _disc(190, 100, 30)) > 0.95


def test_large_photos_are_cut_at_full_size() -> None:
    picture = cv2.resize(_discs((130, 100, 50)), (2080, 1600), interpolation=cv2.INTER_CUBIC)
    found = _cut(picture, Hints(box_xyxy=(600, 350, 1480, 1250)))
    assert found.shape == (1600, 2080)
    assert _iou(found, _disc(1040 + 4, 800 + 4, 400, (1600, 2080))) > 0.95


def test_a_plain_picture_gives_an_answer() -> None:
    assert _cut(np.full((64, 64, 3), 128, np.uint8), Hints()).shape == (64, 64)
    assert _cut(np.full((64, 64, 3), 128, np.uint8), Hints(box_xyxy=(10, 10, 50, 50))).dtype == bool


@pytest.mark.parametrize(
    "hints",
    [
        Hints(box_xyxy=(-20, -20, 400, 400)),
        Hints(points=((259.9, 199.9),)),
        Hints(points=((0, 0),)),
        Hints(box_xyxy=(120, 90, 121, 91)),
        Hints(box_xyxy=(-50, -50, -10, -10)),
        Hints(box_xyxy=(300, 300, 400, 400)),
    ],
)
def test_hints_at_the_frame_and_beyond_do_not_break_it(hints: Hints) -> None:
    assert _cut(_discs((130, 100, 40)), hints).shape == (200, 260)


def test_a_box_beside_the_picture_holds_nothing() -> None:
    for box in ((-50, -50, -10, -10), (300, 300, 400, 400), (-90, 50, -40, 150)):
        assert not _cut(_discs((130, 100, 40)), Hints(box_xyxy=box)).any()


def test_segmentation_is_repeatable_and_leaves_the_picture_alone() -> None:
    picture, _ = _scene(*SCENES[0])
    before = picture.copy()
    first = _cut(picture, Hints())
    cv2.setRNGSeed(77)
    assert np.array_equal(_cut(picture, Hints()), first)
    assert np.array_equal(picture, before)


def _tiny_sam(checkpoint: None = None, *, width: int = 768, image: int = 64) -> torch.nn.Module:
    """segment-anything's own modules with small numbers; 768 is the width by which vit_b is known."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
    from segment_anything.modeling import Sam as Model

    torch.manual_seed(0)
    return Model(
        image_encoder=ImageEncoderViT(
            depth=1, embed_dim=width, img_size=image, mlp_ratio=0.1, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=2, patch_size=16, qkv_bias=True, use_rel_pos=True, global_attn_indexes=(0,), window_size=2, out_chans=16,
        ),
        prompt_encoder=PromptEncoder(embed_dim=16, image_embedding_size=(4, 4), input_image_size=(image, image), mask_in_chans=4),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3, transformer=TwoWayTransformer(depth=1, embedding_dim=16, mlp_dim=16, num_heads=2),
            transformer_dim=16, iou_head_depth=2, iou_head_hidden_dim=16,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    ).eval()  # fmt: skip


def test_segment_anythings_automatic_masks_run_on_this_machine() -> None:
    """The generator calls torchvision's batched_nms, which a CPU build of torch lacks."""
    from segment_anything import SamAutomaticMaskGenerator

    generator = SamAutomaticMaskGenerator(
        _tiny_sam(width=16), points_per_side=3, pred_iou_thresh=-1e9, stability_score_thresh=-1.0, box_nms_thresh=0.7
    )
    masks = generator.generate(_scene(*SCENES[0], side=64)[0])
    assert masks and all(m["segmentation"].shape == (64, 64) for m in masks)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sam_models.sam_model_registry, "vit_b", _tiny_sam)
    path = tmp_path / "sam_vit_b.pth"
    torch.save(_tiny_sam().state_dict(), path)
    return path


@pytest.mark.parametrize(
    "hints", [Hints(), Hints(points=((20, 30),)), Hints(box_xyxy=(10, 5, 60, 40)), Hints((10, 5, 60, 40), ((20, 30),))]
)
def test_sam_from_a_checkpoint_answers_at_the_photos_size(checkpoint: Path, hints: Hints) -> None:
    assert load_segmenter(SegmenterChoice("sam", checkpoint)).name == "sam-vit_b"
    picture = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    mask = _by(checkpoint, picture, hints)
    assert mask.shape == (48, 80) and mask.dtype == bool
    assert np.array_equal(_by(checkpoint, picture, hints), mask)


def test_sam_from_safetensors(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(
        {k: v.contiguous() for k, v in torch.load(checkpoint, weights_only=True).items()}, tmp_path / "sam.safetensors"
    )
    picture = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    hints = Hints(points=((20, 30),))
    assert np.array_equal(_by(tmp_path / "sam.safetensors", picture, hints), _by(checkpoint, picture, hints))


class Hostile:
    """Unpickling it creates a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, form: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "sam.pth"
    content = {"image_encoder.patch_embed.proj.weight": Hostile(canary)}
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_official(path)
    assert not canary.exists()
    pickle.loads(pickle.dumps(content))  # the canary is alive: it would have sung
    assert canary.exists()


@pytest.mark.parametrize("keep", [0, 10, 1000, -100])
def test_a_truncated_checkpoint(checkpoint: Path, keep: int) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:keep])
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_official(checkpoint)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"weight": torch.ones(3)},
        {"image_encoder.patch_embed.proj.weight": torch.ones(5, 3, 16, 16)},
        {"image_encoder.patch_embed.proj.weight": torch.tensor(768.0)},
        {"image_encoder.patch_embed.proj.weight": 768},
        {"model": {"image_encoder.patch_embed.proj.weight": torch.ones(768, 3, 16, 16)}},
        [torch.ones(3)],
        torch.ones(768),
        "sam_vit_b",
    ],
    ids=["empty", "other", "narrow", "scalar", "number", "nested", "list", "tensor", "text"],
)
def test_a_file_that_is_something_else(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "sam.pth")
    with pytest.raises(InputError, match="not a segment-anything checkpoint"):
        load_official(tmp_path / "sam.pth")


def test_an_official_name_is_held_to_its_hash(checkpoint: Path) -> None:
    import hashlib

    official_name = checkpoint.with_name("sam_vit_b_01ec64.pth")
    official_name.write_bytes(checkpoint.read_bytes())
    with pytest.raises(InputError, match="does not match its name"):
        load_official(official_name)
    right = checkpoint.with_name(f"sam_vit_b_{hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:6]}.pth")
    checkpoint.rename(right)
    assert load_official(right)[1] == "sam-vit_b"


def test_a_checkpoint_of_another_build(checkpoint: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    for changed in ({k: v for k, v in state.items() if "mask_decoder" not in k}, state | {"neck": torch.ones(1)}):
        torch.save(changed, checkpoint)
        with pytest.raises(InputError, match="does not fit segment-anything's vit_b"):
            load_official(checkpoint)


def test_no_such_file(tmp_path: Path) -> None:
    for path in (tmp_path / "sam.pth", tmp_path):
        with pytest.raises(InputError, match="there is no file"):
            load_official(path)


def test_points_beside_the_object_take_pixels_away() -> None:
    picture = _discs((70, 100, 30), (128, 100, 30))
    both = _cut(picture, Hints(box_xyxy=(30, 60, 170, 140)))
    one = _cut(picture, Hints(box_xyxy=(30, 60, 170, 140), points=((70, 100),), negative_points=((140, 100),)))
    assert both[100, 140] and not one[100, 140] and one[100, 70]


def test_a_rough_mask_is_made_exact() -> None:
    picture = _discs((130, 100, 40))
    rough = cv2.dilate(_disc(124, 96, 38).astype(np.float32), np.ones((7, 7)))
    assert (
        _iou(_cut(picture, Hints(rough_mask=rough)), _disc(130, 100, 40))
        > 0.95
        > _iou(rough > 0.5, _disc(130, 100, 40))
    )


def test_everything_that_stands_out_is_proposed() -> None:
    segmenter = GrabCut()
    segmenter.set_image(_discs((60, 60, 25), (190, 130, 40)))
    found = [p.mask for p in segmenter.propose_all()]
    for disc in ((60, 60, 25), (190, 130, 40)):
        assert max(_iou(mask, _disc(*disc)) for mask in found) > 0.95


@pytest.fixture(scope="module")
def embedded() -> SegmentAnything:
    return load_segmenter(SegmenterChoice("sam", registry.TOYBOX_SEGMENTER))


@pytest.mark.parametrize("scene", SCENES, ids=lambda s: s[1])
def test_the_embedded_model_from_a_box_and_from_a_point(embedded: SegmentAnything, scene: tuple[int, str, str]) -> None:
    picture, truth = _scene(*scene)
    depth = cv2.distanceTransform(truth.astype(np.uint8), cv2.DIST_L2, 5)
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    embedded.set_image(picture)
    assert _iou(embedded.predict(Hints(box_xyxy=_box(truth))).mask, truth) > 0.9
    assert _iou(embedded.predict(Hints(points=((float(x), float(y)),))).mask, truth) > 0.85


def test_the_embedded_model_proposes_the_object(embedded: SegmentAnything) -> None:
    picture, truth = _scene(*SCENES[0])
    embedded.set_image(picture)
    found = embedded.propose_all()
    best = max(found, key=lambda p: _iou(p.mask, truth))
    assert _iou(best.mask, truth) > 0.85 and _iou(embedded.refine(best).mask, truth) > 0.9


def test_a_small_object_is_looked_at_again_from_nearer(
    embedded: SegmentAnything, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects a seventh of the photo wide: the mean over several, for one of them may be found as well at once."""
    near, once = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        pose = world.Pose(float(rng.uniform(0.2, 0.8)), float(rng.uniform(0.3, 0.8)), 0.15)
        picture, (cover,) = renderer.render(
            world.Scene(((world.sample_instance(rng, kind="dog"), pose),), "snow", seed), 480
        )
        truth = cover > 127
        embedded.set_image(picture)
        near.append(_iou(embedded.predict(Hints(_box(truth, 1))).mask, truth))
        with monkeypatch.context() as patch:
            patch.setattr(promptable, "ZOOM_BELOW", 0.0)
            once.append(_iou(embedded.predict(Hints(_box(truth, 1))).mask, truth))
    assert np.mean(near) > np.mean(once) + 0.03 and np.mean(near) > 0.8


def test_one_embedding_serves_every_hint(embedded: SegmentAnything, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, truth = _scene(*SCENES[0])
    seen: list[int] = []
    encode = type(embedded.model.image_encoder).forward
    monkeypatch.setattr(
        type(embedded.model.image_encoder), "forward", lambda self, x: seen.append(len(x)) or encode(self, x)
    )
    monkeypatch.setattr(promptable, "ZOOM_BELOW", 0.0)
    embedded.set_image(picture)
    for hints in (
        Hints(_box(truth)),
        Hints(points=((128, 128),)),
        Hints(_box(truth), negative_points=((3, 3),)),
        Hints(rough_mask=truth.astype(np.float32)),
    ):
        embedded.predict(hints)
    assert seen == [1]
    embedded.propose_all()
    assert seen == [1, 1]  # the generator embeds on its own; what is seen stays
    assert _iou(embedded.predict(Hints(_box(truth))).mask, truth) > 0.9


def test_broken_embedded_weights_say_so(tmp_path: Path) -> None:
    from objtune_cli.errors import ResourceError

    for name, data in (("config.json", b"{}"), ("model.safetensors", b"")):
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ResourceError, match="cannot be opened"):
        sam_models.load_embedded(tmp_path)


def test_grabcut_is_there_for_who_asks() -> None:
    assert load_segmenter(SegmenterChoice("grabcut")).name == "grabcut"
    assert isinstance(GrabCut().refine(Proposal(np.ones((2, 2), bool), 1.0)), Proposal)
