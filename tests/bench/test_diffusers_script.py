"""diffusers' own training script beside ours: how it is asked, timed and stopped."""

import json
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from objtune_cli.bench.suites import diffusers_script
from objtune_cli.config.sections import Bench
from objtune_cli.errors import InputError, ResourceError, Stopped

LOOP = """
import sys, time, torch
layer = torch.nn.Linear(4, 4)
chosen = torch.optim.AdamW(layer.parameters())
for step in range(1000):
    layer(torch.ones(1, 4)).sum().backward()
    chosen.step()
    time.sleep(0.3 if step < 3 else 0.01)
    open(sys.argv[0] + ".steps", "a").write(f"{step + 1}\\n")
"""


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """No model of 2 GB is written."""
    made: list[Path] = []
    monkeypatch.setattr(diffusers_script, "_write_model", lambda folder, device: made.append(folder))
    return made


def test_the_script_is_given_one_photo_and_stopped_when_there_are_enough_steps(
    tmp_path: Path, bare: list[Path]
) -> None:
    """Steps are timed after the first ones, which are slower."""
    (tmp_path / "says.py").write_text(
        "import json, sys; open(sys.argv[0] + '.json', 'w').write(json.dumps(sys.argv[1:]))\n" + LOOP
    )
    found = diffusers_script.time_script(tmp_path / "says.py", tmp_path / "work", "cpu", 24)
    assert 0.01 <= found["step_s"] < 0.3 and found["memory_mb"] >= 0 and bare == [tmp_path / "work" / "model"]
    steps = (tmp_path / "says.py.steps").read_text().split()
    assert len(steps) == diffusers_script.WARM_UP + diffusers_script.STEPS - 1  # the last one ends it
    said = json.loads((tmp_path / "says.py.json").read_text())
    value = {flag: said[i + 1] for i, flag in enumerate(said[:-1]) if flag.startswith("--")}
    assert (
        value["--resolution"] == "24"
        and value["--train_batch_size"] == "1"
        and value["--mixed_precision"] == "no"
        and "--with_prior_preservation" in said
    )
    photos, classes = (sorted(Path(value[f"--{kind}_data_dir"]).iterdir()) for kind in ("instance", "class"))
    assert (
        len(photos) == 1 and len(classes) == int(value["--num_class_images"]) and Image.open(photos[0]).size == (24, 24)
    )


def test_a_script_that_fails_is_told_in_its_own_words(tmp_path: Path, bare: list[Path]) -> None:
    (tmp_path / "bad.py").write_text("raise ValueError('no such base')")
    with pytest.raises(ResourceError, match="bad.py failed: ValueError: no such base"):
        diffusers_script.time_script(tmp_path / "bad.py", tmp_path / "work", "cpu", 24)


def test_a_script_that_fails_without_a_word_is_told(
    tmp_path: Path, bare: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.py").touch()
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(ResourceError, match="bad.py failed: it printed nothing"):
        diffusers_script.time_script(tmp_path / "bad.py", tmp_path / "work", "cpu", 24)


@pytest.mark.parametrize(("text", "left"), [("print(1)", "too few steps to time: 0"), ("raise SystemExit(3)", "3")])
def test_a_script_that_ends_too_soon_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, left: str
) -> None:
    """In the process of the script: a text as the exit code is printed, and is failure."""
    import torch

    monkeypatch.setattr(torch.optim.AdamW, "step", torch.optim.AdamW.step)  # restored afterwards, as are the arguments
    monkeypatch.setattr(sys, "argv", sys.argv)
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(SystemExit, match=left):
        diffusers_script._run_timed(str(tmp_path / "bad.py"), [])


def test_a_signal_ends_the_script_too(tmp_path: Path, bare: list[Path]) -> None:
    (tmp_path / "slow.py").write_text("import time, pathlib; time.sleep(60); pathlib.Path(__file__ + '.end').touch()")
    began = time.monotonic()

    def check() -> None:
        if time.monotonic() > began + 0.5:
            raise Stopped(15, "stopped", "")

    with pytest.raises(Stopped):
        diffusers_script.time_script(tmp_path / "slow.py", tmp_path / "work", "cpu", 24, check)
    assert time.monotonic() < began + 30 and not (tmp_path / "slow.py.end").exists()


def test_a_script_that_is_not_there_is_an_input_error_before_a_model_is_written(
    tmp_path: Path, bare: list[Path]
) -> None:
    with pytest.raises(InputError, match="does not exist"):
        diffusers_script.time_script(tmp_path / "none.py", tmp_path / "work", "cpu", 24)
    assert bare == []


def test_ours_is_told_beside_it_as_a_ratio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(diffusers_script, "time_script", lambda *_: {"step_s": 2.0, "memory_mb": 4000.0})
    ours = [
        {"method": "objtune", "measure": "sd15_step_s", "mean": 1.0},
        {"method": "objtune", "measure": "base_step_s", "mean": 7.0},
        {"method": "dreambooth-lora", "measure": "sd15_step_s", "mean": 9.0},
        {"method": "objtune", "measure": "sd15_memory_mb", "mean": 3000.0},
    ]
    ctx = SimpleNamespace(
        common=SimpleNamespace(device="cpu"), report=SimpleNamespace(note=lambda text: None), check_stopped=lambda: None
    )
    rows = {
        (r["method"], r["measure"]): r["mean"]
        for r in diffusers_script.measure(ctx, Bench(diffusers_script="train.py"), tmp_path, ours)
    }
    assert rows == {
        ("diffusers' script", "sd15_step_s"): 2, ("diffusers' script", "sd15_memory_mb"): 4000,
        ("ratio to the script", "sd15_step_s"): 0.5, ("ratio to the script", "sd15_memory_mb"): 0.75,
    }  # fmt: skip
