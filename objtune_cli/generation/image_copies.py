"""Copies of a scene's images outside the project: their format, metadata and names."""

import re
from pathlib import Path

from objtune_cli.config import file_patterns
from objtune_cli.config.sections import Generate
from objtune_cli.images import encoding, png
from objtune_cli.version import __version__
from objtune_cli.workflow import output_files
from objtune_cli.workflow.context import StageResult

_VALUES = {
    "seed": r"Seed: (\d+)", "steps": r"Steps: (\d+)", "sampler": r"Sampler: ([^,]+)", "guidance": r"CFG scale: ([^,]+)",
    "size": r"Size: (\d+x\d+)", "base": r"Model: (\"(?:\\.|[^\"\\])*\"|[^,]*)",
}  # fmt: skip
"""Fields of a pattern to their places in the parameters of an image."""


def check_output(out: Path, config: Generate) -> None:
    """Refuse, before any work, a folder or a format that cannot be written.

    Raises:
        UsageError: The folder is a file. ResourceError: It, or the format, cannot be written.
    """
    output_files.check_folder(out)
    encoding.check_format(config.image_format)


def copy_images(results: list[StageResult], out: Path | None, config: Generate | None = None) -> list[StageResult]:
    """Copy the images of the results to a folder; existing files are not replaced.

    Args:
        out: The folder; None: nothing is copied. config: Has the format, the metadata and the names.
    """
    config = config or Generate()
    if out is None:
        return results
    for result in results:
        result.images = [_copy_image(result, file, out, config) for file in result.images]
    return results


def _copy_image(result: StageResult, file: Path, out: Path, config: Generate) -> Path:
    """Copy one image of a scene, and return its path."""
    parameters = png.read_text(file, "parameters")
    values = _read_values(parameters) | {
        "object": result.ref.name, "version": result.ref.version, "index": int(file.stem) if file.stem.isdigit() else 0
    }  # fmt: skip
    name = file_patterns.fill_pattern(config.name_pattern, values).removesuffix(f".{config.image_format}")
    path = out / f"{name}.{config.image_format}"
    if config.image_format != "png":
        text = parameters if config.metadata else ""
        software = f"objtune {__version__}"
        data = encoding.encode_image(png.read(file), config.image_format, config.image_quality, text, software)
    else:
        data = file.read_bytes() if config.metadata else png.encode_png(png.read(file))
    return output_files.write_numbered(path, data)


def _read_values(parameters: str) -> dict[str, object]:
    """The values of a pattern's fields in the parameters of an image."""
    *lines, last = parameters.split("\n")
    prompt = " ".join(lines).partition("Negative prompt:")[0]
    values: dict[str, object] = {"prompt": re.sub(r"[\\<>]|lora:\S*", "", prompt).strip()}
    for key, pattern in _VALUES.items():
        match = re.search(rf"(?:^|, ){pattern}", last)
        values[key] = match[1].strip('"') if match else "0"
    return values | {key: int(str(values[key])) for key in ("seed", "steps")}
