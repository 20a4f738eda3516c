"""Synthetic readings to measures: what is perfect, what is wrong, what is left out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from objtune_cli.evaluation import statistics, truth_scores
from objtune_cli.evaluation.benchmark_objects import OBJECT_SLOT, Case, Prompt
from objtune_cli.evaluation.truth_scores import Calibration
from objtune_cli.toybox import world
from objtune_cli.toybox.evaluator.inference import MIN_SCORE, WORDS, Detection, SceneReading
from objtune_cli.toybox.world import BACKGROUNDS, MEDIUM, Instance

ITSELF, STRANGER = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0])
BOXES = [(0.1, 0.2, 0.5, 0.8), (0.3, 0.3, 0.9, 0.9), (0.2, 0.1, 0.6, 0.6), (0.4, 0.2, 0.8, 0.9), (0.1, 0.3, 0.7, 0.9)]


def _instance(kind: str, colour: str) -> Instance:
    found = world.sample_instance(np.random.default_rng(1), MEDIUM, kind=kind)
    return replace(found, colour=colour, pattern="plain", accessory="none")


DOG, MUG = _instance("dog", "red"), _instance("mug", "blue")


def _prompts(kinds: str) -> tuple[Prompt, ...]:
    """s: scene, w: wearing a hat, p: with a blue mug; backgrounds in turn, never the photo's beach."""
    names = {"s": "scene", "w": "wearing", "p": "pair"}
    places = [b for b in MEDIUM.backgrounds if b != "beach"]
    return tuple(
        Prompt(
            names[k],
            f"a photo of {OBJECT_SLOT}",
            places[i % len(places)],
            "hat" if k == "w" else "",
            MUG if k == "p" else None,
            i,
        )
        for i, k in enumerate(kinds)
    )


def _case(kinds: str) -> Case:
    photo = world.sample_scene(np.random.default_rng(0), MEDIUM, instances=(DOG,), background="beach")
    return Case("dog-000", DOG, photo, _prompts(kinds))


def _thing(
    kind: str = "dog", colour: str = "red", vector: torch.Tensor = ITSELF, accessory: str = "none", box=BOXES[0]
) -> Detection:
    said = {
        "class": kind,
        "colour": colour,
        "second": "red",
        "pattern": "plain",
        "accessory": accessory,
        "third": "red",
    }
    return Detection(0.9, box, vector, {n: torch.eye(len(words))[words.index(said[n])] for n, words in WORDS.items()})


def _on(background: str, *things: Detection) -> SceneReading:
    return SceneReading(list(things), torch.eye(len(BACKGROUNDS))[BACKGROUNDS.index(background)])


def _perfect(prompt: Prompt, i: int) -> SceneReading:
    own = _thing(accessory=prompt.accessory or "none", box=BOXES[i % len(BOXES)])
    return _on(prompt.background, own, *([_thing("mug", "blue", STRANGER)] if prompt.other else []))


def _truth(case: Case) -> list[SceneReading]:
    return [_perfect(p, i) for i, p in enumerate(case.prompts)]


def _scale(zero: float = 0.0, one: float = 1.0) -> Calibration:
    return Calibration(ITSELF[None].numpy(), zero, one, truth_scores.pose_spread([_thing(box=b) for b in BOXES]))


def _score(kinds: str, seen: list[SceneReading], **given: float) -> dict[str, float]:
    return truth_scores.score(_case(kinds), _scale(**given), seen)


def test_perfect_pictures_are_one_everywhere_and_leak_nothing() -> None:
    found = _score("ssssswwpp", _truth(_case("ssssswwpp")))
    assert found == pytest.approx(
        {
            "identity": 1,
            "detection_rate": 1,
            "duplicate_rate": 0,
            "prompt": 1,
            "background_leakage": 0,
            "diversity": 1,
            "all_present": 1,
        }
    )


def test_the_photos_background_everywhere_is_a_whole_leak_and_no_prompt() -> None:
    seen = [_on("beach", *r.detections) for r in _truth(_case("sssww"))]
    found = _score("sssww", seen)
    assert (found["prompt"], found["background_leakage"]) == (0, 1) and found["identity"] == pytest.approx(1)


def test_leak_is_the_mean_probability_of_the_photos_background() -> None:
    half = torch.zeros(len(BACKGROUNDS))
    half[BACKGROUNDS.index("beach")], half[BACKGROUNDS.index("snow")] = 0.25, 0.75
    found = _score("ss", [SceneReading([_thing()], half), _on("grass", _thing())])
    assert found["background_leakage"] == pytest.approx(0.125)


def test_identity_is_on_the_line_between_strangers_and_the_object() -> None:
    """Cosine 0.6 between 0.2 (strangers) and 0.9 (itself): 4 / 7."""
    near = torch.tensor([0.6, 0.8, 0.0])
    assert _score("ss", [_on("snow", _thing(vector=near))] * 2, zero=0.2, one=0.9)["identity"] == pytest.approx(4 / 7)


def test_identity_is_read_on_scenes_alone() -> None:
    seen = [
        *_truth(_case("ss")),
        _on("night", _thing(vector=STRANGER, accessory="hat")),
        _on("wood", _thing(vector=STRANGER)),
    ]
    assert _score("sswp", seen)["identity"] == pytest.approx(1)


