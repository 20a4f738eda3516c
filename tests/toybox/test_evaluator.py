"""The instrument: its geometry in closed form, its training data, and what the shipped weights can read."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from objtune_cli.toybox import world
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.evaluator.network import ATTRIBUTES, CROP, FRAME, GRID, MARGIN, WIDTH, Evaluator, cut
from objtune_cli.toybox.recipe import evaluator as recipe
from objtune_cli.toybox.recipe.dataset import LABELS
from objtune_cli.toybox.recipe.presets import CPU, PRESETS
from objtune_cli.toybox.renderer import render
from objtune_cli.toybox.world import BACKGROUNDS, CLASSES, MEDIUM, Scene

SMALL = replace(CPU, size=64)
Box = tuple[float, float, float, float]


@pytest.fixture(scope="module")
def untrained() -> Evaluator:
    torch.manual_seed(0)
    return Evaluator().eval()


@torch.no_grad()
def test_shapes_of_both_networks(untrained: Evaluator) -> None:
    found, ground = untrained.finder(torch.zeros(2, 3, FRAME, FRAME))
    assert found.shape == (2, 5, GRID, GRID) and ground.shape == (2, len(BACKGROUNDS))
    vectors, heads = untrained.reader(torch.randn(3, 3, CROP, CROP))
    assert vectors.shape == (3, WIDTH)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert {k: tuple(v.shape) for k, v in heads.items()} == {k: (3, n) for k, n in ATTRIBUTES.items()}
    assert {k: len(w) for k, w in inference.WORDS.items()} == ATTRIBUTES


def _ramp(side: int) -> Tensor:
    """Channels: x, y and 1 of each pixel's middle, in [0, 1]: a cut-out tells where it was taken."""
    at = (torch.arange(side) + 0.5) / side
    return torch.stack([at.expand(side, side), at[:, None].expand(side, side), torch.ones(side, side)])


@given(st.floats(0.3, 0.7), st.floats(0.3, 0.7), st.floats(0.1, 0.4), st.floats(0.1, 0.4))
@settings(max_examples=30, deadline=None)
def test_a_cut_out_is_the_square_around_the_box(x: float, y: float, w: float, h: float) -> None:
    box = torch.tensor([[x - w / 2, y - h / 2, x + w / 2, y + h / 2]])
    out = cut(_ramp(128)[None], box, 24)[0]
    half = max(w, h) * MARGIN / 2
    at = (torch.arange(24) + 0.5) / 24 * 2 - 1
    inside = (torch.tensor([x, y])[:, None] + at * half - 0.5).abs().amax(0) < 0.49  # beyond the frame the edge goes on
    torch.testing.assert_close(out[0, 12][inside], (x + at * half)[inside], atol=2e-3, rtol=0)
    torch.testing.assert_close(out[1, :, 12][inside], (y + at * half)[inside], atol=2e-3, rtol=0)


def test_each_cut_out_is_of_its_own_picture_and_the_edge_goes_on() -> None:
    pictures = torch.stack([torch.full((3, 32, 32), v) for v in (0.25, 0.5)])
    out = cut(pictures, torch.tensor([[0.2, 0.2, 0.5, 0.5], [-0.5, -0.5, 1.5, 1.5]]))
    assert out.shape == (2, 3, CROP, CROP)
    torch.testing.assert_close(out, torch.tensor([0.25, 0.5]).view(2, 1, 1, 1).expand_as(out))


def _map(*boxes: Box, score: float = 4.0) -> Tensor:
    """What a perfect finder says of boxes."""
    found = torch.zeros(1, 5, GRID, GRID)
    found[:, 0] = -6
    for x0, y0, x1, y1 in boxes:
        cx, cy = (x0 + x1) / 2 * GRID, (y0 + y1) / 2 * GRID
        i, j = int(cy), int(cx)
        values = [score, cx - j - 0.5, cy - i - 0.5, math.log(x1 - x0), math.log(y1 - y0)]
        found[0, :, i, j] = torch.tensor(values)
    return found


@st.composite
def _boxes(draw: st.DrawFn) -> Box:
    """In steps of 1/1024: a middle between two cells is the same number in single and in double precision."""
    w, h = draw(st.integers(52, 920)), draw(st.integers(52, 920))
    x, y = draw(st.integers(0, 1024 - w)), draw(st.integers(0, 1024 - h))
    return x / 1024, y / 1024, (x + w) / 1024, (y + h) / 1024


