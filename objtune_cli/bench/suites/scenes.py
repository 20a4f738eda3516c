"""`objtune bench scenes`: several objects in one image by composition, summed LoRAs and joint training, scored by the toybox evaluator."""

import hashlib
import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from objtune_cli.bench import single_training
from objtune_cli.bench.former_names import SCENE_MEASURES, current_measures
from objtune_cli.bench.methods import OURS
from objtune_cli.bench.result_cache import Row, write_table
from objtune_cli.bench.scene_groups import KINDS, Group, make_groups
from objtune_cli.bench.scene_methods import DEFAULT_METHODS, JOINT_METHODS, METHODS, SceneBench, measure
from objtune_cli.bench.suites.objects import find_dial
from objtune_cli.config.sections import Bench, Compose, Train, identifying
from objtune_cli.errors import UsageError
from objtune_cli.evaluation import rendering, statistics
from objtune_cli.images import png
from objtune_cli.renamed_settings import former
from objtune_cli.store import atomic_files
from objtune_cli.store.checkpoints import Checkpoint
from objtune_cli.store.safetensors_format import canonical_json
from objtune_cli.toybox.evaluator import inference
from objtune_cli.training import train
from objtune_cli.workflow.context import StageContext, tool_versions

__all__ = ["DEFAULT_GROUPS", "DEFAULT_METHODS", "JOINT_METHODS", "METHODS", "run"]

FORMAT = 4
"""Version of the results; it is increased when measures, or the meaning of a setting for training, change."""
DEFAULT_GROUPS = 6
"""Groups of each kind if no number is given."""


def run(ctx: StageContext, out: Path, methods: list[str], config: Bench) -> list[Row]:
    """Return rows of the methods on the kinds of scenes in `config`; results in `out` are not measured again, and its `table.csv` has the rows.

    Raises:
        IncompatibleError: The base is not of the toybox.
        UsageError: A kind does not exist, or a shard has no groups.
        Stopped: A signal came; finished groups are kept.
    """
    bench = SceneBench(ctx, out, config, find_dial(ctx), inference.load())
    groups = _select_groups(bench)
    results: dict[tuple[str, str], list[dict[str, float]]] = {(g.kind, m): [] for g in groups for m in methods}
    start_time, total = time.monotonic(), len(groups) * len(methods)
    lock = Checkpoint(bench.project_context("apart").store, f"bench {config.shard.replace('/', ' of ')}")
    with lock.lock(
        "another bench runs in this folder",
        "wait for it, or give another --out, or shares of the groups (bench.shard)",
    ):
        for done, (group, method) in enumerate(itertools.product(groups, methods), start=1):
            ctx.check_stopped()
            values, is_new = _load_or_measure(bench, group, method)
            results[group.kind, method].append(values)
            if is_new:
                text = "  ".join(f"{k} {v:.2f}" for k, v in values.items())
                elapsed = time.monotonic() - start_time
                ctx.report.note(f"{method} on {group.name}: {text}  ({done} of {total}, {elapsed:.0f} s)")
    rows = [
        row for (kind, method), values in results.items() for row in statistics.table_rows(f"{kind}: {method}", values)
    ]
    write_table(out / "table.csv", rows)
    return rows


def _select_groups(bench: SceneBench) -> list[Group]:
    """Return the groups of the shard and the kinds; shards are cut between groups of four, whose kinds share objects.

    Raises:
        UsageError: There are none.
    """
    config, kinds = bench.config, _parse_kinds(bench.config)
    shard = range(config.num_objects)[config.part]
    every = make_groups(bench.dial, config.num_objects, config.seed, config.prompt_rounds)
    groups = [g for i, g in enumerate(every) if i // len(KINDS) in shard and g.kind in kinds]
    if not groups:
        raise UsageError(
            f"the shard {config.shard} has none of the {config.num_objects} groups",
            "use fewer shards or more groups (`--objects`)",
        )
    return groups


def _parse_kinds(config: Bench) -> list[str]:
    """Return the kinds of `config.scene_kinds`, in the order of the table.

    Raises:
        UsageError: A kind does not exist.
    """
    names = [part.strip() for part in config.scene_kinds.split(",")]
    unknown = [kind for kind in names if kind not in KINDS]
    if unknown:
        raise UsageError(
            f"bench.scene_kinds has the unknown {', '.join(unknown)}", f"use one or more of {', '.join(KINDS)}"
        )
    return [kind for kind in KINDS if kind in names]


def _load_or_measure(bench: SceneBench, group: Group, method: str) -> tuple[dict[str, float], bool]:
    """Return the cached measures, or new ones with a contact sheet; and whether they are new."""
    file, key = bench.out / "results" / method / f"{group.name}.json", _result_key(bench, group, method)
    try:
        cached: dict[str, Any] = json.loads(file.read_bytes())
        if cached["key"] == key:
            return current_measures(cached["measures"], SCENE_MEASURES), False
    except (OSError, ValueError, KeyError, TypeError):
        pass
    values, images = measure(bench, group, method)
    values = {k: round(v, 5) for k, v in values.items()}
    atomic_files.write_file(file.with_suffix(".png"), png.encode_png(png.make_grid(images)))
    atomic_files.write_file(file, (json.dumps({"key": key, "measures": values}) + "\n").encode())
    return values, True


def _result_key(bench: SceneBench, group: Group, method: str) -> str:
    """Return the digest of everything that a result depends on."""
    ctx, trained = bench.ctx, JOINT_METHODS.get(method, OURS["objtune"])
    inputs: dict[str, Any] = {
        "format": FORMAT, "method": method, "group": repr(group), "seed": bench.config.seed, "base": ctx.base.fingerprint, "judge": single_training.evaluator_digest(),
        "sampling": former("generate", rendering.base_sampling(ctx.base)),
        "train": former("train", identifying(train.fill_defaults(replace(Train(), **trained.train), ctx.base.training))), "compose": former("compose", identifying(Compose())),
        "tools": tool_versions(), "device": ctx.common.device, "precision": ctx.common.precision, "scene_guidance": ctx.base.prompt_guidance_scale(), "object_guidance": ctx.base.autoguidance_scale(),
    }  # fmt: skip
    if trained.embed or trained.prior:
        inputs |= {"embed": former("init-embedding", trained.embed), "prior": former("prior", trained.prior)}
    if method == "alone":
        inputs["object_below"] = ctx.base.subject_conditioning_start()
    return hashlib.sha256(canonical_json(inputs).encode()).hexdigest()
