"""`objtune bench`: every method on every object, each result kept as it is found, then the table and the sheet."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from objtune_cli.bench import result_cache as kept
from objtune_cli.bench import single_training, tables
from objtune_cli.bench.methods import PLAINLY, Method
from objtune_cli.bench.result_cache import Kept, Row
from objtune_cli.config.sections import Bench, Prior
from objtune_cli.errors import IncompatibleError, UsageError
from objtune_cli.evaluation import benchmark_objects, rendering
from objtune_cli.evaluation.benchmark_objects import Case
from objtune_cli.evaluation.truth_scores import Scale
from objtune_cli.images import grids
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.evaluator.inference import Reading
from objtune_cli.toybox.evaluator.network import Evaluator
from objtune_cli.toybox.world import DIALS, Dial
from objtune_cli.training import class_prior_stage
from objtune_cli.workflow.context import StageContext

ALWAYS = {
    "truth": Method("the object drawn again", "the world", draw=PLAINLY),
    "stranger": Method("another of its class", "the world", draw=PLAINLY),
    "decoded": Method("the truth through the autoencoder", "the base", draw=PLAINLY),
    "described": Method("the base told the object in words", "no training", draw=PLAINLY),
}
"""Rows that need no training: what 1 and 0 look like, the best this base could do, and what words alone give."""


def dial_of(ctx: StageContext) -> Dial:
    """The world that the base was trained on.

    Raises:
        IncompatibleError: It names none: nothing true can be drawn for it; or the evaluator cannot read it.
    """
    if ctx.base.world not in DIALS:
        raise IncompatibleError(
            f"the base {ctx.base.id} has no world to draw the truth from",
            "use `--base toybox`, or `objtune evaluate` for one trained object",
        )
    dial = DIALS[ctx.base.world]
    if not inference.knows(dial):
        raise IncompatibleError(
            f"the evaluator does not know all of the world of {ctx.base.id} ({ctx.base.world})",
            "train one by its recipe: docs/toybox.md",
        )
    return dial


def run(
    ctx: StageContext, out: Path, methods: Mapping[str, Method], config: Bench, published: Path | None = None
) -> list[Row]:
    """Rows of the methods on `config.objects` held-out objects; finished ones in `out` or `published` are not measured again.

    Writes `table.csv`, `sheet.png` and `results.jsonl` into `out`; the last is what `published` of another run may be.

    Raises:
        IncompatibleError: A base without a world. InputError: `published` holds no results. Stopped: a signal came; finished objects are kept.
    """
    dial = dial_of(ctx)
    part = config.part
    asked = [
        c
        for c in benchmark_objects.cases(dial, config.objects, config.seed, config.repeats, config.kinds)[part]
        if c.prompts
    ]
    if not asked and len(range(config.objects)[part]) == 0:
        raise UsageError(
            f"no object of {config.objects} is in the shard {config.shard}", "fewer shards, or more objects"
        )
    if not asked:
        raise UsageError(f"no object has a prompt of the kinds {config.prompts}", "ask for more kinds, or more objects")
    plan = {**ALWAYS, **methods}
    known = (
        {(name, row["case"]): row for name, rows in tables.read(published).items() for row in rows} if published else {}
    )
    bench = Running(ctx, config, dial, inference.load(), Kept(out, ctx.report, len(asked) * len(plan), known))
    found = kept.filled(ctx, out, asked, plan, bench.result)
    rows = tables.tabled(found)
    grids.save_sheet(out, {case.name: functools.partial(_photo, case) for case in asked}, list(plan))
    kept.table(out / "table.csv", rows)
    return rows


def _photo(case: Case) -> np.ndarray:
    return case.picture()[0]


@dataclass(slots=True)
class Running:
    """One run of the bench: what it measures with, and what it has found of the object at hand."""

    ctx: StageContext
    config: Bench
    dial: Dial
    network: Evaluator
    kept: Kept
    scales: dict[str, Scale] = field(default_factory=dict)
    before: dict[str, list[Reading]] = field(default_factory=dict)
    trainings: dict[str, dict[str, single_training.Trained]] = field(default_factory=dict)

    def result(self, case: Case, name: str, method: Method) -> Row:
        """The kept result of a method on an object, or a new one."""
        key = single_training.key(self.ctx, case, name, method, self.config.seed)

        def measured() -> tuple[dict[str, float], np.ndarray]:
            found, shown = self._measure(case, name, method)
            return found, single_training.strip(case, shown)

        return self.kept.result(name, case.name, key, measured, lambda: {"scale": self._scale(case).ends()})

    def _measure(self, case: Case, name: str, method: Method) -> tuple[dict[str, float], np.ndarray]:
        scale, seed = self._scale(case), self.config.seed
        if name == "truth":
            return single_training.truth(self.network, case, self.dial, scale, seed)
        if name == "stranger":
            return single_training.stranger(self.network, case, self.dial, scale, seed)
        if name == "decoded":
            return single_training.decoded(self.ctx, self.network, case, self.dial, scale, seed)
        if name == "described":
            return single_training.described(self.ctx, self.network, case, scale)
        class_prior_stage.run(
            self.ctx, case.instance.kind, replace(Prior(), **method.prior)
        )  # shared by all objects of a class: not in a method's seconds
        return single_training.run(
            self.ctx,
            self.network,
            case,
            name,
            method,
            scale,
            self._class_before(case.instance.kind),
            self._trainings(case),
        )

    def _scale(self, case: Case) -> Scale:
        if case.name not in self.scales:
            self.scales = {case.name: rendering.scale(self.network, case, self.dial, self.config.seed)}
        return self.scales[case.name]

    def _trainings(self, case: Case) -> dict[str, single_training.Trained]:
        """What was learned of the object at hand, by what learning was told."""
        if case.name not in self.trainings:
            self.trainings = {case.name: {}}
        return self.trainings[case.name]

    def _class_before(self, kind: str) -> list[Reading]:
        """Readings of the class as the bare base draws it."""
        if kind not in self.before:
            model, _ = rendering.loaded(self.ctx, kind, None)
            self.before[kind] = rendering.readings(self.network, rendering.of_class(self.ctx, model, kind))
        return self.before[kind]