@given(_boxes())
@settings(max_examples=50, deadline=None)
def test_boxes_come_back_from_the_map_and_cost_nothing_there(box: Box) -> None:
    """Peaks and the training loss mean the same map."""
    found = _map(box)
    scores, boxes = inference.find_peaks(found, 1)
    assert float(scores[0, 0]) == pytest.approx(1 / (1 + math.exp(-4)))
    torch.testing.assert_close(boxes[0, 0], torch.tensor(box), atol=1e-5, rtol=0)
    network = SimpleNamespace(finder=lambda x: (found, torch.zeros(1, len(BACKGROUNDS))))
    labels = torch.full((1, 2, 7), -1)
    labels[0, 0] = 0
    slots = torch.zeros(1, 2, 4)
    slots[0, 0] = torch.tensor(box)
    terms = recipe._finder_losses(network, torch.zeros(1, 3, 64, 64), slots, labels, "cpu")
    assert float(terms["box"]) < 1e-5 and float(terms["background"]) == pytest.approx(0.3 * math.log(len(BACKGROUNDS)))
    aside = (
        2.5 / GRID * (1 if box[0] + box[2] < 1 else -1)
    )  # into the picture: what stands beyond its edge is taken back to it
    shifted = slots + torch.tensor([aside, 0, aside, 0])
    assert float(
        recipe._finder_losses(network, torch.zeros(1, 3, 64, 64), shifted, labels, "cpu")["centre"]
    ) > 3 * float(terms["centre"])


def test_the_surer_of_two_comes_first_and_neighbours_are_not_objects() -> None:
    a, b = (0.1, 0.1, 0.4, 0.5), (0.6, 0.5, 0.9, 0.9)
    found = _map(a, score=1.0) + 0
    found = torch.where(_map(b, score=3.0)[:, :1] > 0, _map(b, score=3.0), found)
    i, j = divmod(int(found[0, 0].argmax()), GRID)
    found[0, :, i, j + 1] = found[0, :, i, j] - torch.tensor([0.5, 0, 0, 0, 0])  # nearly as sure, beside it
    scores, boxes = inference.find_peaks(found, 3)
    torch.testing.assert_close(boxes[0, :2], torch.tensor([b, a]), atol=1e-5, rtol=0)
    assert float(scores[0, 0]) > float(scores[0, 1]) > inference.MIN_SCORE > float(scores[0, 2])


@given(_boxes(), _boxes())
@settings(max_examples=50, deadline=None)
def test_overlap_is_symmetric_and_between_none_and_all(a: Box, b: Box) -> None:
    assert 0 <= inference.overlap(a, b) == inference.overlap(b, a) <= 1 + 1e-9
    assert inference.overlap(a, a) == pytest.approx(1)


def test_overlap_by_hand() -> None:
    """Two squares of 0.4 that share a quarter: 0.04 / (0.16 + 0.16 - 0.04)."""
    assert inference.overlap((0.1, 0.1, 0.5, 0.5), (0.3, 0.3, 0.7, 0.7)) == pytest.approx(1 / 7)
    assert inference.overlap((0, 0, 0.2, 0.2), (0.5, 0, 0.7, 0.2)) == 0
    assert inference.overlap((0, 0, 1, 1), (0.25, 0.25, 0.75, 0.75)) == pytest.approx(0.25)


def test_a_word_is_the_likeliest_value_as_the_world_names_it() -> None:
    probs = {"class": torch.tensor([0.1, 0.2, 0.0, 0.7, 0, 0, 0, 0])}
    assert inference.Detection(0.9, (0, 0, 1, 1), torch.zeros(WIDTH), probs).label("class") == CLASSES[3] == "mug"


def test_focal_loss_by_hand() -> None:
    """A centre at p = 3/4; elsewhere p = 1/4, once where the bump is 1/2 and once where there is none."""
    logits, heat = torch.tensor([math.log(3), -math.log(3), -math.log(3)]), torch.tensor([1.0, 0.5, 0.0])
    hit = -(0.25**2) * math.log(0.75)
    miss = [-((1 - h) ** 4) * 0.25**2 * math.log(0.75) for h in (0.5, 0)]
    assert float(recipe.focal_loss(logits, heat)) == pytest.approx(hit + sum(miss), rel=1e-5)
    assert float(recipe.focal_loss(torch.tensor([20.0, -20.0]), torch.tensor([1.0, 0.0]))) < 1e-9


