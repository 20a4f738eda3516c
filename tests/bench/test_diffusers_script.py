"""diffusers' own training script beside ours: how it is asked, timed and stopped."""

import json
import subprocess
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
    print("step", step + 1)
"""


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """No model of 2 GB is written."""
    made: list[Path] = []
    monkeypatch.setattr(diffusers_script, "_write_model", lambda folder, device: made.append(folder))
    return made


def test_steps_are_timed_after_the_first_and_the_script_ends_when_there_are_enough(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text(LOOP)
    done = subprocess.run(
        [sys.executable, "-m", "objtune_cli.bench.suites.diffusers_script", str(tmp_path / "loop.py")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = done.stdout.splitlines()
    found = json.loads(lines[-1])
    assert 0.01 <= found["step_s"] < 0.3 and found["memory_mb"] >= 0
    assert (
        f"step {diffusers_script.WARM_UP + diffusers_script.STEPS - 1}" in lines
        and f"step {diffusers_script.WARM_UP + diffusers_script.STEPS}" not in lines
    )


def test_the_script_is_given_one_photo_the_class_and_the_model(tmp_path: Path, bare: list[Path]) -> None:
    (tmp_path / "says.py").write_text(
        "import json, sys; open(sys.argv[0] + '.json', 'w').write(json.dumps(sys.argv[1:]))\n" + LOOP
    )
    found = diffusers_script.time_script(tmp_path / "says.py", tmp_path / "work", "cpu", 24)
    assert found["step_s"] > 0 and bare == [tmp_path / "work" / "model"]
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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise ValueError('no such base')", "no such base"),
        ("print(1)", "too few steps"),
        ("raise SystemExit(3)", "failed"),
    ],
)
def test_a_script_that_fails_is_told_in_its_own_words(tmp_path: Path, bare: list[Path], text: str, said: str) -> None:
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ResourceError, match=said):
        diffusers_script.time_script(tmp_path / "bad.py", tmp_path / "work", "cpu", 24)


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
