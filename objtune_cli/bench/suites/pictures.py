"""`objtune bench speed --pictures`: a whole `objtune generate` beside a plain script of diffusers on the same base.

The script has neither the object nor anything that `generate` adds by default. `generate` runs twice: with its defaults, and
with as many denoiser calls as the script.
"""

import json
import statistics as medians
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from objtune_cli.bench import command_runner
from objtune_cli.bench.result_cache import Row
from objtune_cli.bench.suites.objects import find_dial
from objtune_cli.bench.suites.start import QUICK, write_photo
from objtune_cli.config.sections import Bench
from objtune_cli.errors import ResourceError
from objtune_cli.evaluation import statistics
from objtune_cli.workflow.context import StageContext

SCRIPT = "diffusers script"
COUNT = 4
"""Pictures of a process."""
PLAIN = {"generate.prompt_guidance_scale": 0, "generate.subject_conditioning_start": 1}
"""Settings without what `generate` adds to plain sampling."""
PLAIN_SCRIPT = """
import json, sys
from pathlib import Path
from objtune_cli.runtime import torchvision_compat
torchvision_compat.complete()  # without it the import fails where torchvision is of another build than torch
import torch
import diffusers
job = json.loads(sys.argv[1])
device = "cuda" if torch.cuda.is_available() and job["device"] != "cpu" else "cpu"
dtype = torch.bfloat16 if device == "cuda" else torch.float32
pipeline = getattr(diffusers, job["pipeline"]).from_pretrained(job["folder"], torch_dtype=dtype).to(device)
pipeline.set_progress_bar_config(disable=True)
images = pipeline(
    job["prompt"],
    num_images_per_prompt=job["count"],
    num_inference_steps=job["steps"],
    guidance_scale=job["guidance"],
    generator=[torch.Generator().manual_seed(job["seed"] + i) for i in range(job["count"])],
).images
for i, image in enumerate(images):
    image.save(Path(job["out"]) / f"{i}.png")
print("{}")
"""


def run(ctx: StageContext, config: Bench) -> list[Row]:
    """Rows of the script and of `generate`, one value per round, and of the ratios of their medians.

    Measures: `seconds` (wall), `cpu_s` (user and system) and `memory_mb` (largest resident memory) of the process.

    Raises:
        IncompatibleError: The base is not of the toybox. ResourceError: A process failed. Stopped: A signal came.
    """
    with tempfile.TemporaryDirectory() as folder:
        kind = _train(ctx, Path(folder), config.seed)
        costs: dict[str, list[dict[str, float]]] = {}
        progress = ctx.progress("pictures")
        for i in range(config.timing_rounds):
            lines = _command_lines(ctx, Path(folder), kind, i * COUNT)
            for name in list(lines) if i % 2 == 0 else list(lines)[::-1]:
                costs.setdefault(name, []).append(_measure(ctx, name, lines[name]))
            progress(i + 1, config.timing_rounds)
    rows = [row for name, values in costs.items() for row in statistics.table_rows(name, values)]
    script = _medians(costs.pop(SCRIPT))
    for name, values in costs.items():
        ratio = {measure: value / script[measure] for measure, value in _medians(values).items()}
        rows += statistics.table_rows(f"ratio of {name}", [ratio])
    return rows


def _medians(values: list[dict[str, float]]) -> dict[str, float]:
    return {measure: medians.median(each[measure] for each in values) for measure in values[0]}


def _train(ctx: StageContext, folder: Path, seed: int) -> str:
    """Train an object for one step, and return its class."""
    (folder / "script").mkdir()
    photo, mask, kind = write_photo(find_dial(ctx), folder, seed)
    words = ["train", str(photo), "--class", kind, "--name", "rex", "--mask", str(mask)]
    ctx.report.note("pictures: one object is trained for a step")
    line = command_runner.command_line(ctx, *words, *command_runner.set_options(QUICK), project=folder / "project")
    _measure(ctx, "train", line)
    return kind


def _command_lines(ctx: StageContext, folder: Path, kind: str, seed: int) -> dict[str, list[str]]:
    """Name to command line; all draw `COUNT` pictures with as many steps."""
    sampling = ctx.base.sampling
    job = {
        "pipeline": ctx.base.family.pipeline,
        "folder": str(ctx.base.folder),
        "device": ctx.common.device,
        "prompt": f"a photo of a {kind} on the beach",
        "count": COUNT,
        "steps": int(sampling["num_inference_steps"]),
        "guidance": float(sampling["guidance_scale"]),
        "seed": seed,
        "out": str(folder / "script"),
    }
    words = ["generate", "a photo of <rex> on the beach", "-n", str(COUNT), "--seed", str(seed)]
    ours: Mapping[str, list[str]] = {
        "generate": words,
        "generate, as many calls": words + command_runner.set_options(PLAIN),
    }
    project = folder / "project"
    lines = {name: command_runner.command_line(ctx, *each, project=project) for name, each in ours.items()}
    return {SCRIPT: [sys.executable, "-P", "-c", PLAIN_SCRIPT, json.dumps(job)], **lines}


def _measure(ctx: StageContext, name: str, line: list[str]) -> dict[str, float]:
    before = command_runner.processor_seconds()
    document, seconds, memory = command_runner.run_command(ctx, line, name)
    if "error" in document:
        raise ResourceError(f"{name} failed: {document['error']['message']}", "see `objtune doctor`")
    cost = {"seconds": seconds, "cpu_s": command_runner.processor_seconds() - before}
    return cost | ({"memory_mb": memory} if memory else {})
