"""Experiment trackers: what TensorBoard's own reader finds, and what is said where a package is missing."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from objtune_cli.workflow.metric_loggers import Step
from objtune_cli.workflow.trackers import open_loggers
from tests.support.quick_runs import write_settings


def test_tensorboard_reads_scalars_and_images(tmp_path: Path) -> None:
    loggers = open_loggers({"log": [f"tensorboard={tmp_path}"]}, "train")
    loggers.hyperparameters({"base": "sd15", "train.rank": 8, "train.train_embedding": True})
    for number in (1, 2):
        loggers.log(Step("train", number, 2), {"loss": number / 4, "gradient_norm": 2})
    rgb = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    loggers.image(Step("samples", 2, 2), "dog", rgb)
    loggers.text("a note")
    loggers.close(0)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("train/loss")] == [(1, 0.25), (2, 0.5)]
    assert events.Tags()["scalars"] == ["train/loss", "train/gradient_norm"]
    (image,) = events.Images("samples/dog")
    assert (image.step, image.width, image.height) == (2, 6, 4)
    assert read_hyperparameters(events) == {"base": "sd15", "train.rank": 8, "train.train_embedding": True}


def read_hyperparameters(events: EventAccumulator) -> dict[str, Any]:
    """The settings as TensorBoard's own HParams tab reads them."""
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    values = metadata.parse_session_start_info_plugin_data(content).hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


class FakeRun:
    """A run with the methods that W&B and Trackio share."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self.logged: list[dict[str, Any]] = []
        self.axes: list[tuple[str, str]] = []

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes.append((name, step_metric))


def test_a_run_has_sections_of_settings_and_an_axis_for_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = FakeRun(), []
    library = ModuleType("wandb")
    library.init = lambda **options: calls.append(options) or run
    library.finish = lambda exit_code: calls.append(exit_code)
    monkeypatch.setitem(sys.modules, "wandb", library)
    loggers = open_loggers({"log": ["wandb=shop"]}, "train")
    loggers.hyperparameters({"base": "sd15", "train.rank": 8, "init-embedding.steps": 3})
    for number in (1, 2):
        loggers.log(Step("train", number, 2), {"loss": 0.5})
    loggers.log(Step("scores", 2, 2), {"identity": 0.9})
    loggers.close(130)
    assert run.config == {"base": "sd15", "train": {"rank": 8}, "init-embedding": {"steps": 3}}
    assert run.axes == [("train/*", "train/step"), ("scores/*", "scores/step")]
    assert run.logged[-1] == {"scores/identity": 0.9, "scores/step": 2}
    assert calls[0]["project"] == "shop" and calls[0]["name"].startswith("train-") and calls[1] == 130


@pytest.mark.usefixtures("fast_sampling", "cached_segmentation")
def test_the_real_trackio_has_all_scalars_and_the_strips(
    cli: Any, base: Path, dog_photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when Trackio is imported
    trackio = pytest.importorskip("trackio", reason="the extra trackio is not installed")
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    write_settings(base, max_steps=2)
    line = ("train", dog_photo, "--class", "dog", "--no-preview", "--sample-every", 1)
    done = cli(*line, "--log", "trackio=shop")
    assert (done.code, done.out) == (0, "adapter/dog@1\n"), done.err
    (run,) = trackio.Api().runs("shop")
    rows = storage.get_logs("shop", run.name)
    assert run.config["train"]["max_steps"] == 2 and run.config["objects"] == "dog"
    scalars = {name for row in rows for name, value in row.items() if isinstance(value, int | float)}
    names = ("loss", "object", "background", "class", "learning_rate", "embedding_lr", "gradient_norm", "memory_mb")
    assert {f"train/{name}" for name in names} <= scalars
    assert {"samples/identity", "scores/identity", "scores/prompt", "seconds/train", "train/step"} <= scalars
    assert [row["train/step"] for row in rows if "train/loss" in row] == [1, 2]
    strips = [row["samples/dog"] for row in rows if "samples/dog" in row]
    assert [strip["_type"] for strip in strips] == ["trackio.image"] * 2
    image = Image.open(tmp_path / "trackio" / "media" / strips[-1]["file_path"])
    assert image.width > Image.open(tmp_path / "trackio" / "media" / strips[0]["file_path"]).width


@pytest.mark.usefixtures("fast_sampling", "cached_segmentation")
def test_train_logs_losses_rates_scores_and_samples(cli: Any, base: Path, dog_photo: Path) -> None:
    write_settings(base, max_steps=2)
    line = ("train", dog_photo, "--class", "dog", "--no-preview", "--sample-every", 2)
    done = cli(*line, "--log", "tensorboard", "--events", "events.ndjson")
    assert (done.code, done.out) == (0, "adapter/dog@1\n"), done.err
    assert "gradient_norm" not in done.err and "scores/" not in done.err
    assert re.search(r"^time: train \d+\.\d s, samples \d+\.\d s, save \d+\.\d s, scores \d+\.\d s$", done.err, re.M)
    (folder,) = Path("runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    wanted = {"train/loss", "train/object", "train/learning_rate", "train/gradient_norm", "train/memory_mb"}
    assert wanted | {"samples/identity", "scores/identity", "scores/prompt"} <= set(events.Tags()["scalars"])
    assert {"seconds/train", "seconds/samples", "seconds/scores"} <= set(events.Tags()["scalars"])
    settings = read_hyperparameters(events)
    assert settings["objects"] == "dog" and settings["train.max_steps"] == 2 and settings["init-embedding.steps"] >= 0
    assert isinstance(settings["train.learning_rate"], float)  # the base's own, in place of auto
    assert events.Tags()["images"] == ["samples/dog"]
    assert events.Scalars("scores/identity")[0].step == 2


def test_unknown_trackers_and_missing_packages_are_one_line(
    cli: Any, dog_photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = cli("train", dog_photo, "--class", "dog", "--log", "mlflow")
    assert unknown.code == 2
    assert "there is no tracker mlflow" in unknown.err and "tensorboard, wandb, trackio" in unknown.err
    for name in ("tensorboard", "wandb", "trackio"):
        for module in [module for module in sys.modules if module.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, name, None)
        missing = cli("list", "--log", name)
        assert missing.code == 7 and f"`pip install 'objtune[{name}]'`" in missing.err, missing.err


def test_a_folder_that_cannot_be_written_is_named(cli: Any) -> None:
    Path("file").write_text("")
    done = cli("list", "--log", "tensorboard=file/runs")
    assert done.code == 7 and "cannot be written to file/runs" in done.err
