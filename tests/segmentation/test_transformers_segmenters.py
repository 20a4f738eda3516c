"""SAM 2.1 and SAM 3 with random weights in their true layouts: what comes out is what transformers' own processors make of it."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from objtune_cli.errors import DamagedError, InputError, ResourceError
from objtune_cli.models import segmenter_lookup
from objtune_cli.segmentation import promptable, sam3, transformers_sam
from objtune_cli.segmentation.sam3 import Sam3
from objtune_cli.segmentation.segmenters import SegmenterChoice, load_segmenter
from objtune_cli.segmentation.transformers_sam import TransformersSam
from objtune_cli.segmentation.types import Hints, Proposal
from tests.support import tiny_segmenters

CLASSES = {"sam2": ("Sam2Model", "Sam2Processor"), "sam3": ("Sam3TrackerModel", "Sam3TrackerProcessor")}
RGB = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
BOX = (10.0, 5.0, 60.0, 40.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("segmenters")
    return {
        "sam2": tiny_segmenters.save_sam2(place / "tiny-sam2"),
        "sam3": tiny_segmenters.save_sam3(place / "tiny-sam3"),
    }


@pytest.fixture(params=["sam2", "sam3"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def segmenter(folders: dict[str, Path], kind: str) -> TransformersSam:
    loaded = load_segmenter(SegmenterChoice(kind, folders[kind]))
    assert isinstance(loaded, TransformersSam) and loaded.name == kind
    loaded.set_image(RGB)
    return loaded


def _reference(folder: Path, kind: str, *, multimask: bool, masks: Any = None, **prompts: Any) -> tuple[Any, Any]:
    """Masks and scores as the model's page computes them: one call with the image and the prompts."""
    import transformers

    model, processor = (getattr(transformers, name) for name in CLASSES[kind])
    model, processor = model.from_pretrained(folder).eval(), processor.from_pretrained(folder)
    inputs = processor(images=RGB, return_tensors="pt", **prompts)
    extra = {} if masks is None else {"input_masks": torch.from_numpy(masks)[None, None]}
    with torch.no_grad():
        outputs = model(
            **{k: v for k, v in inputs.items() if k != "original_sizes"}, multimask_output=multimask, **extra
        )
    masks = processor.post_process_masks(outputs.pred_masks, inputs["original_sizes"])[0]
    return masks.flatten(0, 1).numpy(), outputs.iou_scores.flatten().numpy()


def _assert_same(proposals: list[Proposal], masks: Any, scores: Any) -> None:
    assert len(proposals) == len(masks) > 0
    assert np.array_equal([p.mask for p in proposals], masks)
    assert np.allclose([p.quality for p in proposals], scores, atol=1e-6)


@pytest.mark.parametrize(
    ("hints", "prompts"),
    [
        (Hints(points=((20, 30),)), {"input_points": [[[[20, 30]]]], "input_labels": [[[1]]]}),
        (
            Hints(points=((20, 30), (50, 9)), negative_points=((3, 3),)),
            {"input_points": [[[[20, 30], [50, 9], [3, 3]]]], "input_labels": [[[1, 1, 0]]]},
        ),
        (Hints(BOX), {"input_boxes": [[list(BOX)]]}),
        (
            Hints(BOX, ((20, 30),), ((3, 3),)),
            {"input_boxes": [[list(BOX)]], "input_points": [[[[20, 30], [3, 3]]]], "input_labels": [[[1, 0]]]},
        ),
    ],
    ids=["point", "points", "box", "all"],
)
def test_masks_are_those_of_transformers(
    folders: dict[str, Path], kind: str, segmenter: TransformersSam, hints: Hints, prompts: dict[str, Any]
) -> None:
    one_point = hints.is_single_point
    found = segmenter.image.predict_masks(hints)
    assert len(found) == (3 if one_point else 1)
    _assert_same(found, *_reference(folders[kind], kind, multimask=one_point, **prompts))


