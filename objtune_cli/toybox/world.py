"""The toybox's world: instances, poses and scenes, and the dials that set its difficulty.

Everything comes from a numpy generator, so a seed always gives the same scene. `renderer` draws the pixels and
`captions` writes the words.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from objtune_cli.toybox.marks import Mark, sample_marks

CLASSES = ("dog", "cat", "car", "mug", "house", "fish", "tree", "boat")
BACKGROUNDS = ("beach", "snow", "grass", "night", "wood", "desert", "city", "underwater")
PATTERNS = ("plain", "spots", "stripes", "checks")
ACCESSORIES = ("none", "hat", "scarf", "bow")
COLOURS = {
    "red": (214, 40, 40),
    "orange": (242, 130, 30),
    "yellow": (248, 214, 56),
    "green": (64, 164, 64),
    "teal": (30, 178, 172),
    "blue": (48, 88, 216),
    "purple": (134, 64, 184),
    "pink": (246, 136, 184),
    "brown": (125, 80, 45),
    "black": (44, 44, 48),
    "white": (240, 240, 236),
    "gray": (140, 142, 146),
}
"""Colour word to RGB, [0, 255]."""


@dataclass(frozen=True, slots=True)
class Dial:
    """The difficulty of the world; a base names its dial in `toybox.json`.

    Attributes:
        classes, backgrounds, colours, patterns, accessories: The words in use.
        size: Range of the longer side of a lone object, as a fraction of the frame.
        jitter: Standard deviation of the object's centre, fraction of the frame.
        rotation: Largest tilt to either side, radians.
        pairs: Share of scenes with two objects, the first one named on the left.
        flips: Objects may face left; captions then say where they face.
        marks: Smallest and largest number of emblems on an object, which no caption names; objects with any also have markings of their class.
        spread: Factor of the range of each proportion.
    """

    classes: tuple[str, ...]
    backgrounds: tuple[str, ...]
    colours: tuple[str, ...]
    patterns: tuple[str, ...]
    accessories: tuple[str, ...]
    size: tuple[float, float]
    jitter: float
    rotation: float
    pairs: float
    flips: bool
    marks: tuple[int, int] = (0, 0)
    spread: float = 1.0


EASY = Dial(
    classes=CLASSES[:6],
    backgrounds=BACKGROUNDS[:6],
    colours=tuple(COLOURS)[:8],
    patterns=PATTERNS[:3],
    accessories=("none",),
    size=(0.50, 0.68),
    jitter=0.04,
    rotation=0.07,
    pairs=0.2,
    flips=False,
)
"""A world that two CPU cores learn in an afternoon."""

MEDIUM = replace(EASY, accessories=ACCESSORIES, size=(0.56, 0.76), pairs=0.25)
"""Larger objects with accessories, for a base that starts from one of the easy world."""

MARKED = replace(MEDIUM, marks=(1, 2), spread=1.25)
"""Objects with marks that no words can describe."""

FULL = Dial(
    classes=CLASSES,
    backgrounds=BACKGROUNDS,
    colours=tuple(COLOURS),
    patterns=PATTERNS,
    accessories=ACCESSORIES,
    size=(0.34, 0.70),
    jitter=0.07,
    rotation=0.14,
    pairs=0.25,
    flips=True,
)
"""The whole world, for a GPU."""

DIALS = {"easy": EASY, "medium": MEDIUM, "marked": MARKED, "full": FULL}


@dataclass(frozen=True, slots=True)
class Instance:
    """One particular object: the same values draw the same object in any scene.

    Attributes:
        kind: Class word, one of `CLASSES`.
        colour, second: Colour words of the coat and of the trim.
        pattern, accessory, third: Pattern, accessory and the accessory's colour word.
        rgb: Exact colours of coat, trim and accessory, [0, 255].
        proportions: Five numbers in [0, 1] that shape the figure.
        phase, frequency: Where the pattern starts, and how fine it is, both in [0, 1].
        marks: Emblems on its coat.
        marking: Which marking of its class it has, and how, each in [0, 1]; empty: none.
        marking_rgb: The marking's colour, [0, 255].
        spread: Factor of the range of each proportion.
    """

    kind: str
    colour: str
    second: str
    third: str
    pattern: str
    accessory: str
    rgb: tuple[tuple[int, int, int], ...]
    proportions: tuple[float, ...]
    phase: float
    frequency: float
    marks: tuple[Mark, ...] = ()
    marking: tuple[float, ...] = ()
    marking_rgb: tuple[int, int, int] = (0, 0, 0)
    spread: float = 1.0


@dataclass(frozen=True, slots=True)
class Pose:
    """The position of an object: centre and longer side as fractions of the frame, tilt in radians."""

    x: float
    y: float
    size: float
    tilt: float = 0.0
    flip: bool = False


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects with their poses (left to right) before a background drawn from its own seed."""

    objects: tuple[tuple[Instance, Pose], ...]
    background: str
    background_seed: int


