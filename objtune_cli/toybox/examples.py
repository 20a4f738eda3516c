"""`python -m objtune_cli.toybox.examples DIR`: the example photos, of objects that no base was trained on."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from objtune_cli.toybox.renderer import render
from objtune_cli.toybox.world import Instance, Pose, Scene, sample_instance

SIDE = 640


def example(kind: str, colour: str, second: str, pattern: str, seed: int) -> Instance:
    """A held-out instance with these words, the first one of the seed's series.

    Raises:
        ValueError: The combination belongs to the training set.
    """
    rng = np.random.default_rng(seed)
    for _ in range(1_000_000):
        instance = sample_instance(rng, kind=kind, held_out=True)
        if (instance.colour, instance.second, instance.pattern) == (colour, second, pattern):
            return instance
    raise ValueError(f"{colour} and {second} {pattern} {kind} is not held out")


def photos() -> dict[str, Scene]:
    """File name to scene."""
    dog = example("dog", "teal", "orange", "spots", 7)
    mug = example("mug", "blue", "yellow", "spots", 7)
    cat = example("cat", "orange", "yellow", "stripes", 7)
    car = example("car", "pink", "teal", "spots", 7)
    return {
        "photo.jpg": Scene(((dog, Pose(0.5, 0.6, 0.62, 0.03)),), "grass", 11),
        "mug.jpg": Scene(((mug, Pose(0.52, 0.57, 0.56, -0.02)),), "wood", 4),
        "pair.jpg": Scene(((dog, Pose(0.27, 0.62, 0.45, 0.0)), (mug, Pose(0.75, 0.62, 0.40, 0.02))), "desert", 3),
        "three.jpg": Scene(
            ((cat, Pose(0.18, 0.6, 0.34, 0.0)), (mug, Pose(0.5, 0.64, 0.28, 0.02)), (car, Pose(0.81, 0.6, 0.34, 0.0))),
            "wood",
            5,
        ),
    }


def main() -> None:
    """Render the example photos into the folder of the first argument."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, scene in photos().items():
        Image.fromarray(render(scene, SIDE)[0]).save(folder / name, quality=92)


if __name__ == "__main__":
    main()
