"""Variants of the settings of `generate`: several seeds, and grids over settings."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from objtune_cli.config import resolve
from objtune_cli.config.sections import MAX_SEED, SEEDS, Generate
from objtune_cli.errors import UsageError
from objtune_cli.generation import image_size

MAX_CELLS = 400
"""Greatest number of cells of a grid."""
OPTION_NAMES = {
    "steps": "num_inference_steps", "guidance": "guidance_scale", "negative": "negative_prompt", "from": "init_image",
}  # fmt: skip
"""Names of options that differ from their settings'."""
UNSUITABLE = ("num_images", "image_format", "metadata", "name_pattern")


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a grid: a setting of `generate` and its values, as the user wrote them."""

    name: str
    texts: tuple[str, ...]

    @property
    def labels(self) -> list[str]:
        return [f"{self.name} {text}" for text in self.texts]

    def apply(self, config: Generate, text: str) -> Generate:
        """The settings with one of the values.

        Raises:
            UsageError: The value does not suit the setting.
        """
        where = f"--grid {self.name}"
        if self.name == "size":
            width, height = image_size.parse_size(text, None, None)
            return replace(config, width=width or 0, height=height or 0)
        field = OPTION_NAMES.get(self.name, self.name)
        return replace(config, **{field: resolve.parse_value(Generate, field, text, where)})


def parse_axes(texts: Sequence[str]) -> list[Axis]:
    """Parse `strength=0.6,0.8,1.0`, at most two of them: the first is drawn across, the second down.

    Raises:
        UsageError: It has another form, names no setting of `generate`, or the grid is too large.
    """
    axes = []
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        parts = tuple(dict.fromkeys(part.strip() for part in values.split(",") if part.strip()))
        if not equals or not parts:
            raise UsageError(f"--grid is {text!r}", "a setting and its values: `--grid strength=0.6,0.8,1.0`")
        axis_names = {f.name for f in fields(Generate)} - set(UNSUITABLE) | set(OPTION_NAMES) | {"size"}
        if name not in axis_names:
            raise UsageError(
                f"--grid names {name}, which is no setting of an image", f"one of {', '.join(sorted(axis_names))}"
            )
        axes.append(Axis(name, parts))
    if len(axes) > 2 or len({OPTION_NAMES.get(axis.name, axis.name) for axis in axes}) < len(axes):
        raise UsageError(f"--grid is given {len(axes)} times", "once or twice, each time for another setting")
    cells = 1
    for axis in axes:
        cells *= len(axis.texts)
    if cells > MAX_CELLS:
        raise UsageError(f"the grid has {cells} cells", f"at most {MAX_CELLS}")
    return axes


def over_axes(config: Generate, axes: Sequence[Axis]) -> list[Generate]:
    """The settings of every cell, row by row: the first axis across, the second down.

    Raises:
        UsageError: A value does not suit its setting.
    """
    across, down = axes[0], axes[1:]
    return [
        across.apply(down[0].apply(config, below) if down else config, text)
        for below, text in itertools.product(down[0].texts if down else ("",), across.texts)
    ]


def parse_seeds(text: str | None) -> list[int]:
    """The seeds of `--seed 5` or `--seed 1,2,3`; none for None.

    Raises:
        UsageError: One is no whole number of the range, or is named twice.
    """
    if text is None:
        return []
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 and re.fullmatch("-[0-9]+", parts[0]):
        return [int(parts[0])]  # the setting's range refuses it
    seeds = [int(part) for part in parts if part.isdecimal()]
    if len(seeds) < len(parts) or max(seeds) > MAX_SEED:
        raise UsageError(f"--seed is {text!r}", f"a whole number, or several with commas; {SEEDS}")
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"--seed is {text!r}, with one seed twice", "each seed once")
    return seeds


def over_seeds(config: Generate, seeds: Sequence[int], num_images: int | None) -> list[Generate]:
    """The settings for each of several seeds, with one image each unless the user asked for more; the settings alone for one seed or none."""
    if len(seeds) < 2:
        return [config]
    return [replace(config, seed=seed, num_images=num_images or 1) for seed in seeds]