def is_held_out(instance: Instance) -> bool:
    """Whether this combination is in no training image, which holds for about one in ten.

    It depends on class, both colours and pattern only, so every seed, size and recipe has the same split.
    """
    key = f"{instance.kind}/{instance.colour}/{instance.second}/{instance.pattern}"
    return zlib.crc32(key.encode()) % 10 == 0


def sample_instance(
    rng: np.random.Generator,
    dial: Dial = EASY,
    *,
    kind: str | None = None,
    held_out: bool | None = False,
) -> Instance:
    """One random object; `held_out` False: a training one, True: a reserved one, None: either."""
    while True:
        names = [str(c) for c in rng.choice(dial.colours, 2, replace=False)]
        names.append(str(rng.choice(dial.colours)))
        instance = Instance(
            kind=kind or str(rng.choice(dial.classes)),
            colour=names[0],
            second=names[1],
            third=names[2],
            pattern=str(rng.choice(dial.patterns)),
            accessory=str(rng.choice(dial.accessories)) if rng.random() < 0.6 else "none",
            rgb=tuple(shade(COLOURS[name], rng) for name in names),
            proportions=tuple(float(v) for v in rng.uniform(0, 1, 5)),
            phase=float(rng.uniform()),
            frequency=float(rng.uniform()),
        )
        if dial.marks[1]:
            instance = _with_marks(instance, rng, dial)
        if held_out is None or is_held_out(instance) == held_out:
            return instance


def sample_namesake(rng: np.random.Generator, instance: Instance, dial: Dial) -> Instance:
    """Another object that the same words describe: other shades, proportions, place of the pattern, and marks."""
    fresh = sample_instance(rng, dial, kind=instance.kind, held_out=None)
    rgb = tuple(shade(COLOURS[name], rng) for name in (instance.colour, instance.second, instance.third))
    other = replace(
        instance,
        rgb=rgb,
        proportions=fresh.proportions,
        phase=fresh.phase,
        frequency=fresh.frequency,
        spread=dial.spread,
    )
    return _with_marks(other, rng, dial) if dial.marks[1] else other


def _with_marks(instance: Instance, rng: np.random.Generator, dial: Dial) -> Instance:
    """The instance with emblems and a marking, in colours that stand out from its coat."""
    palette = [shade(rgb, rng) for rgb in COLOURS.values()]
    coat = list(instance.rgb[: 1 if instance.pattern == "plain" else 2])
    marks = sample_marks(rng, dial.marks, palette, coat)
    return replace(
        instance,
        marks=marks,
        marking=tuple(float(v) for v in rng.uniform(0, 1, 3)),
        marking_rgb=palette[int(rng.integers(len(palette)))],
        spread=dial.spread,
    )


def shade(rgb: tuple[int, int, int], rng: np.random.Generator) -> tuple[int, int, int]:
    """Vary a colour in brightness and in each channel."""
    noisy = np.array(rgb) * rng.uniform(0.93, 1.05) + rng.uniform(-7, 7, 3)
    r, g, b = (int(v) for v in noisy.clip(0, 255))
    return r, g, b


def sample_pose(rng: np.random.Generator, dial: Dial = EASY, *, slot: int = 0, of: int = 1) -> Pose:
    """A pose for object number `slot` of `of` objects that stand side by side."""
    tilt = float(np.clip(rng.normal(0, dial.rotation / 2), -dial.rotation, dial.rotation))
    flip = bool(dial.flips and rng.random() < 0.5)
    if of == 1:
        x, y = rng.normal(0.5, dial.jitter), rng.normal(0.57, 0.75 * dial.jitter)
        size = rng.uniform(*dial.size)
    else:
        x, y = (slot + 0.5) / of + rng.normal(0, 0.015), rng.normal(0.60, 0.025)
        size = rng.uniform(0.82, 0.94) / of
    half = size / 2
    x, y = np.clip([x, y], half + 0.01, 0.99 - half)
    return Pose(float(x), float(y), float(size), tilt, flip)


def sample_scene(
    rng: np.random.Generator,
    dial: Dial = EASY,
    *,
    instances: tuple[Instance, ...] | None = None,
    background: str | None = None,
) -> Scene:
    """Sample a scene; `instances` and `background` fix its content."""
    if instances is None:
        count = 2 if rng.random() < dial.pairs else 1
        instances = tuple(sample_instance(rng, dial) for _ in range(count))
    poses = [sample_pose(rng, dial, slot=i, of=len(instances)) for i in range(len(instances))]
    return Scene(
        objects=tuple(zip(instances, poses, strict=True)),
        background=background or str(rng.choice(dial.backgrounds)),
        background_seed=int(rng.integers(1 << 31)),
    )


def scenes(seed: int, dial: Dial = EASY) -> Iterator[Scene]:
    """The endless series of training scenes of one seed."""
    rng = np.random.default_rng(seed)
    while True:
        yield sample_scene(rng, dial)
