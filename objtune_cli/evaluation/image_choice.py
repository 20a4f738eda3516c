"""Many images for one request: variants of the settings, the best of them, and contact sheets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from objtune_cli.config.sections import Generate
from objtune_cli.errors import UsageError
from objtune_cli.generation import generate as stage
from objtune_cli.generation import image_copies
from objtune_cli.generation.variants import Axis
from objtune_cli.store import disk_errors
from objtune_cli.store.refs import Ref
from objtune_cli.workflow.context import StageContext, StageResult

GRID_SHEET = "grid.png"
"""Name of a grid's sheet where the user names none."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is kept and shown of the images.

    Attributes:
        best: Number of images to keep of each prompt; None: all.
        axes: Of a grid; empty: no grid.
        sheet: File of the contact sheet. out: Folder of the copies.
    """

    best: int | None = None
    axes: Sequence[Axis] = ()
    sheet: Path | None = None
    out: Path | None = None


@dataclass(frozen=True, slots=True)
class DrawnImages:
    """The images of a request.

    Attributes:
        scores: Of each image, in the order of the results' images, where the best were kept. sheets: Files of contact sheets.
    """

    results: list[StageResult]
    scores: list[dict[str, float]]
    sheets: list[Path]


def draw_and_choose(
    ctx: StageContext, prompts: list[str], configs: Sequence[Generate], choice: Choice, source: Ref | None = None
) -> DrawnImages:
    """Sample the images of prompts with each of several settings; keep the best, and write the sheets.

    Args:
        source: Adapter of all objects, or None.

    Raises:
        UsageError: Arguments do not fit together. ResourceError: A folder cannot be written.
    """
    _check(choice, configs[0])
    results = stage.run_variants(ctx, prompts, configs, None if choice.best else choice.out, source)
    scores: list[dict[str, float]] = []
    if choice.best:
        from objtune_cli.evaluation import best_images

        scores = best_images.keep_best(ctx, _group_by_prompt(results, configs[0].num_images), choice.best)
        image_copies.copy_images(results, choice.out, configs[0])
    return DrawnImages(results, scores, _write_sheets(ctx, choice, results))


def _check(choice: Choice, config: Generate) -> None:
    """Refuse, before any work, what cannot be kept or written."""
    best, count = choice.best, config.num_images
    if best is not None and choice.axes:
        raise UsageError("--best and --grid are both given", "a grid shows every image")
    if best is not None and not 1 <= best < count:
        raise UsageError(f"--best is {best} of {count} images", "fewer than `-n`, for example `-n 16 --best 4`")
    if choice.sheet is not None:
        _check_sheet(choice.sheet)
    if choice.out is not None:
        image_copies.check_output(choice.out, config)


def _check_sheet(file: Path) -> None:
    """Refuse a sheet that cannot be written.

    Raises:
        UsageError: It is no PNG file. ResourceError: Its folder cannot be written.
    """
    if file.suffix.lower() != ".png":
        raise UsageError(f"--sheet is {str(file)!r}", "a PNG file, for example `--sheet sheet.png`")
    if file.is_dir():
        raise UsageError(f"{file} is a folder", "the name of a PNG file, for example `--sheet sheet.png`")
    disk_errors.check_writable(file.absolute().parent)


def _write_sheets(ctx: StageContext, choice: Choice, results: Sequence[StageResult]) -> list[Path]:
    """Write the contact sheet, or for a grid one sheet for each prompt and image of a cell; existing files stay."""
    axes = choice.axes
    if choice.sheet is None and not axes:
        return []
    from objtune_cli.images import contact_sheet, png
    from objtune_cli.workflow import output_files

    count = len(results) // max(1, math.prod(len(axis.texts) for axis in axes))
    across = axes[0].labels if axes else []
    down = axes[1].labels if len(axes) > 1 else []
    pages = (
        [_grid_rows(results[i::count], k, len(across)) for i in range(count) for k in range(len(results[i].images))]
        if axes
        else [_sheet_rows(results)]
    )
    file = choice.sheet or (choice.out or ctx.project.local_folder) / GRID_SHEET
    written = []
    for page in pages:
        sheet = png.encode_png(contact_sheet.draw(page, across, down))
        written.append(output_files.write_numbered(file, sheet))
        ctx.report.note(f"{'grid' if axes else 'contact sheet'}: {written[-1]}")
    return written


def _grid_rows(results: Sequence[StageResult], image: int, columns: int) -> list[list[Path]]:
    """One image of each cell of a grid, row by row."""
    files = [result.images[image] for result in results]
    return [files[i : i + columns] for i in range(0, len(files), columns)]


def _sheet_rows(results: Sequence[StageResult]) -> list[list[Path]]:
    """All images: one row for each scene of several, or rows of four of one scene."""
    if len(results) > 1:
        return [list(result.images) for result in results]
    files = list(results[0].images)
    return [files[i : i + 4] for i in range(0, len(files), 4)]


def _group_by_prompt(results: Sequence[StageResult], count: int) -> list[list[StageResult]]:
    """The scenes of each prompt: one with `count` images, or with choices in the prompt `count` scenes of one image."""
    groups: list[list[StageResult]] = [[]]
    for result in results:
        if sum(len(each.images) for each in groups[-1]) >= count:
            groups.append([])
        groups[-1].append(result)
    return groups
