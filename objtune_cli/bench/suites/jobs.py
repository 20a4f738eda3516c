"""`objtune bench jobs N`: time of a jobs file by two commands for each job, several at a time, and by `run` in batches."""

import json
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from objtune_cli.bench import command_runner
from objtune_cli.bench.result_cache import Row
from objtune_cli.bench.suites.objects import find_dial
from objtune_cli.config.sections import Bench
from objtune_cli.errors import UsageError
from objtune_cli.evaluation import benchmark_objects, statistics
from objtune_cli.evaluation.benchmark_objects import Case
from objtune_cli.images import png
from objtune_cli.store import atomic_files
from objtune_cli.workflow.context import StageContext

PROMPT = "a photo of <{}> on the beach"
COMMANDS, BATCHES = "commands", "batches"
"""Names of the rows: `train` and `generate` for each job, and `run`."""


def run(ctx: StageContext, out: Path, count: int, config: Bench, steps: int) -> list[Row]:
    """Rows of both ways, each in a fresh project, and of their ratio.

    Measures: `seconds` (wall), `cpu_s` (user and system), `objects_per_hour`. Each job trains one object and draws one
    prompt. Commands run as many at a time as the machine has processors, with a share of the threads each.

    Args:
        steps: Steps of each training; 0: the base's.

    Raises:
        UsageError: There are fewer than two jobs.
    """
    if count < 2:
        raise UsageError(f"N is {count}", "2 or more")
    cases = benchmark_objects.make_cases(find_dial(ctx), count, config.seed, 1, config.kinds)
    settings = [f"train.max_steps={steps}"] if steps else []
    totals: dict[str, dict[str, float]] = {}
    for way, work in ((COMMANDS, _run_commands), (BATCHES, _run_file)):
        ctx.report.note(f"{way}: {count} jobs")
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.absolute(), prefix=f"{way}-") as folder:
            before = command_runner.processor_seconds()
            seconds = work(ctx, Path(folder), cases, settings)
        total = {
            "seconds": seconds,
            "cpu_s": command_runner.processor_seconds() - before,
            "objects_per_hour": count * 3600 / seconds,
        }
        totals[way] = total
        ctx.report.note(f"{way}: {total['seconds']:.0f} s, of the processor {total['cpu_s']:.0f} s")
    rows = [row for way, total in totals.items() for row in statistics.table_rows(way, [total])]
    ratio = {name: totals[BATCHES][name] / totals[COMMANDS][name] for name in ("seconds", "cpu_s")}
    return rows + statistics.table_rows("ratio", [ratio])


def _write_photo(case: Case, folder: Path) -> tuple[Path, Path]:
    """Write a photo and its mask."""
    rgb, mask = case.picture()
    photo, mask_file = folder / f"{case.name}.png", folder / f"{case.name}.mask.png"
    atomic_files.write_file(photo, png.encode_png(rgb))
    atomic_files.write_file(mask_file, png.encode_png(mask))
    return photo, mask_file


def _run_commands(ctx: StageContext, folder: Path, cases: Sequence[Case], settings: list[str]) -> float:
    """Wall seconds of `train` and `generate` for each job."""
    processes = min(len(cases), os.cpu_count() or 1)
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))} if processes > 1 else {}
    options = [word for setting in settings for word in ("--set", setting)]

    def work(case: Case) -> None:
        photo, mask = _write_photo(case, folder)
        train = ["train", str(photo), "--class", case.instance.kind, "--name", case.name, "--mask", str(mask), *options]
        for words in (train, ["generate", PROMPT.format(case.name), "-n", "1"]):
            command = command_runner.command_line(ctx, *words, project=folder / "project")
            document, _, _ = command_runner.run_command(ctx, command, f"job of {case.name}", threads)
            command_runner.raise_failure(document, COMMANDS, case)

    start_time = time.monotonic()
    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(work, cases))
    return time.monotonic() - start_time


def _run_file(ctx: StageContext, folder: Path, cases: Sequence[Case], settings: list[str]) -> float:
    """Wall seconds of `run` with all jobs."""
    shared: dict[str, Any] = {
        "n": 1,
        "base": ctx.common.base,
        "device": ctx.common.device,
        "precision": ctx.common.precision,
    }
    jobs = []
    for case in cases:
        photo, mask = _write_photo(case, folder)
        job = {"photo": str(photo), "mask": str(mask), "class": case.instance.kind, "name": case.name}
        jobs.append(job | {"prompts": PROMPT.format(case.name)})
    file = folder / "jobs.json"
    file.write_text(json.dumps({"defaults": shared | ({"set": settings} if settings else {}), "job": jobs}))
    command = command_runner.plain_command_line("run", str(file), "--project", str(folder / "project"))
    document, seconds, _ = command_runner.run_command(ctx, command, "a jobs file")
    command_runner.raise_failure(document, BATCHES, cases[0])
    for case, job in zip(cases, document["jobs"], strict=True):
        if job["code"]:
            raise command_runner.TrainingFailed(BATCHES, case, job["code"], job["message"])
    return seconds
