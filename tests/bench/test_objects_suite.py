"""The bench as a whole: each result kept as it is found, the same command goes on, tables and sheet of the same rows."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from objtune_cli.bench import command_runner, single_training
from objtune_cli.bench.methods import Method
from objtune_cli.bench.single_training import TrainingResult
from objtune_cli.bench.suites import objects
from objtune_cli.bench.suites.objects import REFERENCE_METHODS
from objtune_cli.config.sections import Bench
from objtune_cli.errors import BusyError, IncompatibleError, Stopped, UsageError
from objtune_cli.evaluation import benchmark_objects, rendering
from objtune_cli.images import grids
from objtune_cli.models import loading
from objtune_cli.models.base_model import BaseModel
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.evaluator.network import Evaluator
from objtune_cli.toybox.world import MEDIUM
from objtune_cli.workflow.context import StageContext
from tests.support import tiny_sd1

pytestmark = pytest.mark.commands

CONFIG = Bench(num_objects=2, prompt_rounds=1)
ALONE = Bench(num_objects=1, prompt_rounds=1)
METHODS = {"one": Method("One", ""), "two": Method("Two", "", train={"rank": 4})}
MEASURES = {"identity", "detection_rate", "duplicate_rate", "prompt", "background_leakage", "diversity", "all_present"}


@pytest.fixture(scope="module")
def opened(world_base: Path) -> BaseModel:
    return loading.load(world_base, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def judge() -> Evaluator:
    return inference.load()


@pytest.fixture
def trained(opened: BaseModel, judge: Evaluator, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Which method was trained on which object; a training gives a random token. Few and small drawings calibrate; of the rows without training the truth is enough."""
    seen: list[tuple[str, str]] = []

    def train(ctx: StageContext, case: object, name: str, method: Method) -> TrainingResult:
        seen.append((name, case.name))
        rows = torch.randn(2, 16, generator=torch.Generator().manual_seed(len(seen)))
        return TrainingResult({f"token.{case.name}": rows}, 1.5 * len(seen), 100.0)

    monkeypatch.setattr(single_training, "_train_case", train)
    monkeypatch.setattr(objects.class_prior_stage, "run", lambda *_: None)
    for name, count in (("REFERENCES", 4), ("OTHER_INSTANCES", 4), ("CLASS_IMAGES", 2), ("SIDE", 64)):
        monkeypatch.setattr(rendering, name, count)
    monkeypatch.setattr(objects.inference, "load", lambda: judge)
    monkeypatch.setattr(objects, "REFERENCE_METHODS", {"truth": REFERENCE_METHODS["truth"]})
    monkeypatch.setattr(
        StageContext, "load_base_model", lambda self, **_: self.check_stopped() or opened
    )  # tokens alone: nothing has to be undone
    return seen


@pytest.fixture
def out(project: Path) -> Path:
    return project / "bench"


def _by_name(rows: list[dict]) -> dict[tuple[str, str], dict]:
    return {(row["method"], row["measure"]): row for row in rows}


ALL = [("one", "dog-000"), ("two", "dog-000"), ("one", "cat-001"), ("two", "cat-001")]


def test_what_differs_only_in_how_it_is_drawn_is_learned_once(
    context: Callable[..., StageContext], out: Path, trained: list
) -> None:
    """By each object; another rank, another hint or another photo is another training."""
    methods = {
        "one": METHODS["one"], "begun": replace(METHODS["one"], sampling={"subject_conditioning_start": 0.5}), "two": METHODS["two"],
        "rough": replace(METHODS["one"], hint="rough"), "two-begun": replace(METHODS["two"], sampling={"prompt_guidance_scale": 1.0}),
    }  # fmt: skip
    rows = _by_name(objects.run(context(), out, methods, CONFIG))
    assert trained == [(name, case) for case in ("dog-000", "cat-001") for name in ("one", "two", "rough")]
    assert rows["begun", "seconds"]["mean"] == rows["one", "seconds"]["mean"] != rows["two", "seconds"]["mean"]


