"""F10, F17, F20: the whole path run elsewhere, moved elsewhere, and what memory it takes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from objtune_cli.store import refs
from objtune_cli.store.regular_files import file_sha256
from tests.support import quick_runs
from tests.support.scaled import sized

SETTINGS = (
    "init-embedding.steps=2", "train.num_augmentations=2", "train.max_steps=3", "train.rank=1", "prior.num_class_images=2", "prior.num_predictions=2", "train.num_teacher_samples=2", "train.self_evaluation=false", "generate.num_inference_steps=2",
    "segment.segmenter=grabcut",
)  # fmt: skip
SET = [word for setting in SETTINGS for word in ("--set", setting)]
DO = """
import os, sys, json
from objtune_cli.cli.app import run
os.umask(int(sys.argv[1], 8))
for line in json.loads(sys.argv[2]):
    code = run(line)
    assert code == 0, (line, code)
"""


def path(photo: Path, base: Path) -> list[list[str]]:
    """Every stage once: photo to mask, embedding, prior, adapter, scenes, exports."""
    model = ["--base", str(base), *SET]
    return [
        ["segment", str(photo), "--class", "dog", *model, *quick_runs.NO_GATE],
        ["init-embedding", "mask/dog", *model],
        ["train", "embedding/dog", "--no-preview", *model],
        ["generate", "a <dog> at night", "-n", "2", *model],
        ["compose", "a <dog> in the snow", "-n", "1", *model],
        ["export", "dog", "--format", "kohya", "--out", "out"],
        ["export", "dog", "--format", "embedding", "--out", "out/words"],
    ]


def made(folder: Path) -> dict[str, str]:
    """SHA-256 of every artifact, picture and export."""
    return {
        p.relative_to(folder).as_posix(): file_sha256(p)
        for part in ("artifacts", "out")
        for p in sorted((folder / part).rglob("*"))
        if p.is_file()
    }


@sized(None, 4)
def test_f10_every_stage_again(
    size: int, base: Path, dog_photo: Path, tmp_path: Path, say: Callable[[str], None]
) -> None:
    """Whatever the folder, locale, time zone, hash seed and umask: the same bytes from every stage."""
    found: list[dict[str, str]] = []
    for i in range(size):
        folder = tmp_path / f"a folder {i}" / "ü"
        folder.mkdir(parents=True)
        (folder / "objtune.toml").touch()
        zone, words = ("UTC", "Asia/Tokyo", "America/Lima")[i % 3], ("C", "C.UTF-8", "POSIX")[i % 3]
        settings = {
            **os.environ,
            "PYTHONHASHSEED": str(i),
            "TZ": zone,
            "LC_ALL": words,
            "PYTHONUTF8": str(i % 2),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", DO, ("022", "077", "000")[i % 3], json.dumps(path(dog_photo, base))]
        done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(made(folder))
    kinds = {name.split("/")[1] if name.startswith("artifacts") else "export" for name in found[0]}
    assert kinds == {"mask", "embedding", "prior", "adapter", "scene", "export"}
    differing = [name for name in found[0] if len({each.get(name) for each in found}) > 1]
    assert [name for name in differing if not name.endswith("/training.json")] == []  # that has the run's seconds
    assert all(each.keys() == found[0].keys() for each in found)
    say(
        f"F10 every stage in {size} processes of other folder, locale, time zone, hash seed and umask: {len(found[0]) - len(differing)} files of {len(kinds)} kinds, 1 SHA-256 each"
    )


PLACES = ["moved", "with a space", "größe", "犬", "a" * 100, "[x] {0} %s"]


@sized(None, len(PLACES))
def test_f17_a_project_that_moves(
    size: int, base: Path, dog_photo: Path, tmp_path: Path, say: Callable[[str], None]
) -> None:
    """Renamed, moved, behind a link, seen from below and from elsewhere: all commands work, finished work is found, no file knows where it was."""
    first = tmp_path / "born-here"
    first.mkdir()
    (first / "objtune.toml").touch()
    lines = path(dog_photo, base)
    assert (
        subprocess.run([sys.executable, "-c", DO, "022", json.dumps(lines)], cwd=first, capture_output=True).returncode
        == 0
    )
    wanted, before, tried = made(first), first, 0
    for name in PLACES[:size]:
        place = tmp_path / name / "project"
        place.parent.mkdir()
        shutil.move(before, place)
        link = tmp_path / f"link{tried}"
        link.symlink_to(place)
        below = place / "artifacts" / "mask"
        again = [line for line in lines if line[0] not in ("segment", "export")]
        quick = [["list"], ["show", "adapter/dog"], ["verify"], ["doctor", "--quick"], ["gc", "--dry-run"]]
        for where, more in (
            (place, []),
            (below, []),
            (tmp_path, ["--project", str(link)]),
            (link, []),
            (tmp_path, ["--project", os.path.relpath(place, tmp_path)]),
        ):
            todo = [[*line, *more] for line in (quick + again if where in (place, link) else quick)]
            done = subprocess.run(
                [sys.executable, "-c", DO, "022", json.dumps(todo)], cwd=where, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr[-3000:]
            tried += len(todo)
        assert made(place) == wanted, "finished work is reused where it lies"
        told = [str(tmp_path), "born-here", os.uname().nodename]
        told = [word for word in told if len(word) > 3]
        for file in (p for p in place.rglob("*") if p.is_file()):
            assert not [word for word in told if word.encode() in file.read_bytes()], file
        before = place
    names = [name.casefold() for name in wanted]
    assert len(names) == len(set(names)) and all(name.isascii() for name in wanted)
    say(
        f"F17 {size} moves of a project (spaces, other alphabets, links, from below and outside): {tried} command lines work, {len(wanted)} files found again, 0 words of an old place"
    )


def test_names_that_differ_in_case_alone_are_refused(project: Path) -> None:
    with pytest.raises(Exception, match="name"):
        refs.parse("mask/Rex@1")


LIMIT = 1.10
"""Times what is recorded."""
RECORDED = Path(__file__).with_name("memory.json")
QUICK = [
    "--set",
    "train.max_steps=2",
    "--set",
    "train.self_evaluation=false",
    "--set",
    "prior.num_class_images=2",
    "--set",
    "prior.num_predictions=2",
    "--set",
    "train.num_teacher_samples=2",
    "--set",
    "init-embedding.steps=2",
]
STAGES = {
    "segment": ["segment", "PHOTO", "--class", "dog"],
    "init-embedding": ["init-embedding", "mask/dog", *QUICK],
    "train": ["train", "embedding/dog", "--no-preview", *QUICK],
    "generate": ["generate", "a <dog> at night", "-n", "4", "--steps", "2"],
    "compose": ["compose", "a <dog> in the snow", "-n", "1", "--steps", "2"],
    "export": ["export", "dog", "--out", "out"],
    "verify": ["verify"],
}


LAUNCH = """
import os, sys
pid = os.posix_spawn(sys.executable, [sys.executable, "-m", "objtune_cli", *sys.argv[1:]], os.environ)
_, status, used = os.wait4(pid, 0)
print(used.ru_maxrss, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A small process in between: a child's peak begins at what its parent takes up."""


def peak(line: Sequence[str], folder: Path) -> float:
    """Peak resident memory of one command, MB, on one thread in full precision."""
    model = ["--precision", "fp32", "--device", "cpu"] if line[0] not in ("export", "verify") else []
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, *line, *model], cwd=folder, env=settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stderr.splitlines()[-1]) / 1e3


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count resident memory otherwise")
@sized(None, "full")
def test_f20_memory_of_each_stage(size: str, dog_photo: Path, project: Path, say: Callable[[str], None]) -> None:
    """On the toybox at its own size: what is recorded, and at most a tenth more."""
    recorded: dict[str, float] = json.loads(RECORDED.read_text())
    found = {}
    for stage, line in STAGES.items():
        found[stage] = peak([str(dog_photo) if word == "PHOTO" else word for word in line], project)
    told = ", ".join(f"{stage} {found[stage]:.0f} of {recorded[stage]:.0f}" for stage in found)
    assert all(found[stage] <= recorded[stage] * LIMIT for stage in found), told
    say(f"F20 peak memory, MB, of what is recorded: {told}")


WRITER = """
import sys
import numpy as np
from pathlib import Path
from objtune_cli.store.artifacts import Record
from objtune_cli.store.store import Store
peak = lambda: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
data = np.ones(int(sys.argv[2]), np.uint8)
before = peak()
Store.at(Path(sys.argv[1])).create(Record("mask", "x", {}, {}, {}, {}), {"x": data})
print((peak() - before) / 1e3)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
@sized(100, 800)
def test_f20_a_writer_takes_little_more_than_the_data(size: int, tmp_path: Path, say: Callable[[str], None]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path), str(size * 1_000_000)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 64
    say(f"F20 writing {size} MB takes {float(done.stdout):.1f} MB beside the data")


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_a_copy_of_the_data_would_be_noticed(tmp_path: Path) -> None:
    greedy = WRITER.replace("Store.at(", "kept = data.copy(); Store.at(")
    done = subprocess.run([sys.executable, "-c", greedy, str(tmp_path), "100000000"], capture_output=True, text=True)
    assert float(done.stdout) > 64
