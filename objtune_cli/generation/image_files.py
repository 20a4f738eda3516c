"""Copies of a scene's images outside the project."""

from pathlib import Path

from objtune_cli.workflow import output_files
from objtune_cli.workflow.context import StageResult


def copy_images(results: list[StageResult], out: Path | None) -> list[StageResult]:
    """Copy the images of the results to the folder `out`, named after their scenes; existing files are not replaced."""
    if out is None:
        return results
    for result in results:
        result.images = [
            output_files.write_numbered(
                out / f"{result.ref.name}-{result.ref.version:03d}-{file.name}", file.read_bytes()
            )
            for file in result.images
        ]
    return results
