"""F1, F3-F7 and F12 of the store: kills, crashes at every boundary, races, full and read-only disks, damaged bytes."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objtune_cli.errors import BusyError, DamagedError, ObjtuneError, ResourceError
from objtune_cli.store import refs, removal, safetensors_format, temp_files
from objtune_cli.store.artifacts import Record
from objtune_cli.store.project import Project
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store
from tests.support.scaled import sized

REX = Record(
    "mask", "rex", {"rex": "dog"}, {"photo": {"ref": "", "sha256": "0" * 64}}, {"edge": 0.5}, {}, {"area": 0.25}
)
Say = Callable[[str], None]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.at(tmp_path)


def child(work: Callable[[], Any]) -> int:
    """A process that does something and ends, 0 if it came to the end; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        temp_files._cleaned.clear()
        work()
        code = 0
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Exit code of a child, minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def sound(store: Store) -> list[Ref]:
    """Every artifact of a store, each checked whole, each input checked against what was recorded of it."""
    every = store.list()
    digests = {ref: store.verify(ref)[1] for ref in every}
    for ref in every:
        for given in store.read_record(ref).inputs.values():
            if given["ref"]:
                source = refs.parse(given["ref"])
                gone = store.read_tombstone(source)
                assert given["sha256"] == (digests.get(source) or (gone and gone["sha256"])), f"{ref} lost {source}"
    return every


@sized(12, 200)
def test_f1_killed_writers(size: int, store: Store, say: Say) -> None:
    """SIGKILL at random moments of eight writers at work."""
    rng = random.Random(1)
    block = np.arange(250_000, dtype=np.float32)

    def write() -> None:
        while True:
            store.create(REX, {"x": block})

    started, killed, seen = time.monotonic(), 0, 0
    while killed < size:
        pids = [child(write) for _ in range(min(8, size - killed))]
        for pid in pids:
            time.sleep(rng.uniform(0.005, 0.06))
            os.kill(pid, signal.SIGKILL)
            killed += ended(pid) == -signal.SIGKILL
        seen = max(seen, len(list(store.backend.path(".objtune/tmp").glob("*"))))
    left = len(temp_files.find_orphaned(store.backend.path(".objtune/tmp")))
    assert ended(child(lambda: store.create(REX, {"x": block}))) == 0
    every = sound(store)
    assert [ref.version for ref in every] == list(range(1, len(every) + 1))
    assert list(store.backend.path(".objtune/tmp").iterdir()) == []
    assert {p.suffix for p in store.backend.path("artifacts").rglob("v*")} == {".safetensors"}
    say(
        f"F1  {killed} SIGKILL into 8 writers: {len(every)} artifacts, 0 damaged, {left} leftovers at the end, all swept by the next writer, {time.monotonic() - started:.0f} s"
    )


EVENTS = {
    "open",
    "os.link",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.chmod",
    "os.rmdir",
    "shutil.rmtree",
    "os.listdir",
}


def crashing(work: Callable[[], Any], at: int) -> int:
    """Do something in a process that ends without a word before its boundary number `at`; its exit code, 9 for a crash."""

    def run() -> None:
        count = 0

        def boundary() -> None:
            nonlocal count
            count += 1
            if count == at:
                os._exit(9)

        sys.addaudithook(lambda event, _: boundary() if event in EVENTS else None)
        fsync = os.fsync

        def flush(handle: int) -> None:
            boundary()
            fsync(handle)

        os.fsync = flush
        work()

    return ended(child(run))


def chain(store: Store, name: str) -> None:
    """Two masks, of the second an embedding, of that an adapter with a picture."""
    store.create(replace(REX, name=name, objects={name: "dog"}), {"x": np.ones(3, np.uint8)})
    made = store.create(replace(REX, name=name, objects={name: "dog"}, config={}), {"x": np.ones(3, np.uint8)})
    for kind, role in (("embedding", "mask"), ("adapter", f"embedding.{name}")):
        inputs = {role: {"ref": str(made), "sha256": store.compute_sha256(made)}}
        made = store.create(
            Record(kind, name, {name: "dog"}, inputs, {}, {}), {f"token.{name}": np.ones(3, np.float32)}
        )
    folder = store.path(made).with_suffix("")
    folder.mkdir()
    (folder / "preview.png").write_bytes(b"picture")


