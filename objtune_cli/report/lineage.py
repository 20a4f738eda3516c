"""The lineage of an object as a graph: photo, mask, embedding, class prior, adapter and scenes, laid out for a page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from objtune_cli.errors import ObjtuneError
from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import Ref, parse
from objtune_cli.store.store import Store

RANKS = {"photo": 0, "mask": 1, "embedding": 2, "prior": 2, "adapter": 3, "scene": 4}
"""The least column of each kind."""
TITLES = {"embedding": "token", "prior": "class prior"}
"""Names of kinds on the page, where they are not those of refs."""
MAX_SCENES = 6
"""Scenes in the graph; one node stands for the others."""
WIDTH, HEIGHT = 156, 46
"""Size of a node, px."""
GAP, LEVEL_GAP = 12, 40
"""Space between nodes of one rank, and between ranks, px."""
NODES_PER_ROW = 2
"""Nodes side by side on a phone."""
MARGIN = 2
SHORT_DIGEST = 8


@dataclass(frozen=True, slots=True)
class Node:
    """A photo, an artifact, or several scenes.

    Attributes:
        key: Its ref; for a photo its digest. kind: A key of `RANKS`. title, note: Its two lines.
        inputs: Keys of the nodes that it came from. is_missing: Whether it is no longer in the store.
        link: Fragment of the page; empty: none.
    """

    key: str
    kind: str
    title: str
    note: str = ""
    inputs: tuple[str, ...] = ()
    is_missing: bool = False
    link: str = ""


@dataclass(frozen=True, slots=True)
class PlacedNode:
    """A node with its upper left corner, px."""

    node: Node
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Drawing:
    """A graph with its size, px; `edges` are paths in the syntax of SVG."""

    width: float
    height: float
    nodes: tuple[PlacedNode, ...]
    edges: tuple[str, ...]


def adapters_of(record: Record) -> list[Ref]:
    """The adapters among the inputs of a record."""
    refs = (source["ref"] for source in record.inputs.values())
    return list(dict.fromkeys(parse(ref) for ref in refs if ref.startswith("adapter/")))


def read_nodes(store: Store, adapter: Record, scenes: Sequence[tuple[Record, int]]) -> tuple[Node, ...]:
    """The graph of an adapter: all that it came from, itself, and the scenes that show it.

    Args:
        scenes: Their records and numbers of images.
    """
    nodes: dict[str, Node] = {}
    waiting = [adapter]
    while waiting:
        record = waiting.pop(0)
        nodes[str(record.ref)] = _describe_artifact(record)
        for role, source in record.inputs.items():
            ref = source["ref"]
            if not ref and role.startswith("photo"):
                digest = source["sha256"]
                nodes[digest] = Node(digest, "photo", "photo", digest[:SHORT_DIGEST])
            elif ref and ref not in nodes:
                try:
                    waiting.append(store.read_record(parse(ref)))
                except ObjtuneError:
                    nodes[ref] = replace(_name(parse(ref)), note="no longer here", is_missing=True)
    root = str(adapter.ref)
    nodes = {key: _link(node, root) for key, node in nodes.items()}
    shown = scenes if len(scenes) <= MAX_SCENES else scenes[: MAX_SCENES - 1]
    for record, num_images in shown:
        node = replace(_name(record.ref), note=_count(num_images, "image"), inputs=(root,), link=f"#{record.ref}")
        nodes[node.key] = node
    others = len(scenes) - len(shown)
    if others:
        nodes["scenes"] = Node("scenes", "scene", "more scenes", _count(others, "scene"), (root,), link="#scenes")
    return tuple(nodes.values())


def arrange(nodes: Iterable[Node], *, is_wide: bool) -> Drawing:
    """Lay out a graph in ranks: from left to right for a wide page, from top to bottom for a phone."""
    by_key = {node.key: node for node in nodes}
    ranks = _rank(by_key)
    rows = [[node for node in by_key.values() if ranks[node.key] == rank] for rank in sorted(set(ranks.values()))]
    corners = _place_columns(rows) if is_wide else _place_rows(rows)
    edges = tuple(
        _draw_edge(corners[source], corners[node.key], is_wide=is_wide)
        for node in by_key.values()
        for source in node.inputs
        if source in corners
    )
    width = max((x for x, _ in corners.values()), default=0) + WIDTH + MARGIN
    height = max((y for _, y in corners.values()), default=0) + HEIGHT + MARGIN
    return Drawing(width, height, tuple(PlacedNode(by_key[key], *corner) for key, corner in corners.items()), edges)


def _describe_artifact(record: Record) -> Node:
    keys = (
        source["ref"] or (source["sha256"] if role.startswith("photo") else "")
        for role, source in record.inputs.items()
    )
    return replace(_name(record.ref), note=record.class_word, inputs=tuple(dict.fromkeys(filter(None, keys))))


def _name(ref: Ref) -> Node:
    return Node(str(ref), ref.kind, f"{TITLES.get(ref.kind, ref.kind)} {ref.name}@{ref.version}")


def _link(node: Node, root: str) -> Node:
    """A node with the part of the page that shows it: the adapter's article, or a figure in it."""
    link = (
        f"#{root}" if node.key == root else f"#{root}/{node.key}" if node.kind == "mask" and not node.is_missing else ""
    )
    return replace(node, link=link)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _rank(nodes: Mapping[str, Node]) -> dict[str, int]:
    """The rank of each node: at least that of its kind, and above those of its inputs."""
    ranks: dict[str, int] = {}

    def visit(key: str) -> int:
        if key not in ranks:
            ranks[key] = RANKS.get(nodes[key].kind, 0)  # an end for a circle, which only a damaged store has
            above = [visit(source) + 1 for source in nodes[key].inputs if source in nodes]
            ranks[key] = max([ranks[key], *above])
        return ranks[key]

    for key in nodes:
        visit(key)
    return ranks


