"""The plan of `run`: the same batches from the same jobs, whatever their order, also in shards; 100,000 jobs in seconds."""

import random
import time

import pytest

from objtune_cli.errors import UsageError
from objtune_cli.workflow import job_plan
from objtune_cli.workflow.job_file import Job
from objtune_cli.workflow.job_plan import Shard, make_plan


def job(name, *settings, classes=("dog",)):
    names = (name,) if len(classes) == 1 else tuple(f"{name}-{i}" for i in range(len(classes)))
    return Job(names, tuple(classes), (("train", *settings, "--", f"{name}.jpg"),), settings, (f"{name}.jpg",))


def labels(plan):
    return [[each.label for each in batch.jobs] for batch in plan.batches]


def test_batches_share_settings_and_number_of_objects_and_do_not_depend_on_the_order_of_the_file():
    jobs = [job(f"a{i}", "--base=x") for i in range(9)] + [job(f"b{i}", "--base=y") for i in range(2)]
    jobs.append(job("pair", "--base=x", classes=("dog", "mug")))
    plan = make_plan(jobs, limit=4)
    assert sorted(map(len, labels(plan))) == [1, 2, 3, 3, 3]
    assert all(len({(each.settings, len(each.names)) for each in batch.jobs}) == 1 for batch in plan.batches)
    assert [batch.jobs[0].settings for batch in plan.batches] == sorted(
        batch.jobs[0].settings for batch in plan.batches
    )
    shuffled = random.Random(1).sample(jobs, len(jobs))
    assert labels(make_plan(shuffled, limit=4)) == labels(plan)
    assert sorted(map(len, labels(make_plan(jobs[:9], workers=3, limit=8)))) == [3, 3, 3], "shared among the workers"


def test_shards_have_whole_batches_of_the_same_cut():
    jobs = [job(f"o{i}") for i in range(50)]
    whole = labels(make_plan(jobs, limit=4))
    for count in (1, 2, 5):
        parts = [labels(make_plan(jobs, limit=4, shard=Shard(i, count))) for i in range(1, count + 1)]
        assert sorted(batch for part in parts for batch in part) == sorted(whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert labels(make_plan(jobs[:1], shard=Shard(2, 5))) == []


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4", "1/4/2", ""])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="--shard is") as refused:
        job_plan.parse_shard(text)
    assert "i from 1 to n" in refused.value.hint
    assert job_plan.parse_shard("4/4") == Shard(4, 4)


def test_a_prior_that_several_batches_need_is_made_before_them_once():
    one, other = ("--base=x", "--set=train.rank=2", "--seed=1"), ("--base=x", "--set=train.rank=8", "--seed=2")
    jobs = [job("a", *one), job("b", *other), job("c", *one, classes=("dog", "cat")), job("d", "--base=y")]
    plan = make_plan(jobs)
    assert [(prior.class_word, prior.identity) for prior in plan.priors] == [("dog", ("dog", "--base=x"))]
    assert {batch.jobs[0].label: len(batch.priors) for batch in plan.batches} == {"a": 1, "b": 1, "c-0-c-1": 1, "d": 0}
    for setting in ("prior.num_class_images=3", "train.prior_loss_weight=0", "prediction_type=epsilon"):
        assert not make_plan([job("a", *one), job("b", *one, f"--set={setting}")]).priors, setting


def test_the_limit_of_a_batch():
    limit = job_plan.batch_limit
    assert limit(2, 1, has_gpu=False, is_shard=False) == 8 and limit(2, 2, has_gpu=False, is_shard=False) == 4
    assert limit(96, 1, has_gpu=False, is_shard=False) == 32
    assert {limit(n, 1, has_gpu=False, is_shard=True) for n in (2, 8, 96)} == {8}, "the same on every machine"
    assert limit(96, 1, has_gpu=True, is_shard=False) == 8


def test_a_hundred_thousand_jobs_are_planned_in_seconds():
    jobs = [job(f"product-{i}", f"--seed={i % 3}", classes=(("dog", "mug", "car")[i % 3],)) for i in range(100_000)]
    start = time.process_time()
    plan = make_plan(jobs, workers=8, limit=8)
    assert time.process_time() - start < 2
    assert sum(map(len, labels(plan))) == 100_000 and max(map(len, labels(plan))) == 8 and len(plan.priors) == 3