def test_the_box_of_a_mask_holds_its_covered_pixels() -> None:
    mask = np.zeros((10, 20), np.uint8)[:, :10]
    mask = mask.copy()
    mask[2:5, 3:9], mask[9, 0] = 200, 100  # half covered pixels do not count
    assert recipe.box_of(mask) == (0.3, 0.2, 0.9, 0.5)


@pytest.fixture(scope="module")
def shard() -> recipe.EvaluatorData:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "SHARD", 12)
        return recipe.draw_shard(SMALL, 0)


def test_rows_of_an_instance_show_one_object_in_several_scenes(shard: recipe.EvaluatorData) -> None:
    count = 12 * recipe.VIEWS
    assert (
        shard.pictures.shape == (count, 64, 64, 3)
        and shard.boxes.shape == (count, 2, 4)
        and shard.labels.shape == (count, 2, 7)
    )
    views = shard.labels[:, 0].reshape(12, recipe.VIEWS, 7)
    own = np.delete(views, LABELS.index("background"), axis=2)
    assert (own == own[:, :1]).all()  # all but the background
    assert [CLASSES[k] for k in views[:6, 0, 0]] == list(MEDIUM.classes)
    assert len({p.tobytes() for p in shard.pictures}) == count


def test_a_second_object_has_a_box_and_labels_and_an_absent_one_has_none(shard: recipe.EvaluatorData) -> None:
    there = shard.labels[:, 1, 0] >= 0
    assert 0.1 < there.mean() < 0.6
    assert (shard.labels[~there, 1] == -1).all() and not shard.boxes[~there, 1].any()
    for box in (*shard.boxes[:, 0], *shard.boxes[there, 1]):
        assert 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1
    middles = shard.boxes[there].reshape(-1, 2, 2, 2).mean(2)[..., 0]
    assert (np.abs(middles[:, 0] - middles[:, 1]) > 0.25).all() and {*np.sign(middles[:, 0] - middles[:, 1])} == {
        -1,
        1,
    }  # either side


def test_no_held_out_object_is_drawn_for_training(shard: recipe.EvaluatorData, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Scene] = []
    real = recipe.renderer.render
    monkeypatch.setattr(recipe, "SHARD", 12)
    monkeypatch.setattr(recipe.renderer, "render", lambda scene, size: drawn.append(scene) or real(scene, size))
    again = recipe.draw_shard(SMALL, 0)
    assert np.array_equal(again.pictures, shard.pictures)
    assert drawn and not any(world.is_held_out(i) for scene in drawn for i, _ in scene.objects)


