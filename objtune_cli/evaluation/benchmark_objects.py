"""Benchmark objects: held-out toybox objects, a photo of each, and prompts for which the renderer draws the ground truth."""

import zlib
from dataclasses import dataclass, replace

import numpy as np

from objtune_cli.toybox import renderer, world
from objtune_cli.toybox.captions import PLACES, article
from objtune_cli.toybox.world import Dial, Instance, Scene

PHOTO_SIDE = 320
"""Side of the photo that a method learns from, px."""
SEED_STRIDE = 10_000
"""Distance between the first seeds of two objects' prompts, so that objects have different poses and noise."""
OBJECT_SLOT = "<object>"
"""Placeholder of the object in a prompt."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt and the contents that its image must have.

    Attributes:
        kind: "scene", "wearing" or "pair".
        text: The prompt with `OBJECT_SLOT` for the object.
        background: Background of the prompt.
        accessory: Accessory of the prompt, or "".
        other: A second object, or None.
        seed: Seed of the image's noise and of the true scene.
    """

    kind: str
    text: str
    background: str
    accessory: str
    other: Instance | None
    seed: int

    def truth(self, instance: Instance, dial: Dial, seed: int) -> Scene:
        """A scene with the contents of the prompt and a new pose."""
        rng = np.random.default_rng((seed, self.seed))
        if self.accessory:
            instance = replace(instance, accessory=self.accessory)
        together = (instance,) if self.other is None else (instance, self.other)
        return world.sample_scene(rng, dial, instances=together, background=self.background)


@dataclass(frozen=True, slots=True)
class Case:
    """One held-out object, its photo and its prompts."""

    name: str
    instance: Instance
    photo: Scene
    prompts: tuple[Prompt, ...]

    @property
    def photo_background(self) -> str:
        return self.photo.background

    def generator(self, seed: int, purpose: int) -> np.random.Generator:
        """A random generator for one purpose, seeded by the object's name."""
        return np.random.default_rng((seed, purpose, zlib.crc32(self.name.encode())))

    def picture(self) -> tuple[np.ndarray, np.ndarray]:
        """The photo (S, S, 3) and the object's exact mask (S, S), uint8."""
        rgb, masks = renderer.render(self.photo, PHOTO_SIDE)
        return rgb, masks[0]


KINDS = ("scene", "wearing", "pair")
"""Kinds of prompts: the object alone, with an accessory, next to a second object."""


def make_cases(dial: Dial, count: int, seed: int, repeats: int = 1, kinds: tuple[str, ...] = KINDS) -> list[Case]:
    """Make `count` held-out objects, classes in turn. Object i is the same for every `count`.

    Args:
        repeats: Rounds of prompts.
        kinds: Kinds of prompts to keep.
    """
    cases = []
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        kind = dial.classes[i % len(dial.classes)]
        instance = world.sample_instance(rng, dial, kind=kind, held_out=True)
        photo = world.sample_scene(rng, dial, instances=(instance,))
        prompts = [
            p
            for p in _make_prompts(instance, photo.background, dial, rng, repeats, first=SEED_STRIDE * (i + 1))
            if p.kind in kinds
        ]
        cases.append(Case(f"{kind}-{i:03d}", instance, photo, tuple(prompts)))
    return cases


def _make_prompts(
    instance: Instance, own: str, dial: Dial, rng: np.random.Generator, repeats: int, first: int
) -> list[Prompt]:
    """Prompts with every background but the photo's, with accessories for an object without one, and with a second object of another class."""
    elsewhere = [b for b in dial.backgrounds if b != own]
    prompts: list[Prompt] = []

    def add(kind: str, words: str, background: str, accessory: str = "", other: Instance | None = None) -> None:
        text = f"a photo of {words} {PLACES[background][0]}"
        prompts.append(Prompt(kind, text, background, accessory, other, first + len(prompts)))

    for _ in range(repeats):
        for background in elsewhere:
            add("scene", OBJECT_SLOT, background)
        for _ in range(2):
            background = elsewhere[int(rng.integers(len(elsewhere)))]
            accessories = [a for a in dial.accessories if a != "none"]
            if instance.accessory == "none" and accessories:
                accessory = str(rng.choice(accessories))
                add("wearing", f"{OBJECT_SLOT} with {article(f'{instance.third} {accessory}')}", background, accessory)
            kind = str(rng.choice([c for c in dial.classes if c != instance.kind]))
            other = replace(world.sample_instance(rng, dial, kind=kind), pattern="plain", accessory="none")
            add("pair", f"{OBJECT_SLOT} and {article(f'{other.colour} {kind}')}", background, other=other)
    return prompts
