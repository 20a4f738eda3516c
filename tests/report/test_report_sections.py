"""Parts of a report on stores and results made by hand: layouts of scenes, lineage, benchmarks."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objtune_cli.images import png
from objtune_cli.report import bench_results, bench_section, charts, contents, lineage, page, scene_layout
from objtune_cli.report.lineage import Node
from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store
from tests.conftest import REPOSITORY

ADAPTERS = {f"adapter.{name}": {"ref": f"adapter/{name}@1", "sha256": "0" * 64} for name in ("rex", "cup")}
OBJECTS = {"rex": "dog", "cup": "mug"}


def add_scene(store: Store, config: dict[str, Any], metrics: dict[str, Any], inputs: dict[str, Any] = ADAPTERS) -> Ref:
    """A scene of two images of 40 x 20 px."""
    record = Record("scene", "rex-cup", OBJECTS, inputs, {"prompt": "<rex> and <cup>", **config}, {}, metrics)
    ref = store.create(record, {"latents": np.zeros((2, 1), np.float32)})
    for number in (1, 2):
        store.write_image(ref, f"00{number}.png", png.encode_png(np.full((20, 40, 3), number, np.uint8)))
    return ref


def scenes_of(store: Store) -> list[dict[str, Any]]:
    """The scenes of a project's report, as its script gets them."""
    text = "".join(page.render(store, contents.read_project(store, "project")))
    return [
        scene
        for found in re.findall(r'<script type="application/json" class="page">(.*?)</script>', text, re.S)
        for scene in json.loads(found)
    ]


def test_a_composed_scene_has_its_layout_its_problems_and_a_command(tmp_path: Path) -> None:
    store = Store.at(tmp_path)
    places = {"rex": [0.02, 0.25, 0.5, 0.95], "cup-2": [0.5, 0.4, 0.9, 0.9]}
    config = {"places": places, "order": ["cup-2", "rex"], "seed": 4, "num_images": 2, "guidance_scale": 3.5}
    ref = add_scene(store, config, {"seeds": [4, 9], "wrong": [[], ["cup"]]})
    store.write_image(ref, "layout.png", png.encode_png(np.zeros((9, 9, 3), np.uint8)))
    (scene,) = scenes_of(store)
    assert [box[0] for box in scene["boxes"]] == ["cup-2", "rex"] and scene["boxes"][1][2:] == places["rex"]
    assert len({box[1] for box in scene["boxes"]}) == 2
    assert [image[3] for image in scene["images"]] == ["scene/rex-cup@1, seed 4", "scene/rex-cup@1, seed 9"]
    assert [image[5] for image in scene["images"]] == ["", "<cup>"]
    assert scene["command"] == (
        "objtune compose '<rex> and <cup>' --place rex=0.02,0.25,0.5,0.95 --place cup=0.5,0.4,0.9,0.9"
        " --seed 4 -n 2 --set generate.guidance_scale=3.5"
    )
    assert scene["objects"] == ["adapter/cup@1", "adapter/rex@1"]


def test_a_placed_object_has_its_region_and_no_command_without_its_photo(tmp_path: Path) -> None:
    photo = {"photo": {"ref": "", "sha256": "1" * 64}}
    add_scene(Store.at(tmp_path), {"region": [10, 5, 30, 20]}, {}, ADAPTERS | photo)
    (scene,) = scenes_of(Store.at(tmp_path))
    assert scene["boxes"] == [["rex-cup", scene_layout.COLOURS[0], 0.25, 0.25, 0.75, 1.0]]
    assert scene["command"] == ""


def make_nodes(num_scenes: int) -> tuple[Node, ...]:
    inputs = {"mask": ("photo",), "embedding": ("mask",), "prior": (), "adapter": ("embedding", "prior")}
    chain = [Node("photo", "photo", "photo"), *(Node(kind, kind, kind, inputs=own) for kind, own in inputs.items())]
    return (*chain, *(Node(f"scene{i}", "scene", "scene", inputs=("adapter",)) for i in range(num_scenes)))


