"""Time a step of diffusers' `train_dreambooth_lora.py`, unchanged, in a process of its own.

Its input is a folder of Stable Diffusion 1.5's architecture with random weights, and noise images; it is stopped after enough
steps. `python -m objtune_cli.bench.suites.diffusers_script SCRIPT ARGUMENT…` is that process.
"""

import json
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from objtune_cli.bench.suites.speed import SIDE
from objtune_cli.config.sections import Bench
from objtune_cli.errors import InputError, ResourceError
from objtune_cli.evaluation import statistics as measures
from objtune_cli.workflow.context import StageContext

STEPS, WARM_UP = 24, 4
GPU_SIDE = 512
"""Side of the images on a GPU, px."""
CLASS_PICTURES = 4
TRAINING_OPTIONS = (
    "--train_batch_size",
    "1",
    "--rank",
    "4",
    "--learning_rate",
    "1e-4",
    "--lr_scheduler",
    "constant",
    "--lr_warmup_steps",
    "0",
)
"""As in diffusers' README of the script: one photo and one class image per step, rank 4."""


def measure(ctx: StageContext, config: Bench, folder: Path, ours: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the script at the size of `ours`, which are rows of `speed.run`, and of the ratio of ours to it; one value each."""
    ctx.report.note(f"{Path(config.diffusers_script).name}: Stable Diffusion 1.5's layout is written to {folder}")
    device = "cuda" if ctx.common.device.startswith("cuda") or (ctx.common.device == "auto" and _has_gpu()) else "cpu"
    timings = time_script(
        Path(config.diffusers_script),
        folder,
        device,
        config.resolution or (SIDE if device == "cpu" else GPU_SIDE),
        ctx.check_stopped,
    )
    mean = {row["measure"]: row["mean"] for row in ours if row["method"] == "objtune"}
    theirs = {f"sd15_{name}": value for name, value in timings.items()}
    return measures.table_rows("diffusers' script", [theirs]) + measures.table_rows(
        "ratio to the script", [{m: mean[m] / v for m, v in theirs.items() if v and m in mean}]
    )


def check_script(script: Path) -> None:
    """Check that the script exists, before anything is measured.

    Raises:
        InputError: It does not.
    """
    if not script.is_file():
        raise InputError(
            f"{script} does not exist",
            "use examples/dreambooth/train_dreambooth_lora.py of the installed version of diffusers",
        )


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def time_script(
    script: Path, folder: Path, device: str, side: int, check: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Median seconds of a step and the largest memory in MB of all steps, the model included.

    Args:
        folder: Folder for the model, the images and the script's output; created if needed.
        check: Called while waiting; raises to stop.

    Raises:
        InputError: There is no such script.
        ResourceError: The script failed.
    """
    check_script(script)
    _write_model(folder / "model", device)
    for name, count in (("photo", 1), ("class", CLASS_PICTURES)):
        _write_noise_images(folder / name, count, side)
    command = [
        sys.executable, "-P", "-m", "objtune_cli.bench.suites.diffusers_script", str(script), "--pretrained_model_name_or_path", str(folder / "model"),
        "--instance_data_dir", str(folder / "photo"), "--instance_prompt", "a photo of sks dog", "--with_prior_preservation",
        "--class_data_dir", str(folder / "class"), "--class_prompt", "a photo of a dog", "--num_class_images", str(CLASS_PICTURES),
        "--output_dir", str(folder / "out"), "--resolution", str(side), "--max_train_steps", str(STEPS + WARM_UP + 1), *TRAINING_OPTIONS,
        *(("--mixed_precision", "bf16") if device.startswith("cuda") else ("--mixed_precision", "no")),
    ]  # fmt: skip
    with (folder / "output").open("w+") as output, (folder / "errors").open("w+") as errors:
        child = subprocess.Popen(
            command, stdout=output, stderr=errors, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            while child.poll() is None:
                check()
                time.sleep(0.1)
        finally:
            child.terminate()
            child.wait()
        lines, wrong = (
            [line for line in file.read().splitlines() if line] for file in (output, errors) if not file.seek(0)
        )
    if child.returncode:
        raise ResourceError(
            f"{script.name} failed: {(wrong or ['it printed nothing'])[-1]}",
            "is it the script of the installed diffusers?",
        )
    timings: dict[str, float] = json.loads(lines[-1])
    return timings


def _write_model(folder: Path, device: str) -> None:
    """Write a diffusers folder of Stable Diffusion 1.5's architecture with random weights in bf16; the script converts it to its own precision."""
    if (folder / "model_index.json").is_file():  # written last
        return
    import torch

    from objtune_cli.models import random_weights

    # isort: split
    import diffusers

    base_model = random_weights.random_base_model("sd15", torch.device(device), torch.bfloat16)
    whole: Any = diffusers.StableDiffusionPipeline(
        base_model.vae,
        base_model.text_encoder,
        base_model.tokenizer,
        base_model.denoiser,
        base_model.scheduler,
        None,
        None,
        requires_safety_checker=False,
    )
    whole.save_pretrained(folder)


def _write_noise_images(folder: Path, count: int, side: int) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{i}.png")


def _run_timed(script: str, arguments: list[str]) -> dict[str, Any]:
    """Run a training script until its optimizer has taken enough steps."""
    import torch

    from objtune_cli.runtime import memory, torchvision_compat

    torchvision_compat.complete()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ends: list[float] = []
    inside = torch.optim.AdamW.step

    def step(*args: Any, **named: Any) -> Any:
        out = inside(*args, **named)
        if device == "cuda":
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
        if len(ends) == WARM_UP:
            memory.reset_peak(device)
        if len(ends) == WARM_UP + STEPS:
            raise SystemExit
        return out

    torch.optim.AdamW.step = step  # type: ignore[method-assign]
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as left:
        if left.code:
            raise
    if len(ends) < WARM_UP + STEPS:
        raise SystemExit(f"too few steps to time: {len(ends)}")
    between = np.diff(ends[WARM_UP - 1 :]).tolist()
    return {"step_s": statistics.median(between), "memory_mb": memory.peak_mb(device)}


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(_run_timed(sys.argv[1], sys.argv[2:])) + "\n")
