"""`objtune segment`: photos to masks."""

from typing import Annotated, Any

import typer

from objtune_cli.cli.object_options import parse_targets
from objtune_cli.cli.options import with_options
from objtune_cli.cli.photo_options import PHOTO, SamFile, SegmenterName, locate_photo
from objtune_cli.cli.runner import CommandResult, CommandRun
from objtune_cli.config.sections import Segment


@with_options(PHOTO, before="segmenter")
def segment(
    run: CommandRun,
    photo: Annotated[str, typer.Argument(help="Photo: a file, a web address, or - for stdin.")],
    segmenter: SegmenterName = None,
    sam_checkpoint: SamFile = None,
    **objects: Any,
) -> CommandResult:
    from objtune_cli.segmentation import segment as stage

    targets = parse_targets(objects)
    ctx = run.context()
    config = ctx.settings.resolve(Segment, sam_checkpoint=sam_checkpoint, select=objects["select"], segmenter=segmenter)
    return CommandResult(stage.run(ctx, locate_photo(ctx, photo), targets, config))
