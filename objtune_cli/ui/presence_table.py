"""The presence check of a composed scene as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from nicegui import ui

from objtune_cli.ui import parts


def show_presence(metrics: Mapping[str, Any]) -> None:
    """Show how alike each place is to each object, the mean of the images, and which objects are missing or mixed."""
    if "leakage" not in metrics:
        return
    names, matrices = list(metrics["objects"]), metrics["leakage"]
    wrong = [each for each in metrics["wrong"] if each]
    count = len(matrices)
    text = f"{count - len(wrong)} of {count} images have every object in its place"
    if wrong:
        text += f"; missing or mixed: {', '.join(sorted({name for each in wrong for name in each}))}"
    with ui.element("div").classes("presence-block"):
        parts.text("p", f"{text}.", "bad" if wrong else "good")
        _show_matrix(names, matrices)
        parts.text("p", "0: an ordinary one of the class; 1: the object as it was learned.", "faint")


def _show_matrix(names: Sequence[str], matrices: Sequence[Sequence[Sequence[float]]]) -> None:
    with ui.element("table").classes("presence"):
        with ui.element("thead"), ui.element("tr"):
            parts.text("th", "place of").props('scope="col"')
            for name in names:
                parts.text("th", name).props('scope="col"')
        with ui.element("tbody"):
            for i, name in enumerate(names):
                with ui.element("tr"):
                    parts.text("th", name).props('scope="row"')
                    for j in range(len(names)):
                        mean = sum(matrix[i][j] for matrix in matrices) / len(matrices)
                        parts.text("td", f"{mean:.2f}", "good" if i == j else "")
