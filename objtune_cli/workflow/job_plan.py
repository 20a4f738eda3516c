"""The plan of a jobs file: class priors that several batches share, and batches of jobs that are trained side by side.

A plan depends on the jobs and on a few numbers alone. The same command, run again, cuts the same batches and so finds the
saved state of each; the shards of a file cut it in the same places.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from objtune_cli import renamed_settings
from objtune_cli.errors import UsageError
from objtune_cli.workflow.job_file import Job

MAX_TOGETHER = 32
"""Most jobs in a batch."""
SHARD_TOGETHER = 8
"""Most jobs in a batch of a shard, and of a GPU, unless `--together` says another number."""
OTHER_SECTIONS = ("train", "generate", "compose", "place", "segment", "init-embedding", "evaluate", "bench")
"""Sections whose settings do not change a class prior."""
PRIOR_WEIGHT = "train.prior_loss_weight"


@dataclass(frozen=True, slots=True)
class ClassPrior:
    """A class prior that batches share: the class word, and the settings of the first job that needs it."""

    class_word: str
    settings: tuple[str, ...]
    identity: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs that one worker trains side by side, and the shared priors that are made before."""

    jobs: tuple[Job, ...]
    priors: tuple[ClassPrior, ...] = ()


@dataclass(frozen=True, slots=True)
class JobPlan:
    """Class priors that at least two batches need, and batches; in the order in which they start."""

    priors: tuple[ClassPrior, ...] = ()
    batches: tuple[Batch, ...] = ()


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `number` of `count`, counted from 1."""

    number: int = 1
    count: int = 1


def parse_shard(text: str) -> Shard:
    """Parse `i/n`, i from 1 to n.

    Raises:
        UsageError: It is not of that form.
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(
            f"--shard is {text}",
            "i/n, i from 1 to n: 2/4 is the second of four; an index that starts at 0 needs one more: `$((INDEX + 1))/4`",
        )
    return Shard(int(number), int(count))


def batch_limit(processors: int, workers: int, *, has_gpu: bool, is_shard: bool) -> int:
    """The most jobs in a batch without `--together`: four for each processor of a worker; 8 on a GPU.

    In a shard it is 8, because all machines have to cut the file in the same places.
    """
    if has_gpu or is_shard:
        return SHARD_TOGETHER
    return min(MAX_TOGETHER, 4 * max(1, processors // workers))


def make_plan(
    jobs: Sequence[Job], workers: int = 1, limit: int = SHARD_TOGETHER, shard: Shard | None = None
) -> JobPlan:
    """Cut jobs into batches with equal settings and numbers of objects, in the order of the SHA-256 of their names.

    Jobs are shared evenly among the workers of all shards as far as they go. Whole batches are dealt out to shards.

    Args:
        workers: Number of batches at a time.
        limit: Most jobs in a batch.
    """
    shard = shard or Shard()
    groups: dict[tuple[tuple[str, ...], int], list[Job]] = {}
    for job in sorted(jobs, key=_order):
        groups.setdefault((job.settings, len(job.names)), []).append(job)
    size = max(1, min(limit, -(-len(jobs) // (workers * shard.count))))
    every = [part for key in sorted(groups) for part in _cut(groups[key], size)]
    parts = every[shard.number - 1 :: shard.count]
    needs = [tuple(dict.fromkeys(_priors(part))) for part in parts]
    shared = {key for key, count in Counter(key for own in needs for key in own).items() if count > 1}
    priors: dict[tuple[str, ...], ClassPrior] = {}
    batches = []
    for part, own in zip(parts, needs, strict=True):
        for key in own:
            if key in shared:
                priors.setdefault(key, ClassPrior(key[0], part[0].settings, key))
        batches.append(Batch(tuple(part), tuple(priors[key] for key in own if key in shared)))
    return JobPlan(tuple(priors.values()), tuple(batches))


def _order(job: Job) -> bytes:
    return hashlib.sha256("\n".join(job.names).encode()).digest()


def _cut(jobs: list[Job], size: int) -> Iterable[list[Job]]:
    """Cut jobs into parts of at most `size`, whose sizes differ by one at most."""
    count = -(-len(jobs) // size)
    return (jobs[i * len(jobs) // count : (i + 1) * len(jobs) // count] for i in range(count))


def _priors(jobs: Sequence[Job]) -> Iterable[tuple[str, ...]]:
    """What the class priors of jobs with equal settings depend on: class word first, then base and settings."""
    shared = tuple(word for word in jobs[0].settings if _changes_prior(word))
    return ((word, *shared) for job in jobs for word in job.classes)


def _changes_prior(word: str) -> bool:
    """Whether a word of a `train` command may change its class priors."""
    if not word.startswith("--set="):
        return not word.startswith(("--seed=", "--max-time="))
    key = renamed_settings.present_key(word.removeprefix("--set=").partition("=")[0].strip())
    section = key.rpartition(".")[0]
    return key == PRIOR_WEIGHT or section not in OTHER_SECTIONS
