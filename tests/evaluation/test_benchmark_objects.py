"""What methods are asked: held-out objects, prompts whose truth can be drawn, the same for everyone."""

from dataclasses import replace

import numpy as np
import pytest

from objtune_cli.evaluation import benchmark_objects
from objtune_cli.evaluation.benchmark_objects import OBJECT_SLOT, Case
from objtune_cli.toybox import world
from objtune_cli.toybox.captions import describe
from objtune_cli.toybox.recipe.clip_text import parse
from objtune_cli.toybox.renderer import render
from objtune_cli.toybox.world import BACKGROUNDS, CLASSES, COLOURS, EASY, FULL, MEDIUM, Dial

DIALS = pytest.mark.parametrize("dial", [EASY, MEDIUM, FULL], ids=["easy", "medium", "full"])


def _asked(dial: Dial = MEDIUM, count: int = 16, **given) -> list[Case]:
    return benchmark_objects.make_cases(dial, count, 0, **given)


def test_medium_is_easy_with_accessories_and_larger_objects() -> None:
    assert world.DIALS["medium"] is MEDIUM
    assert (
        set(MEDIUM.accessories) == set(world.ACCESSORIES)
        and MEDIUM.size[0] > EASY.size[0]
        and MEDIUM.size[1] > EASY.size[1]
    )
    same = replace(MEDIUM, accessories=EASY.accessories, size=EASY.size, pairs=EASY.pairs)
    assert same == EASY
    worn = {world.sample_instance(np.random.default_rng(i), MEDIUM).accessory for i in range(40)}
    assert worn == set(world.ACCESSORIES)


@DIALS
def test_objects_are_held_out_and_classes_take_turns(dial: Dial) -> None:
    asked = _asked(dial)
    assert all(world.is_held_out(case.instance) for case in asked)
    assert [case.instance.kind for case in asked] == [dial.classes[i % len(dial.classes)] for i in range(16)]
    assert len({case.name for case in asked}) == len({case.instance for case in asked}) == 16
    assert all(case.photo.objects[0][0] == case.instance and len(case.photo.objects) == 1 for case in asked)
    assert {case.photo_background for case in _asked(dial, 60)} == set(dial.backgrounds)


def test_same_seed_same_cases_and_another_seed_others() -> None:
    assert _asked() == _asked()
    assert not set(case.instance for case in benchmark_objects.make_cases(MEDIUM, 16, 1)) & set(
        case.instance for case in _asked()
    )


def test_object_i_is_the_same_for_any_number_of_objects_and_kinds() -> None:
    assert _asked(count=3) == _asked()[:3]
    for whole, some in zip(_asked(), _asked(kinds=("pair",)), strict=True):
        assert (some.instance, some.photo) == (whole.instance, whole.photo)
        assert some.prompts == tuple(p for p in whole.prompts if p.kind == "pair") != ()


@DIALS
def test_every_background_but_the_photos_is_asked_for(dial: Dial) -> None:
    for case in _asked(dial):
        asked = [p.background for p in case.prompts if p.kind == "scene"]
        assert sorted(asked) == sorted(set(dial.backgrounds) - {case.photo_background})
        assert all(p.background != case.photo_background for p in case.prompts)


def test_an_accessory_is_asked_only_of_objects_that_wear_none() -> None:
    counts = set()
    for case in _asked(MEDIUM, 30):
        worn = [p for p in case.prompts if p.kind == "wearing"]
        assert len(worn) == (2 if case.instance.accessory == "none" else 0)
        assert {p.accessory for p in worn} <= set(world.ACCESSORIES) - {"none"}
        counts.add(len(worn))
    assert counts == {0, 2}
    assert not [p for case in _asked(EASY) for p in case.prompts if p.kind == "wearing"]  # that world has none


@DIALS
def test_a_second_object_is_plain_and_of_another_class(dial: Dial) -> None:
    for case in _asked(dial):
        pairs = [p.other for p in case.prompts if p.kind == "pair"]
        assert len(pairs) == 2
        assert all(
            o.kind in set(dial.classes) - {case.instance.kind} and (o.pattern, o.accessory) == ("plain", "none")
            for o in pairs
        )


def test_no_two_prompts_share_their_noise() -> None:
    seeds = [p.seed for case in _asked(count=20, repeats=2) for p in case.prompts]
    assert len(set(seeds)) == len(seeds)
    assert not set(seeds) & set(range(500, 508))  # the class's own


def test_each_object_has_a_randomness_of_its_own_for_each_purpose() -> None:
    a, b = _asked(count=2)
    draws = [case.generator(seed, purpose).random() for case in (a, b) for seed in (0, 1) for purpose in (1, 2)]
    assert len(set(draws)) == 8 and a.generator(0, 1).random() == draws[0]


def test_repeats_ask_again_with_other_noise() -> None:
    once, twice = _asked(count=4), _asked(count=4, repeats=2)
    for a, b in zip(once, twice, strict=True):
        assert b.prompts[: len(a.prompts)] == a.prompts and len(b.prompts) == 2 * len(a.prompts)
        assert len({p.seed for p in b.prompts}) == len(b.prompts)


@DIALS
def test_a_prompts_words_say_what_its_truth_holds(dial: Dial) -> None:
    """Read back by the parser of captions, with a caption's words in the object's place."""
    for case in _asked(dial):
        for prompt in case.prompts:
            assert prompt.text.count(OBJECT_SLOT) == 1
            said, background = parse(prompt.text.replace(OBJECT_SLOT, "a " + describe(case.instance, 0)))
            assert background == BACKGROUNDS.index(prompt.background)
            assert said[0]["class"] == CLASSES.index(case.instance.kind)
            if prompt.accessory:
                assert said[0]["accessory"] == world.ACCESSORIES.index(prompt.accessory)
                assert said[0]["third"] == list(COLOURS).index(case.instance.third)
            if prompt.other is not None:
                assert (said[1]["class"], said[1]["colour"]) == (
                    CLASSES.index(prompt.other.kind),
                    list(COLOURS).index(prompt.other.colour),
                )
            assert len(said) == 1 + (prompt.other is not None)


@DIALS
def test_the_true_scene_holds_what_is_asked_and_the_object_itself(dial: Dial) -> None:
    for case in _asked(dial):
        for prompt in case.prompts:
            scene = prompt.truth(case.instance, dial, 7)
            found = [instance for instance, _ in scene.objects]
            assert scene.background == prompt.background
            assert found[1:] == ([] if prompt.other is None else [prompt.other])
            assert found[0].accessory == (prompt.accessory or case.instance.accessory)
            assert replace(found[0], accessory=case.instance.accessory) == case.instance
            assert scene == prompt.truth(case.instance, dial, 7) != prompt.truth(case.instance, dial, 8)


def test_true_scenes_are_newly_posed_for_every_prompt() -> None:
    case = _asked()[0]
    poses = [p.truth(case.instance, MEDIUM, 0).objects[0][1] for p in case.prompts]
    assert len(set(poses)) == len(poses) and case.photo.objects[0][1] not in poses


def test_the_photo_comes_with_its_exact_mask() -> None:
    case = _asked()[3]
    rgb, mask = case.picture()
    assert rgb.shape == (320, 320, 3) and mask.shape == (320, 320) and rgb.dtype == mask.dtype == np.uint8
    drawn, masks = render(case.photo, 320)
    assert np.array_equal(rgb, drawn) and np.array_equal(mask, masks[0])
    assert 0.05 < (mask > 127).mean() < 0.6
