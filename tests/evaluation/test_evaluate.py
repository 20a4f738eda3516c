"""One trained object measured: the photo's geometry in closed form, both kinds of measures on made-up models."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from objtune_cli.errors import InputError
from objtune_cli.evaluation import benchmark_objects, clip_dino, evaluate, rendering, truth_scores
from objtune_cli.evaluation.evaluate import TrainedSubject
from objtune_cli.store.artifacts import Record
from objtune_cli.store.kinds.embedding import mask_role
from objtune_cli.store.refs import Ref
from objtune_cli.toybox import world
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.renderer import render
from objtune_cli.toybox.world import EASY
from objtune_cli.workflow.context import StageContext


def _mask(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 255
    return mask


@pytest.mark.parametrize(
    ("height", "width", "box", "expected"),
    [
        (40, 40, (10, 4, 30, 20), (0.25, 0.1, 0.75, 0.5)),
        (20, 40, (10, 4, 30, 20), (0.25, 0.35, 0.75, 0.75)),  # ten rows above
        (40, 20, (4, 10, 20, 30), (0.35, 0.25, 0.75, 0.75)),
    ],
)
def test_a_photo_is_padded_to_a_square_by_its_edge(height: int, width: int, box, expected) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    square, found = evaluate.pad_to_square(rgb, _mask(height, width, box))
    assert square.shape == (40, 40, 3) and found == pytest.approx(expected)
    top, left = (40 - height) // 2, (40 - width) // 2
    assert np.array_equal(square[top : top + height, left : left + width], rgb)
    assert np.array_equal(square[0], square[top]) and np.array_equal(square[:, 0], square[:, left])


@given(st.integers(0, 28), st.integers(0, 28), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_the_object_alone_is_whole_in_the_middle_of_a_grey_square(x: int, y: int, w: int, h: int) -> None:
    mask = _mask(40, 40, (x, y, x + w, y + h))
    rgb = np.full((40, 40, 3), (200, 30, 30), np.uint8)
    alone = evaluate.cut_out_object(rgb, mask)
    side = alone.shape[0]
    assert alone.shape == (side, side, 3) and max(w, h) <= side <= 1.2 * max(w, h) + 3
    own = (alone == (200, 30, 30)).all(-1)
    assert int(own.sum()) == w * h and (alone[~own] == 127).all()
    ys, xs = own.nonzero()
    assert abs((xs.min() + xs.max() + 1) / 2 - side / 2) <= 1 and abs((ys.min() + ys.max() + 1) / 2 - side / 2) <= 1


def test_a_soft_edge_is_mixed_with_grey() -> None:
    mask = _mask(20, 20, (5, 5, 15, 15))
    mask[5, 5:15] = 153  # 3/5
    alone = evaluate.cut_out_object(np.full((20, 20, 3), 227, np.uint8), mask)
    assert {*np.unique(alone)} == {127, 187, 227}


def test_variety_by_hand() -> None:
    """Three unit vectors: two equal, one at right angles: cosines 1, 0, 0."""
    assert clip_dino.diversity(np.array([[1.0, 0], [1, 0], [0, 1]])) == pytest.approx(2 / 3)
    assert clip_dino.diversity(np.ones((4, 1))) == pytest.approx(0)
    assert clip_dino.diversity(np.array([[1.0], [-1.0]])) == pytest.approx(2)


SUBJECT = TrainedSubject(
    "rex", "dog", np.full((24, 24, 3), 200, np.uint8), _mask(24, 24, (6, 6, 18, 18)), {"token.rex": torch.ones(1, 16)}
)


def test_the_papers_measures_on_models_that_know_two_things(
    context: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures are 1, the photo 2, the object alone 3, the class before 4 and after 5: angles that were chosen.

    Unit vectors at 60, 30 and 90 degrees of each other have cosines 1/2, sqrt(3)/2 and 0.
    """
    codes = {}

    def turned(degrees: float) -> np.ndarray:
        return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])

    angles = {"picture": 0, "photo": 60, "alone": 30, "before": 120, "after": 90}
    alone = evaluate.cut_out_object(SUBJECT.rgb, SUBJECT.mask)

    def look(shown: np.ndarray) -> np.ndarray:
        what = (
            "photo"
            if shown.shape == (1, 24, 24, 3)
            else "alone"
            if shown.shape[1:] == alone.shape
            else codes[int(shown[0, 0, 0, 0])]
        )
        return np.stack([turned(angles[what])] * len(shown))

    said: list[str] = []

    def say(prompts: list[str]) -> np.ndarray:
        said.extend(prompts)
        return np.stack([turned(180)] * len(prompts))

    codes.update({1: "picture", 4: "before", 5: "after"})
    monkeypatch.setattr(
        rendering,
        "sample_images",
        lambda ctx, model, texts, seeds, label, **sampling: (
            (asked.extend(texts), scenes.append(tuple(sampling.values()))) and np.full((len(texts), 8, 8, 3), 1)
        ),
    )
    order = iter((5, 4))  # with the object first, then the bare base
    monkeypatch.setattr(rendering, "sample_class", lambda *_: np.full((2, 8, 8, 3), next(order)))
    asked: list[str] = []
    scenes: list[tuple[float, ...]] = []
    ctx = context()
    monkeypatch.setitem(ctx.base.sampling, "prompt_guidance_scale", 1.5)
    monkeypatch.setitem(ctx.base.sampling, "subject_conditioning_start", 0.9)
    found = evaluate.score_with_clip_dino(ctx, SUBJECT, ["on the beach", "in {brackets}"], 2, (look, say), look)
    assert scenes == [(1.5, 0.9)]  # drawn as `generate` draws
    half = 3**0.5 / 2
    assert found == pytest.approx({
        "clip_t": -1, "clip_i": 0.5, "clip_i_masked": half, "dino": 0.5, "dino_masked": half, "diversity": 0, "drift": 0.5,
    }, abs=1e-6)  # fmt: skip
    assert said == ["a photo of a dog on the beach"] * 2 + ["a photo of a dog in {brackets}"] * 2
    assert len(asked) == 4 and all("<rex>" not in text and "dog" not in text for text in asked)


