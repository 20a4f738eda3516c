"""The size of pictures: read as people type it, and fitted to what a base can draw."""

import re
from dataclasses import replace

from objtune_cli.config.sections import Generate
from objtune_cli.errors import UsageError
from objtune_cli.workflow.context import StageContext

FAR = 2.0
"""Times the base's own side at which pictures repeat things, or at whose inverse they fall apart."""
_SIZE = re.compile(r"([0-9]{1,5})\s*(?:px)?\s*[x×X*,]\s*([0-9]{1,5})\s*(?:px)?")


def read(text: str | None, width: int | None, height: int | None) -> tuple[int | None, int | None]:
    """Width and height from `--size 832x1216`, or from `--width` and `--height`.

    Raises:
        UsageError: No size, or two that differ.
    """
    if text is None:
        return width, height
    match = _SIZE.fullmatch(text.strip())
    if match is None or 0 in (sizes := (int(match[1]), int(match[2]))):
        raise UsageError(f"--size is {text!r}", "width and height in pixels: `--size 832x1216`")
    if (width or sizes[0], height or sizes[1]) != sizes:
        raise UsageError(f"--size {text} and --width or --height differ", "give one of them")
    return sizes


def fit(ctx: StageContext, config: Generate) -> Generate:
    """The settings with width and height that the base can draw: rounded to multiples of its unit, and 0 for its own size.

    Raises:
        UsageError: Larger than the base can draw.
    """
    if not (config.width or config.height):
        return config
    base = ctx.base
    asked = config.width or base.side, config.height or base.side
    width, height = (max(1, int(side / base.unit + 0.5)) * base.unit for side in asked)
    if max(width, height) > base.largest_side:
        raise UsageError(
            f"pictures of {asked[0]}x{asked[1]} px were asked for",
            f"this base draws sides of at most {base.largest_side} px",
        )
    if (width, height) != asked:
        ctx.report.note(
            f"pictures are {width}x{height} px, not {asked[0]}x{asked[1]}: this base draws multiples of {base.unit} px"
        )
    own = base.side
    if max(width, height) > FAR * own or min(width, height) * FAR < own:
        ctx.report.note(
            f"this base was trained on pictures of {own}x{own} px; at {width}x{height} it may repeat things or lose them"
        )
    return (
        replace(config, width=0, height=0)
        if (width, height) == (own, own)
        else replace(config, width=width, height=height)
    )
