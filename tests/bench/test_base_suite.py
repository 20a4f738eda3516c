"""What the base itself draws: sentences that say everything, hits by hand, distances to what it was trained on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from objtune_cli.bench.suites import base_model
from objtune_cli.config.sections import Bench
from objtune_cli.errors import IncompatibleError, Stopped
from objtune_cli.evaluation import rendering
from objtune_cli.toybox import captions
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.evaluator.inference import WORDS, Detection, SceneReading
from objtune_cli.toybox.recipe import dataset
from objtune_cli.toybox.recipe.clip_text import parse
from objtune_cli.toybox.recipe.presets import CPU
from objtune_cli.toybox.renderer import render
from objtune_cli.toybox.world import BACKGROUNDS, EASY, FULL, MARKED, MEDIUM, Dial, Instance, Scene
from objtune_cli.workflow.context import StageContext

DIALS = pytest.mark.parametrize("dial", [EASY, MEDIUM, FULL], ids=["easy", "medium", "full"])


@DIALS
def test_every_class_is_asked_for_alike_and_a_quarter_in_pairs(dial: Dial) -> None:
    count = 8 * len(dial.classes)
    scenes = base_model.sample_scenes(dial, count, 0)
    assert scenes == base_model.sample_scenes(dial, count, 0) != base_model.sample_scenes(dial, count, 1)
    assert base_model.sample_scenes(dial, 10, 0) == scenes[:10]
    for number, share in ((1, 0.75), (2, 0.25)):
        first = [s.objects[0][0].kind for s in scenes if len(s.objects) == number]
        assert len(first) == share * count
        assert {first.count(kind) for kind in dial.classes} == {share * 8}


@DIALS
def test_a_sentence_says_all_that_a_caption_can(dial: Dial) -> None:
    """Read back by the parser of captions."""
    for scene in base_model.sample_scenes(dial, 40, 0):
        said, background = parse(base_model.full_caption(scene))
        assert background == BACKGROUNDS.index(scene.background) and len(said) == len(scene.objects)
        for words, (instance, _) in zip(said, scene.objects, strict=True):
            kind, _, colour, second, pattern, accessory, third = captions.label(instance, scene.background)
            assert (words["class"], words["colour"], words["second"], words["accessory"]) == (
                kind,
                colour,
                second,
                accessory,
            )
            assert words["pattern"] == pattern or instance.pattern == "plain"
            assert words["third"] == third or accessory == 0


def test_true_pictures_are_of_other_objects_that_the_same_sentence_describes() -> None:
    for i, scene in enumerate(base_model.sample_scenes(MEDIUM, 12, 0)):
        other = base_model._redraw(scene, MEDIUM, 0, i)
        assert base_model.full_caption(other) == base_model.full_caption(scene) and other == base_model._redraw(
            scene, MEDIUM, 0, i
        )
        for (a, place), (b, there) in zip(scene.objects, other.objects, strict=True):
            assert a.rgb != b.rgb and a.proportions != b.proportions and place != there
            assert np.abs(np.subtract(a.rgb, b.rgb)).max() < 60  # the words' colours all the same


def test_true_pictures_of_a_marked_world_have_other_marks() -> None:
    for i, scene in enumerate(base_model.sample_scenes(MARKED, 6, 0)):
        other = base_model._redraw(scene, MARKED, 0, i)
        assert base_model.full_caption(other) == base_model.full_caption(scene)
        assert all(a.marks != b.marks for (a, _), (b, _) in zip(scene.objects, other.objects, strict=True))


def test_another_evaluator_is_used_by_its_file(tmp_path: Path) -> None:
    assert base_model.evaluator_file(Bench()) == inference.WEIGHTS
    assert base_model.evaluator_file(Bench(evaluator=str(tmp_path / "own"))) == tmp_path / "own"


def test_quality_by_hand() -> None:
    """Sharpness 1 for the decoded images themselves, 0 for flat ones; the distance of equal sets is 0."""
    g = np.random.default_rng(0)
    true = g.integers(0, 256, (6, 128, 128, 3), np.uint8)
    flat = np.full_like(true, 128)
    network = inference.load()

    def rows(images: np.ndarray) -> dict[tuple[str, str], float]:
        made = base_model.quality_rows(network, images, true, true, true)
        return {(row["method"], row["measure"]): row["mean"] for row in made}

    assert rows(true)["base", "edge_sharpness"] == pytest.approx(1) and rows(flat)["base", "edge_sharpness"] == 0
    assert (
        rows(true)["base", "frechet_distance"] == pytest.approx(0, abs=1e-3) == rows(flat)["truth", "frechet_distance"]
    )
    assert rows(flat)["base", "frechet_distance"] > 0.1


def _thing(instance: Instance, x: float) -> Detection:
    said = {"class": instance.kind, "colour": instance.colour, "second": instance.second, "pattern": instance.pattern,
            "accessory": instance.accessory, "third": instance.third}  # fmt: skip
    probs = {n: torch.eye(len(words))[words.index(said[n])] for n, words in WORDS.items()}
    return Detection(0.9, (x - 0.2, 0.3, x + 0.2, 0.8), torch.zeros(64), probs)


def _perfect(scene: Scene) -> SceneReading:
    things = [_thing(i, p.x) for i, p in scene.objects][::-1]  # the order of sureness is no place
    return SceneReading(things, torch.eye(len(BACKGROUNDS))[BACKGROUNDS.index(scene.background)])


def test_perfect_readings_hit_everything() -> None:
    scenes = base_model.sample_scenes(MEDIUM, 16, 0)
    found = base_model.score_readings([_perfect(s) for s in scenes], scenes)
    assert {k: len(v) for k, v in found.items()} == {
        **dict.fromkeys(base_model.ATTRIBUTES, 12),
        "background": 16,
        "pair_accuracy": 4,
    }
    assert all(set(v) == {1.0} for v in found.values())


def test_each_mistake_misses_its_own_measure() -> None:
    scene = next(s for s in base_model.sample_scenes(MEDIUM, 9, 0) if len(s.objects) == 1)
    instance, pose = scene.objects[0]
    for measure, (head, field) in base_model.ATTRIBUTES.items():
        other = next(w for w in WORDS[head] if w != getattr(instance, field))
        seen = replace(_perfect(scene), detections=[_thing(replace(instance, **{field: other}), pose.x)])
        assert [k for k, v in base_model.score_readings([seen], [scene]).items() if v == [0.0]] == [measure]
    elsewhere = replace(_perfect(scene), background=_perfect(replace(scene, background=next(b for b in BACKGROUNDS if b != scene.background))).background)  # fmt: skip
    assert [k for k, v in base_model.score_readings([elsewhere], [scene]).items() if v == [0.0]] == ["background"]


def test_both_are_two_things_each_on_its_side() -> None:
    scene = next(
        s
        for s in base_model.sample_scenes(MEDIUM, 9, 0)
        if len(s.objects) == 2 and s.objects[0][0].colour != s.objects[1][0].colour
    )
    (a, left), (b, right) = scene.objects

    def both(*things: Detection) -> list[float]:
        return base_model.score_readings([replace(_perfect(scene), detections=list(things))], [scene])["pair_accuracy"]

    assert left.x < right.x and both(_thing(a, left.x), _thing(b, right.x)) == [1.0]
    assert both(_thing(b, left.x), _thing(a, right.x)) == [0.0]
    assert both(_thing(a, left.x)) == both(_thing(a, left.x), _thing(a, right.x)) == [0.0]


def test_nearest_is_the_root_mean_square_difference() -> None:
    g = np.random.default_rng(0)
    bank, thumbs = g.integers(0, 256, (23, 4, 4, 3), np.uint8), g.integers(0, 256, (7, 4, 4, 3), np.uint8)
    expected = np.sqrt(((thumbs[:, None].astype(float) - bank[None]) ** 2).mean((2, 3, 4))).min(1)
    for batch in (1, 5, 100):
        np.testing.assert_allclose(base_model.nearest_distance(thumbs, bank, batch), expected, rtol=1e-4)
    black, grey = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 10, np.uint8)
    assert base_model.nearest_distance(black, np.concatenate([grey * 3, grey])) == pytest.approx(10)
    assert base_model.nearest_distance(bank[4:6], bank).max() < 0.5


def test_copies_of_training_pictures_are_noticed() -> None:
    g = np.random.default_rng(0)
    bank, true = (g.integers(0, 256, (n, 32, 32, 3), np.uint8) for n in (40, 100))
    copied = {row["measure"]: row for row in base_model.copy_rows(bank, true, bank)}
    assert (
        copied["nn_distance_ratio"]["mean"] < 0.01
        and copied["memorization_rate"]["mean"] == 1
        and copied["memorization_rate"]["n"] == 40
    )
    honest = {row["measure"]: row for row in base_model.copy_rows(true, true, bank)}
    assert honest["nn_distance_ratio"]["mean"] == pytest.approx(1) and honest["memorization_rate"][
        "mean"
    ] == pytest.approx(0.01)
    near = np.concatenate([true[:90], bank[:10]])
    assert base_model.copy_rows(near, true, bank)[1]["mean"] == pytest.approx(0.11, abs=0.011)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 3 training pictures, small true pictures."""
    monkeypatch.setattr(dataset, "SHARD", 3)
    monkeypatch.setattr(rendering, "SIDE", 64)