def kept(store: Store, below: str = "artifacts") -> dict[str, bytes]:
    folder = store.backend.path(below)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


WORK: dict[str, Callable[[Path], Any]] = {
    "publish": lambda store: (
        store.create(replace(REX, name="new"), {"x": np.ones(3, np.uint8)})
        if not store.list_names("mask").count("new")
        else None
    ),
    "rm": lambda store: removal.remove(store, [r for r in store.list() if r.kind == "adapter"]),
    "gc": lambda store: removal.remove(store, removal.find_unreferenced(store, 4e9)),
    "mv": lambda store: removal.rename_object(store, "rex", "max") if store.list_names("mask").count("rex") else None,
}


@pytest.mark.parametrize("name", WORK)
@sized(6, 1)
def test_f3_a_crash_at_every_boundary(name: str, size: int, tmp_path: Path, say: Say) -> None:
    """In short every sixth. Before each system call in turn that opens, flushes, links, renames or deletes: the store is sound, and the same again finishes."""
    first, work = Store.at(tmp_path / "first"), WORK[name]
    chain(first, "rex")
    whole = Store.at(tmp_path / "whole")
    shutil.copytree(first.backend.path(""), whole.backend.path(""))
    work(whole)
    wanted, at = kept(whole), 1 - size
    assert wanted != kept(first)
    while True:
        at += size
        store = Store.at(tmp_path / f"run{at}")
        shutil.copytree(first.backend.path(""), store.backend.path(""))
        code = crashing(lambda store=store: work(store), at)
        assert code in (0, 9)
        sound(store)
        if code == 0:
            break
        assert ended(child(lambda store=store: work(store))) == 0
        sound(store)
        assert kept(store) == wanted, f"crashed before boundary {at}"
    assert at > 5
    assert kept(store) == wanted
    say(
        f"F3  {name}: {at - 1} of {at - 1} boundaries, the store sound after each crash and the same command ends as if there had been none"
    )


@sized((4, 10), (16, 50))
def test_f4_concurrent_publishers(size: tuple[int, int], store: Store, say: Say) -> None:
    processes, each = size

    def write(number: int) -> Callable[[], None]:
        return lambda: (
            [store.create(replace(REX, metrics={"writer": number, "n": n}), {"x": np.ones(9)}) for n in range(each)]
            and None
        )

    started = time.monotonic()
    assert [ended(pid) for pid in [child(write(n)) for n in range(processes)]] == [0] * processes
    taken = time.monotonic() - started
    every = sound(store)
    assert [ref.version for ref in every] == list(range(1, processes * each + 1))
    told = {(r.metrics["writer"], r.metrics["n"]) for r in (store.read_record(ref) for ref in every)}
    assert len(told) == processes * each
    say(
        f"F4  {processes} processes x {each} publishes of one name: {len(every)} versions, {processes * each - len(told)} lost, {taken:.1f} s"
    )


@sized(3, 30)
def test_f4_writers_beside_gc(size: int, store: Store, say: Say) -> None:
    """Eight processes make chains, one collects as eagerly as it can: nothing that serves a result goes."""
    project, until = Project(store.backend.path("")), time.monotonic() + size
    store.backend.path("artifacts").mkdir()

    def write(number: int) -> Callable[[], None]:
        rng = random.Random(number)

        def work() -> None:
            while time.monotonic() < until:
                try:
                    with project.lock():
                        made = store.create(replace(REX, name=f"n{number % 3}"), {"x": np.ones(9)})
                        for kind in ("embedding", "adapter"):
                            inputs = {"mask": {"ref": str(made), "sha256": store.verify(made)[1]}}
                            made = store.create(Record(kind, f"n{number % 3}", {}, inputs, {}, {}), {"x": np.ones(9)})
                except BusyError:
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, 0.4))  # a moment in which all rest comes now and then

        return work

    pids = [child(write(n)) for n in range(8)]
    passes = collected = 0
    store.create(replace(REX, name="n0"), {"x": np.ones(9)})
    while time.monotonic() < until:
        try:
            with project.lock(exclusive=True):
                store.create(
                    replace(REX, name="n0"), {"x": np.zeros(9)}
                )  # supersedes: there is always something to collect
                gone = removal.find_unreferenced(store, 4e9)
                removal.remove(store, gone)
                passes, collected = passes + 1, collected + len(gone)
        except BusyError:
            time.sleep(0.001)
    assert [ended(pid) for pid in pids] == [0] * 8
    every = sound(store)
    lost = [
        ref
        for ref in every
        for given in store.read_record(ref).inputs.values()
        if given["ref"] and refs.parse(given["ref"]) not in every
    ]
    assert lost == []
    assert passes
    say(
        f"F4  8 writers x gc for {size} s: {len(every)} artifacts live, {collected} collected in {passes} passes, 0 that a result was made from"
    )


