"""`objtune bench`: measure every method on every toybox object, then write the table and the contact sheet."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from objtune_cli.bench import result_cache, single_training, tables
from objtune_cli.bench.methods import PLAIN_SAMPLING, Method
from objtune_cli.bench.result_cache import ResultCache, Row
from objtune_cli.config.sections import Bench, Prior
from objtune_cli.errors import IncompatibleError, UsageError
from objtune_cli.evaluation import benchmark_objects, rendering
from objtune_cli.evaluation.benchmark_objects import Case
from objtune_cli.evaluation.truth_scores import Calibration
from objtune_cli.images import grids
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.evaluator.inference import SceneReading
from objtune_cli.toybox.evaluator.network import Evaluator
from objtune_cli.toybox.world import DIALS, Dial
from objtune_cli.training import class_prior_stage
from objtune_cli.workflow.context import StageContext

REFERENCE_METHODS = {
    "truth": Method("the object drawn again", "the world", sampling=PLAIN_SAMPLING),
    "other-instance": Method("another instance of its class", "the world", sampling=PLAIN_SAMPLING),
    "vae-reconstruction": Method("the truth through the VAE", "the base", sampling=PLAIN_SAMPLING),
    "prompt-only": Method("the base with a description in the prompt", "no training", sampling=PLAIN_SAMPLING),
}
"""Rows without training: the meaning of 1 and 0, the best that this base could reach, and a description in the prompt."""


def find_dial(ctx: StageContext, weights: Path = inference.WEIGHTS) -> Dial:
    """The toybox dial of the base; `weights` are the evaluator's.

    Raises:
        IncompatibleError: The base is not of the toybox, or the evaluator does not know its dial.
    """
    if ctx.base.toybox_dial not in DIALS:
        raise IncompatibleError(
            f"the base {ctx.base.id} is not of the toybox, so that there is no ground truth",
            "use `--base toybox`, or `objtune evaluate` for one trained object",
        )
    dial = DIALS[ctx.base.toybox_dial]
    if not inference.covers(dial, weights):
        raise IncompatibleError(
            f"the evaluator does not cover the dial of {ctx.base.id} ({ctx.base.toybox_dial})",
            "train another evaluator: docs/explanation/toybox.md",
        )
    return dial


def run(
    ctx: StageContext, out: Path, methods: Mapping[str, Method], config: Bench, published: Path | None = None
) -> list[Row]:
    """Rows of the methods on `config.num_objects` held-out objects; finished results in `out` or `published` are not measured again.

    Writes `table.csv`, `sheet.png` and `results.jsonl` into `out`; another run takes the last as `published`.

    Raises:
        IncompatibleError: The base is not of the toybox.
        InputError: `published` contains no results.
        Stopped: A signal came; finished results are kept.
    """
    dial = find_dial(ctx)
    part = config.part
    cases = [
        c
        for c in benchmark_objects.make_cases(
            dial, config.num_objects, config.seed, config.prompt_rounds, config.kinds
        )[part]
        if c.prompts
    ]
    if not cases and len(range(config.num_objects)[part]) == 0:
        raise UsageError(
            f"the shard {config.shard} has none of the {config.num_objects} objects", "use fewer shards or more objects"
        )
    if not cases:
        raise UsageError(f"no object has prompts of the kinds {config.prompt_kinds}", "use more kinds or more objects")
    plan = {**REFERENCE_METHODS, **methods}
    calibration = (
        {(name, row["case"]): row for name, rows in tables.read_results(published).items() for row in rows}
        if published
        else {}
    )
    bench = ObjectsSuite(
        ctx, config, dial, inference.load(), ResultCache(out, ctx.report, len(cases) * len(plan), calibration)
    )
    results = result_cache.measure_all(ctx, out, cases, plan, bench.get_or_measure)
    rows = tables.build_table(results)
    grids.save_sheet(out, {case.name: functools.partial(_photo_image, case) for case in cases}, list(plan))
    result_cache.write_table(out / "table.csv", rows)
    return rows


def _photo_image(case: Case) -> np.ndarray:
    return case.picture()[0]


@dataclass(slots=True)
class ObjectsSuite:
    """One run of the suite, with cached calibrations and trainings of the current object."""

    ctx: StageContext
    config: Bench
    dial: Dial
    network: Evaluator
    cache: ResultCache
    scales: dict[str, Calibration] = field(default_factory=dict)
    before: dict[str, list[SceneReading]] = field(default_factory=dict)
    trainings: dict[str, dict[str, single_training.TrainingResult]] = field(default_factory=dict)

    def get_or_measure(self, case: Case, name: str, method: Method) -> Row:
        """The cached result of a method on an object, or a new one."""
        key = single_training.result_key(self.ctx, case, name, method, self.config.seed)

        def measure() -> tuple[dict[str, float], np.ndarray]:
            measurement, images = self._measure(case, name, method)
            return measurement, single_training.sheet_row(case, images)

        return self.cache.get_or_measure(
            name, case.name, key, measure, lambda: {"scale": self._scale(case).endpoints()}
        )

    def _measure(self, case: Case, name: str, method: Method) -> tuple[dict[str, float], np.ndarray]:
        scale, seed = self._scale(case), self.config.seed
        if name == "truth":
            return single_training.ground_truth(self.network, case, self.dial, scale, seed)
        if name == "other-instance":
            return single_training.other_instance(self.network, case, self.dial, scale, seed)
        if name == "vae-reconstruction":
            return single_training.vae_reconstruction(self.ctx, self.network, case, self.dial, scale, seed)
        if name == "prompt-only":
            return single_training.prompt_only(self.ctx, self.network, case, scale)
        class_prior_stage.run(
            self.ctx, case.instance.kind, replace(Prior(), **method.prior)
        )  # shared by all objects of a class: not in a method's seconds
        return single_training.score_method(
            self.ctx,
            self.network,
            case,
            name,
            method,
            scale,
            self._class_before(case.instance.kind),
            self._trainings(case),
        )

    def _scale(self, case: Case) -> Calibration:
        if case.name not in self.scales:
            self.scales = {case.name: rendering.calibrate(self.network, case, self.dial, self.config.seed)}
        return self.scales[case.name]

    def _trainings(self, case: Case) -> dict[str, single_training.TrainingResult]:
        """Trainings of the current object, by their settings."""
        if case.name not in self.trainings:
            self.trainings = {case.name: {}}
        return self.trainings[case.name]

    def _class_before(self, kind: str) -> list[SceneReading]:
        """Readings of the class's images of the base alone."""
        if kind not in self.before:
            model, _ = rendering.load_adapter(self.ctx, kind, None)
            self.before[kind] = rendering.read_images(self.network, rendering.sample_class(self.ctx, model, kind))
        return self.before[kind]