def test_a_rough_mask_is_the_decoders_mask_prompt(
    folders: dict[str, Path], kind: str, segmenter: TransformersSam
) -> None:
    rough = np.zeros((48, 80), np.float32)
    rough[10:30, 20:60] = 1
    side = segmenter.model.prompt_encoder.mask_input_size[0]
    logits = (cv2.resize(rough, (side, side), interpolation=cv2.INTER_AREA) * 2 - 1) * promptable.MASK_LOGIT
    found = segmenter.image.predict_masks(Hints(rough_mask=rough))
    _assert_same(found, *_reference(folders[kind], kind, multimask=False, masks=logits))
    assert not np.array_equal(found[0].mask, segmenter.image.predict_masks(Hints())[0].mask)


def test_many_boxes_give_what_each_alone_gives(segmenter: TransformersSam) -> None:
    boxes = np.array([[x, 4.0, x + 30, 40] for x in range(promptable.HINTS_PER_BATCH + 3)])
    together = segmenter.image.predict_boxes(boxes)
    assert len(together) == len(boxes)
    for i in (0, len(boxes) - 1):
        (alone,) = segmenter.image.predict_masks(Hints(tuple(boxes[i].tolist())))  # type: ignore[arg-type]
        assert (together[i].mask != alone.mask).mean() < 0.01  # other sums of a batch move single pixels
        assert together[i].quality == pytest.approx(alone.quality, abs=1e-5)