def test_one_picture_a_scene_has_no_diversity(
    context: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    same = lambda shown: np.ones((len(shown), 1))  # noqa: E731
    monkeypatch.setattr(rendering, "sample_images", lambda ctx, model, texts, *_, **__: np.zeros((len(texts), 8, 8, 3)))
    monkeypatch.setattr(rendering, "sample_class", lambda *_: np.zeros((2, 8, 8, 3)))
    assert "diversity" not in evaluate.score_with_clip_dino(context(), SUBJECT, ["at night"], 1, (same, same), same)


@pytest.fixture
def drawn_dog(monkeypatch: pytest.MonkeyPatch) -> tuple[TrainedSubject, world.Instance]:
    """A held-out dog with its photo and mask; few drawings calibrate."""
    for name, count in (("OTHER_INSTANCES", 8), ("REFERENCES", 8), ("CLASS_IMAGES", 2)):
        monkeypatch.setattr(rendering, name, count)
    case = benchmark_objects.make_cases(EASY, 1, 0)[0]
    rgb, mask = case.picture()
    return replace(SUBJECT, rgb=rgb[10:-30], mask=mask[10:-30]), case.instance  # not square


def test_the_scale_stands_around_the_photos_own_vector(drawn_dog: tuple[TrainedSubject, world.Instance]) -> None:
    """The object drawn anew scores near 1, others of its class near 0."""
    subject, instance = drawn_dog
    network = inference.load()
    case, scale = evaluate._calibrate(network, subject, EASY, 2, 0)
    own = benchmark_objects.make_cases(EASY, 1, 0)[0].photo_background
    assert case.photo_background == own and scale.references.shape == (1, 64)
    assert sorted(p.background for p in case.prompts) == sorted([b for b in EASY.backgrounds if b != own] * 2)
    assert {p.kind for p in case.prompts} == {"scene"} and len({p.seed for p in case.prompts}) == len(case.prompts)
    rng = np.random.default_rng(9)

    def identity(instances: list[world.Instance]) -> float:
        pictures = np.stack([render(world.sample_scene(rng, EASY, instances=(i,)), 128)[0] for i in instances])
        return float(scale.identity([r.main for r in inference.read_images(network, pictures)]).mean())

    assert (
        identity([instance] * 6)
        > 0.6
        > 0.4
        > identity([world.sample_instance(rng, EASY, kind="dog", held_out=None) for _ in range(12)])
    )


def test_the_benchs_measures_of_one_object(
    drawn_dog: tuple[TrainedSubject, world.Instance], context: Callable[..., StageContext]
) -> None:
    found = evaluate.score_on_toybox(context(), drawn_dog[0], EASY, 1, 0)
    assert found.keys() == {
        "identity",
        "detection_rate",
        "duplicate_rate",
        "diversity",
        "prompt",
        "background_leakage",
        "drift",
        "class_accuracy",
    }
    assert all(np.isfinite(v) for v in found.values())
    with pytest.raises(InputError, match="the toybox has no owl") as caught:
        evaluate.score_on_toybox(context(), replace(drawn_dog[0], kind="owl"), EASY, 1, 0)
    assert "dog" in caught.value.hint


def _published(ctx: StageContext, names: dict[str, str], with_mask: bool = True) -> Ref:
    """An adapter of several objects, each from a mask and an embedding of its own."""
    inputs, tensors = {}, {}
    for i, (name, word) in enumerate(names.items()):
        rgb = np.full((8, 8, 3), i, np.uint8)
        mask = ctx.store.create(Record("mask", name, {name: word}, {}, {}, {}), {"rgb": rgb, "mask": rgb[..., 0]})
        source = {"mask": ctx.input_record(mask)} if with_mask else {}
        embedding = ctx.store.create(Record("embedding", name, {name: word}, source, {}, ctx.base.record()), {})
        inputs[f"embedding.{name}"] = ctx.input_record(embedding)
        tensors[f"token.{name}"] = torch.full((1, 16), float(i))
    return ctx.store.create(Record("adapter", "-".join(names), names, inputs, {}, ctx.base.record()), tensors)


def test_each_object_of_an_adapter_comes_with_its_own_photo(context: Callable[..., StageContext]) -> None:
    ctx = context()
    ref = _published(ctx, {"rex": "dog", "cup": "mug"})
    for i, (name, word) in enumerate({"rex": "dog", "cup": "mug"}.items()):
        found = evaluate.load_subject(ctx, ref, name)
        assert (found.name, found.kind) == (name, word) and (found.rgb == i).all() and found.mask.shape == (8, 8)
        assert float(found.weights[f"token.{name}"][0, 0]) == i
    with pytest.raises(InputError, match="has several objects") as caught:
        evaluate.load_subject(ctx, ref)
    assert caught.value.hint == "choose one with `--name`: cup, rex"
    with pytest.raises(InputError, match="has no max"):
        evaluate.load_subject(ctx, ref, "max")
    assert evaluate.load_subject(ctx, _published(ctx, {"max": "cat"})).name == "max"


def test_an_object_comes_with_all_its_photos(context: Callable[..., StageContext]) -> None:
    ctx = context()
    masks = []
    for i in range(3):
        rgb = np.full((8, 8 + i, 3), i, np.uint8)
        masks.append(
            ctx.store.create(Record("mask", "rex", {"rex": "dog"}, {}, {}, {}), {"rgb": rgb, "mask": rgb[..., 0]})
        )
    inputs = {mask_role(i): ctx.input_record(mask) for i, mask in enumerate(masks, 1)}
    embedding = ctx.store.create(Record("embedding", "rex", {"rex": "dog"}, inputs, {}, ctx.base.record()), {})
    own = {"embedding.rex": ctx.input_record(embedding)}
    ref = ctx.store.create(
        Record("adapter", "rex", {"rex": "dog"}, own, {}, ctx.base.record()), {"token.rex": torch.ones(1, 16)}
    )
    found = evaluate.load_subject(ctx, ref)
    assert [(int(rgb.max()), mask.shape) for rgb, mask in found.photos] == [(0, (8, 8)), (1, (8, 9)), (2, (8, 10))]


def test_an_object_without_a_photo_is_refused(context: Callable[..., StageContext]) -> None:
    ctx = context()
    with pytest.raises(InputError, match="does not store the training photo of rex"):
        evaluate.load_subject(ctx, _published(ctx, {"rex": "dog"}, with_mask=False))


def test_scores_of_the_scale_are_the_benchs(drawn_dog: tuple[TrainedSubject, world.Instance]) -> None:
    """The truth of the stand-in through the same function: its backgrounds are right."""
    network = inference.load()
    case, scale = evaluate._calibrate(network, drawn_dog[0], EASY, 1, 0)
    seen = inference.read_images(
        network, rendering.render_scenes([p.truth(case.instance, EASY, 3) for p in case.prompts])
    )
    found = truth_scores.score(case, scale, seen)
    assert (
        found["prompt"] == found["detection_rate"] == 1
        and found["background_leakage"] < 0.1
        and 0.3 < found["diversity"] < 3
    )
