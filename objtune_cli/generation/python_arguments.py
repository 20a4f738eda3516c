"""The settings of sampling from Python values: lists, paths, sizes and shapes in place of texts."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from objtune_cli.config.sections import Generate
from objtune_cli.errors import UsageError
from objtune_cli.generation import image_size
from objtune_cli.generation.variants import Axis, over_axes, over_seeds, parse_axes
from objtune_cli.paths import to_path
from objtune_cli.workflow.context import StageContext

FILES = ("init_image", "wildcards")
"""Settings that are paths."""
SEPARATORS = {"lora": "\n", "style": ",", "reference": ","}
"""Settings of several texts, and what stands between them."""
OPTIONS = {
    "negative": "negative_prompt",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "from_": "init_image",
    "format": "image_format",
}
"""Names of options of the command line whose settings have other names."""
SIZES = ("size", "aspect")
"""Arguments in place of `width` and `height`."""


def resolve(ctx: StageContext, values: Mapping[str, Any]) -> Generate:
    """The settings of `generate` with arguments above the other layers.

    Args:
        values: By setting, or by option of the command line; None leaves one out. `lora` and `style` may be lists, `size` is "832x1216", `aspect` "3:2".

    Raises:
        UsageError: There is no such setting, or the value does not suit it.
    """
    values = {OPTIONS.get(name, name): value for name, value in values.items()}
    setting_names = {field.name for field in fields(Generate)}
    unknown = next((name for name in values if name not in setting_names and name not in SIZES), None)
    if unknown:
        raise UsageError(f"generate has no setting {unknown}", f"known: {', '.join(sorted({*setting_names, *SIZES}))}")
    settings = {name: _to_text(name, value) for name, value in values.items() if name not in SIZES}
    sizes = {name: str(values[name]) for name in SIZES if values.get(name) is not None}
    if len(sizes) > 1:
        raise UsageError("aspect and a size are both given", "give one of them")
    if "size" in sizes:
        width, height = image_size.parse_size(sizes["size"], settings.get("width"), settings.get("height"))
        settings |= {"width": width, "height": height}
    if "aspect" in sizes:
        width, height = image_size.fit_aspect(ctx, image_size.parse_aspect(sizes["aspect"]))
        settings |= {"width": width, "height": height}
    return ctx.settings.resolve(Generate, **settings)


def resolve_variants(
    ctx: StageContext, values: Mapping[str, Any], n: int | None, seed: int | Sequence[int] | None, axes: Sequence[Axis]
) -> list[Generate]:
    """The settings of each cell of a grid, of each of several seeds, or those alone.

    Args:
        values: As of `resolve`. n: Images per prompt; by default one for each cell and each of several seeds.

    Raises:
        UsageError: A grid and several seeds are both given.
    """
    seeds = [seed] if isinstance(seed, int) else list(seed or ())
    if axes and len(seeds) > 1:
        raise UsageError(
            "a grid and several seeds are both given", 'make the seeds an axis: `grid={"seed": [1, 2, 3]}`'
        )
    count = 1 if axes and n is None else n
    config = resolve(ctx, {"num_images": count, "seed": seeds[0] if seeds else None, **values})
    return over_axes(config, axes) if axes else over_seeds(config, seeds, n)


def _to_text(name: str, value: Any) -> Any:
    if name in FILES and value is not None:
        return str(to_path(value))
    if name in SEPARATORS and isinstance(value, list | tuple):
        return SEPARATORS[name].join(str(each) for each in value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def grid_axes(grid: Mapping[str, Sequence[Any]]) -> list[Axis]:
    """The axes of a grid, for example `{"strength": [0.6, 1], "seed": [1, 2, 3]}`.

    Raises:
        UsageError: As `variants.parse_axes`.
    """
    return parse_axes([f"{name}={','.join(str(value) for value in values)}" for name, values in grid.items()])
