"""Several adapters at once, of photos that have nothing to do with each other: one process, steps taken together.

Photos are shared out among lanes, each a base and a thread of its own: one on a GPU and for a large base, else as many as there are processors.
"""

import contextlib
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from objtune_cli.config.sections import Embed, Prior, Train
from objtune_cli.errors import GateError, NonFiniteError, Stopped, UsageError
from objtune_cli.store import artifacts
from objtune_cli.store.checkpoints import Checkpoint
from objtune_cli.store.disk_reservation import EXTRA_BYTES, DiskReservation
from objtune_cli.store.refs import Ref
from objtune_cli.training import class_prior_stage as prior_stage
from objtune_cli.training import load_subjects, unfinished_runs
from objtune_cli.training import stage as train
from objtune_cli.training.stage import SAVE_EVERY, TrainingPlan
from objtune_cli.workflow import class_words
from objtune_cli.workflow.context import StageContext, StageResult

if TYPE_CHECKING:
    from objtune_cli.models.base_model import BaseModel
    from objtune_cli.training.self_evaluation import SelfEvaluation
    from objtune_cli.training.trainer import Trainer


def run(
    ctx: StageContext, photos: list[list[Ref]], config: Train, embedding: Embed, prior: Prior, *, preview: bool = True
) -> list[StageResult]:
    """One adapter for the objects of each photo, in that order; each is what a command of its own would make, up to rounding.

    Raises:
        UsageError: Two photos would give an object the same name. GateError: one or more diverged; the others are published.
        Stopped: A signal came; the state is saved.
    """
    configs = [train.validate_config(ctx, config, len(sources)) for sources in photos]
    if ctx.team():
        raise UsageError(
            "several photos are learned side by side in one process",
            "give each photo a command of its own under several processes",
        )
    works = _plan_all(ctx, photos, configs, embedding, prior)
    names = [name for work in works for name in work.record.objects]
    if len(set(names)) < len(names):
        raise UsageError("two photos would give an object the same name", "tell them apart with `--name`")
    for work in works:
        if ctx.force or artifacts.find_identical(ctx.root, work.record) is None:
            unfinished_runs.report_earlier_runs(ctx, work.record)
    model = train.load_for_training(ctx, configs[0])
    keys = [train.run_key(work, model) for work in works]
    state = _checkpoint(ctx, "beside/" + "/".join(keys))
    done: dict[int, StageResult] = {
        i: d for i, work in enumerate(works) if (d := ctx.find_existing(work.record, computed=True))
    }
    if len(works) - len(done) > 1 or state.file.exists():
        with contextlib.ExitStack() as held:
            for key in keys:  # one at work on any of them alone is in our way
                held.enter_context(_checkpoint(ctx, key).lock())
            held.enter_context(state.lock())
            room = held.enter_context(DiskReservation(ctx.project))
            done |= MultiRun(
                ctx, model, works, configs, state, room
            ).run()  # of which the given stack is the first lane's
            state.discard()
    del model  # what comes next opens its own
    left = [i for i in range(len(works)) if i not in done]
    done |= {i: train.train_one(ctx, works[i], configs[i]) for i in left}
    return ctx.run_parallel(
        [partial(train.with_preview, ctx, done[i], work, preview=preview) for i, work in enumerate(works)]
    )


def _plan_all(
    ctx: StageContext, photos: list[list[Ref]], configs: list[Train], embedding: Embed, prior: Prior
) -> list[TrainingPlan]:
    """What is to be made of each photo, the stages before it done; the prior of a class once, however many photos have it."""
    starts = ctx.run_parallel([partial(train.ensure_embeddings, ctx, sources, embedding) for sources in photos])
    words = sorted({word for each in starts for record in each for word in record.objects.values()})
    if any(own.class_weight for own in configs):
        ctx.run_parallel([partial(prior_stage.run, ctx, word, prior) for word in words])
    return [
        train.plan(ctx, [r.ref for r in each], own, embedding, prior) for each, own in zip(starts, configs, strict=True)
    ]


def _checkpoint(ctx: StageContext, key: str) -> Checkpoint:
    return Checkpoint(ctx.project, train.checkpoint_key(key))


@dataclass(slots=True)
class TrainingRun:
    """One adapter of those that are at work, and who looks at its pictures."""

    number: int
    work: TrainingPlan
    trainer: "Trainer"
    judge: "SelfEvaluation | None"


