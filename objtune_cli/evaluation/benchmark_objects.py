"""What is asked of a method: held-out objects, a photo of each, and prompts whose true pictures can be drawn."""

import zlib
from dataclasses import dataclass, replace

import numpy as np

from objtune_cli.toybox import renderer, world
from objtune_cli.toybox.captions import PLACES, article
from objtune_cli.toybox.world import Dial, Instance, Scene

PHOTO_SIDE = 320
"""Side of the photo that a method is given, px."""
STEP = 10_000
"""Distance between the seeds of two objects' prompts: each object has poses and noise of its own."""
PLACE = "<object>"
"""Where the object stands in a prompt."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt and what its picture must show.

    Attributes:
        kind: "scene", "wearing" or "pair".
        text: With `PLACE` where the object is named.
        background: Asked background. accessory: asked accessory or "". other: a second object, or None.
        seed: Of the picture's noise, and of the true scene.
    """

    kind: str
    text: str
    background: str
    accessory: str
    other: Instance | None
    seed: int

    def truth(self, instance: Instance, dial: Dial, seed: int) -> Scene:
        """A true scene of this prompt, newly posed."""
        rng = np.random.default_rng((seed, self.seed))
        if self.accessory:
            instance = replace(instance, accessory=self.accessory)
        together = (instance,) if self.other is None else (instance, self.other)
        return world.sample_scene(rng, dial, instances=together, background=self.background)


@dataclass(frozen=True, slots=True)
class Case:
    """One held-out object, its photo, and what it is asked for."""

    name: str
    instance: Instance
    photo: Scene
    prompts: tuple[Prompt, ...]

    @property
    def photo_background(self) -> str:
        return self.photo.background

    def generator(self, seed: int, purpose: int) -> np.random.Generator:
        """Randomness of this object alone."""
        return np.random.default_rng((seed, purpose, zlib.crc32(self.name.encode())))

    def picture(self) -> tuple[np.ndarray, np.ndarray]:
        """The photo (S, S, 3) and the object's exact mask (S, S), uint8."""
        rgb, masks = renderer.render(self.photo, PHOTO_SIDE)
        return rgb, masks[0]


KINDS = ("scene", "wearing", "pair")
"""Kinds of prompts: the object alone, with an accessory, beside a second object."""


def cases(dial: Dial, count: int, seed: int, repeats: int = 1, kinds: tuple[str, ...] = KINDS) -> list[Case]:
    """`count` held-out objects, classes in turn; object i is the same for every count."""
    found = []
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        kind = dial.classes[i % len(dial.classes)]
        instance = world.sample_instance(rng, dial, kind=kind, held_out=True)
        photo = world.sample_scene(rng, dial, instances=(instance,))
        asked = [
            p for p in _prompts(instance, photo.background, dial, rng, repeats, first=STEP * (i + 1)) if p.kind in kinds
        ]
        found.append(Case(f"{kind}-{i:03d}", instance, photo, tuple(asked)))
    return found


def _prompts(
    instance: Instance, own: str, dial: Dial, rng: np.random.Generator, repeats: int, first: int
) -> list[Prompt]:
    """Every background but the photo's; accessories where it wears none; a second object of another class."""
    elsewhere = [b for b in dial.backgrounds if b != own]
    prompts: list[Prompt] = []

    def add(kind: str, words: str, background: str, accessory: str = "", other: Instance | None = None) -> None:
        text = f"a photo of {words} {PLACES[background][0]}"
        prompts.append(Prompt(kind, text, background, accessory, other, first + len(prompts)))

    for _ in range(repeats):
        for background in elsewhere:
            add("scene", PLACE, background)
        for _ in range(2):
            background = elsewhere[int(rng.integers(len(elsewhere)))]
            worn = [a for a in dial.accessories if a != "none"]
            if instance.accessory == "none" and worn:
                accessory = str(rng.choice(worn))
                add("wearing", f"{PLACE} with {article(f'{instance.third} {accessory}')}", background, accessory)
            kind = str(rng.choice([c for c in dial.classes if c != instance.kind]))
            other = replace(world.sample_instance(rng, dial, kind=kind), pattern="plain", accessory="none")
            add("pair", f"{PLACE} and {article(f'{other.colour} {kind}')}", background, other=other)
    return prompts