@pytest.mark.parametrize("is_wide", [True, False])
@pytest.mark.parametrize("num_scenes", [0, 1, lineage.MAX_SCENES])
def test_nodes_of_a_graph_follow_their_inputs_and_do_not_overlap(num_scenes: int, is_wide: bool) -> None:
    nodes = make_nodes(num_scenes)
    drawing = lineage.arrange(nodes, is_wide=is_wide)
    place = {placed.node.key: (placed.x, placed.y) for placed in drawing.nodes}
    assert set(place) == {node.key for node in nodes}
    axis = 0 if is_wide else 1
    assert all(place[source][axis] < place[node.key][axis] for node in nodes for source in node.inputs)
    corners = list(place.values())
    for i, (x, y) in enumerate(corners):
        assert 0 <= x <= drawing.width - lineage.WIDTH and 0 <= y <= drawing.height - lineage.HEIGHT
        assert all(abs(x - u) >= lineage.WIDTH or abs(y - v) >= lineage.HEIGHT for u, v in corners[:i])
    assert len(drawing.edges) == sum(len(node.inputs) for node in nodes)
    if not is_wide:
        assert drawing.width <= 330  # a phone of 360 px


def test_many_scenes_are_one_node(tmp_path: Path) -> None:
    store = Store.at(tmp_path)
    adapter = Record("adapter", "rex", {"rex": "dog"}, {}, {}, {})
    adapter = store.read_record(store.create(adapter, {"token": np.zeros(1, np.float32)}))
    scenes = [(Record("scene", "rex", OBJECTS, ADAPTERS, {}, {}, version=i), 4) for i in range(1, 21)]
    nodes = lineage.read_nodes(store, adapter, scenes)
    assert [node.key for node in nodes if node.kind == "scene"] == [*(f"scene/rex@{i}" for i in range(1, 6)), "scenes"]
    assert nodes[-1].note == "15 scenes" and nodes[1].note == "4 images"


def test_a_benchmark_shows_intervals_differences_and_images(tmp_path: Path) -> None:
    rows = [
        {"method": method, "measure": measure, "mean": 0.5, "low": 0.4, "high": 0.6, "n": 3}
        for method in ("truth", "objtune", r"objtune - <$\frac$>", "calibration floor")
        for measure in ("seconds", "identity")
    ]
    (tmp_path / "bench.json").write_text(json.dumps({"command": "bench", "rows": rows}))
    for method in ("truth", "objtune"):
        file = tmp_path / "results" / method / "dog-000.png"
        file.parent.mkdir(parents=True)
        file.write_bytes(png.encode_png(np.zeros((8, 32, 3), np.uint8)))
        file.with_suffix(".json").write_text("{}")
    (tmp_path / "results" / "truth" / "unfinished.png").write_bytes(b"")
    results = bench_results.read(tmp_path / "bench.json")
    section = bench_section.describe(results)
    assert [name for name, _ in section["charts"]] == ["identity", "seconds"]
    (svg,) = {svg for name, svg in section["differences"] if name == "identity"}
    assert "objtune - &lt;$\\frac$&gt;" in svg and "truth" not in svg
    assert "truth" in section["charts"][0][1] and "calibration" not in section["charts"][0][1]
    assert section["cases"] == ["dog-000"] and section["strips"]["dog-000"]["objtune"][1:] == [32, 8]
    shown = contents.Contents("bench", bench=results)
    text = "".join(page.render(Store.at(tmp_path), shown))
    assert '<th scope="row">calibration floor</th><td class="number">0 ±0</td>' in text
    assert "<option>dog-000</option>" in text and "objtune - &lt;$\\frac$&gt;" in text


def test_the_published_results_can_be_shown() -> None:
    results = bench_results.read(REPOSITORY / "docs" / "results.jsonl")
    assert {"objtune", "dreambooth-lora", "objtune - dreambooth-lora"} <= {row["method"] for row in results.rows}
    assert not results.strips


def test_a_results_folder_has_the_rows_of_its_table(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("method,measure,mean,low,high,n\nobjtune,identity,0.5,,,1\n")
    (row,) = bench_results.read(tmp_path).rows
    assert row == {"method": "objtune", "measure": "identity", "mean": 0.5, "low": None, "high": None, "n": 1}


def test_long_curves_keep_their_ends() -> None:
    steps, values = charts._thin([float(i) for i in range(1, 1001)])
    assert len(steps) <= charts.MAX_POINTS + 1 and (steps[0], steps[-1]) == (1, 1000) and values[-1] == 1000
    assert charts._thin([]) == ([], []) and charts._thin([3.0]) == ([1], [3.0])
