"""The drawn world: seeds name scenes for ever, and the held-out split holds."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from objtune_cli.toybox import world
from objtune_cli.toybox.examples import photos
from objtune_cli.toybox.renderer import render
from objtune_cli.toybox.world import EASY, FULL, MARKED, Dial, Instance, Scene


def _scenes(seed: int, count: int, dial: Dial = EASY) -> list[Scene]:
    return list(itertools.islice(world.scenes(seed, dial), count))


def _instance(**given: object) -> Instance:
    return replace(world.sample_instance(np.random.default_rng(0), held_out=None), **given)


@pytest.mark.parametrize("dial", [EASY, MARKED, FULL])
def test_same_seed_same_scenes_and_bytes(dial: Dial) -> None:
    first, again, other = _scenes(3, 6, dial), _scenes(3, 6, dial), _scenes(4, 6, dial)
    assert first == again and first != other
    for a, b in zip(first, again, strict=True):
        (picture, covers), (picture2, covers2) = render(a), render(b)
        assert picture.tobytes() == picture2.tobytes()
        assert [c.tobytes() for c in covers] == [c.tobytes() for c in covers2]


def test_pictures_of_different_scenes_differ() -> None:
    assert len({render(s)[0].tobytes() for s in _scenes(0, 20)}) == 20


@pytest.mark.parametrize("dial", [EASY, FULL])
def test_scenes_stay_within_the_dial(dial: Dial) -> None:
    scenes = _scenes(1, 400, dial)
    for scene in scenes:
        assert scene.background in dial.backgrounds
        for instance, pose in scene.objects:
            assert (
                instance.kind in dial.classes
                and instance.pattern in dial.patterns
                and instance.accessory in dial.accessories
            )
            assert {instance.colour, instance.second, instance.third} <= set(dial.colours)
            assert instance.colour != instance.second
            assert abs(pose.tilt) <= dial.rotation and (dial.flips or not pose.flip)
            assert pose.size / 2 <= pose.x <= 1 - pose.size / 2 and pose.size / 2 <= pose.y <= 1 - pose.size / 2
            if len(scene.objects) == 1:
                assert dial.size[0] <= pose.size <= dial.size[1]
    pairs = sum(len(s.objects) == 2 for s in scenes) / len(scenes)
    assert abs(pairs - dial.pairs) < 5 * (dial.pairs * (1 - dial.pairs) / len(scenes)) ** 0.5
    assert {s.background for s in scenes} == set(dial.backgrounds)
    assert {i.kind for s in scenes for i, _ in s.objects} == set(dial.classes)


def test_exact_colours_are_near_their_words() -> None:
    for scene in _scenes(2, 200, FULL):
        for instance, _ in scene.objects:
            words = (instance.colour, instance.second, instance.third)
            for word, rgb in zip(words, instance.rgb, strict=True):
                # At most 7 % darker or 5 % brighter, each channel 7 more, and cut to whole numbers.
                assert all(abs(a - b) <= 0.07 * b + 8 for a, b in zip(rgb, world.COLOURS[word], strict=True))


def test_nothing_held_out_is_ever_drawn_for_training() -> None:
    assert not any(world.is_held_out(i) for dial in (EASY, FULL) for s in _scenes(0, 800, dial) for i, _ in s.objects)


def test_one_combination_in_ten_is_held_out_in_every_class() -> None:
    base = _instance()
    for dial in (EASY, FULL):
        shares = []
        for kind in dial.classes:
            colours = itertools.permutations(dial.colours, 2)
            held = [
                world.is_held_out(replace(base, kind=kind, colour=a, second=b, pattern=p))
                for a, b in colours
                for p in dial.patterns
            ]
            shares.append(sum(held) / len(held))
        assert abs(sum(shares) / len(shares) - 0.1) < 0.02
        assert min(shares) > 0.03 and max(shares) < 0.2


def test_the_split_looks_at_class_colours_and_pattern_alone() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        one, other = (world.sample_instance(rng, FULL, held_out=None) for _ in range(2))
        twin = replace(other, kind=one.kind, colour=one.colour, second=one.second, pattern=one.pattern)
        assert twin != one and world.is_held_out(twin) == world.is_held_out(one)


@pytest.mark.parametrize("dial", [EASY, world.MARKED])
def test_a_namesake_has_the_same_words_and_nothing_else(dial: world.Dial) -> None:
    rng = np.random.default_rng(0)
    one = world.sample_instance(rng, dial, held_out=True)
    other = world.sample_namesake(rng, one, dial)
    words = ("kind", "colour", "second", "third", "pattern", "accessory", "spread")
    assert all(getattr(one, name) == getattr(other, name) for name in words) and world.is_held_out(other)
    assert one.rgb != other.rgb and one.proportions != other.proportions and one.phase != other.phase
    assert bool(other.marks) == bool(dial.marks[1])
    if other.marks:
        assert one.marks != other.marks and one.marking != other.marking


def test_the_split_is_for_ever() -> None:
    """Recorded once; the base was trained on it. CRC-32 of "dog/teal/orange/spots" is divisible by ten."""
    known = {
        ("dog", "teal", "orange", "spots"): True,
        ("mug", "blue", "yellow", "spots"): True,
        ("dog", "red", "blue", "plain"): False,
    }
    for (kind, colour, second, pattern), held in known.items():
        assert world.is_held_out(_instance(kind=kind, colour=colour, second=second, pattern=pattern)) is held


def test_held_out_on_request() -> None:
    rng = np.random.default_rng(0)
    drawn = [world.sample_instance(rng, kind="cat", held_out=True) for _ in range(20)]
    assert all(world.is_held_out(i) and i.kind == "cat" for i in drawn)


def test_example_photos_show_what_no_base_was_trained_on() -> None:
    scenes = photos()
    assert scenes.keys() == {"photo.jpg", "mug.jpg", "pair.jpg", "three.jpg"}
    assert all(world.is_held_out(i) for s in scenes.values() for i, _ in s.objects)
    assert photos() == scenes
