"""What `generate` does with its options: variants of the settings, the best images, and contact sheets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from objtune_cli.cli.photo_options import locate_photo
from objtune_cli.cli.runner import CommandResult, require
from objtune_cli.cli.sampling_options import describe_prompts, resolve_sampling, resolve_variants
from objtune_cli.config.sections import Generate

if TYPE_CHECKING:
    from objtune_cli.generation.variants import Axis
    from objtune_cli.store.refs import Ref
    from objtune_cli.workflow.context import StageContext, StageResult

InitImage = Annotated[
    str | None,
    typer.Option("--from", metavar="FILE", help="Picture to start from: variations of it; with --change."),
]


Change = Annotated[
    float | None,
    typer.Option(
        "--change", help="How much a picture of --from changes, 0.02 to 1.", show_default=str(Generate().change)
    ),
]


Best = Annotated[
    int | None,
    typer.Option(
        "--best", metavar="K", help="Keep the K best of the -n images of each prompt, by the tool's own checks."
    ),
]


Grid = Annotated[
    list[str] | None,
    typer.Option(
        "--grid",
        metavar="SETTING=A,B,…",
        help="Draw a grid over a setting, for example strength=0.6,0.8,1; a second one goes down.",
    ),
]


Sheet = Annotated[
    Path | None, typer.Option("--sheet", metavar="FILE", help="Also write all images as one contact sheet, a PNG.")
]


CHOICE: dict[str, tuple[Any, Any]] = {
    "from_": (InitImage, None), "change": (Change, None), "best": (Best, None), "grid": (Grid, None), "sheet": (Sheet, None),
}  # fmt: skip
"""Options of `generate` beside those of sampling."""

GRID_SHEET = "grid.png"
"""Name of a grid's sheet where the user names none."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A request to `generate`.

    Attributes:
        source: Adapter of all objects, or None.
        options: Values of the options in `SAMPLING` and `CHOICE`.
        out: Folder of the copies.
    """

    prompts: list[str]
    source: "Ref | None"
    options: Mapping[str, Any]
    out: Path | None

    @property
    def best(self) -> int | None:
        """Number of images to keep of each prompt; None: all."""
        best: int | None = self.options["best"]
        return best

    @property
    def grid(self) -> list[str]:
        """Values of `--grid`."""
        return list(self.options["grid"] or ())

    @property
    def sheet(self) -> Path | None:
        """File of the contact sheet."""
        sheet: Path | None = self.options["sheet"]
        return sheet

    def start(self, ctx: "StageContext") -> dict[str, Any]:
        """The settings of `--from` and `--change`.

        Raises:
            UsageError: There is a change, and no picture.
        """
        source, change = self.options["from_"], self.options["change"]
        require(change is None or bool(source), "--change is given without a picture", "give it with `--from FILE`")
        return {"init_image": str(locate_photo(ctx, source)) if source else None, "change": change}


def draw(ctx: "StageContext", request: Drawing) -> CommandResult:
    """Sample the images of a request; see `Drawing`.

    Raises:
        UsageError: Options do not fit together.
    """
    from objtune_cli.generation import image_copies, stage, variants

    axes = variants.parse_axes(request.grid)
    configs = _resolve_configs(ctx, request, axes)
    _check_choice(request, configs[0])
    if request.sheet is not None:
        _check_sheet(request.sheet)
    if request.out is not None:
        image_copies.check_output(request.out, configs[0])
    results = stage.run_variants(ctx, request.prompts, configs, None if request.best else request.out, request.source)
    extra = describe_prompts(ctx, results)
    if request.best:
        from objtune_cli.evaluation import best_images

        scores = best_images.keep_best(ctx, _group_by_prompt(results, configs[0].num_images), request.best)
        image_copies.copy_images(results, request.out, configs[0])
        files = [file for result in results for file in result.images]
        extra["best"] = [{"image": str(file)} | each for file, each in zip(files, scores, strict=True)]
    sheets = _write_sheets(ctx, request, axes, results)
    if sheets:
        extra["sheets"] = [str(file) for file in sheets]
    return CommandResult(results, printed="images", extra=extra)


def _resolve_configs(ctx: "StageContext", request: Drawing, axes: "Sequence[Axis]") -> list[Generate]:
    """The settings of every variant.

    Raises:
        UsageError: Several seeds and a grid are both given, or a value does not suit its setting.
    """
    from objtune_cli.generation import variants

    if not axes:
        return resolve_variants(ctx, request.options, **request.start(ctx))
    several = "," in (request.options["seed"] or "")
    require(not several, "--grid and several seeds are both given", "make the seeds an axis: `--grid seed=1,2,3`")
    images = request.options["n"] or 1
    config = resolve_sampling(ctx, {**request.options, "n": images}, **request.start(ctx))
    return variants.over_axes(config, axes)


def _check_choice(request: Drawing, config: Generate) -> None:
    """Refuse a number of best images that does not fit.

    Raises:
        UsageError: It is below 1, not below the number of images, or given with a grid.
    """
    best, count = request.best, config.num_images
    if best is None:
        return
    require(not request.grid, "--best and --grid are both given", "a grid shows every image")
    require(1 <= best < count, f"--best is {best} of {count} images", "fewer than `-n`, for example `-n 16 --best 4`")


def _check_sheet(file: Path) -> None:
    """Refuse, before any work, a sheet that cannot be written.

    Raises:
        UsageError: It is no PNG file. ResourceError: Its folder cannot be written.
    """
    from objtune_cli.store import disk_errors

    require(file.suffix.lower() == ".png", f"--sheet is {str(file)!r}", "a PNG file, for example `--sheet sheet.png`")
    require(not file.is_dir(), f"{file} is a folder", "the name of a PNG file, for example `--sheet sheet.png`")
    disk_errors.check_writable(file.absolute().parent)


def _write_sheets(
    ctx: "StageContext", request: Drawing, axes: "Sequence[Axis]", results: "Sequence[StageResult]"
) -> list[Path]:
    """Write the contact sheet, or for a grid one sheet for each prompt and image of a cell; existing files stay."""
    if request.sheet is None and not axes:
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
    file = request.sheet or (request.out or ctx.project.folder) / GRID_SHEET
    written = []
    for page in pages:
        sheet = png.encode_png(contact_sheet.draw(page, across, down))
        written.append(output_files.write_numbered(file, sheet))
        ctx.report.note(f"{'grid' if axes else 'contact sheet'}: {written[-1]}")
    return written


def _grid_rows(results: "Sequence[StageResult]", image: int, columns: int) -> list[list[Path]]:
    """One image of each cell of a grid, row by row."""
    files = [result.images[image] for result in results]
    return [files[i : i + columns] for i in range(0, len(files), columns)]


def _sheet_rows(results: "Sequence[StageResult]") -> list[list[Path]]:
    """All images: one row for each scene of several, or rows of four of one scene."""
    if len(results) > 1:
        return [list(result.images) for result in results]
    files = list(results[0].images)
    return [files[i : i + 4] for i in range(0, len(files), 4)]


def _group_by_prompt(results: "Sequence[StageResult]", count: int) -> "list[list[StageResult]]":
    """The scenes of each prompt: one with `count` images, or with choices in the prompt `count` scenes of one image."""
    groups: list[list[StageResult]] = [[]]
    for result in results:
        if sum(len(each.images) for each in groups[-1]) >= count:
            groups.append([])
        groups[-1].append(result)
    return groups
