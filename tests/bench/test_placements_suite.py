"""`bench place`: the truth scores as the truth, and what changes outside of the region is seen."""

import numpy as np
import pytest

from objtune_cli.bench.suites import placements
from objtune_cli.evaluation import benchmark_objects, rendering
from objtune_cli.evaluation.truth_scores import Calibration
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.evaluator.network import Evaluator
from objtune_cli.toybox.world import DIALS


@pytest.fixture(scope="module")
def judged() -> tuple[Evaluator, Calibration, list[placements.PlacedScene]]:
    dial, network = DIALS["medium"], inference.load()
    (case,) = benchmark_objects.make_cases(dial, 1, 0, kinds=("scene",))
    return network, rendering.calibrate(network, case, dial, 0), placements.make_scenes(case, dial.backgrounds, 0)


def test_the_truth_and_the_empty_picture(judged) -> None:
    network, scale, scenes = judged
    truth = [placements.score(network, scale, each, each.truth) for each in scenes]
    empty = [placements.score(network, scale, each, each.empty) for each in scenes]
    assert np.mean([each["identity"] for each in truth]) > 0.8 and all(each["present"] == 1 for each in truth)
    assert all(each["background"] == 0 and each["seam"] == 0 for each in truth)
    assert all(each["present"] == 0 and each["ring"] == 0 for each in empty)


def test_changes_outside_and_hard_borders_are_seen(judged) -> None:
    network, scale, scenes = judged
    scene = scenes[0]
    x0, y0, x1, y1 = scene.region.box
    pasted = scene.truth.copy()
    pasted[y0:y1, x0:x1] = 255 - pasted[y0:y1, x0:x1]
    values = placements.score(network, scale, scene, pasted)
    assert values["background"] == 0 and values["seam"] > 5 and values["ring"] > 20
    shifted = scene.truth.copy()
    shifted[0, 0] ^= 64
    assert placements.score(network, scale, scene, shifted)["background"] >= 64


def test_scenes_are_the_same_again_and_pasting_stays_in_its_region(judged, tmp_path) -> None:
    network, scale, scenes = judged
    again = placements.make_scenes(scenes[0].case, DIALS["medium"].backgrounds, 0)
    assert all(np.array_equal(a.truth, b.truth) and a.prompt == b.prompt for a, b in zip(scenes, again, strict=True))
    values = placements.score(network, scale, scenes[0], placements.METHODS["paste"](None, scenes[0], tmp_path))
    assert values["background"] == 0 and values["identity"] > 0.5