def _place_columns(columns: Sequence[Sequence[Node]]) -> dict[str, tuple[float, float]]:
    """Corners of nodes in columns, each centred vertically."""
    tallest = max((len(column) for column in columns), default=0)
    corners: dict[str, tuple[float, float]] = {}
    for i, column in enumerate(columns):
        top = (tallest - len(column)) * (HEIGHT + GAP) / 2
        for j, node in enumerate(column):
            corners[node.key] = (MARGIN + i * (WIDTH + LEVEL_GAP), MARGIN + top + j * (HEIGHT + GAP))
    return corners


def _place_rows(rows: Sequence[Sequence[Node]]) -> dict[str, tuple[float, float]]:
    """Corners of nodes in rows of at most `NODES_PER_ROW`, each centred horizontally."""
    widest = min(NODES_PER_ROW, max((len(row) for row in rows), default=0))
    corners: dict[str, tuple[float, float]] = {}
    y = float(MARGIN)
    for row in rows:
        for start in range(0, len(row), NODES_PER_ROW):
            part = row[start : start + NODES_PER_ROW]
            left = (widest - len(part)) * (WIDTH + GAP) / 2
            for j, node in enumerate(part):
                corners[node.key] = (MARGIN + left + j * (WIDTH + GAP), y)
            y += HEIGHT + GAP
        y += LEVEL_GAP - GAP
    return corners


def _draw_edge(source: tuple[float, float], target: tuple[float, float], *, is_wide: bool) -> str:
    """A curve between the facing sides of two nodes, with an arrowhead."""
    (x0, y0), (x1, y1) = source, target
    if is_wide:
        x0, y0, y1, bend = x0 + WIDTH, y0 + HEIGHT / 2, y1 + HEIGHT / 2, LEVEL_GAP / 2
        curve = f"M{x0:g} {y0:g}C{x0 + bend:g} {y0:g} {x1 - bend:g} {y1:g} {x1 - 1:g} {y1:g}"
        return f"{curve}m-6 -4l6 4l-6 4"
    x0, y0, x1, bend = x0 + WIDTH / 2, y0 + HEIGHT, x1 + WIDTH / 2, LEVEL_GAP / 2
    curve = f"M{x0:g} {y0:g}C{x0:g} {y0 + bend:g} {x1:g} {y1 - bend:g} {x1:g} {y1 - 1:g}"
    return f"{curve}m-4 -6l4 6l4 -6"
