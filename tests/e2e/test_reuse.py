"""Finished work: found without loading a model, and found under the name it was given later."""

import json
from pathlib import Path

import pytest

from tests.support import quick_runs
from tests.test_architecture import loaded_by

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

FAST = (
    *quick_runs.FAST,
    *quick_runs.NO_GATE,
    *quick_runs.set_options(
        "train.self_evaluation=false", "train.max_steps=3", "train.rank=2", "segment.segmenter=grabcut"
    ),
)


@pytest.fixture
def line(base, dog_photo):
    """`train` of the example photo under a name."""
    return lambda name, *more: [
        "train",
        str(dog_photo),
        "--class",
        "dog",
        "--name",
        name,
        "--base",
        str(base),
        *FAST,
        *more,
    ]


def test_a_reused_train_loads_no_torch_and_writes_nothing(cli, line, project):
    first = cli(*line("rex"))
    assert first.code == 0, first.err
    before = {p: p.stat().st_mtime_ns for p in project.rglob("*") if p.is_file()}
    done = loaded_by(*line("rex"), folder=project)
    assert done.stdout == first.out == "adapter/rex@1\n"
    loaded = done.stderr.splitlines()[-1]
    assert "torch" not in loaded and "diffusers" not in loaded and loaded.endswith("code 0"), loaded
    assert {p: p.stat().st_mtime_ns for p in project.rglob("*") if p.is_file()} == before


def test_a_renamed_object_is_the_one_that_would_have_been_trained(cli, line, project, tmp_path):
    other = tmp_path / "other"
    assert cli(*line("max", "--no-preview", "--project", other)).code == 0
    assert cli(*line("rex", "--no-preview")).code == 0
    scene = cli("generate", "<rex> at night", "-n", 1, "--steps", 1, "--base", line("x")[7])
    assert scene.code == 0, scene.err
    assert cli("mv", "rex", "max").out == "mask/max@1\nembedding/max@1\nadapter/max@1\n"
    for kind in ("mask", "embedding", "adapter"):
        path = Path("artifacts", kind, "max", "v001.safetensors")
        assert path.read_bytes() == (other / path).read_bytes(), kind
    again = cli(*line("max", "--no-preview", "--json"))
    assert json.loads(again.out)["refs"][0]["reused"], again.err
    assert cli("generate", "<max> at night", "-n", 1, "--steps", 1, "--base", line("x")[7]).code == 0
    assert cli("generate", "<rex> at night", "-n", 1, "--steps", 1, "--base", line("x")[7]).code == 4
    assert cli("verify").code == 0
    assert cli("show", "adapter/rex@1").out.startswith("ref\tadapter/max@1\n")
