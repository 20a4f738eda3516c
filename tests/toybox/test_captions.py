"""Captions: every word is known, and what they say can be read back."""

import itertools

import numpy as np
import pytest

from objtune_cli.toybox import captions, world
from objtune_cli.toybox.recipe.clip_text import SIZES, parse
from objtune_cli.toybox.world import ACCESSORIES, BACKGROUNDS, CLASSES, COLOURS, FULL, Instance

NAMES = list(COLOURS)
NOTHING = {k: n for k, n in SIZES.items() if k not in ("class", "accessory")} | {"accessory": 0}
"""Not said: the index after the last one; no accessory is the first one."""


def _instance(
    kind: str = "dog",
    colour: str = "orange",
    second: str = "blue",
    pattern: str = "stripes",
    accessory: str = "none",
    third: str = "red",
) -> Instance:
    return Instance(kind, colour, second, third, pattern, accessory, ((0, 0, 0),) * 3, (0.5,) * 5, 0.0, 0.0)


def _said(i: Instance, level: int) -> dict[str, int]:
    """What `describe` says at a level, as `parse` should read it."""
    said = NOTHING | {"class": CLASSES.index(i.kind)}
    if level >= 1:
        said["colour"] = NAMES.index(i.colour)
    if level >= 2 and i.pattern != "plain":
        said["pattern"] = list(captions.PATTERN_WORDS).index(i.pattern)
    if level >= 3:
        said["second"] = NAMES.index(i.second)
        if i.accessory != "none":
            said |= {"third": NAMES.index(i.third), "accessory": ACCESSORIES.index(i.accessory)}
    return said


@pytest.mark.parametrize(
    ("level", "text"),
    [(0, "dog"), (1, "orange dog"), (2, "orange striped dog"), (3, "orange and blue striped dog with a red hat")],
)
def test_levels_of_detail(level: int, text: str) -> None:
    assert captions.describe(_instance(accessory="hat"), level) == text


def test_a_plain_coat_is_not_mentioned() -> None:
    assert captions.describe(_instance(pattern="plain"), 2) == "orange dog"


@pytest.mark.parametrize(
    ("words", "said"),
    [("orange dog", "an orange dog"), ("dog", "a dog"), ("image", "an image"), ("yellow mug", "a yellow mug")],
)
def test_article(words: str, said: str) -> None:
    assert captions.article(words) == said


def _many(count: int, seed: int = 0) -> list[tuple[world.Scene, str]]:
    rng = np.random.default_rng(seed)
    drawn = [world.sample_scene(rng, FULL) for _ in range(count)]
    return [(s, captions.caption(s, rng)) for s in drawn]


def test_every_word_of_every_caption_is_in_the_vocabulary() -> None:
    known = set(captions.vocabulary())
    used = {word for _, text in _many(2500) for word in text.split()}
    assert used <= known
    assert {
        *CLASSES,
        *COLOURS,
        *ACCESSORIES[1:],
        "spotted",
        "underwater",
        "facing",
    } <= used  # the sample was large enough
    for text in itertools.chain.from_iterable(captions.PLACES.values()):
        assert set(text.split()) <= known


def test_vocabulary_is_sorted_without_repeats() -> None:
    words = captions.vocabulary()
    assert words == sorted(set(words)) and all(w == w.lower() and " " not in w for w in words)


def test_articles_in_captions_fit_the_next_word() -> None:
    for _, text in _many(800):
        words = text.split()
        for a, b in itertools.pairwise(words):
            if a in ("a", "an"):
                assert (a == "an") == (b[0] in "aeiou"), text


def test_parse_reads_what_describe_said() -> None:
    patterns, extras = captions.PATTERN_WORDS, ACCESSORIES
    for level, pattern, accessory, kind in itertools.product(range(4), patterns, extras, ("dog", "house")):
        i = _instance(kind, "yellow", "pink", pattern, accessory, "orange")
        objects, place = parse(f"a photo of {captions.article(captions.describe(i, level))}")
        assert objects == [_said(i, level)] and place == -1


def test_parse_reads_two_objects_in_order() -> None:
    first, second = (
        _instance("dog", "red", "blue", "spots", "hat", "green"),
        _instance("mug", "pink", "gray", "plain", "none"),
    )
    for a, b in ((first, second), (second, first), (first, first)):
        for level in range(4):
            text = f"{captions.article(captions.describe(a, level))} and {captions.article(captions.describe(b, level))} in the snow"
            assert parse(text) == ([_said(a, level), _said(b, level)], BACKGROUNDS.index("snow"))


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_parse_reads_every_name_of_every_place(background: str) -> None:
    for phrase in captions.PLACES[background]:
        assert parse(f"a red dog {phrase}") == ([NOTHING | {"class": 0, "colour": 0}], BACKGROUNDS.index(background))


def test_parse_agrees_with_the_scene_on_random_captions() -> None:
    levels = set()
    for scene, text in _many(600, seed=1):
        objects, place = parse(text)
        assert place in (-1, BACKGROUNDS.index(scene.background))
        fits = [level for level in range(4) if objects == [_said(i, level) for i, _ in scene.objects]]
        assert fits, text
        levels |= set(fits) if len(fits) == 1 else set()
        mentioned_left = " facing left" in text
        assert mentioned_left == (len(scene.objects) == 1 and scene.objects[0][1].flip)
    assert levels == {0, 1, 2, 3}


def test_labels_are_indices_into_the_worlds_lists() -> None:
    assert captions.label(_instance("cat", "red", "gray", "checks"), "night") == (
        1,
        3,
        0,
        NAMES.index("gray"),
        3,
        0,
        -1,
    )
