"""`objtune segment`: photos to masks."""

from pathlib import Path
from typing import Annotated

import typer

from objtune_cli.cli.object_options import HintOptions, parse_targets
from objtune_cli.cli.photo_options import (
    Boxes,
    ClassWords,
    Finder,
    Masks,
    Names,
    NegativePoints,
    Points,
    RefineMasks,
    SamFile,
    Select,
)
from objtune_cli.cli.runner import CommandResult, CommandRun
from objtune_cli.config.sections import Segment


def segment(
    run: CommandRun,
    photo: Annotated[Path, typer.Argument(help="The photo.")],
    class_: ClassWords = None,
    name: Names = None,
    mask: Masks = None,
    box: Boxes = None,
    point: Points = None,
    negative_point: NegativePoints = None,
    refine_mask: RefineMasks = None,
    select: Select = None,
    segmenter: Finder = None,
    sam_checkpoint: SamFile = None,
) -> CommandResult:
    from objtune_cli.segmentation import stage

    wanted = parse_targets(class_, name, HintOptions(mask, box, point, negative_point, refine_mask))
    ctx = run.context()
    config = ctx.settings.resolve(Segment, sam_checkpoint=sam_checkpoint, select=select, segmenter=segmenter)
    return CommandResult(stage.run(ctx, photo, wanted, config))
