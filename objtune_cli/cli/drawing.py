"""What `generate` does with its options: variants of the settings, the best images, and contact sheets."""

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
    from objtune_cli.workflow.context import StageContext

InitImage = Annotated[
    str | None,
    typer.Option("--from", metavar="FILE", help="Picture to start from in place of noise; see --change."),
]


Change = Annotated[
    float | None,
    typer.Option(
        "--change", help="How much a picture of --from changes, 0.02 to 1.", show_default=str(Generate().change)
    ),
]


Reference = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        metavar="NAME",
        help="Show the base a segmented object beside the prompt, cut out of its photo; may be repeated. Only on FLUX.2.",
    ),
]


Best = Annotated[
    int | None,
    typer.Option(
        "--best", metavar="K", help="Select the K best of the -n images of each prompt, by object and prompt score."
    ),
]


Grid = Annotated[
    list[str] | None,
    typer.Option(
        "--grid",
        metavar="SETTING=A,B,…",
        help="Draw a grid over a setting, for example strength=0.6,0.8,1; a second --grid adds rows.",
    ),
]


Sheet = Annotated[
    Path | None, typer.Option("--sheet", metavar="FILE", help="Also write all images as one contact sheet, a PNG.")
]


CHOICE: dict[str, tuple[Any, Any]] = {
    "from_": (InitImage, None), "change": (Change, None), "reference": (Reference, None), "best": (Best, None), "grid": (Grid, None), "sheet": (Sheet, None),
}  # fmt: skip
"""Options of `generate` beside those of sampling."""


@dataclass(frozen=True, slots=True)
class GenerateRequest:
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

    def start(self, ctx: "StageContext") -> dict[str, Any]:
        """The settings of `--from`, `--change` and `--reference`.

        Raises:
            UsageError: There is a change, and no picture.
        """
        source, change = self.options["from_"], self.options["change"]
        require(change is None or bool(source), "--change is given without a picture", "give it with `--from FILE`")
        names = self.options["reference"]
        return {
            "init_image": str(locate_photo(ctx, source)) if source else None,
            "change": change,
            "reference": ",".join(names) if names else None,
        }


def draw(ctx: "StageContext", request: GenerateRequest) -> CommandResult:
    """Sample the images of a request; see `GenerateRequest`.

    Raises:
        UsageError: Options do not fit together.
    """
    from objtune_cli.evaluation import image_choice
    from objtune_cli.generation import variants

    axes = variants.parse_axes(list(request.options["grid"] or ()))
    choice = image_choice.Choice(request.options["best"], axes, request.options["sheet"], request.out)
    drawing = image_choice.draw_and_choose(
        ctx, request.prompts, _resolve_configs(ctx, request, axes), choice, request.source
    )
    extra = describe_prompts(ctx, drawing.results)
    if choice.best:
        files = [file for result in drawing.results for file in result.images]
        extra["best"] = [{"image": str(file)} | each for file, each in zip(files, drawing.scores, strict=True)]
    if drawing.sheets:
        extra["sheets"] = [str(file) for file in drawing.sheets]
    return CommandResult(drawing.results, printed="images", extra=extra)


def _resolve_configs(ctx: "StageContext", request: GenerateRequest, axes: "Sequence[Axis]") -> list[Generate]:
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
