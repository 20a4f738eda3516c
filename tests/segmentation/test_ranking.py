"""What a class word chooses, from candidates whose scores are known, and from drawn objects by the toybox's own CLIP."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from objtune_cli.models import clip, loading, registry
from objtune_cli.segmentation import ranking
from objtune_cli.segmentation.ranking import Candidate
from objtune_cli.toybox import renderer, world
from objtune_cli.toybox.world import DIALS


def _square(x: int, y: int, side: int, frame: int = 60) -> np.ndarray:
    mask = np.zeros((frame, frame), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def _candidates(*places: tuple[int, int, int, float]) -> list[Candidate]:
    return [Candidate(_square(x, y, side), 0.9, score) for x, y, side, score in places]


def test_of_one_thing_the_best_candidate_stays_and_its_parts_go() -> None:
    found = ranking.suppress_duplicates(
        _candidates((5, 5, 20, 3.0), (6, 6, 20, 2.9), (8, 8, 6, 2.5), (35, 35, 15, 1.0))
    )
    assert [c.score for c in found] == [3.0, 1.0]


@pytest.mark.parametrize(
    ("which", "x"), [("left", 2), ("right", 40), ("largest", 22), ("smallest", 40), ("top", 40), ("bottom", 22)]
)
def test_which_of_several(which: str, x: int) -> None:
    alike = _candidates(
        (2, 20, 12, 2.0), (22, 30, 16, 2.4), (40, 5, 10, 2.2), (45, 45, 12, -3.0)
    )  # the last one is something else
    first = ranking.select(sorted(alike, key=lambda c: -c.score), which)[0]
    assert first.mask.nonzero()[1].min() == x


@given(st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=1, max_size=3))
@settings(deadline=None)
def test_several_objects_get_different_things_with_the_largest_sum(scores: list[list[float]]) -> None:
    places = [(2, 2), (22, 2), (42, 2)]
    choices = [[Candidate(_square(*places[i], 10), 0.5, s) for i, s in enumerate(row)] for row in scores]
    picks = ranking.assign(choices)
    best = max(
        sum(row[i] for row, i in zip(scores, p, strict=True)) for p in itertools.permutations(range(3), len(scores))
    )
    assert picks is not None and len(set(picks)) == len(picks)
    assert sum(row[i] for row, i in zip(scores, picks, strict=True)) == pytest.approx(best)


def test_too_few_things_for_the_objects() -> None:
    one = _candidates((5, 5, 20, 3.0))
    assert ranking.assign([one, one]) is None


def test_contrast_is_high_where_colours_change_along_the_whole_outline() -> None:
    rgb = np.full((60, 60, 3), 60, np.uint8)
    rgb[20:40, 20:40] = (220, 40, 40)
    on, half, off = _square(20, 20, 20), _square(20, 30, 20), _square(2, 2, 10)
    assert (
        ranking.outline_contrast(rgb, on)
        > 0.95
        > ranking.outline_contrast(rgb, half)
        > 0.3
        > ranking.outline_contrast(rgb, off)
    )


def test_share_of_the_border() -> None:
    assert ranking.border_share(_square(20, 20, 10)) == 0
    assert ranking.border_share(np.ones((60, 60), bool)) == 1
    assert ranking.border_share(_square(0, 20, 30)) == pytest.approx(30 / 240)


@pytest.fixture(scope="module")
def toybox() -> tuple:
    base = registry.resolve("toybox")
    model = loading.load(base.folder, torch.device("cpu"), torch.float32)
    return model, clip.load(base.clip_path, model), base.known_classes


def test_the_toyboxs_clip_tells_two_objects_of_one_photo_apart(toybox: tuple) -> None:
    model, tower, words = toybox
    dial, right = DIALS["medium"], 0
    for i in range(12):
        rng = np.random.default_rng((3, i))
        kinds = [str(k) for k in rng.choice(dial.classes, 2, replace=False)]
        scene = world.sample_scene(
            rng, dial, instances=tuple(world.sample_instance(rng, dial, kind=k, held_out=True) for k in kinds)
        )
        rgb, covers = renderer.render(scene, 160)
        share = ranking.class_probabilities(model, tower, rgb, [c > 127 for c in covers], kinds, words)
        assert share.shape == (2, 2) and (share >= 0).all() and (share.sum(axis=1) <= 1 + 1e-5).all()
        right += share[0, 0] > share[1, 0] and share[1, 1] > share[0, 1]
    assert right >= 11


def test_background_is_no_dog(toybox: tuple) -> None:
    model, tower, words = toybox
    rng = np.random.default_rng(0)
    dog = world.sample_instance(rng, DIALS["medium"], kind="dog")
    rgb, (cover,) = renderer.render(world.sample_scene(rng, DIALS["medium"], instances=(dog,), background="grass"), 160)
    masks = [cover > 127, _square(0, 0, 60, 160)]
    share = ranking.class_probabilities(model, tower, rgb, masks, ["dog"], words)[:, 0]
    found = ranking.rank(rgb, masks, [0.9, 0.9], share)
    assert found[0].mask is masks[0] and found[0].score - found[1].score > 2 and found[0].class_probability > 0.5