def test_the_bank_is_the_training_set_of_the_recipe(
    context: Callable[..., StageContext], small: None, project: Path, monkeypatch
) -> None:
    """Drawn by the recipe itself, at the thumbnails' size; kept, and not drawn again."""
    preset = replace(CPU, dial="easy", size=base_model.THUMB, pictures=4, captions=1, seed=1)
    expected = np.concatenate([dataset.draw_shard(preset, i)[0] for i in range(2)])
    ctx = context()
    bank = base_model._load_training_images(ctx, project / "out", EASY)
    assert np.array_equal(bank, expected)
    monkeypatch.setattr(base_model.renderer, "render", lambda *_: pytest.fail("drawn again"))
    assert np.array_equal(base_model._load_training_images(ctx, project / "out", EASY), bank)


def test_captions_belong_to_the_scenes_randomness() -> None:
    """Each shard from a seed of its own; how many captions there are decides the next scene."""
    one, two, other = (
        list(zip(range(3), dataset.scenes(1, i, EASY, n), strict=False)) for i, n in ((0, 1), (0, 2), (1, 1))
    )
    assert one[0][1][0] == two[0][1][0] and one[1][1][0] != two[1][1][0] and one[0][1][0] != other[0][1][0]
    assert [len(told) for _, (_, told) in two] == [2, 2, 2]
    assert render(one[0][1][0], 32)[0].shape == (32, 32, 3)


