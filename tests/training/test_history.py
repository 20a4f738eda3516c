"""Curves and samples of a run: they are whole after an interruption, and change nothing of the adapter."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from objtune_cli.config.sections import Train
from objtune_cli.training import parallel_trainers, progress_samples
from objtune_cli.training.history import TrainingHistory
from tests.support.json_schema import check
from tests.support.quick_runs import write_settings

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

FOLDER = Path("artifacts/adapter/dog/v001")


@pytest.fixture
def train(cli: Any, base: Path, dog_photo: Path) -> Callable[..., Any]:
    write_settings(base, max_steps=4)
    return lambda *more: cli("train", dog_photo, "--class", "dog", "--no-preview", *more)


def adapter() -> bytes:
    return FOLDER.with_suffix(".safetensors").read_bytes()


def curves() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((FOLDER / "training.json").read_text())
    check(document, "training")
    return document


@pytest.mark.commands
def test_samples_do_not_change_the_adapter(train: Callable[..., Any]) -> None:
    assert train("--sample-every", 0).code == 0
    plain, document = adapter(), curves()
    assert (document["samples"], document["prompts"]) == ([], [])
    assert not (FOLDER / "samples.png").exists()
    shutil.rmtree("artifacts/adapter")

    done = train("--sample-every", 2)
    assert done.code == 0 and "samples 2/4  identity" in done.err
    assert adapter() == plain
    document = curves()
    assert [sample["step"] for sample in document["samples"]] == [2, 4]
    assert all("identity" in sample for sample in document["samples"])
    assert document["prompts"] == ["a photo of <dog> on the beach", "a photo of <dog> in the snow"]
    assert set(document["seconds"]) >= {"train", "samples"}
    for name in ("loss", "object", "learning_rate", "embedding_lr", "gradient_norm"):
        values = document["curves"][name]
        assert len(values) == 4 and all(value is not None for value in values)
    assert len(set(document["curves"]["loss"])) == 4


@pytest.mark.commands
def test_the_strip_has_a_column_per_sample_and_a_row_per_prompt(train: Callable[..., Any]) -> None:
    train("--sample-every", 1, "--no-scores")
    strip = np.asarray(Image.open(FOLDER / "samples.png"))
    gap, label = progress_samples.GAP, progress_samples.LABEL
    side = (strip.shape[1] - gap) // 4 - gap
    assert strip.shape == (label + gap + 2 * (side + gap), gap + 4 * (side + gap), 3)
    pictures = [
        strip[label + gap + j * (side + gap) :, gap + i * (side + gap) :][:side, :side]
        for i in range(4)
        for j in range(2)
    ]
    assert len({picture.tobytes() for picture in pictures}) == 8


def test_curves_and_samples_survive_an_interruption(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    train("--sample-every", 2)
    unbroken, strip, whole = curves(), (FOLDER / "samples.png").read_bytes(), adapter()
    shutil.rmtree("artifacts/adapter")

    take_step = parallel_trainers.train_step

    def stop_after_three(trainers: Any) -> Any:
        if trainers[0].step == 3:
            raise KeyboardInterrupt
        return take_step(trainers)

    from objtune_cli.training import run_loop

    monkeypatch.setattr(run_loop, "SAVE_INTERVAL", -1.0)
    monkeypatch.setattr(parallel_trainers, "train_step", stop_after_three)
    assert train("--sample-every", 2).code == 130
    monkeypatch.setattr(parallel_trainers, "train_step", take_step)
    resumed = train("--sample-every", 2)
    assert "resumes at step 3 of 4" in resumed.err
    document = curves()
    assert adapter() == whole and (FOLDER / "samples.png").read_bytes() == strip
    assert {name: document[name] for name in ("curves", "samples", "prompts")} == {
        name: unbroken[name] for name in ("curves", "samples", "prompts")
    }


@pytest.mark.commands
def test_each_of_several_objects_has_its_own(cli: Any, base: Path, dog_photo: Path) -> None:
    write_settings(base, max_steps=2)
    Image.open(dog_photo).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("mirrored.png")
    mask = np.zeros((Image.open(dog_photo).height, Image.open(dog_photo).width), np.uint8)
    mask[100:-100, 150:-150] = 255
    Image.fromarray(mask).save("mask.png")
    line = [str(dog_photo), "-c", "dog", "--name", "rex", "--mask=mask.png"]
    line += ["mirrored.png", "-c", "dog", "--name", "tom", "--mask=mask.png"]
    done = cli("train", *line, "--no-preview", "--no-scores", "--sample-every", 2)
    assert done.code == 0, done.err
    strips = [Path(f"artifacts/adapter/{name}/v001/samples.png").read_bytes() for name in ("rex", "tom")]
    assert strips[0] != strips[1]
    for name in ("rex", "tom"):
        assert json.loads(Path(f"artifacts/adapter/{name}/v001/training.json").read_text())["steps"] == 2


@pytest.mark.parametrize(
    ("every", "total", "interval"),
    [(-1, 50, 0), (-1, 60, 60), (-1, 350, 70), (-1, 3000, 500), (0, 3000, 0), (7, 50, 7)],
)
def test_auto_samples_six_times_in_a_twentieth_of_the_time(every: int, total: int, interval: int) -> None:
    assert progress_samples.sampling_interval(Train(sample_every=every), total) == interval


def test_a_state_is_the_whole_history() -> None:
    history = TrainingHistory()
    history.record_step(1, {"loss": 0.1})
    history.record_step(2, {"loss": 0.2, "class": 0.3})
    history.samples[2] = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    history.scores[2], history.validation[0] = {"identity": 0.5}, 0.7
    history.record_seconds("train", 1.5)
    copy = TrainingHistory()
    copy.restore(history.state())
    assert copy.document(["p"]) == history.document(["p"])
    assert copy.document(["p"])["curves"] == {"class": [None, 0.3], "loss": [0.1, 0.2]}
    assert (copy.samples[2] == history.samples[2]).all()
    empty = TrainingHistory()
    empty.restore({"step": torch.tensor([3])})
    assert empty.document([]) == TrainingHistory().document([])