def test_every_method_on_every_object_once(
    context: Callable[..., StageContext], trained: list, out: Path, monkeypatch
) -> None:
    monkeypatch.setattr(objects, "REFERENCE_METHODS", REFERENCE_METHODS)
    ctx = context()
    rows = _by_name(objects.run(ctx, out, METHODS, CONFIG))
    assert trained == ALL
    measures = {name: {m for n, m in rows if n == name} for name in dict.fromkeys(n for n, _ in rows)}
    assert list(measures) == [
        "truth",
        "other-instance",
        "vae-reconstruction",
        "prompt-only",
        "one",
        "two",
        "calibration floor",
        "calibration ceiling",
    ]
    assert all(measures[name] == MEASURES for name in ("truth", "other-instance", "vae-reconstruction", "prompt-only"))
    assert (measures["calibration floor"], measures["calibration ceiling"]) == (
        {"identity", "diversity"},
        {"identity", "diversity", "prompt", "all_present"},
    )
    assert all(measures[name] == MEASURES | {"drift", "class_accuracy", "seconds", "memory_mb"} for name in METHODS)
    assert all(
        row["n"] == 2 and (row["low"] is None or row["low"] <= row["mean"] <= row["high"]) for row in rows.values()
    )
    assert rows["truth", "prompt"]["mean"] == rows["truth", "all_present"]["mean"] == 1
    assert rows["truth", "identity"]["mean"] > rows["other-instance", "identity"]["mean"]
    assert (rows["one", "seconds"]["mean"], rows["two", "seconds"]["mean"]) == (3.0, 4.5)  # trainings 1 and 3, 2 and 4
    said = ctx.report.said
    assert len(said) == 12 and said[4].startswith("one on dog-000: ") and "(5 of 12, " in said[4]


def test_a_diverged_training_is_a_result_without_measures(
    context: Callable[..., StageContext], trained: list, out: Path, monkeypatch
) -> None:
    train = single_training._train_case

    def diverges(ctx: StageContext, case: object, name: str, method: Method) -> TrainingResult:
        found = train(ctx, case, name, method)
        if (name, case.name) == ("one", "dog-000"):
            raise command_runner.TrainingFailed(name, case, 9, "training diverged")
        return found

    monkeypatch.setattr(single_training, "_train_case", diverges)
    ctx = context()
    rows = _by_name(objects.run(ctx, out, METHODS, CONFIG))
    assert (rows["one", "identity"]["n"], rows["two", "identity"]["n"]) == (1, 2)
    assert any("one on dog-000 failed: training diverged" in text for text in ctx.report.said)
    objects.run(context(), out, METHODS, CONFIG)
    assert trained == ALL  # nor is it tried again


def test_any_other_failure_ends_the_run(
    context: Callable[..., StageContext], trained: list, out: Path, monkeypatch
) -> None:
    def fails(ctx: StageContext, case: object, name: str, method: Method) -> TrainingResult:
        raise command_runner.TrainingFailed(name, case, 7, "no space left")

    monkeypatch.setattr(single_training, "_train_case", fails)
    with pytest.raises(command_runner.TrainingFailed) as caught:
        objects.run(context(), out, METHODS, CONFIG)
    assert caught.value.code == 7 and not (out / "results" / "one").exists()


def test_results_table_and_sheet_lie_in_the_folder(
    context: Callable[..., StageContext], trained: list, out: Path
) -> None:
    rows = objects.run(context(), out, METHODS, ALONE)
    kept = json.loads((out / "results" / "one" / "dog-000.json").read_text())
    assert set(kept) == {"key", "case", "scale", "measures"} and kept["case"] == "dog-000"
    strip = Image.open(out / "results" / "one" / "dog-000.png")
    assert strip.size == (4 * 32, 32)  # three scenes and the first pair
    with (out / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows] == table
    shown = Image.open(out / "sheet.png")
    names = ["photo", *objects.REFERENCE_METHODS, *METHODS]
    cell = grids.CELL + grids.GAP
    assert shown.size == (len(names) * cell + grids.GAP, cell + grids.GAP + grids.TITLE)
    first = np.asarray(strip.crop((0, 0, 32, 32)).resize((grids.CELL, grids.CELL), Image.Resampling.BICUBIC))
    left, top = grids.GAP + names.index("one") * cell, grids.TITLE + grids.GAP
    assert np.array_equal(np.asarray(shown)[top : top + grids.CELL, left : left + grids.CELL], first)


def test_the_sheet_ends_after_a_dozen_objects(
    context: Callable[..., StageContext], trained: list, out: Path, monkeypatch
) -> None:
    monkeypatch.setattr(grids, "MAX_OBJECTS", 1)
    objects.run(context(), out, {}, CONFIG)
    assert Image.open(out / "sheet.png").size[1] == grids.CELL + 2 * grids.GAP + grids.TITLE