def test_proposals_of_the_grid_are_those_of_transformers_pipeline(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a square image: the pipeline misplaces the points of others, which these models stretch to a square."""
    from PIL import Image
    from transformers import Sam2Model, Sam2Processor, pipeline

    monkeypatch.setattr(transformers_sam, "MIN_QUALITY", 0.5)  # random weights are sure of nothing
    monkeypatch.setattr(transformers_sam, "MIN_STABILITY", 0.8)
    processor = Sam2Processor.from_pretrained(folders["sam2"])
    generate = pipeline(
        "mask-generation",
        model=Sam2Model.from_pretrained(folders["sam2"]).eval(),
        image_processor=processor.image_processor,
    )
    square = np.random.default_rng(1).integers(0, 256, (72, 72, 3), dtype=np.uint8)
    expected = generate(
        Image.fromarray(square), points_per_crop=promptable.GRID_POINTS, points_per_batch=promptable.HINTS_PER_BATCH,
        pred_iou_thresh=0.5, stability_score_thresh=0.8, crops_nms_thresh=promptable.MAX_BOX_IOU,
    )  # fmt: skip
    loaded = load_segmenter(SegmenterChoice("sam2", folders["sam2"]))
    assert isinstance(loaded, TransformersSam)
    loaded.set_image(square)
    _assert_same(loaded.image.propose_from_grid(), np.array(expected["masks"]), expected["scores"])


def test_the_shared_strategy_runs_and_repeats(segmenter: TransformersSam) -> None:
    for hints in (Hints(), Hints(points=((20, 30),)), Hints(BOX), Hints(rough_mask=np.ones((48, 80), np.float32))):
        mask = segmenter.predict(hints).mask
        assert mask.shape == (48, 80) and mask.dtype == bool
        assert np.array_equal(segmenter.predict(hints).mask, mask)
    proposals = segmenter.propose_all()
    assert proposals and [p.quality for p in proposals] == sorted((p.quality for p in proposals), reverse=True)
    assert segmenter.refine(proposals[0]).mask.shape == (48, 80)
    at_point = segmenter.predict_all(Hints(points=((20, 30),)))
    assert sum(not p.mask[30, 20] for p in at_point) <= 3 < len(at_point), "only the decoder's own three may miss it"


def test_an_image_is_embedded_once(segmenter: TransformersSam, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    embed = segmenter.model.get_image_embeddings
    monkeypatch.setattr(segmenter.model, "get_image_embeddings", lambda pixels: calls.append(1) or embed(pixels))
    monkeypatch.setattr(promptable, "ZOOM_BELOW", 0.0)
    segmenter.set_image(RGB.copy())  # earlier tests have embedded RGB
    for hints in (Hints(BOX), Hints(points=((20, 30),)), Hints(BOX, negative_points=((3, 3),))):
        segmenter.predict(hints)
    segmenter.propose_all()
    assert len(calls) == 1


def test_objects_of_a_word_are_those_of_transformers(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Sam3Model, Sam3Processor

    monkeypatch.setattr(sam3, "WORD_THRESHOLD", 0.2)  # random weights are sure of nothing
    loaded = Sam3(folders["sam3"])
    loaded.set_image(RGB)
    found = loaded.propose_words(["dog"])
    model, processor = Sam3Model.from_pretrained(folders["sam3"]).eval(), Sam3Processor.from_pretrained(folders["sam3"])
    inputs = processor(images=RGB, text="dog", return_tensors="pt")
    with torch.no_grad():
        outputs = model(**{k: v for k, v in inputs.items() if k != "original_sizes"})
    expected = processor.post_process_instance_segmentation(outputs, threshold=0.2, target_sizes=[(48, 80)])[0]
    wanted = promptable.suppress_duplicates(
        [Proposal(m.numpy().astype(bool), float(s)) for m, s in zip(expected["masks"], expected["scores"], strict=True)]
    )
    _assert_same(found, [p.mask for p in wanted], [p.quality for p in wanted])
    assert [p.quality for p in loaded.propose_words(["mug"])] != [p.quality for p in found]
    loaded.propose_words(["a very " + "long " * 100 + "word"])


def test_a_large_model_shares_its_image_encoder(folders: dict[str, Path]) -> None:
    loaded = Sam3(folders["sam3"])
    detector, _ = loaded.detector
    assert detector.vision_encoder.backbone is loaded.model.vision_encoder.backbone
    assert {p.dtype for p in (*detector.parameters(), *loaded.model.parameters())} == {torch.float32}


def test_kinds_are_read_from_the_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    assert {kind: segmenter_lookup.find_segmenter("", str(folder)).kind for kind, folder in folders.items()} == {
        "sam2": "sam2",
        "sam3": "sam3",
    }
    with pytest.raises(InputError, match=r"tiny-sam2 is SAM 2.1, and the segmenter is sam3"):
        segmenter_lookup.find_segmenter("sam3", str(folders["sam2"]))
    with pytest.raises(InputError, match=r"no readable config.json"):
        segmenter_lookup.find_segmenter("sam2", str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(InputError, match="is a clip, not SAM 2.1, SAM 3 or a salient-object network"):
        segmenter_lookup.find_segmenter("", str(tmp_path))


def test_a_damaged_folder_is_refused(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / kind
    folder.mkdir()
    for file in folders[kind].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    state = load_file(folder / "model.safetensors")
    lost = next(key for key in sorted(state) if "mask_decoder.iou_prediction_head" in key)
    save_file({k: v for k, v in state.items() if k != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DamagedError, match="lacks mask_decoder.iou_prediction_head"):
        load_segmenter(SegmenterChoice(kind, folder))
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match=f"cannot be opened as a {CLASSES[kind][0]}"):
        load_segmenter(SegmenterChoice(kind, folder))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(InputError, match="cannot be opened"):
        load_segmenter(SegmenterChoice(kind, folder))


@pytest.mark.usefixtures("project")
def test_a_segmenter_that_is_not_here_names_its_command() -> None:
    for kind, model, repository in (
        ("sam2", "", "facebook/sam2.1-hiera-base-plus"),
        ("sam3", "", "facebook/sam3"),
        ("sam2", "facebook/sam2.1-hiera-tiny", "facebook/sam2.1-hiera-tiny"),
        ("sam2", "./nowhere", "facebook/sam2.1-hiera-base-plus"),
    ):
        with pytest.raises(ResourceError, match="not on this machine") as caught:
            segmenter_lookup.find_segmenter(kind, model)
        assert caught.value.hint == f"`objtune fetch --model {repository}` downloads it"


def test_types_of_the_hubs_folders(folders: dict[str, Path]) -> None:
    types = {kind: json.loads((folder / "config.json").read_text())["model_type"] for kind, folder in folders.items()}
    assert types == {"sam2": "sam2_video", "sam3": "sam3_video"}