def test_the_whole_of_it_on_a_base(
    context: Callable[..., StageContext], small: None, project: Path, monkeypatch
) -> None:
    config, out = Bench(num_base_samples=16), project / "out"
    rows = base_model.run(context(), out, EASY, config)
    found = {(row["method"], row["measure"]): row for row in rows}
    names = {*base_model.ATTRIBUTES, "background", "pair_accuracy"}
    names |= {"frechet_distance", "edge_sharpness"}
    assert set(found) == {(m, n) for m in ("base", "truth") for n in names} | {
        ("base", "nn_distance_ratio"),
        ("base", "memorization_rate"),
    }
    assert all(set(row) == {"method", "measure", "mean", "low", "high", "n"} for row in rows)
    assert found["truth", "class"]["mean"] > 0.8 > 0.5 > found["base", "class"]["mean"]  # it draws noise
    assert (found["base", "class"]["n"], found["base", "pair_accuracy"]["n"], found["base", "background"]["n"]) == (
        12,
        4,
        16,
    )
    assert found["base", "frechet_distance"]["mean"] > 2 * found["truth", "frechet_distance"]["mean"] > 0
    assert found["base", "frechet_distance"]["low"] is None and found["base", "edge_sharpness"]["n"] == 16
    assert Image.open(out / "base.png").size == (8 * 36 + 4, 2 * 36 + 4)
    monkeypatch.setattr(rendering, "sample_images", lambda *_: pytest.fail("drawn again"))
    assert base_model.run(context(), out, EASY, config) == rows


def test_samples_go_on_where_they_were_stopped(
    context: Callable[..., StageContext], small: None, project: Path, monkeypatch
) -> None:
    monkeypatch.setattr(base_model, "SHARD_SIZE", 8)
    scenes, folder = base_model.sample_scenes(EASY, 20, 0), project / "samples"
    whole = base_model._load_or_sample(context(), folder / "a", scenes)
    assert whole.shape == (20, 32, 32, 3)
    with pytest.raises(Stopped):
        base_model._load_or_sample(
            context(stopped=lambda: 15 if (folder / "b" / "000008.png").exists() else 0), folder / "b", scenes
        )
    first = (folder / "b" / "000000.png").stat().st_mtime_ns
    assert np.array_equal(base_model._load_or_sample(context(), folder / "b", scenes), whole)
    assert (folder / "b" / "000000.png").stat().st_mtime_ns == first
    fewer = base_model._load_or_sample(
        context(), folder / "b", scenes[:12]
    )  # four in the last part: on some processors a batch of another size is rounded elsewhere
    assert np.array_equal(fewer[:8], whole[:8]) and int(np.abs(fewer[8:].astype(int) - whole[8:12]).max()) <= 1
    assert np.array_equal(base_model._load_or_sample(context(), folder / "b", scenes), whole)  # and more again


def test_a_base_that_does_not_name_its_pictures_is_refused_before_any_is_drawn(
    context: Callable[..., StageContext], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = context()
    about = json.loads((ctx.base.folder / "toybox.json").read_text())
    monkeypatch.setattr(base_model.json, "loads", lambda text: {k: v for k, v in about.items() if k != "pictures"})
    monkeypatch.setattr(StageContext, "load_base_model", lambda *_, **__: pytest.fail("the base was loaded"))
    with pytest.raises(IncompatibleError, match="does not name its training images"):
        base_model.run(ctx, project / "out", EASY, Bench(num_base_samples=16))
