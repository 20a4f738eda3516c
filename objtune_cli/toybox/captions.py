"""Captions of scenes at all levels of detail, and the tokenizer's vocabulary."""

import numpy as np

from objtune_cli.toybox.world import (
    ACCESSORIES,
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    PATTERNS,
    Instance,
    Scene,
)

PLACES = {
    "beach": ("on the beach", "at the beach"),
    "snow": ("in the snow", "on the snow"),
    "grass": ("on the grass", "in a meadow"),
    "night": ("at night", "under the night sky"),
    "wood": ("on a wooden floor", "on a wood floor"),
    "desert": ("in the desert", "on a desert dune"),
    "city": ("in the city", "on a city street"),
    "underwater": ("under water", "underwater"),
}
"""Background to the phrases that name it; the first one is the simplest."""

PATTERN_WORDS = {"plain": "plain", "spots": "spotted", "stripes": "striped", "checks": "checkered"}

PLAIN_WORDS = [
    "a",
    "an",
    "and",
    "the",
    "of",
    "on",
    "in",
    "at",
    "with",
    "under",
    "to",
    "photo",
    "picture",
    "image",
    "drawing",
    "painting",
    "my",
    "your",
    "this",
    "that",
    "two",
    "three",
    "one",
    "next",
    "behind",
    "left",
    "right",
    "facing",
    "big",
    "small",
    "large",
    "tiny",
    "little",
    "old",
    "new",
    "toy",
    "puppy",
    "kitten",
    "vehicle",
    "cup",
    "home",
    "object",
    "thing",
    "animal",
    "pet",
    "bird",
    "horse",
    "rabbit",
    "bear",
    "duck",
    "lamp",
    "shoe",
    "bag",
    "bottle",
    "chair",
    "phone",
    "guitar",
    "bike",
    "plane",
    "train",
    "flower",
    "person",
    "sun",
    "moon",
    "sky",
    "sea",
    "water",
    "forest",
    "mountain",
    "street",
    "room",
    "kitchen",
    "table",
    "garden",
    "space",
    "wearing",
    "simple",
    "background",
    "close",
    "up",
    "side",
    "view",
]
"""Words of ordinary prompts, each a single token; the base has not learned those that no caption has."""


def vocabulary() -> list[str]:
    """The words that are one token each, sorted."""
    phrases = [w for group in PLACES.values() for phrase in group for w in phrase.split()]
    parts = (PLAIN_WORDS, phrases, CLASSES, COLOURS, ACCESSORIES[1:], PATTERN_WORDS.values())
    return sorted({word for words in parts for word in words})


def article(words: str) -> str:
    """`words` with its indefinite article."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def describe(instance: Instance, level: int) -> str:
    """The object in words; level 0: class, 1: + colour, 2: + pattern, 3: + second colour, accessory."""
    words = [instance.colour] if level >= 1 else []
    if level >= 3:
        words += ["and", instance.second]
    if level >= 2 and instance.pattern != "plain":
        words.append(PATTERN_WORDS[instance.pattern])
    text = " ".join([*words, instance.kind])
    if level >= 3 and instance.accessory != "none":
        text += f" with {article(f'{instance.third} {instance.accessory}')}"
    return text


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One random caption of a scene, from "a dog" to every attribute, place and opening."""
    level = int(rng.choice(4, p=(0.12, 0.15, 0.23, 0.50)))
    subject = " and ".join(article(describe(instance, level)) for instance, _ in scene.objects)
    opening = ("a photo of ", "a picture of ", "", "")[rng.integers(4)]
    place = " " + str(rng.choice(PLACES[scene.background])) if rng.random() < 0.92 else ""
    poses = [pose for _, pose in scene.objects]
    facing = ""
    if len(poses) == 1 and poses[0].flip:
        facing = " facing left"
    return opening + subject + facing + place


def label(instance: Instance, background: str) -> tuple[int, ...]:
    """Indices in the world's lists: class, background, both colours, pattern, accessory and its colour (or -1)."""
    names = list(COLOURS)
    return (
        CLASSES.index(instance.kind),
        BACKGROUNDS.index(background),
        names.index(instance.colour),
        names.index(instance.second),
        PATTERNS.index(instance.pattern),
        ACCESSORIES.index(instance.accessory),
        names.index(instance.third) if instance.accessory != "none" else -1,
    )