@sized(range(1, 9), range(1, 100))
def test_f5_a_limit_on_file_sizes(size: range, store: Store, say: Say) -> None:
    """Every write beyond N kB fails (EFBIG): exit 7, what was there is whole, nothing half is left, and with room it works."""
    first = store.create(REX, {"x": np.ones(3, np.uint8)})
    data = {"x": np.arange(100_000, dtype=np.uint8)}
    before = kept(store, "")

    def full(limit: int) -> Callable[[], None]:
        def work() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit * 1000, limit * 1000))
            with pytest.raises(ResourceError, match="no space left to write below") as caught:
                store.create(REX, data)
            assert caught.value.code == 7

        return work

    for limit in size:
        assert ended(child(full(limit))) == 0, limit
        assert kept(store, "") == before
    assert store.verify(first)
    assert store.create(REX, data).version == 2
    say(f"F5  file size limits: {len(size)} sizes, each exit 7, 0 objects changed, 0 leftovers, then it works")


TMPFS = """
set -e
mount -t tmpfs -o size=SIZEk tmpfs "$1"
cd "$1"
touch objtune.toml
python=$2
$python - <<'END'
import os, sys
import numpy as np
from pathlib import Path
from objtune_cli.errors import ResourceError
from objtune_cli.store.artifacts import Record
from objtune_cli.store.store import Store
store, record = Store.at(Path()), Record("mask", "rex", {"rex": "dog"}, {}, {}, {})
done = 0
while True:
    try:
        done = store.create(record, {"x": np.full(50_000, done, np.uint8)}).version
    except ResourceError as error:
        assert error.code == 7 and "no space left" in error.message, error.message
        break
every = store.list()
assert len(every) == done > 0
for ref in every:
    store.verify(ref)
assert list(Path(".objtune/tmp").iterdir()) == []
store.path(every[-1]).unlink()
assert store.create(record, {"x": np.ones(1000, np.uint8)})
print("filled", done)
END
mount -o remount,ro "$1"
for line in list "show mask/rex" verify; do $python -m objtune_cli $line > /dev/null 2>&1 || { echo "$line failed on a read-only disk"; exit 1; }; done
set +e
$python -m objtune_cli rm mask/rex@1 2> /dev/null
test $? = 7 || { echo "rm on a read-only disk"; exit 1; }
$python -m objtune_cli export mask/rex 2> /dev/null
echo readonly
"""


