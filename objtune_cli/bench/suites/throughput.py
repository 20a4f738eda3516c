"""`objtune bench throughput N`: time and quality of training N photos by N commands in turn, and by one command."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from objtune_cli.bench import command_runner
from objtune_cli.bench.result_cache import Row
from objtune_cli.bench.suites.objects import find_dial
from objtune_cli.config.sections import Bench, Train, identifying
from objtune_cli.errors import UsageError
from objtune_cli.evaluation import benchmark_objects, rendering, statistics, truth_scores
from objtune_cli.evaluation.benchmark_objects import Case
from objtune_cli.images import png
from objtune_cli.renamed_settings import former
from objtune_cli.store import atomic_files
from objtune_cli.store.checkpoints import Checkpoint
from objtune_cli.store.project import find_project
from objtune_cli.store.refs import parse
from objtune_cli.store.safetensors_format import canonical_json
from objtune_cli.toybox.evaluator import inference
from objtune_cli.training import train
from objtune_cli.workflow.context import StageContext, tool_versions

FORMAT = 1
WAYS = {"alone": "separate-commands", "beside": "one-command"}
"""One command per photo, and one command for all; names of their rows."""


@dataclass(slots=True)
class ThroughputSuite:
    """One run of the suite."""

    ctx: StageContext
    out: Path
    config: Bench
    asked: list[Case]

    def run_training(self, way: str, cases: list[Case]) -> dict[str, Any]:
        """Run `objtune train` on photos, or read the cached result: refs with digests, wall seconds, processor seconds."""
        file, key = self.out / "many" / f"{way}-{'-'.join(c.name for c in cases)}"[:120], self._key(way, cases)
        file = file.with_name(file.name + ".json")
        try:
            stored = json.loads(file.read_bytes())
            if stored["key"] == key:
                cached: dict[str, Any] = stored
                return cached
        except (OSError, ValueError, KeyError, TypeError):
            pass
        project = find_project(self.out / f"work-{way}", create=True)
        words = ["train", "--force"]
        for case in cases:
            rgb, mask = case.picture()
            photo = project.folder / "given" / f"{case.name}.png"
            mask_file = photo.with_suffix(".mask.png")
            atomic_files.write_file(photo, png.encode_png(rgb))
            atomic_files.write_file(mask_file, png.encode_png(mask))
            words += [str(photo), "--class", case.instance.kind, "--name", case.name, "--mask", str(mask_file)]
        command = command_runner.command_line(self.ctx, *words, project=project.folder)
        before = command_runner.processor_seconds()
        document, seconds, _ = command_runner.run_command(self.ctx, command, f"training of {cases[0].name}")
        command_runner.raise_failure(document, way, cases[0])
        result = {
            "key": key,
            "refs": [[r["ref"], r["sha256"]] for r in document["refs"]],
            "seconds": seconds,
            "cpu_s": command_runner.processor_seconds() - before,
        }
        atomic_files.write_file(file, (json.dumps(result) + "\n").encode())
        self.ctx.report.note(
            f"{way} {' '.join(c.name for c in cases)}: {seconds:.0f} s, of the processor {result['cpu_s']:.0f} s"
        )
        return result

    def _key(self, way: str, cases: list[Case]) -> str:
        about = {"format": FORMAT, "way": way, "cases": repr(cases), "base": self.ctx.base.fingerprint, "tools": tool_versions(),
                 "train": former("train", identifying(train.fill_defaults(Train(), self.ctx.base.training))), "device": self.ctx.common.device, "precision": self.ctx.common.precision}  # fmt: skip
        return canonical_json(about)

    def score(self, network: Any, way: str, case: Case, ref: str, sha256: str) -> Mapping[str, float]:
        """Measures of one trained object, sampled with its adapter."""
        import torch

        ctx = replace(self.ctx, project=find_project(self.out / f"work-{way}", create=True))
        _, arrays = ctx.store.read(parse(ref), sha256)
        model, words = rendering.load_adapter(
            ctx, case.name, {k: torch.from_numpy(v.copy()) for k, v in arrays.items()}
        )
        scale = rendering.calibrate(network, case, find_dial(ctx), self.config.seed)
        return truth_scores.score(
            case,
            scale,
            rendering.read_images(network, rendering.sample_case(ctx, model, words, case, f"<{case.name}>")),
        )


def run(ctx: StageContext, out: Path, count: int, config: Bench) -> list[Row]:
    """Rows of both ways with one value per object, of their total times, and of the ratio of total times.

    Measures: those of `bench`; `seconds` (wall) and `cpu_s` (user and system) of the commands.
    Results in `out` are not trained again, and keep their times.

    Raises:
        UsageError: There are fewer than two objects.
        IncompatibleError: The base is not of the toybox.
        Stopped: A signal came.
    """
    if count < 2:
        raise UsageError(f"N is {count}", "2 or more")
    cases = benchmark_objects.make_cases(find_dial(ctx), count, config.seed, config.prompt_rounds, config.kinds)
    bench, network = ThroughputSuite(ctx, out, config, cases), inference.load()
    with Checkpoint(find_project(out / "work-alone", create=True).store, "bench").lock(
        "another bench runs in this folder", "wait for it, or give another --out"
    ):
        each = [bench.run_training("alone", [case]) for case in cases]
        one = bench.run_training("beside", cases)
        refs = {"alone": [tuple(e["refs"][-1]) for e in each], "beside": [tuple(r) for r in one["refs"]]}
        rows: list[Row] = []
        for way in WAYS:
            scores = [bench.score(network, way, case, *ref) for case, ref in zip(cases, refs[way], strict=True)]
            rows += statistics.table_rows(WAYS[way], [dict(f) for f in scores])
    total = {name: sum(e[name] for e in each) for name in ("seconds", "cpu_s")}
    rows += statistics.table_rows(f"{WAYS['alone']}, total", [total])
    rows += statistics.table_rows(f"{WAYS['beside']}, total", [{name: one[name] for name in total}])
    return rows + statistics.table_rows("ratio", [{name: one[name] / total[name] for name in total}])
