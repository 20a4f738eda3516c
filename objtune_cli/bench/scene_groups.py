"""The groups of objects and backgrounds of `objtune bench scenes`."""

from collections.abc import Iterator
from dataclasses import dataclass

from objtune_cli.evaluation import benchmark_objects
from objtune_cli.evaluation.benchmark_objects import Case
from objtune_cli.toybox.captions import PLACES
from objtune_cli.toybox.world import Dial

KINDS = {"two": (0, 1), "three": (0, 1, 2), "same": (0, 3)}
"""Kinds of scenes, and the members of a group of four in each: three classes, and a second object of the first class."""


@dataclass(frozen=True, slots=True)
class Group:
    """Objects for one image, and its backgrounds."""

    name: str
    kind: str
    members: tuple[Case, ...]
    backgrounds: tuple[str, ...]

    def prompt(self, background: str) -> str:
        """Return the prompt of a scene, with placeholders."""
        return f"a photo of {' and '.join(f'<{m.name}>' for m in self.members)} {PLACES[background][0]}"

    def scenes(self) -> Iterator[tuple[str, str, int]]:
        """Yield the background, the prompt and the first seed of every scene."""
        for i, background in enumerate(self.backgrounds):
            yield background, self.prompt(background), 1000 + 10 * i


def make_groups(dial: Dial, count: int, seed: int, num_backgrounds: int) -> list[Group]:
    """Return `count` groups of each kind from held-out objects; no background is in a member's photo."""
    step, classes = 3, len(dial.classes)
    pool = benchmark_objects.make_cases(dial, (count - 1) * step + max(step, classes + 1), seed)
    groups = []
    for g in range(count):
        four = (*pool[g * step : g * step + step], pool[g * step + classes])
        for kind, indices in KINDS.items():
            members = tuple(four[i] for i in indices)
            unseen = [b for b in dial.backgrounds if b not in {m.photo_background for m in members}]
            groups.append(Group(f"{kind}-{g:03d}", kind, members, tuple(unseen[:num_backgrounds])))
    return groups
