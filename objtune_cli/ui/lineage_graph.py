"""The lineage of an object as a graph, and as a list for those who do not see it."""

from collections.abc import Sequence
from html import escape

from nicegui import ui

from objtune_cli.report import lineage
from objtune_cli.report.lineage import Node
from objtune_cli.ui import canvas, parts
from objtune_cli.ui.command_lines import clean_text


def show_lineage(nodes: Sequence[Node]) -> None:
    """Show photo, masks, embedding, class prior, adapter and scenes with arrows."""
    drawing = lineage.arrange(nodes, is_wide=True)
    shapes = [f'<path d="{edge}" fill="none" stroke="#808080" stroke-width="1.5" />' for edge in drawing.edges]
    for placed in drawing.nodes:
        node, x, y = placed.node, placed.x, placed.y
        dash = ' stroke-dasharray="4 3"' if node.is_missing else ""
        shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{lineage.WIDTH}" height="{lineage.HEIGHT}" rx="8" class="node"{dash} />'
            f'<text x="{x + 10:g}" y="{y + 19:g}" class="node-title">{escape(clean_text(node.title))}</text>'
            f'<text x="{x + 10:g}" y="{y + 36:g}" class="node-note">{escape(clean_text(node.note))}</text>'
        )
    with ui.element("div").classes("graph").props('tabindex="0"'):
        picture = ui.interactive_image(size=(drawing.width, drawing.height), content="".join(shapes), events=[])
        picture.style(f"width: {drawing.width:g}px")
        canvas.describe(picture, "Lineage: " + ", ".join(clean_text(node.title) for node in nodes))
    for node in nodes:
        if node.is_missing:
            parts.text("p", f"{node.title} is no longer in the project.", "note")