@sized([256], [200 + 37 * i for i in range(24)])
def test_f5_f6_a_full_and_a_read_only_disk(size: list[int], tmp_path: Path, say: Say) -> None:
    """A real file system that runs full, then is mounted read-only; where the system lets us make one."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    filled = []
    for kilobytes in size:
        disk = tmp_path / f"disk{kilobytes}"
        disk.mkdir()
        line = [
            "unshare",
            "-Urm",
            "bash",
            "-c",
            TMPFS.replace("SIZE", str(kilobytes)),
            "bash",
            str(disk),
            sys.executable,
        ]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.endswith("readonly\n"), done.stdout + done.stderr
        filled.append(done.stdout.split()[1])
    say(
        f"F5  {len(size)} file systems filled to the end ({', '.join(filled[:6])} … artifacts): exit 7, all sound, then room again; F6  read-only: list, show, verify work, rm exits 7"
    )


@sized(600, 12_000)
def test_f7_damaged_bytes(size: int, store: Store, say: Say) -> None:
    """Flips at random places (four masks), every truncation, swapped, zeroed and doubled blocks."""
    rng = random.Random(7)
    ref = store.create(REX, {"x": np.frombuffer(random.Random(3).randbytes(2500), np.uint8)})
    path = store.path(ref)
    data = path.read_bytes()
    path.chmod(0o644)
    cases = [
        (f"flip {at}", data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])
        for at in range(len(data))
        for mask in (1, 16, 128, 255)
    ]
    rng.shuffle(cases)
    cases = cases[:size]
    cases += [(f"cut {at}", data[:at]) for at in (range(len(data)) if size > 1000 else range(0, len(data), 50))]
    for _ in range(size // 20):
        low, high = sorted(rng.sample(range(0, len(data) - 64), 2))
        a, b = data[low : low + 32], data[high : high + 32]
        cases.append((f"swap {low} {high}", data[:low] + b + data[low + 32 : high] + a + data[high + 32 :]))
        cases.append((f"zero {low}", data[:low] + bytes(32) + data[low + 32 :]))
        cases.append((f"double {low}", data[: low + 32] + data[low:]))
    cases = [(name, bad) for name, bad in cases if bad != data]
    missed, started = [], time.monotonic()
    for name, bad in cases:
        path.write_bytes(bad)
        try:
            store.verify(ref)
            missed.append(name)
        except DamagedError as error:
            assert str(path) in error.message
    path.write_bytes(data)
    store.verify(ref)
    assert missed == []
    say(
        f"F7  {len(cases)} damaged files: {len(cases) - len(missed)} noticed (exit 5, the file named), 0 tracebacks, {time.monotonic() - started:.0f} s"
    )


@sized(1, 5)
def test_f12_monstrous_headers(size: int, tmp_path: Path, say: Say) -> None:
    """75 MB of metadata and 1.6 million tensors, refused from the first eight bytes."""
    path = tmp_path / "monster.safetensors"
    worst = 0.0
    for text in (b'{"__metadata__":{"a":"' + b"x" * 75_000_000 + b'"}}', b'{"t":{},' * 12_000_000):
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        for _ in range(size):
            started = time.perf_counter()
            with pytest.raises(DamagedError, match="header of"):
                safetensors_format.read_header(path)
            worst = max(worst, time.perf_counter() - started)
    assert worst < 0.05
    say(f"F12 headers of 75 MB and 96 MB: refused in at most {worst * 1000:.1f} ms")


DO = """
import os, sys
import numpy as np
from pathlib import Path
os.umask(int(sys.argv[2], 8))
from objtune_cli.store.artifacts import Record
from objtune_cli.store.store import Store
store = Store.at(Path(sys.argv[1]))
record = Record("mask", "rex", {"rex": "K\\u00e4se", "b": "c"}, {"photo": {"ref": "", "sha256": "0" * 64}}, {k: 0.1 for k in {"x", "y", "z", "w"}}, {}, {"area": 1 / 3})
print(store.compute_sha256(store.create(record, {k: np.linspace(0, 1, 7) for k in {"p", "q", "r"}})))
"""


@sized(2, 6)
def test_f10_equal_work_is_equal_bytes(size: int, tmp_path: Path, say: Say) -> None:
    """Whatever the hash seed, time zone, locale, umask and folder."""
    found = set()
    for i in range(size):
        folder = tmp_path / f"a folder {i}" / "ü"
        folder.mkdir(parents=True)
        zone, words = ("UTC", "Asia/Tokyo", "America/Lima")[i % 3], ("C", "C.UTF-8", "POSIX")[i % 3]
        settings = {**os.environ, "PYTHONHASHSEED": str(i), "TZ": zone, "LC_ALL": words, "PYTHONUTF8": str(i % 2)}
        done = subprocess.run(
            [sys.executable, "-c", DO, str(folder), ("022", "077", "000")[i % 3]],
            env=settings,
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1
    say(f"F10 {size} processes of other hash seed, time zone, locale, umask and folder: {len(found)} SHA-256")


def test_these_tests_would_notice(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative controls: a store that writes in place, and one that forgets removed numbers, fail the checks above."""
    ref = store.create(REX, {"x": np.ones(3, np.uint8)})
    store.path(ref).chmod(0o644)
    store.path(ref).write_bytes(store.path(ref).read_bytes()[:-1])
    with pytest.raises(ObjtuneError, match="is damaged"):
        sound(store)
    other = Store.at(store.backend.path("other"))
    chain(other, "rex")
    other.path(Ref("embedding", "rex", 1)).unlink()
    with pytest.raises(AssertionError, match=r"adapter/rex@1 lost embedding/rex@1"):
        sound(other)