class MultiRun:
    """Those of the works that are not made yet, in step."""

    def __init__(
        self,
        ctx: StageContext,
        model: "BaseModel",
        works: list[TrainingPlan],
        configs: list[Train],
        state: Checkpoint,
        room: DiskReservation,
    ) -> None:
        import torch

        from objtune_cli.runtime import cpu

        self.ctx, self.state, self.room, self.saved = ctx, state, room, time.monotonic()
        kept = {k: torch.from_numpy(v) for k, v in (state.load() or {}).items()}
        begun = {int(key.partition(".")[0]) for key in kept}
        asked = [
            i
            for i, work in enumerate(works)
            if (i in begun if begun else not ctx.find_existing(work.record, computed=True))
        ]
        self.computed = train.describe_environment(model)
        if not kept and state.file.exists():
            ctx.report.note(f"the saved state {state.file} is damaged: the runs begin anew")
        for i in [] if kept else asked:
            unfinished_runs.report_restart(ctx, works[i].record, state.key, self.computed)
        ctx.report.note(f"drawing placements of {len(asked)} photos' objects")
        count = cpu.worker_count(len(works)) if ctx.can_run_parallel() else 1
        models = [model, *(train.load_for_training(ctx, configs[0]) for _ in range(1, count))]
        shared = [
            partial(self._lane, own, {i: works[i] for i in asked if i % count == k}, configs)
            for k, own in enumerate(models)
        ]
        self.members = sorted((m for lane in ctx.run_parallel(shared) for m in lane), key=lambda m: m.number)
        for m in (
            self.members if kept else []
        ):  # after all are built: what the frozen base says is asked with no other's weights
            m.trainer.restore({k.partition(".")[2]: v for k, v in kept.items() if int(k.partition(".")[0]) == m.number})
        if kept:
            ctx.report.note(f"goes on at step {max(m.trainer.step for m in self.members)}")
        room.reserve(self._most() * (1 if kept else 2))

    def _lane(self, model: "BaseModel", works: dict[int, TrainingPlan], configs: list[Train]) -> list[TrainingRun]:
        """Those that are learned on one stack."""
        from objtune_cli.training.trainer import Trainer

        ctx = self.ctx
        learning = {i: load_subjects.load_subjects(ctx, work.starts) for i, work in works.items()}
        everyone = [s for own in learning.values() for s in own]
        judge = train.build_self_evaluation(ctx, model, everyone) if configs[0].scores == "shown" and everyone else None
        found = []
        for i, work in works.items():
            ctx.check_stopped()
            class_words.check_length(
                model, [s.class_word for s in learning[i]], sum(s.num_trainable for s in learning[i])
            )
            trainer = Trainer(model, learning[i], train.load_priors(ctx, work), configs[i], f"beside{i}")
            found.append(TrainingRun(i, work, trainer, judge))
        return found

    def run(self) -> dict[int, StageResult]:
        """Steps of all until each has come to its own end; what ends is published at once.

        Raises:
            GateError: One or more diverged; says which. Stopped: a signal came; the state is saved.
        """
        done: dict[int, StageResult] = {}
        failed: list[tuple[TrainingRun, GateError]] = []
        while True:
            ended = [m for m in self.members if m.trainer.finished]
            if ended:
                self._save()  # first: after an end that is published none of the others may have to repeat a step without it
                self._end(ended, done, failed)
                if self.members:
                    self._save()
            if not self.members:
                break
            self._step(failed)
        for m, error in failed:
            self.ctx.report.note(f"{m.work.record.name}: {error.message}")
        if failed:
            self.state.discard()
            of_base = isinstance(failed[0][1], NonFiniteError) and failed[0][1].of_base
            what = f"not learned: {failed[0][1].message}" if of_base else "diverged"
            raise GateError(
                f"{', '.join(m.work.record.name for m, _ in failed)} {what}; the others are there", failed[0][1].hint
            )
        return done

    def _step(self, failed: list[tuple[TrainingRun, GateError]]) -> None:
        """One step of each that is not at its end."""
        from objtune_cli.training import multi_trainer

        wrong = multi_trainer.train_step([m.trainer for m in self.members])
        failed += [(m, wrong[m.trainer]) for m in self.members if m.trainer in wrong]
        self.members = [m for m in self.members if m.trainer not in wrong]
        if not self.members:
            return
        means = [sum(m.trainer.weights[name] * value for name, value in m.trainer.mean.items()) for m in self.members]
        step, total = self.members[0].trainer.step, max(m.trainer.total for m in self.members)
        self.ctx.report.step("train", step, total, loss=sum(means) / len(means), objects=len(means))
        signum = self.ctx.stopped()
        if signum or time.monotonic() - self.saved > SAVE_EVERY:
            self._save()
        if signum:
            raise Stopped(
                signum, f"stopped at step {step} of {total}, state saved", "the same command goes on from there"
            )

    def _end(
        self, ended: list[TrainingRun], done: dict[int, StageResult], failed: list[tuple[TrainingRun, GateError]]
    ) -> None:
        """Publish those at their end, a lane beside the other: a stack draws the pictures of one at a time."""
        lanes: dict[int, list[TrainingRun]] = {}
        for m in ended:
            self.members.remove(m)
            lanes.setdefault(id(m.trainer.model), []).append(m)
        with self.room.lend(self._most()):
            self.ctx.run_parallel([partial(self._published, lane, done, failed) for lane in lanes.values()])

    def _published(
        self, lane: list[TrainingRun], done: dict[int, StageResult], failed: list[tuple[TrainingRun, GateError]]
    ) -> None:
        for m in lane:
            m.trainer.keep_ema()
            self.ctx.report.note(f"{m.work.record.name} has learned")
            try:
                cut_off = self.ctx.find_existing(m.work.record, computed=True)  # just after it was published
                done[m.number] = cut_off or train.publish(self.ctx, m.work, m.trainer, m.judge)
            except GateError as error:
                failed.append((m, error))

    def _save(self) -> None:
        """All states in one file: a later process finds them at one step."""
        with self.room.lend(self._most()):
            self.state.about = unfinished_runs.checkpoint_header(
                [(m.work.record, m.trainer) for m in self.members], self.computed
            )
            self.state.save(
                {f"{m.number}.{key}": value for m in self.members for key, value in m.trainer.state().items()}
            )
        self.saved = time.monotonic()

    def _most(self) -> int:
        """Bytes of the states of those at work, all in one file; an adapter is a third of its own."""
        return sum(m.trainer.size() for m in self.members) + EXTRA_BYTES
