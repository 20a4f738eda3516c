"""The bench of scenes: groups, what counts as present, results that are kept."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from objtune_cli.bench import command_runner, scene_groups, scene_methods, scene_training
from objtune_cli.bench.command_runner import TrainingFailed
from objtune_cli.bench.suites import scenes
from objtune_cli.config.sections import Bench, Compose
from objtune_cli.errors import UsageError
from objtune_cli.evaluation import scene_scores
from objtune_cli.evaluation.truth_scores import Calibration
from objtune_cli.renamed_settings import as_text
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.evaluator.inference import Detection
from objtune_cli.toybox.evaluator.network import Evaluator
from objtune_cli.toybox.world import MEDIUM
from objtune_cli.workflow.context import StageContext

pytestmark = pytest.mark.usefixtures("cached_calibrations")

X, Y, Z = torch.eye(3)
SCALES = [Calibration(np.asarray(v)[None], 0.0, 1.0, 1.0) for v in (X, Y)]


def thing(vector: torch.Tensor, x: float = 0.2, score: float = 0.9) -> Detection:
    return Detection(score, (x, 0.3, x + 0.2, 0.8), vector / vector.norm(), {})


@pytest.fixture(scope="module")
def judge() -> Evaluator:
    return inference.load()


def test_groups_are_the_same_for_every_count_and_have_twins_of_one_class() -> None:
    few, many = scene_groups.make_groups(MEDIUM, 2, 0, 2), scene_groups.make_groups(MEDIUM, 4, 0, 2)
    assert few == many[:6] and [g.kind for g in few] == ["two", "three", "same"] * 2
    for two, three, same in zip(few[::3], few[1::3], few[2::3], strict=True):
        assert two.members == three.members[:2] and len({m.instance.kind for m in three.members}) == 3
        first, twin = same.members
        assert first == two.members[0] and first.instance.kind == twin.instance.kind and first.instance != twin.instance
    assert all(
        b not in {m.photo_background for m in g.members} and len(g.backgrounds) <= 2
        for g in many
        for b in g.backgrounds
    )
    assert few[0].prompt("night") == f"a photo of <{few[0].members[0].name}> and <{few[0].members[1].name}> at night"


@pytest.mark.parametrize(
    ("things", "right"),
    [
        ([thing(X), thing(Y)], [True, True]),
        ([thing(Y), thing(X)], [True, True]),  # whichever is found first
        ([thing(X), thing(Z)], [True, False]),
        ([thing(X)], [True, False]),
        ([thing(X), thing(X)], [True, False]),  # one object twice is not the other one
        ([thing(X + 0.9 * Y), thing(Y)], [True, True]),
        ([thing(X + 1.1 * Y), thing(Z)], [False, True]),  # a mixture counts for the one it is nearer to
        ([thing(0.4 * X + Z), thing(Y)], [False, True]),  # less than halfway
        ([], [False, False]),
    ],
)
def test_present_is_nearer_than_halfway_and_nearest_to_itself(things: list[Detection], right: list[bool]) -> None:
    assert scene_scores.find_present_objects(SCALES, things) == right


def test_true_scenes_have_everything_in_order(
    judge: Evaluator, context: Callable[..., StageContext], project: Path
) -> None:
    """Square ones of two, and wide ones of three that the evaluator reads through windows."""
    bench = scene_methods.SceneBench(context(), project / "out", Bench(), MEDIUM, judge)
    for group in scene_groups.make_groups(MEDIUM, 1, 0, 2):
        shown = scene_methods.render_truth(bench, group)
        assert shown.shape == (4, 128, 192 if group.kind == "three" else 128, 3)
        found, _ = bench.score(group, shown)
        assert (
            found["all_present"] >= 0.75
            and found["identity"] > 0.8
            and abs(found["identity_leakage"]) < 0.3
            and found["layout_accuracy"] == found["prompt"] == 1
        )
        mirrored, _ = bench.score(group, shown[:, :, ::-1])
        assert mirrored["layout_accuracy"] == 0


def test_a_missing_object_counts_as_0(judge: Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_scores, "find_detections", lambda *_: [[thing(X)], [thing(Y, 0.6), thing(X, 0.1)]])
    monkeypatch.setattr(scene_scores, "_read_background", lambda *_: "beach")
    found = scene_scores.score(judge, SCALES, ["beach", "snow"], np.zeros((2, 8, 8, 3), np.uint8))
    assert found == {
        "all_present": 0.5,
        "object_present": 0.75,
        "identity": 0.75,
        "identity_leakage": 0.0,
        "layout_accuracy": 0.5,
        "prompt": 0.5,
    }


def test_a_thing_in_two_windows_is_one() -> None:
    one, same, other = thing(X, 0.2, 0.8), replace(thing(X, 0.22, 0.9)), thing(Y, 0.6, 0.7)
    assert scene_scores._drop_duplicates([one, same, other]) == [same, other]


def test_results_are_kept_and_gone_on_from(
    context: Callable[..., StageContext], judge: Evaluator, project: Path, monkeypatch
) -> None:
    measured: list[tuple[str, str]] = []

    def measure(bench, group, method):
        measured.append((group.name, method))
        return {"all_present": 1.0 if method == "composed" else 0.5}, np.zeros((1, 8, 8, 3), np.uint8)

    monkeypatch.setattr(scenes, "measure", measure)
    monkeypatch.setattr(scenes.inference, "load", lambda: judge)
    ctx, out, config = context(), project / "out", Bench(num_objects=2, prompt_rounds=1)
    rows = scenes.run(ctx, out, ["composed", "sum"], config)
    assert len(measured) == 12 and len(rows) == 6 and all(row["n"] == 2 for row in rows)
    assert {(r["method"], r["mean"]) for r in rows} == {
        (f"{k}: {m}", v) for k in scene_groups.KINDS for m, v in (("composed", 1.0), ("sum", 0.5))
    }
    assert (out / "results/composed/two-000.png").is_file()
    (out / "results/sum/same-001.json").write_text("{}")
    assert scenes.run(ctx, out, ["composed", "sum"], config) == rows and measured[12:] == [("same-001", "sum")]
    scenes.run(ctx, out, ["composed"], replace(config, seed=1))
    assert len(measured) == 19  # other objects, other results


def test_shares_find_what_the_whole_finds_and_one_folder_holds_both(
    context: Callable[..., StageContext], judge: Evaluator, project: Path, monkeypatch
) -> None:
    measured: list[str] = []
    shown = np.zeros((1, 8, 8, 3), np.uint8)
    monkeypatch.setattr(
        scenes,
        "measure",
        lambda bench, group, method: (measured.append(group.name), ({"all_present": float(group.name[-1])}, shown))[1],
    )
    monkeypatch.setattr(scenes.inference, "load", lambda: judge)
    ctx, out, config = context(), project / "out", Bench(num_objects=3, prompt_rounds=1, scene_kinds="three, two")
    scenes.run(ctx, out, ["composed"], replace(config, shard="2/2"))
    assert measured == ["two-001", "three-001"]
    scenes.run(ctx, out, ["composed"], replace(config, shard="1/2"))
    assert sorted(measured[2:]) == ["three-000", "three-002", "two-000", "two-002"]
    rows = scenes.run(ctx, out, ["composed"], config)
    assert len(measured) == 6 and [(r["method"], r["mean"], r["n"]) for r in rows] == [
        ("two: composed", 1.0, 3),
        ("three: composed", 1.0, 3),
    ]
    with pytest.raises(UsageError, match="the shard 4/4 has none of the 3 groups"):
        scenes.run(ctx, out, ["composed"], replace(config, shard="4/4"))
    with pytest.raises(UsageError, match=r"bench\.scene_kinds has the unknown four"):
        scenes.run(ctx, out, ["composed"], replace(config, scene_kinds="two,four"))


def test_a_share_waits_for_the_object_that_another_one_trains(
    context: Callable[..., StageContext], judge: Evaluator, project: Path, monkeypatch
) -> None:
    bench = scene_methods.SceneBench(context(), project / "out", Bench(), MEDIUM, judge)
    case, said = scene_groups.make_groups(MEDIUM, 1, 0, 1)[0].members[0], iter([8, 8, 0])

    def learned(ctx, members, rgb, masks):
        code = next(said)
        if code:
            raise TrainingFailed("train", members[0], code, "another process is training exactly this")
        return None, 0.0

    monkeypatch.setattr(scene_methods, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(scene_training, "train_objects", learned)
    assert scene_methods.train_or_wait(bench.ctx, case) == 0.0 and next(said, None) is None
    said = iter([9])
    with pytest.raises(TrainingFailed):
        scene_methods.train_or_wait(bench.ctx, case)


@pytest.mark.parametrize(
    ("said", "right", "found"),
    [
        ([], [], {}),
        ([[True, True]], [[True, True]], {"check_agreement": 1.0, "false_alarm_rate": 0.0}),
        (
            [[True, False], [True, True]],
            [[True, True], [False, True]],
            {"check_agreement": 0.0, "false_alarm_rate": 1 / 3, "miss_rate": 1.0},
        ),
        (
            [[False, True]],
            [[True, False]],
            {"check_agreement": 1.0, "false_alarm_rate": 1.0, "miss_rate": 1.0},
        ),  # of the picture right, of its objects wrong
    ],
)
def test_a_check_is_held_against_the_evaluator(
    said: list[list[bool]], right: list[list[bool]], found: dict[str, float]
) -> None:
    assert scene_scores.score_presence_check(said, right) == pytest.approx(found)


def test_what_is_no_method_is_told(cli) -> None:
    result = cli("bench", "scenes", "--methods", "composed,magic")
    assert result.code == 2 and "there is no method magic for several objects" in result.err


def test_joint_trainings_take_their_methods_settings(
    context: Callable[..., StageContext], judge: Evaluator, project: Path, monkeypatch
) -> None:
    """One photo of all members, a token and a mask each, in a project of the method's own; another method, another key."""
    said: list[list[str]] = []

    def measured(ctx, command, label):
        said.append([str(word) for word in command])
        names = [command[i + 1] for i, word in enumerate(command) if word == "--name"] or ["x"]
        return {"refs": [{"ref": f"adapter/{name}@1", "reused": False} for name in names]}, 3.0, 0.0

    monkeypatch.setattr(command_runner, "run_command", measured)
    ways: list[str] = []
    shown = np.zeros((2, 128, 128, 3), np.uint8)
    monkeypatch.setattr(scene_methods, "_sample_plain", lambda *_: (ways.append("prompt"), shown)[1])
    monkeypatch.setattr(
        scene_methods,
        "_measure_composed",
        lambda bench, _, group, how: (ways.append("compose"), bench.score(group, shown))[1],
    )
    bench = scene_methods.SceneBench(context(), project / "out", Bench(), MEDIUM, judge)
    group = scene_groups.make_groups(MEDIUM, 1, 0, 1)[1]
    for method, own in scenes.JOINT_METHODS.items():
        said.clear()
        values, _ = scene_methods.measure(bench, group, method)
        starts = [c for c in said if "init-embedding" in c]
        assert len(starts) == (3 if own.embed.get("init") == "rare-token" else 0)
        assert [next(w for w in c if ".rare_token=" in w) for c in starts] == [
            f"init-embedding.rare_token={w}" for w in scene_training.RARE_TOKENS[: len(starts)]
        ]
        assert values["seconds"] == 3.0 * len(said) and values["all_present"] == 0
        settings = {said[-1][i + 1] for i, word in enumerate(said[-1]) if word == "--set"}
        assert {f"train.{k}={as_text(v)}" for k, v in own.train.items()} | {
            f"prior.{k}={as_text(v)}" for k, v in own.prior.items()
        } <= settings
        assert "train.self_evaluation=false" in settings and said[0].count("--class") == said[0].count("--mask") == 3
        assert (project / "out" / f"{method}-{group.name}" / "given").is_dir()
    assert ways == ["compose"] + ["prompt"] * 3
    assert len({scenes._result_key(bench, group, method) for method in scenes.JOINT_METHODS}) == len(
        scenes.JOINT_METHODS
    )


