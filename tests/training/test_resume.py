"""What stops `train`: each signal with its code, a time limit with 0; and what it tells programs meanwhile."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from objtune_cli.store.checkpoints import list_checkpoints
from objtune_cli.store.store import Store
from objtune_cli.training import parallel_trainers
from tests.support.json_schema import check
from tests.support.quick_runs import UNSCORED, write_settings

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")


@pytest.fixture
def train(cli, base, dog_photo):
    """`train` of the example photo on the tiny base, four steps."""
    write_settings(base, max_steps=4)

    def run(*more):
        return cli("train", dog_photo, "--class", "dog", *UNSCORED, *more)

    return run


@pytest.fixture(autouse=True)
def hearing():
    """Signals as a command in the foreground has them; restored afterwards."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    kept = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def at_step(monkeypatch):
    """Do something before a step of training is reported."""
    whole = parallel_trainers.train_step

    def when(wanted, action):
        def interrupted(trainers):
            failed = whole(trainers)
            if trainers[0].step == wanted:
                action()
            return failed

        monkeypatch.setattr(parallel_trainers, "train_step", interrupted)

    yield when
    monkeypatch.setattr(parallel_trainers, "train_step", whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_within_the_step_with_its_code(train, at_step, monkeypatch, number):
    at_step(2, lambda: signal.raise_signal(number))
    stopped = train("--events", "events.ndjson")
    assert (stopped.code, stopped.out) == (128 + number, "")
    assert "error: stopped at step 2 of 4, state saved" in stopped.err
    (run,) = list_checkpoints(Store.at(Path.cwd()))
    assert run.words[0] == "train" and "--events" not in run.words
    assert run.folder == str(Path.cwd()) and run.runs["dog"]["step"] == 2
    said = [json.loads(line) for line in Path("events.ndjson").read_text().splitlines()]
    assert [e["step"] for e in said if e.get("stage") == "train"] == [1, 2]
    assert said[-1]["event"] == "end" and said[-1]["code"] == 128 + number


def test_a_time_limit_saves_stops_and_is_no_failure(train, at_step, monkeypatch):
    whole = train()
    unbroken = Path("artifacts/adapter/dog/v001.safetensors").read_bytes()
    shutil.rmtree("artifacts/adapter")

    now = time.monotonic
    at_step(3, lambda: monkeypatch.setattr(time, "monotonic", lambda: now() + 3600))
    stopped = train("--max-time", "50m", "--json")
    monkeypatch.setattr(time, "monotonic", now)
    document = json.loads(stopped.out)
    check(document, "output", "train")
    assert stopped.code == 0, stopped.err
    assert (document["finished"], document["refs"], document["message"]) == (
        False,
        [],
        "stopped at step 3 of 4, state saved",
    )
    assert "the same command resumes from there" in stopped.err
    assert not Path("artifacts/adapter").exists()

    resumed = train("--max-time", "1h", "--json")
    assert "resumes at step 3 of 4" in resumed.err
    assert json.loads(resumed.out)["finished"] is True
    assert Path("artifacts/adapter/dog/v001.safetensors").read_bytes() == unbroken
    assert whole.out == "adapter/dog@1\n"


def test_a_wrong_time_limit_is_wrong_usage(train):
    assert train("--max-time", "soon").code == 2


def test_events_tell_every_step_of_every_stage(train):
    done = train("--events", "events.ndjson", "--quiet")
    assert (done.code, done.err) == (0, "")
    said = [json.loads(line) for line in Path("events.ndjson").read_text().splitlines()]
    for event in said:
        check(event, "event")
    assert (said[0]["event"], said[0]["command"], said[-1]["event"], said[-1]["code"]) == ("start", "train", "end", 0)
    assert {e["stage"] for e in said if e["event"] == "step"} >= {"init-embedding", "prior of dog", "train"}
    steps = [e for e in said if e.get("stage") == "train"]
    assert [(e["step"], e["total"]) for e in steps] == [(n, 4) for n in (1, 2, 3, 4)]
    assert all(e["loss"] > 0 for e in steps)
    assert steps[-1]["eta"] == 0
    assert any(e["event"] == "note" and "augmented views" in e["text"] for e in said)
    train("--events", "events.ndjson")
    assert len(Path("events.ndjson").read_text().splitlines()) > len(said)  # appended


def test_a_reader_of_events_that_goes_away_stops_nothing(train):
    os.mkfifo("pipe")
    nobody = train("--events", "pipe")
    assert nobody.code == 7 and "events cannot be written to pipe" in nobody.err

    def read_a_little():
        with open("pipe", "rb") as pipe:
            pipe.read(10)

    reader = threading.Thread(target=read_a_little)
    reader.start()
    time.sleep(0.2)
    done = train("--events", "pipe")
    reader.join()
    assert (done.code, done.out) == (0, "adapter/dog@1\n")


TWICE = """
import os, signal, sys, time
from objtune_cli.cli.signals import StopFlag
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)  # a shell's background jobs are born deaf to INT
stop = StopFlag()
stop.install()
print("ready", flush=True)
while not stop.signum:
    time.sleep(0.001)
print("asked", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_ends_at_once(number):
    with subprocess.Popen([sys.executable, "-c", TWICE], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        assert child.stdout.readline() == "asked\n"
        started = time.monotonic()
        child.send_signal(number)
        assert child.wait(10) == 128 + number
        assert time.monotonic() - started < 0.2


def test_room_for_state_and_adapter_is_held_before_the_first_step(train, at_step, monkeypatch, project):
    held = []

    def look():
        held.extend(p.stat().st_size for p in (project / ".objtune/tmp").iterdir())
        signal.raise_signal(signal.SIGTERM)

    at_step(1, look)
    assert train().code == 143
    state = next(Path(".objtune/state").rglob("*.safetensors")).stat().st_size
    assert len(held) == 1 and held[0] > 2 * state
    assert list((project / ".objtune/tmp").iterdir()) == []
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    full = train("--force", "--events", "events.ndjson")
    assert full.code == 7
    assert "error: no space for what this will write below" in full.err
    said = [json.loads(line) for line in Path("events.ndjson").read_text().splitlines()]
    assert not [e for e in said if e.get("stage") == "train"], "before the first step"
    assert not list(Path("artifacts/adapter").rglob("*.safetensors"))
    wanted = float(full.err.split("it takes ")[1].split(" MB")[0]) * 1e6
    assert state < wanted < state + (1 << 21), "the state that is here stays; one more is to be written beside it"


def test_another_number_of_threads_is_another_run(train, at_step):
    """Its sums have other last digits: a state is gone on with by as many threads as made it."""
    import torch

    at_step(1, lambda: signal.raise_signal(signal.SIGTERM))
    before, states, said = torch.get_num_threads(), [], ""
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            stopped = train()
            assert stopped.code == 143
            said = stopped.err
            states.append(len(list(Path(".objtune/state").rglob("*.safetensors"))))
    finally:
        torch.set_num_threads(before)
    assert states == [1, 2]
    assert (
        "a run of 4 steps stopped at 1 and is not resumed: the device, number format or number of threads differs (cpu/"
        in said
    )


OTHER = {
    ("--steps", "2"): "the settings differ (max_steps 4, now 2)",
    (
        "--seed",
        "7",
        "--set",
        "train.batch_size=2",
        "--steps",
        "1",
    ): "the settings differ (max_steps 4, now 1; batch_size 1, now 2; seed 0, now 7)",
    ("--set", "init-embedding.seed=3"): "the photo, mask, embedding or prior differs",
}


def test_a_run_that_is_not_gone_on_with_is_told_and_listed(cli, train, at_step):
    """Its own command still goes on with it."""
    at_step(2, lambda: signal.raise_signal(signal.SIGTERM))
    assert train().code == 143
    at_step(0, lambda: None)
    document = json.loads(cli("list", "--json").out)
    check(document, "output", "list")
    (left,) = document["unfinished"]
    assert (left["adapter"], left["step"], left["total"]) == ("dog", 2, 4) and Path(left["file"]).is_file()
    assert "unfinished: adapter/dog at step 2 of 4" in cli("list").err
    assert "unfinished" not in json.loads(cli("list", "mask", "--json").out)

    for number, (changed, said) in enumerate(OTHER.items(), 1):
        other = train(*changed)
        assert (other.code, other.out) == (0, f"adapter/dog@{number}\n")
        assert (
            f"adapter/dog: a run of 4 steps stopped at 2 and is not resumed: {said}; the command that started it resumes it"
            in other.err
        )
        assert "resumes at step" not in other.err

    resumed = train()
    assert "resumes at step 2 of 4" in resumed.err and "again" not in resumed.err and resumed.out == "adapter/dog@4\n"
    assert "unfinished" not in json.loads(cli("list", "--json").out)

    more = train("--steps", "3")
    assert more.out == "adapter/dog@5\n"
    assert (
        "adapter/dog@4 of 4 steps has other settings (max_steps 4, now 3); this run starts from the beginning and makes another version"
        in more.err
    )
    assert "anew" not in train("--steps", "1", "--force").err


def test_a_damaged_state_is_told(train, at_step):
    at_step(1, lambda: signal.raise_signal(signal.SIGTERM))
    assert train().code == 143
    at_step(0, lambda: None)
    (state,) = Path(".objtune/state").rglob("*.safetensors")
    state.write_bytes(state.read_bytes()[:-1] + b"!")
    damaged = train()
    assert damaged.code == 0 and f"the saved state {state.resolve()} is damaged: the run starts again" in damaged.err
    assert "resumes at" not in damaged.err