def test_a_second_run_measures_nothing_again(
    context: Callable[..., StageContext], trained: list, out: Path, monkeypatch
) -> None:
    first = objects.run(context(), out, METHODS, CONFIG)
    table, picture = (out / "table.csv").read_bytes(), (out / "sheet.png").read_bytes()
    monkeypatch.setattr(objects.ObjectsSuite, "_measure", lambda *_: pytest.fail("measured again"))
    ctx = context()
    assert objects.run(ctx, out, METHODS, CONFIG) == first
    assert trained == ALL and ctx.report.said == []
    assert (out / "sheet.png").read_bytes() == picture and (out / "table.csv").read_bytes() == table


def test_a_changed_method_is_measured_again_and_no_other(
    context: Callable[..., StageContext], trained: list, out: Path
) -> None:
    objects.run(context(), out, METHODS, ALONE)
    changed = METHODS | {"two": replace(METHODS["two"], train={"rank": 5})}
    trained.clear()
    objects.run(context(), out, changed, ALONE)
    assert trained == [("two", "dog-000")]


def test_more_objects_add_to_what_is_there_and_another_seed_starts_anew(
    context: Callable[..., StageContext], trained: list, out: Path
) -> None:
    objects.run(context(), out, {"one": METHODS["one"]}, ALONE)
    objects.run(context(), out, {"one": METHODS["one"]}, CONFIG)
    assert trained == [("one", "dog-000"), ("one", "cat-001")]
    objects.run(context(), out, {"one": METHODS["one"]}, replace(ALONE, seed=1))
    assert trained[2:] == [("one", "dog-000")]


def test_a_stopped_run_keeps_the_finished_objects(
    context: Callable[..., StageContext], trained: list, out: Path
) -> None:
    with pytest.raises(Stopped) as caught:
        objects.run(context(stopped=lambda: 15 if len(trained) == 3 else 0), out, METHODS, CONFIG)
    assert caught.value.code == 143 and trained == ALL[:3]
    assert sorted(f.relative_to(out / "results").as_posix() for f in (out / "results").glob("[ot][nw]*/*.json")) == [
        "one/dog-000.json",
        "two/dog-000.json",
    ]
    assert not (out / "table.csv").exists()
    trained.clear()
    objects.run(context(), out, METHODS, CONFIG)
    assert trained == ALL[2:] and (out / "table.csv").exists()


def test_a_result_that_cannot_be_read_is_measured_again(
    context: Callable[..., StageContext], trained: list, out: Path
) -> None:
    one = {"one": METHODS["one"]}, ALONE
    objects.run(context(), out, *one)
    for count, text in enumerate(["{", "[]", '{"key": "another", "measures": {}}'], 2):
        (out / "results" / "one" / "dog-000.json").write_text(text)
        objects.run(context(), out, *one)
        assert trained == [("one", "dog-000")] * count


def test_a_result_whose_pictures_are_gone_is_measured_again(
    context: Callable[..., StageContext], trained: list, out: Path
) -> None:
    one = {"one": METHODS["one"]}, ALONE
    objects.run(context(), out, *one)
    (out / "results" / "one" / "dog-000.png").unlink()
    objects.run(context(), out, *one)
    assert trained == [("one", "dog-000")] * 2


def test_published_results_are_not_measured_again(
    context: Callable[..., StageContext], trained: list, out: Path, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        objects.run(context(stopped=lambda: 15 if len(trained) == 3 else 0), out, METHODS, CONFIG)
    first = out / "results.jsonl"
    assert (
        len(first.read_text().splitlines()) == 4
    )  # both truths and the first object's methods: the third training was stopped
    trained.clear()
    other = tmp_path / "other"
    rows = objects.run(context(), other, METHODS, CONFIG, first)
    assert trained == ALL[2:]
    assert (
        Image.open(other / "sheet.png").size[1] == 2 * (grids.CELL + grids.GAP) + grids.GAP + grids.TITLE
    )  # white where no picture came
    trained.clear()
    assert (
        objects.run(context(), tmp_path / "third", METHODS, CONFIG, other / "results.jsonl") == rows and trained == []
    )


def test_shards_on_several_machines_are_the_whole_together(
    context: Callable[..., StageContext], trained: list, out: Path, tmp_path: Path
) -> None:
    """Each measures its own objects; their results, one behind the other, are what a single run would have found."""
    three, ctx = replace(CONFIG, num_objects=3), context()
    parts = []
    for k in (1, 2):
        objects.run(ctx, tmp_path / str(k), METHODS, replace(three, shard=f"{k}/2"))
        parts.append((tmp_path / str(k) / "results.jsonl").read_text())
    assert [case for _, case in trained] == ["dog-000", "dog-000", "car-002", "car-002", "cat-001", "cat-001"]
    (tmp_path / "all.jsonl").write_text("".join(parts))
    trained.clear()
    rows = _by_name(objects.run(ctx, out, METHODS, three, tmp_path / "all.jsonl"))
    assert trained == [] and rows["one", "seconds"]["n"] == 3


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "/2", "1/", "a/b", "-1/2", "1/2/3", "", "1.5/2"])
def test_a_shard_that_is_none_is_refused_before_anything_is_measured(
    context: Callable[..., StageContext], trained: list, out: Path, shard: str
) -> None:
    with pytest.raises(UsageError, match="bench.shard is") as refused:
        objects.run(context(), out, METHODS, replace(CONFIG, shard=shard))
    assert "k/n" in refused.value.hint and not trained and not out.joinpath("results").exists()