def test_each_alone_from_the_one_photo_is_what_learning_together_is_held_against(
    context: Callable[..., StageContext], judge: Evaluator, project: Path, monkeypatch
) -> None:
    """Runs of their own, each with its own mask, on the photo that a joint training is given."""
    given: dict[str, list[tuple[list[str], bytes, list[bytes]]]] = {"each": [], "joint": []}
    taken: list[str] = []

    def learned(ctx, members, rgb, masks, method=None):
        given[taken[-1]].append(([m.name for m in members], rgb.tobytes(), [m.tobytes() for m in masks]))
        return None, 2.0

    monkeypatch.setattr(scene_training, "train_objects", learned)
    monkeypatch.setattr(
        scene_methods,
        "_measure_composed",
        lambda bench, ctx, group, how: ({"all_present": float(how.max_retries)}, np.zeros((1, 8, 8, 3), np.uint8)),
    )
    bench = scene_methods.SceneBench(context(), project / "out", Bench(), MEDIUM, judge)
    group = scene_groups.make_groups(MEDIUM, 1, 0, 1)[1]
    for method in given:
        taken.append(method)
        values, _ = scene_methods.measure(bench, group, method)
        assert values == {"all_present": Compose().max_retries, "seconds": 2.0 * len(given[method])}
    (names, photo, masks), *none = given["joint"]
    assert (
        given["each"] == [([name], photo, [mask]) for name, mask in zip(names, masks, strict=True)]
        and len(names) == 3
        and not none
    )
