"""The size of images: parse it from the command line and fit it to the base."""

import math
import re
from dataclasses import replace

from objtune_cli.config.sections import Generate
from objtune_cli.errors import UsageError
from objtune_cli.workflow.context import StageContext

MAX_SIDE_RATIO = 2.0
"""Ratio to the base's own side above which images repeat objects, and below whose inverse they fall apart."""
MAX_ASPECT = 8.0
_ASPECT = re.compile(r"([0-9]{1,5}(?:\.[0-9]{1,4})?)(?:\s*[:/x×]\s*([0-9]{1,5}(?:\.[0-9]{1,4})?))?")
_SIZE = re.compile(r"([0-9]{1,5})\s*(?:px)?\s*[x×X*,]\s*([0-9]{1,5})\s*(?:px)?")


def parse_size(text: str | None, width: int | None, height: int | None) -> tuple[int | None, int | None]:
    """Width and height from `--size 832x1216`, or from `--width` and `--height`.

    Raises:
        UsageError: `text` is no size, or it differs from `width` or `height`.
    """
    if text is None:
        return width, height
    match = _SIZE.fullmatch(text.strip())
    if match is None or 0 in (sizes := (int(match[1]), int(match[2]))):
        raise UsageError(f"--size is {text!r}", "width and height in pixels: `--size 832x1216`")
    if (width or sizes[0], height or sizes[1]) != sizes:
        raise UsageError(f"--size {text} and --width or --height differ", "give one of them")
    return sizes


def parse_aspect(text: str) -> float:
    """Width over height from `3:2`, `3/2` or `1.5`.

    Raises:
        UsageError: It is none of these, or beyond 1:8 or 8:1.
    """
    match = _ASPECT.fullmatch(text.strip())
    ratio = float(match[1]) / float(match[2] or 1) if match and float(match[2] or 1) else 0.0
    if not 1 / MAX_ASPECT <= ratio <= MAX_ASPECT:
        raise UsageError(f"--aspect is {text!r}", "width to height, from 1:8 to 8:1: `--aspect 3:2`")
    return ratio


def fit_aspect(ctx: StageContext, ratio: float) -> tuple[int, int]:
    """Width and height, px, of the base's own area nearest to an aspect ratio (width over height).

    The sides are multiples of a sixteenth of the base's side, and the area is not above the base's own: the buckets of kohya's scripts, in which bases
    of several aspect ratios were trained. The least side is half of the base's.
    """
    side, unit = ctx.base.resolution, ctx.base.size_multiple
    step = max(unit, side // 16 // unit * unit)
    sizes = []
    for width in range(step, 2 * side + 1, step):
        height = side * side // width // step * step
        if min(width, height) * MAX_SIDE_RATIO >= side and max(width, height) <= ctx.base.largest_side:
            sizes.append((width, height))
    return min(sizes, key=lambda size: (abs(math.log(size[0] / size[1] / ratio)), -size[0] * size[1]))


def fit_size(ctx: StageContext, config: Generate) -> Generate:
    """The settings with width and height rounded to multiples of the base's unit; 0 stands for the base's own size.

    Raises:
        UsageError: The size is larger than the base supports.
    """
    if not (config.width or config.height):
        return config
    base = ctx.base
    requested = config.width or base.resolution, config.height or base.resolution
    width, height = (max(1, int(side / base.size_multiple + 0.5)) * base.size_multiple for side in requested)
    if max(width, height) > base.largest_side:
        raise UsageError(
            f"the image size {requested[0]}x{requested[1]} px is too large",
            f"this base supports sides of at most {base.largest_side} px",
        )
    if (width, height) != requested:
        ctx.report.note(
            f"pictures are {width}x{height} px, not {requested[0]}x{requested[1]}: this base draws multiples of {base.size_multiple} px"
        )
    base_side = base.resolution
    if max(width, height) > MAX_SIDE_RATIO * base_side or min(width, height) * MAX_SIDE_RATIO < base_side:
        ctx.report.note(
            f"this base was trained on pictures of {base_side}x{base_side} px; at {width}x{height} it may repeat things or lose them"
        )
    return (
        replace(config, width=0, height=0)
        if (width, height) == (base_side, base_side)
        else replace(config, width=width, height=height)
    )
