"""`objtune bench speed --start`: processor time of what each command imports, beside importing diffusers' pipeline alone.

Each command runs once and leaves the names of its modules in the order of their import. Then processes that import
the same modules, and nothing else, are timed in turns with a process that imports the pipeline.
"""

import statistics as medians
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from objtune_cli.bench import command_runner
from objtune_cli.bench.result_cache import Row
from objtune_cli.bench.suites.objects import find_dial
from objtune_cli.config.sections import Bench
from objtune_cli.errors import ResourceError
from objtune_cli.evaluation import benchmark_objects, statistics
from objtune_cli.images import png
from objtune_cli.store import atomic_files
from objtune_cli.toybox.world import Dial
from objtune_cli.workflow.context import StageContext

PIPELINE = "diffusers' pipeline"
LIST_MODULES = """
import atexit, pathlib, sys
names = pathlib.Path(sys.argv[1])
atexit.register(lambda: names.write_text("\\n".join(sys.modules)))
sys.argv = ["objtune", *sys.argv[2:]]
from objtune_cli.cli.app import main
main()
"""
IMPORT_MODULES = """
import contextlib, gc, importlib, pathlib, sys
from objtune_cli.cli.app import COLLECTED_EVERY
gc.set_threshold(COLLECTED_EVERY)
for name in pathlib.Path(sys.argv[1]).read_text().splitlines():
    with contextlib.suppress(ImportError):  # a few names are aliases that their packages create
        importlib.import_module(name)
gc.freeze()
"""
IMPORT_PIPELINE = """
import sys
from objtune_cli.runtime import torchvision_compat
torchvision_compat.complete()  # without it the import fails where torchvision is of another build than torch
import diffusers
getattr(diffusers, sys.argv[1])
"""
QUICK = {
    "train.max_steps": 1,
    "train.self_evaluation": False,
    "init-embedding.steps": 1,
    "prior.num_class_images": 1,
    "prior.num_predictions": 1,
}
"""Settings of a training that does every stage, and little of it."""


def run(ctx: StageContext, config: Bench) -> list[Row]:
    """Rows of each command and of the pipeline, one value of `import_s` (user and system) per round, and the ratio of medians.

    Raises:
        IncompatibleError: The base is not of the toybox.
        ResourceError: A command or an import failed.
        Stopped: A signal came.
    """
    with tempfile.TemporaryDirectory() as folder:
        lists = _list_modules(ctx, Path(folder), config.seed)
        pipeline = ctx.base.family.pipeline
        processes = {PIPELINE: [sys.executable, "-P", "-c", IMPORT_PIPELINE, pipeline]}
        processes |= {name: [sys.executable, "-P", "-c", IMPORT_MODULES, str(names)] for name, names in lists.items()}
        seconds = _time_in_turns(ctx, processes, config.timing_rounds)
    rows: list[Row] = []
    for name, values in seconds.items():
        rows += statistics.table_rows(name, [{"import_s": value} for value in values])
    pipeline_seconds = medians.median(seconds.pop(PIPELINE))
    for name, values in seconds.items():
        ratio = medians.median(values) / pipeline_seconds
        rows += statistics.table_rows(f"ratio of {name}", [{"import_s": ratio}])
    return rows


def write_photo(dial: Dial, folder: Path, seed: int) -> tuple[Path, Path, str]:
    """Write a photo of a held-out object and its mask; their files and the class."""
    (case,) = benchmark_objects.make_cases(dial, 1, seed, 1, ())
    rgb, mask = case.picture()
    photo, mask_file = folder / "photo.png", folder / "mask.png"
    atomic_files.write_file(photo, png.encode_png(rgb))
    atomic_files.write_file(mask_file, png.encode_png(mask))
    return photo, mask_file, case.instance.kind


def _list_modules(ctx: StageContext, folder: Path, seed: int) -> dict[str, Path]:
    """Run each command that opens a base, in a project of its own; the files with the modules that it imported."""
    photo, mask, kind = write_photo(find_dial(ctx), folder, seed)
    name, settings = "rex", command_runner.set_options(QUICK)
    commands = {
        "segment": ["segment", str(photo), "--class", kind],
        "train": ["train", str(photo), "--class", kind, "--name", name, "--mask", str(mask), *settings],
        "generate": ["generate", f"a photo of <{name}>", "-n", "1", "--steps", "1"],
        "compose": ["compose", f"a photo of <{name}>", "--place", f"{name}=left", "-n", "1", "--steps", "1"],
        "evaluate": ["evaluate", name, "-n", "1"],
    }
    lists = {}
    for label, words in commands.items():
        ctx.report.note(f"{label}: what it imports")
        lists[label] = folder / f"{label}.txt"
        line = command_runner.command_line(ctx, *words, project=folder / "project")
        probe = [sys.executable, "-P", "-c", LIST_MODULES, str(lists[label]), *line[line.index(label) :]]
        document, _, _ = command_runner.run_command(ctx, probe, label)
        if not lists[label].is_file() or document.get("error", {}).get("code", 0) not in (0, 9):
            raise ResourceError(f"`{label}` failed: {document['error']['message']}", "see `objtune doctor`")
    return lists


def _time_in_turns(ctx: StageContext, processes: Mapping[str, list[str]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each process in each round, in turns, so that other load on the machine affects all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    progress = ctx.progress("start")
    names = list(processes)
    for i in range(rounds):
        for name in names if i % 2 == 0 else names[::-1]:
            ctx.check_stopped()
            before = command_runner.processor_seconds()
            done = subprocess.run(processes[name], stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if done.returncode:
                error = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise ResourceError(f"importing what {name} imports failed: {error}", "see `objtune doctor`")
            seconds[name].append(command_runner.processor_seconds() - before)
        progress(i + 1, rounds)
    return seconds
