"""The size of images: parse it from the command line and fit it to the base."""

import re
from dataclasses import replace

from objtune_cli.config.sections import Generate
from objtune_cli.errors import UsageError
from objtune_cli.workflow.context import StageContext

MAX_SIDE_RATIO = 2.0
"""Ratio to the base's own side above which images repeat objects, and below whose inverse they fall apart."""
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
