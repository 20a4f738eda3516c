"""Regions that are free, and those that show another thing."""

import numpy as np

from objtune_cli.placement import regions
from objtune_cli.toybox import renderer, world
from objtune_cli.toybox.world import Pose, Scene


def test_a_region_with_a_thing_in_it_is_told_from_a_free_one() -> None:
    dial, rng = world.DIALS["medium"], np.random.default_rng(11)
    count, free, occupied = 60, 0, 0
    for _ in range(count):
        side = rng.uniform(0.35, 0.55)
        x0, y0 = rng.uniform(0.02, 0.98 - side), rng.uniform(0.3, 0.98 - side)
        box = (x0, y0, x0 + side, y0 + side)
        background, seed = str(rng.choice(dial.backgrounds)), int(rng.integers(1 << 30))
        empty, _ = renderer.render(Scene((), background, seed), 256)
        thing = (world.sample_instance(rng, dial), Pose(x0 + side / 2, y0 + side / 2, 0.85 * side))
        shown, _ = renderer.render(Scene((thing,), background, seed), 256)
        free += regions.find_calmer_box(empty, box, 1.0) is None
        occupied += regions.find_calmer_box(shown, box, 1.0) is not None
    assert free >= 0.8 * count and occupied >= 0.8 * count


def test_a_texture_without_a_calmer_part_is_free() -> None:
    rough = np.random.default_rng(1).integers(0, 256, (200, 300, 3), np.uint8)
    assert regions.find_calmer_box(rough, (0.1, 0.2, 0.5, 0.8), 1.0) is None