def test_a_shard_without_an_object_is_refused(context: Callable[..., StageContext], trained: list, out: Path) -> None:
    with pytest.raises(UsageError, match="has none of the"):
        objects.run(context(), out, METHODS, replace(CONFIG, shard="5/9"))


def test_one_kind_of_prompts_gives_its_measures_alone(
    context: Callable[..., StageContext], trained: list, out: Path
) -> None:
    rows = _by_name(objects.run(context(), out, {}, replace(ALONE, prompt_kinds="pair")))
    assert {m for n, m in rows if n == "truth"} == {"all_present"}
    assert {m for n, m in rows if n == "calibration ceiling"} == {"identity", "diversity", "all_present"}


def test_an_object_without_a_prompt_of_the_asked_kind_is_passed_over(
    context: Callable[..., StageContext], trained: list, out: Path, monkeypatch
) -> None:
    """In the medium world half of the objects wear something already; the easy one has no accessories."""
    config = replace(CONFIG, num_objects=6, prompt_kinds="wearing")
    with pytest.raises(UsageError, match="no object has prompts of the kinds wearing"):
        objects.run(context(), out, {}, config)
    monkeypatch.setattr(objects, "find_dial", lambda ctx: MEDIUM)
    asked = [c.name for c in benchmark_objects.make_cases(MEDIUM, 6, 0) if c.instance.accessory == "none"]
    rows = _by_name(objects.run(context(), out, {}, config))
    assert 0 < len(asked) < 6 and rows["truth", "prompt"]["n"] == len(asked)
    assert sorted(f.stem for f in (out / "results" / "truth").glob("*.json")) == sorted(asked)


def test_one_folder_takes_one_bench_at_a_time(
    context: Callable[..., StageContext], trained: list, out: Path, monkeypatch
) -> None:
    train = single_training._train_case

    def busy(ctx: StageContext, case: object, name: str, method: Method) -> TrainingResult:
        if not trained:
            trained.append(("busy", ""))
            with pytest.raises(BusyError, match="another bench"):
                objects.run(context(), out, METHODS, ALONE)
            trained.clear()
        return train(ctx, case, name, method)

    monkeypatch.setattr(single_training, "_train_case", busy)
    objects.run(context(), out, METHODS, ALONE)
    assert trained == ALL[:2]


def test_a_base_without_a_world_is_refused_before_anything_is_written(
    context: Callable[..., StageContext], tmp_path: Path
) -> None:
    base = tiny_sd1.build(tmp_path / "plain", clip=False)
    ctx = context()
    ctx = replace(ctx, common=replace(ctx.common, base=str(base)), _base=None)
    with pytest.raises(IncompatibleError, match="the base plain is not of the toybox"):
        objects.run(ctx, tmp_path / "out", METHODS, CONFIG)
    assert not (tmp_path / "out").exists()


def test_the_class_prior_is_made_before_the_clock_runs(
    context: Callable[..., StageContext], trained: list, out: Path, monkeypatch
) -> None:
    order: list[str] = []
    train = single_training._train_case
    monkeypatch.setattr(objects.class_prior_stage, "run", lambda ctx, word, config: order.append(word))
    monkeypatch.setattr(single_training, "_train_case", lambda *given: order.append("train") or train(*given))
    objects.run(context(), out, {"one": METHODS["one"]}, ALONE)
    assert order == ["dog", "train"]