def test_a_step_pairs_views_of_instances_of_two_classes(shard: recipe.EvaluatorData) -> None:
    by_class = recipe._by_class(shard.labels)
    assert sorted(np.concatenate(by_class).tolist()) == list(range(12)) and len(by_class) == 6
    for seed in range(10):
        rows = recipe._rows(by_class, torch.Generator().manual_seed(seed))
        pairs = rows.reshape(-1, 2)
        assert (pairs[:, 0] // recipe.VIEWS == pairs[:, 1] // recipe.VIEWS).all() and (pairs[:, 0] != pairs[:, 1]).all()
        assert len(set(pairs[:, 0] // recipe.VIEWS)) == len(pairs)
        assert len(set(shard.labels[rows, 0, 0])) == 2


def test_spoiled_pictures_keep_shape_and_content(shard: recipe.EvaluatorData) -> None:
    x = torch.from_numpy(shard.pictures[:16]).permute(0, 3, 1, 2).float() / 127.5 - 1
    a, b = (recipe.degrade(x, torch.Generator().manual_seed(0)) for _ in range(2))
    assert (
        torch.equal(a, b)
        and a.shape == x.shape
        and not torch.equal(a, recipe.degrade(x, torch.Generator().manual_seed(1)))
    )
    assert bool(((a - x).flatten(1).norm(dim=1) > 0).all())
    assert float((a - x).abs().mean()) < 0.25 * float(x.std()) + 0.1


def test_a_training_step_has_every_term_and_reaches_both_networks(
    shard: recipe.EvaluatorData, untrained: Evaluator
) -> None:
    network = Evaluator()
    g = torch.Generator().manual_seed(0)
    rows = recipe._rows(recipe._by_class(shard.labels), g)
    x = torch.from_numpy(shard.pictures[rows]).permute(0, 3, 1, 2).float() / 127.5 - 1
    boxes, labels = torch.from_numpy(shard.boxes[rows]), torch.from_numpy(shard.labels[rows]).long()
    terms = recipe._finder_losses(network, x, boxes, labels, "cpu") | recipe._reader_losses(
        network, x, boxes, labels, g, "cpu"
    )
    assert terms.keys() == {"centre", "box", "background", "identity", "heads"}
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in network.parameters())


def test_the_weights_are_written_in_half_precision(untrained: Evaluator, tmp_path: Path) -> None:
    recipe.publish(untrained, tmp_path / "w.safetensors", CPU, "0123456")
    again = inference.load(tmp_path / "w.safetensors")
    assert all(torch.equal(v, untrained.state_dict()[k].half().float()) for k, v in again.state_dict().items())
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o644
    assert inference.read_header(tmp_path / "w.safetensors") == {
        "commit": "0123456",
        "dial": CPU.dial,
        "seed": CPU.seed,
        "steps": CPU.evaluator_steps,
    }


@pytest.mark.parametrize(
    ("trained", "known"),
    [
        ("easy", {"easy"}),
        ("medium", {"easy", "medium"}),
        ("marked", {"easy", "medium", "marked"}),
        ("full", {"easy", "medium", "full"}),
    ],
)
def test_an_evaluator_knows_the_worlds_that_show_no_more_than_its_own(
    trained: str, known: set[str], untrained: Evaluator, tmp_path: Path
) -> None:
    recipe.publish(untrained, tmp_path / "w.safetensors", replace(CPU, dial=trained), "")
    assert {name for name, dial in world.DIALS.items() if inference.covers(dial, tmp_path / "w.safetensors")} == known


# What ships.


@pytest.fixture(scope="module")
def network() -> Evaluator:
    return inference.load()


def _lone(count: int, seed: int = 77) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [
        world.sample_scene(rng, MEDIUM, instances=(world.sample_instance(rng, MEDIUM, held_out=True),))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def seen(network: Evaluator) -> tuple[list[Scene], list[list[np.ndarray]], list[inference.SceneReading], np.ndarray]:
    """60 lone held-out objects: scenes, masks, readings and pictures."""
    scenes = _lone(60)
    drawn = [render(s, 128) for s in scenes]
    pictures = np.stack([p for p, _ in drawn])
    return scenes, [m for _, m in drawn], inference.read_images(network, pictures), pictures


def test_the_file_is_small_and_says_how_it_was_made() -> None:
    assert inference.WEIGHTS.stat().st_size <= 6e6
    assert set(inference.read_header()) == {"dial", "seed", "steps", "commit"}
    assert inference.covers(world.EASY) and inference.covers(MEDIUM)


def test_it_names_class_background_and_colour(seen) -> None:
    scenes, _, readings, _ = seen
    told = [(s.objects[0][0], s.background, r) for s, r in zip(scenes, readings, strict=True)]
    assert sum(r.main.label("class") == i.kind for i, _, r in told) >= 0.9 * 60
    assert sum(BACKGROUNDS[int(r.background.argmax())] == b for _, b, r in told) >= 0.9 * 60
    assert sum(r.main.label("colour") == i.colour for i, _, r in told) >= 0.8 * 60


def test_it_finds_the_object_and_one_alone(seen) -> None:
    _, masks, readings, _ = seen
    overlaps = [inference.overlap(r.main.box, recipe.box_of(m[0])) for r, m in zip(readings, masks, strict=True)]
    assert np.mean(overlaps) > 0.7 and np.mean(np.array(overlaps) > 0.5) >= 0.9
    assert np.mean([len(r.detections) == 1 for r in readings]) >= 0.9


def test_it_finds_both_of_two(network: Evaluator) -> None:
    rng = np.random.default_rng(3)
    pairs = [
        world.sample_scene(
            rng, MEDIUM, instances=tuple(world.sample_instance(rng, MEDIUM, held_out=True) for _ in "ab")
        )
        for _ in range(20)
    ]
    drawn = [render(s, 128) for s in pairs]
    readings = inference.read_images(network, np.stack([p for p, _ in drawn]))
    both = [
        len(r.detections) == 2
        and all(max(inference.overlap(t.box, recipe.box_of(m)) for t in r.detections) > 0.5 for m in masks)
        for r, (_, masks) in zip(readings, drawn, strict=True)
    ]
    assert np.mean(both) >= 0.8


def test_an_object_is_nearer_to_itself_than_to_another_of_its_class(network: Evaluator) -> None:
    assert recipe.retrieval(network, CPU, "dog", np.random.default_rng(0), among=12) >= 0.75  # 1/12 by chance


def test_readings_are_probabilities_and_unit_vectors_surest_first(seen) -> None:
    for r in seen[2]:
        assert 1 <= len(r.detections) <= 2 and r.main is r.detections[0]
        assert float(r.background.sum()) == pytest.approx(1, abs=1e-5)
        assert [t.score for t in r.detections] == sorted((t.score for t in r.detections), reverse=True)
        for t in r.detections:
            assert float(t.vector.norm()) == pytest.approx(1, abs=1e-5) and t.probs.keys() == ATTRIBUTES.keys()
            assert all(float(p.sum()) == pytest.approx(1, abs=1e-5) for p in t.probs.values())


def test_a_picture_is_read_the_same_in_any_batch(network: Evaluator, seen) -> None:
    _, _, readings, pictures = seen
    for some in (
        inference.read_images(network, pictures[:5], batch=2),
        inference.read_images(network, pictures[:5], most=1),
    ):
        for a, b in zip(some, readings, strict=False):
            torch.testing.assert_close(a.main.vector, b.main.vector, atol=1e-4, rtol=0)
            assert a.main.box == pytest.approx(b.main.box, abs=1e-4) and a.main.score == pytest.approx(
                b.main.score, abs=1e-4
            )


def test_where_nothing_is_there_is_still_one_thing_however_unsure(network: Evaluator, seen) -> None:
    readings = inference.read_images(network, np.full((2, 128, 128, 3), 127, np.uint8))
    assert all(len(r.detections) >= 1 for r in readings)
    assert readings[0].main.score < np.median([r.main.score for r in seen[2]])
    assert inference.read_images(network, np.zeros((0, 128, 128, 3), np.uint8)) == []


def test_objects_of_one_description_come_in_a_row_with_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups of four instances of four views; a batch takes whole groups."""
    monkeypatch.setattr(recipe, "SHARD", 8)
    marked = replace(SMALL, dial="marked", size=32)
    shard = recipe.draw_shard(marked, 0)
    words = shard.labels[:, 0, [0, 2, 3, 4, 5, 6]]
    first, second = words[:16], words[16:]
    assert (first == first[0]).all() and (second == second[0]).all()
    assert [first[0, 0], second[0, 0]] == [CLASSES.index(kind) for kind in marked.world.classes[:2]]
    rows = recipe._rows(recipe._by_class(shard.labels), torch.Generator().manual_seed(0), recipe.NAMESAKES)
    assert (
        set(rows // recipe.VIEWS) == set(range(8))
        and recipe.instances_per_description(marked.world) == recipe.NAMESAKES == 4
    )
    assert recipe.instances_per_description(MEDIUM) == 1


def test_retrieval_among_objects_of_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The marks alone distinguish them, and the shipped evaluator sees some of it without having learned marks."""
    drawn: list[world.Instance] = []
    real = world.sample_scene
    monkeypatch.setattr(
        world,
        "sample_scene",
        lambda rng, dial, instances: drawn.extend(instances) or real(rng, dial, instances=instances),
    )
    preset, rng = PRESETS["marked"], np.random.default_rng(1)
    assert recipe.retrieval(inference.load(), preset, "fish", rng, among=20, same_words=True) > 0.5  # 1/20 by chance
    assert len(drawn) == 40 and len({i.marks for i in drawn}) == 20
    assert len({(i.kind, i.colour, i.second, i.pattern, i.accessory, i.third) for i in drawn}) == 1


def test_features_describe_the_image_and_its_main_object() -> None:
    network = inference.load()
    rng = np.random.default_rng(0)
    pictures = np.stack([render(world.sample_scene(rng, MEDIUM), 64)[0] for _ in range(3)])
    features = inference.extract_features(network, pictures, batch=2)
    assert features.shape == (3, 128 + 160) and np.isfinite(features).all()
    np.testing.assert_allclose(inference.extract_features(network, pictures[2:]), features[2:], atol=1e-4)