def test_an_object_is_there_twice_where_two_things_are_it() -> None:
    near, far = torch.tensor([0.6, 0.8, 0.0]), torch.tensor([0.4, 0.9, 0.0])
    seen = [
        _on("snow", _thing(), _thing(vector=near)),
        _on("snow", _thing(), _thing(vector=far)),
        _on("snow", _thing(vector=STRANGER), _thing()),
        _on("snow", _thing()),
    ]
    assert _score("ssssw", [*seen, _on("snow", _thing(), _thing())])["duplicate_rate"] == 0.25


def test_a_missing_accessory_is_a_missed_prompt() -> None:
    seen = _truth(_case("sw"))
    seen[1] = _on(_case("sw").prompts[1].background, _thing(accessory="bow"))
    assert _score("sw", seen)["prompt"] == 0.5


def test_equal_poses_have_no_diversity() -> None:
    case = _case("sss")
    assert _score("sss", [_on(p.background, _thing()) for p in case.prompts])["diversity"] == 0


PAIRS = {
    "both": ([_thing(), _thing("mug", "blue", STRANGER)], 1),
    "both, the second one surer": ([_thing("mug", "blue", STRANGER), _thing()], 1),
    "the object alone": ([_thing()], 0),
    "the second one alone": ([_thing("mug", "blue", STRANGER)], 0),
    "two of the object": ([_thing(), _thing()], 0),
    "another of the class": ([_thing(vector=STRANGER), _thing("mug", "blue", STRANGER)], 0),
    "the second in the object's colour": ([_thing(), _thing("mug", "red", STRANGER)], 0),
    "the second of the object's class": ([_thing(), _thing("dog", "blue", STRANGER)], 0),
    "both in one": ([_thing("mug", "blue", ITSELF), _thing("dog", "red", STRANGER)], 0),
}


@pytest.mark.parametrize("name", PAIRS)
def test_presence_needs_the_object_and_the_other_as_two_things(name: str) -> None:
    things, expected = PAIRS[name]
    assert _score("p", [_on("snow", *things)])["all_present"] == expected


def test_an_object_that_is_hardly_there_is_not_found_and_has_no_pose() -> None:
    """Of three scenes one shows nothing that the evaluator is sure of: the spread is that of the other two."""
    seen = _truth(_case("sss"))
    seen[0] = _on("snow", replace(_thing(vector=STRANGER, box=(0, 0, 1, 1)), score=MIN_SCORE - 0.01))
    found = _score("sss", seen)
    assert (found["detection_rate"], found["identity"]) == pytest.approx((2 / 3, 2 / 3))
    assert found["diversity"] == pytest.approx(truth_scores.pose_spread([r.main for r in seen[1:]]) / _scale().spread)
    seen[1] = _on("snow", replace(_thing(), score=MIN_SCORE - 0.01))
    assert _score("sss", seen)["diversity"] == 0  # one pose alone


def test_measures_without_a_prompt_of_their_kind_are_left_out() -> None:
    assert _score("p", _truth(_case("p"))).keys() == {"all_present"}
    assert _score("w", _truth(_case("w"))).keys() == {"prompt", "background_leakage"}
    assert _score("s", _truth(_case("s"))).keys() == {
        "identity",
        "detection_rate",
        "duplicate_rate",
        "diversity",
        "prompt",
        "background_leakage",
    }
    assert _score("", []) == {}


@given(st.lists(st.booleans(), min_size=2, max_size=12))
@settings(max_examples=40, deadline=None)
def test_prompt_is_the_share_of_right_pictures(right: list[bool]) -> None:
    case = _case("s" * len(right))
    seen = [r if ok else _on("beach", *r.detections) for r, ok in zip(_truth(case), right, strict=True)]
    found = _score("s" * len(right), seen)
    assert found["prompt"] == pytest.approx(np.mean(right)) and found["background_leakage"] == pytest.approx(
        1 - np.mean(right)
    )


def test_drift_is_the_way_of_the_class_to_the_object() -> None:
    """Cosine 0.2 before, 0.6 after, 1 for the object itself: half the way; every second dog is a cat now."""
    far, near = torch.tensor([0.2, 0.96**0.5, 0]), torch.tensor([0.6, 0.8, 0])
    before = [_on("snow", _thing(vector=far))] * 4
    after = [_on("snow", _thing("dog" if i % 2 else "cat", vector=near)) for i in range(4)]
    assert truth_scores.score_drift(_scale(), "dog", before, after) == pytest.approx(
        {"drift": 0.5, "class_accuracy": 0.5}
    )
    assert truth_scores.score_drift(_scale(), "dog", before, before) == pytest.approx({"drift": 0, "class_accuracy": 1})
    assert truth_scores.score_drift(_scale(), "dog", before, [_on("snow", _thing())])["drift"] == pytest.approx(1)


def test_ends_of_the_scale_are_the_quantities_behind_the_measures() -> None:
    scale = _scale(zero=0.25, one=0.75)
    assert scale.endpoints() == {"identity": (0.25, 0.75), "diversity": (0.0, round(scale.spread, 5))}
    assert scale.identity([_thing(vector=STRANGER), _thing()]) == pytest.approx([-0.5, 1.5])


def test_scatter_is_the_spread_of_the_boxes() -> None:
    things = [_thing(box=b) for b in BOXES[:2]]
    (a, b) = (np.array(statistics.pose_vector(box)) for box in BOXES[:2])
    assert truth_scores.pose_spread(things) == pytest.approx(np.linalg.norm(a - b))
    assert truth_scores.identity_vectors(things).shape == (2, 3)
