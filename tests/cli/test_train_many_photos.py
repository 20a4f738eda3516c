"""`objtune bench dreambooth` as a command: end to end on drawn objects in the data set's layout, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.support import fake_dreambooth as dreambench
from tests.support import quick_runs
from tests.support.json_schema import check

pytestmark = pytest.mark.commands

Cli = Callable[..., Any]
FAST = ("--set", "bench.images_per_prompt=2", "--device", "cpu", "--precision", "fp32")
METHODS = "objtune+train.max_steps=2+train.batch_size=1+train.num_augmentations=1+train.self_evaluation=false+prior.num_class_images=2+prior.num_predictions=4+train.num_teacher_samples=2+init-embedding.steps=2"


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dreambench.small_base(tmp_path_factory.mktemp("photos") / "tiny")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dog with a mask beside its photo, and a mug without."""
    return dreambench.write(tmp_path_factory.mktemp("photos") / "dataset", photos=2, count=2, side=64, mask=True)


def test_from_a_folder_to_a_table(cli: Cli, base: Path, photos: Path) -> None:
    """Nothing is replaced here: masks, trainings by the real command, pictures, measures; then the same again, from what lies there."""
    line = ["bench", "dreambooth", photos, "--base", base, "--methods", METHODS, *FAST, *quick_runs.NO_GATE]
    done = cli(*line, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    check(document, "output", "bench")
    rows = {(row["method"], row["measure"]): row for row in document["rows"]}
    assert {m for n, m in rows if n == METHODS} == {"clip_i", "clip_t", "diversity", "seconds", "memory_mb"}
    assert {(row["n"], row["photo"]) for (name, _), row in rows.items() if name == METHODS} == {(2, "00.jpg")}
    assert rows[METHODS, "clip_i"]["judge"] == rows["untrained", "clip_t"]["judge"] == "tiny's own"
    kept = [json.loads(text) for text in Path("bench/results.jsonl").read_text().splitlines()]
    told = {(r["case"], r["method"]): r["measures"].get("clip_t") for r in kept}
    assert (
        all(told[case, METHODS] != told[case, "untrained"] for case in ("dog", "mug"))
        and rows[METHODS, "seconds"]["mean"] > 0.5
    )
    assert "`objtune fetch --model facebook/dino-vits16` downloads it" in done.err
    assert [Path(p).name for p in document["images"]] == ["sheet.png"] and len(
        list(Path("bench/pictures").rglob("*.png"))
    ) == 2 * 2 * 2 * 2
    assert not Path("artifacts").exists()
    again = cli(*line)
    header, *lines = [text.split("\t") for text in again.out.splitlines()]
    assert header == ["method", "measure", "mean", "low", "high", "n", "photo", "judge"] and len(lines) == len(rows)
    assert {(text[0], text[1]): float(text[2]) for text in lines} == {key: row["mean"] for key, row in rows.items()}
    assert "2/4" not in again.err and [text for text in again.err.splitlines() if " on dog: " in text] == []


@pytest.mark.slow
def test_a_signal_keeps_the_finished_subjects(base: Path, photos: Path, project: Path) -> None:
    """INT in the second subject's training: 130, the first one's results lie there, and the same command goes on."""
    words = ["bench", "dreambooth", str(photos), "--base", str(base), "--methods", METHODS, *FAST, *quick_runs.NO_GATE]
    command = [sys.executable, "-m", "objtune_cli", *words]
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables) as running:
        until = time.monotonic() + 120
        while (
            not Path("bench/results/untrained/mug.json").exists()
            and running.poll() is None
            and time.monotonic() < until
        ):
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, ""), err
    kept = [json.loads(text) for text in Path("bench/results.jsonl").read_text().splitlines()]
    assert [r["case"] for r in kept if r["method"] == METHODS] == ["dog"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=variables)
    assert done.returncode == 0 and f"{METHODS} on dog:" not in done.stderr and f"{METHODS} on mug:" in done.stderr


@pytest.mark.parametrize(
    ("more", "words"),
    [
        *(([*option], "No such option") for option in (
            ["--scenes"], ["--masks"], ["--speed"], ["--base-only"], ["--many", "2"], ["--reuse", "results.jsonl"], ["--prompts", "scene"],
        )),
        (["--methods", "robust"], "small-object, mask-eroded, mask-dilated, mask-noisy, rough-eroded, rough-dilated, rough-noisy needs drawn photos"),
        (["--methods", "dreambooth"], "there is no method dreambooth"),
        (["--set", "train.max_steps=3"], "--set train.max_steps would change no method"),
        (["--objects", "0"], "--objects is 0"),
        (["--set", "bench.images_per_prompt=0"], "bench.images_per_prompt is 0"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)  # fmt: skip
def test_wrong_usage_is_2(more: list[str], words: str, cli: Cli, photos: Path) -> None:
    done = cli("bench", "dreambooth", photos, *more)
    assert (done.code, done.out) == (2, "") and words in done.err, done
    assert [line.split(":")[0] for line in done.err.splitlines()] == ["error", "hint"] and not Path("bench").exists()


def test_what_is_no_data_set_is_3(cli: Cli, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, words in {
        tmp_path / "empty": "there is no file",
        tmp_path / "none": "is not a folder",
        photos / "dog": "there is no file",
    }.items():
        done = cli("bench", "dreambooth", folder)
        assert (done.code, done.out) == (3, "") and words in done.err and not Path("bench").exists()
    assert cli("bench", "dreambooth", photos, "--set", "bench.dreambooth_photo=09").code == 3


@pytest.mark.parametrize(
    ("more", "count"), [((), None), (("--quick",), 2), (("--objects", "1"), 1), (("--set", "bench.num_objects=3"), 3)]
)
def test_how_many_subjects(
    more: tuple[str, ...], count: int | None, cli: Cli, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from objtune_cli.bench import dreambooth_dataset
    from objtune_cli.bench.suites import dreambooth as dreambench

    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        dreambooth_dataset, "read_subjects", lambda folder, most, chosen, live: seen.update(most=most, live=live) or []
    )
    monkeypatch.setattr(
        dreambench, "run", lambda ctx, out, asked, methods, config: seen.update(methods=list(methods)) or []
    )
    assert cli("bench", "dreambooth", photos, *more).code == 0
    assert (seen["most"], seen["live"]) == (count, ("cat", "dog"))
    assert seen["methods"] == (["objtune", "dreambooth-lora"] if more == ("--quick",) else ["objtune", "textual-inversion", "dreambooth-lora", "masked-lora", "break-a-scene", "custom-diffusion"])  # fmt: skip


@pytest.mark.parametrize("words", ["photos", "./photos", "photos/", "holiday.heic", "./rex", "shots/rex", "clip.mp4"])
def test_train_names_a_folder_and_a_file_that_is_not_there(words: str, cli: Cli, project: Path) -> None:
    """They are no refs: neither says `--class` too much, nor looks for an artifact."""
    (project / "photos").mkdir()
    done = cli("train", words, "--class", "dog")
    path = Path(words)
    assert done.code == 3 and done.out == ""
    assert (
        f"error: {path} is a folder without photos" if path.is_dir() else f"error: there is no file {path}"
    ) in done.err


def test_a_ref_stays_a_ref(cli: Cli, project: Path) -> None:
    """Even beside a folder of its name."""
    (project / "rex").mkdir()
    assert cli("train", "rex").code == cli("train", "mask/rex").code == 4
    assert cli("train", "mask/rex", "--class", "dog").code == 2
