"""Scenes of several objects through the command line: the presence check, another seed, merged adapters."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from objtune_cli.store import refs
from objtune_cli.store.store import Store
from tests.support import quick_runs

pytestmark = [pytest.mark.usefixtures("fast_sampling", "cached_segmentation"), pytest.mark.commands]

DRAW = ("compose", "<dog> and <cup>", "--steps", 1)


@pytest.fixture
def scenes(cli, base, trained_artifacts):
    """`cli` in a project of its own with a copy of <dog> and <cup>."""
    Path("objtune.toml").write_text(f'base = "{base}"\n')
    shutil.copytree(trained_artifacts, "artifacts")
    return cli


@pytest.fixture
def margins(monkeypatch: pytest.MonkeyPatch):
    """Lets the check find margins that the test names by seed; what is 0 or below lacks <dog>."""
    from objtune_cli.composition import presence_report

    table: dict[int, float] = {}

    def looks(check, parts, pictures, seeds, boxes):
        assert pictures.shape[0] == len(parts) == len(seeds)
        matrix = [[1.0, 0.0], [0.0, 1.0]]
        return [
            presence_report.SceneCandidate(part, s, matrix, [] if table[s] > 0 else [0], table[s])
            for part, s in zip(parts, seeds, strict=True)
        ]

    monkeypatch.setattr(presence_report, "check_candidates", looks)
    return table


def _metrics(result) -> dict:
    return next(iter(json.loads(result.out)["metrics"].values()))


def test_a_scene_says_what_stands_where(scenes):
    result = scenes(*DRAW, "-n", 2, "--retries", 1, "--json")
    assert result.code == 0, result.err
    found = _metrics(result)
    assert found["objects"] == ["dog", "cup"] and np.shape(found["leakage"]) == (2, 2, 2) and len(found["seeds"]) == 2
    assert found["presence"] == sum(not w for w in found["wrong"]) / 2
    assert Store.at(Path()).read_record(refs.Ref("scene", "dog-cup", 1)).metrics == found
    assert "likeness of each place (rows) to each object (columns)" in result.err
    row = next(line for line in result.err.splitlines() if line.startswith("dog "))
    assert [float(v) for v in row.split()[1:]] == pytest.approx(np.mean(found["leakage"], 0)[0], abs=0.006)


def test_objects_are_looked_at_closer_and_kept_as_they_were_drawn(scenes):
    """Each object's own pictures are in the artifact, and the scene's are made of them again, byte for byte; without them it is another scene."""
    result = scenes(*DRAW[:2], "--steps", 4, "-n", 2, "--retries", 0)
    assert result.code == 0, result.err
    assert "closer look at dog 2/2" in result.err and "closer look at cup 2/2" in result.err
    _, arrays = Store.at(Path()).read(refs.Ref("scene", "dog-cup", 1))
    assert {name: array.shape for name, array in arrays.items()} == {
        name: (2, 4, 8, 8) for name in ("latents", "close.cup", "close.dog")
    }
    paths = [Path(line) for line in result.out.split()]
    before = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    again = scenes(*DRAW[:2], "--steps", 4, "-n", 2, "--retries", 0)
    assert again.out == result.out and [path.read_bytes() for path in paths] == before
    plain = scenes(*DRAW[:2], "--steps", 4, "-n", 2, "--retries", 0, "--set", "compose.refine_strength=0")
    assert plain.out.split()[0] == "artifacts/scene/dog-cup/v002/001.png" and "closer" not in plain.err
    _, without = Store.at(Path()).read(refs.Ref("scene", "dog-cup", 2))
    assert "laid" not in Store.at(Path()).read_record(refs.Ref("scene", "dog-cup", 2)).config
    assert list(without) == ["latents"] and np.array_equal(without["latents"], arrays["latents"])
    assert Path(plain.out.split()[0]).read_bytes() != before[0]


def test_scenes_from_before_outlines_are_made_again_as_they_were(scenes):
    """All of each place was laid back then, and no record says so: with `compose.paste=box` the record is that of before."""
    line = [*DRAW[:2], "--steps", 4, "-n", 1, "--retries", 0]
    for version, more in ((1, ()), (2, ("--set", "compose.paste=box"))):
        result = scenes(*line, *more)
        assert result.code == 0, result.err
        assert ("paste" in Store.at(Path()).read_record(refs.Ref("scene", "dog-cup", version)).config) == (not more)
    (path,) = [Path(text) for text in result.out.split()]
    before = path.read_bytes()
    assert before != Path("artifacts/scene/dog-cup/v001/001.png").read_bytes()
    path.unlink()
    assert scenes(*line, "--set", "compose.paste=box").out == result.out and path.read_bytes() == before


def test_a_wrong_picture_is_drawn_again_and_the_best_is_kept(scenes, margins):
    """Three pictures, seeds 7 to 9: the second is wrong twice, the third three times, whose second try is the least wrong."""
    margins.update({7: 0.1, 8: -0.5, 9: -0.9, 11: 0.2, 12: -0.2, 15: -0.4})
    result = scenes(*DRAW, "-n", 3, "--seed", 7, "--retries", 2, "--json")
    assert result.code == 0, result.err
    found = _metrics(result)
    assert (
        found["seeds"] == [7, 11, 12]
        and found["wrong"] == [[], [], ["dog"]]
        and found["presence"] == pytest.approx(2 / 3, abs=1e-4)
    )
    assert "missing or mixed in 1 of 3 pictures (picture 3: <dog>)" in result.err
    paths = [Path(p) for p in json.loads(result.out)["images"]]
    assert [
        "Seed: 11" in Image.open(paths[1]).text["parameters"],
        json.loads(Image.open(paths[2]).text["objtune"])["seed"],
    ] == [True, 12]
    before = paths[1].read_bytes()
    paths[1].unlink()
    again = scenes(*DRAW, "-n", 3, "--seed", 7, "--retries", 2)
    assert "up to date" in again.err and paths[1].read_bytes() == before
    margins[11] = 0.3
    alone = scenes(
        *DRAW, "-n", 1, "--seed", 11, "--retries", 0, "--json"
    )  # what another seed gives is that seed's picture
    levels = [np.asarray(Image.open(path)).astype(int) for path in (json.loads(alone.out)["images"][0], paths[1])]
    assert np.abs(levels[0] - levels[1]).max() <= 2  # up to rounding: in another batch


def test_strict_refuses_and_publishes_nothing(scenes, margins):
    margins.update({0: -0.5, 1: -0.1})
    refused = scenes(*DRAW, "-n", 1, "--retries", 1, "--strict", "--json")
    assert refused.code == 9 and json.loads(refused.out)["error"]["code"] == 9
    assert (
        "missing or mixed in 1 of 1 pictures (picture 1: <dog>), for every seed" in refused.err
        and not Path("artifacts/scene").exists()
    )
    kept = scenes(*DRAW, "-n", 1, "--retries", 1)
    assert kept.code == 0
    assert scenes(*DRAW, "-n", 1, "--retries", 1, "--strict").code == 9  # what is there already is judged too
    margins[1] = 0.1
    assert scenes(*DRAW, "-n", 1, "--retries", 1, "--strict", "--force").code == 0


def test_a_base_without_an_image_tower_is_looked_at_too(cli, bare_base, dog_photo):
    given = (
        "--base",
        bare_base,
        *quick_runs.FAST,
        *quick_runs.set_options("train.max_steps=2", "train.rank=2", "train.self_evaluation=false"),
        *quick_runs.NO_GATE,
        "--no-preview",
    )
    for name in ("dog", "cup"):
        assert cli("train", dog_photo, "--class", "dog", "--name", name, *given).code == 0
    done = cli(*DRAW, "-n", 1, "--base", bare_base, "--retries", 0, "--json")
    assert done.code == 0 and np.shape(_metrics(done)["leakage"]) == (1, 2, 2)


def test_without_its_photo_an_object_is_known_all_the_same(scenes):
    shutil.rmtree("artifacts/mask/cup")
    done = scenes(*DRAW, "-n", 1, "--retries", 0, "--json")
    assert done.code == 0 and np.shape(_metrics(done)["leakage"]) == (1, 2, 2)


def test_nobody_looks_where_nobody_is_asked_to(scenes):
    done = scenes(*DRAW, "-n", 1, "--strict", "--set", "compose.presence_check=false", "--json")
    assert done.code == 0 and "leakage" not in _metrics(done)


def test_three_side_by_side_get_a_wider_picture_and_any_scheduler_draws_it(scenes, dog_photo):
    assert (
        scenes(
            "train",
            dog_photo,
            "--class",
            "dog",
            "--name",
            "hat",
            *quick_runs.FAST,
            *quick_runs.set_options("train.max_steps=2", "train.rank=2", "train.self_evaluation=false"),
            *quick_runs.NO_GATE,
            "--no-preview",
        ).code
        == 0
    )
    result = scenes(
        "compose",
        "<dog>, <cup> and <hat>",
        "-n",
        1,
        "--steps",
        2,
        "--scheduler",
        "euler",
        "--negative",
        "blur",
        "--retries",
        0,
    )
    assert result.code == 0 and np.asarray(Image.open(result.out.strip())).shape == (32, 48, 3), result.err
    assert np.asarray(Image.open("artifacts/scene/dog-cup-hat/v001/layout.png")).shape == (256, 384, 3)
    assert Store.at(Path()).read_record(refs.Ref("scene", "dog-cup-hat", 1)).config["frame"] == [1.5, 1.0]
    behind = scenes("compose", "<dog> behind <cup>", "-n", 1, "--steps", 1)
    assert behind.code == 0 and "order" not in Store.at(Path()).read_record(refs.Ref("scene", "dog-cup", 1)).config
    before = scenes("compose", "<dog> in front of <cup>", "-n", 1, "--steps", 1)
    assert before.code == 0 and Store.at(Path()).read_record(refs.Ref("scene", "dog-cup", 2)).config["order"] == [
        "cup",
        "dog",
    ]


def test_what_the_sentence_hears_of_an_object_makes_another_scene(scenes):
    """Scenes of before, in which it heard the token, are not taken for the new ones."""
    assert scenes("compose", "<dog> and <cup>", "-n", 1, "--steps", 1).out == "artifacts/scene/dog-cup/v001/001.png\n"
    own = scenes("compose", "<dog> and <cup>", "-n", 1, "--steps", 1, "--set", "compose.context_words=placeholder")
    assert own.out == "artifacts/scene/dog-cup/v002/001.png\n", own.err
    records = [Store.at(Path()).read(refs.Ref("scene", "dog-cup", v)) for v in (1, 2)]
    assert [r.config.get("context_words") for r, _ in records] == ["class", None]
    assert np.abs(records[0][1]["latents"] - records[1][1]["latents"]).max() > 1e-4


@pytest.mark.parametrize("method", ["linear", "ties", "dare"])
def test_merge_makes_one_adapter_of_two(scenes, method):
    result = scenes("merge", "dog=0.5", "cup", "--name", "pair", "--method", method)
    assert (result.code, result.out) == (0, "adapter/pair@1\n"), result.err
    record, tensors = Store.at(Path()).read(refs.Ref("adapter", "pair", 1))
    assert record.objects == {"dog": "dog", "cup": "mug"} and record.config["weights"] == [0.5, 1.0]
    assert {"token.dog", "token.cup"} <= set(tensors) and record.metrics["rank"] == (4 if method == "linear" else 2)
    assert scenes("merge", "-", "--name", "pair", "--method", method, stdin="dog=0.5\ncup\n").out == "adapter/pair@1\n"
    assert scenes("merge", "dog=0.6", "cup", "--name", "pair", "--method", method).out == "adapter/pair@2\n"
    assert scenes("export", "pair", "--format", "kohya").out == "pair.safetensors\n"
    assert scenes("verify").code == 0


def test_a_merged_adapter_leaves_the_names_to_its_parts_and_draws_what_their_sum_draws(scenes):
    scenes("merge", "dog", "cup", "--name", "pair")
    own = scenes("generate", "<dog> and <cup>", "-n", 1, "--steps", 2)
    asked = scenes("generate", "<dog> and <cup>", "-n", 1, "--steps", 2, "--adapter", "pair")
    assert (own.code, asked.code) == (0, 0), asked.err
    assert Store.at(Path()).read_record(refs.Ref("scene", "dog-cup", 1)).inputs["adapter.dog"]["ref"] == "adapter/dog@1"
    assert (
        Store.at(Path()).read_record(refs.Ref("scene", "dog-cup", 2)).inputs["adapter.dog"]["ref"] == "adapter/pair@1"
    )
    first, second = (np.asarray(Image.open(r.out.strip()), int) for r in (own, asked))
    assert np.abs(first - second).max() <= 2
    missing = scenes("generate", "<cup>", "-n", 1, "--adapter", "dog")
    assert missing.code == 3 and "adapter/dog@1 has no <cup>" in missing.err


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("merge", "dog"), 2, "adapter/dog@1 alone cannot be merged"),
        (("merge", "dog", "dog@1"), 2, "adapter/dog@1 is given twice"),
        (("merge", "dog", "cup", "--name", "A b"), 2, "cannot be a name"),
        (("merge", "dog=half", "cup"), 2, "the weight of dog is 'half'"),
        (("merge", "dog", "hat"), 4, "there is no adapter/hat"),
        (("merge", "dog", "mask/cup"), 6, "is a mask"),
        (
            ("compose", "<dog> and <cup>", "--place", "dog=left", "--place", "cup=left"),
            2,
            "dog and cup have the same place",
        ),
        (
            ("compose", "<dog> and <cup>", "--place", "dog=left", "--place", "dog=right"),
            2,
            "2 places for dog, but the prompt names <dog> once",
        ),
        (("compose", "<dog> and <cup>", "--place", "dog=0.5,0.5,1.5,0.9"), 2, "is not a place"),
        (("compose", "<dog> and <hat>"), 4, "no trained object <hat>"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(scenes, monkeypatch, args, code, said):
    from objtune_cli.workflow.context import StageContext

    monkeypatch.setattr(StageContext, "load_base_model", lambda self, **_: pytest.fail("the base was loaded"))
    result = scenes(*args)
    assert (result.code, result.out) == (code, ""), result.err
    errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0], result.err


def test_adapters_of_different_bases_and_twice_the_same_object_are_not_merged(scenes, trained_artifacts):
    from dataclasses import replace

    store = Store.at(Path())
    record, tensors = store.read(refs.Ref("adapter", "cup", 1))
    store.create(
        replace(record, name="far", objects={"far": "mug"}, base={"id": "sd15", "fingerprint": "0" * 64}), tensors
    )
    store.create(replace(record, name="twin"), tensors)
    other = scenes("merge", "dog", "far")
    assert other.code == 6 and "adapter/dog@1 was made with the base tiny, adapter/far@1 with sd15" in other.err
    twice = scenes("merge", "cup", "twin")
    assert twice.code == 2 and "adapter/cup@1 and adapter/twin@1 both contain <cup>" in twice.err
    broken = scenes("compose", "<dog> and <far>")  # what was renamed is its record alone
    assert broken.code == 5 and "adapter/far@1 contains no token of <far>" in broken.err
