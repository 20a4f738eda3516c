"""Several photos in one `train`: an artifact each, as from a command of its own; one end each; stopped and gone on with."""

import json
import os
import shutil
import signal
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageOps

from objtune_cli.config.sections import Train
from objtune_cli.errors import GateError
from objtune_cli.runtime import cpu
from objtune_cli.store.artifacts import Record
from objtune_cli.store.checkpoints import Checkpoint
from objtune_cli.store.project import Project
from objtune_cli.store.refs import parse
from objtune_cli.store.store import Store
from objtune_cli.training import parallel_trainers, unfinished_runs
from objtune_cli.workflow.context import StageContext
from tests.support.quick_runs import UNSCORED, write_settings

pytestmark = [pytest.mark.usefixtures("fast_sampling", "cached_segmentation"), pytest.mark.commands]

NAMES = ("rex", "cup", "tom")


@pytest.fixture
def photos(cli, base, dog_photo):
    """The example photo, also mirrored and darker: `-c dog --name rex` and so on behind each."""
    write_settings(base, max_steps=6)
    photo = Image.open(dog_photo).convert("RGB")
    words = []
    for name, kind, picture in zip(
        NAMES, ("dog", "mug", "dog"), (photo, ImageOps.mirror(photo), photo.point(lambda v: v // 2)), strict=True
    ):
        picture.save(f"{name}.png")
        cover = np.zeros((picture.height, picture.width), np.uint8)
        cover[picture.height // 4 : -picture.height // 4, picture.width // 3 : -picture.width // 3] = 255
        Image.fromarray(cover).save(f"{name}-mask.png")
        words.append((f"{name}.png", "-c", kind, "--name", name, f"--mask={name}-mask.png"))
    return words


@pytest.fixture
def train(cli, photos):
    return lambda *more, which=range(3): cli("train", *(word for i in which for word in photos[i]), *UNSCORED, *more)


@pytest.fixture(params=[1, 2], ids=["one lane", "two lanes"])
def lanes(request, monkeypatch):
    """As where so many processors are free."""
    monkeypatch.setattr(cpu, "worker_count", lambda wanted: min(wanted, request.param))


@pytest.fixture
def at_step(monkeypatch):
    """Do something after a step of all, before it is reported."""
    whole = parallel_trainers.train_step

    def when(wanted, action):
        def interrupted(trainers):
            failed = whole(trainers)
            if trainers[0].step == wanted:
                return action(trainers) or failed
            return failed

        monkeypatch.setattr(parallel_trainers, "train_step", interrupted)

    yield when
    monkeypatch.setattr(parallel_trainers, "train_step", whole)


def weights(name, version=1):
    return Store.at(Path()).read(parse(f"adapter/{name}@{version}"))[1]


def test_each_artifact_is_what_a_command_of_its_own_makes(train, lanes):
    """The same record but for rounding in metrics, so that either is reused for the other; weights within 2 % of the way gone."""
    done = train()
    assert (done.code, done.out.split()) == (0, [f"adapter/{name}@1" for name in NAMES]), done.err
    side = {name: (Store.at(Path()).read_record(parse(f"adapter/{name}@1")), weights(name)) for name in NAMES}
    again = train("--json")
    assert [r["reused"] for r in json.loads(again.out)["refs"]] == [True] * 3
    assert train(which=[1]).out == "adapter/cup@1\n"  # alone: it is there
    shutil.rmtree("artifacts/adapter")
    for i, name in enumerate(NAMES):
        assert train(which=[i]).out == f"adapter/{name}@1\n"
        record, own = Store.at(Path()).read_record(parse(f"adapter/{name}@1")), weights(name)
        assert record.identity() == side[name][0].identity() and own.keys() == side[name][1].keys()
        assert record.metrics == pytest.approx(side[name][0].metrics, rel=1e-2)
        ups = [k for k in own if "lora_B" in k]
        assert ups  # they begin at 0
        far, gone = (
            sum(float(np.square(v).sum()) for v in values) ** 0.5
            for values in ([own[k] - side[name][1][k] for k in ups], [own[k] for k in ups])
        )
        assert far < 0.02 * gone


def test_of_one_photo_the_prior_is_made_beside_the_embedding_with_the_same_bytes(train, monkeypatch):
    made = []
    for count in (1, 2):
        monkeypatch.setattr(cpu, "worker_count", lambda wanted, count=count: min(wanted, count))
        assert train(which=[0]).code == 0
        made.append({path: path.read_bytes() for path in Path("artifacts").rglob("*.safetensors")})
        shutil.rmtree("artifacts")
    assert made[0] == made[1] and {path.parts[1] for path in made[0]} == {"mask", "embedding", "prior", "adapter"}


def test_only_what_is_not_there_is_made(train):
    assert train(which=[0]).out == "adapter/rex@1\n"
    before = Path("artifacts/adapter/rex/v001.safetensors").stat().st_mtime_ns
    done = train()
    assert done.out.split() == [f"adapter/{name}@1" for name in NAMES] and "adapter/rex@1 is up to date" in done.err
    assert Path("artifacts/adapter/rex/v001.safetensors").stat().st_mtime_ns == before
    forced = train("--force")
    assert forced.out.split() == [f"adapter/{name}@2" for name in NAMES]


def test_stopped_and_continued_equals_unbroken_bit_for_bit(train, at_step, lanes):
    assert train().code == 0
    unbroken = {name: Path(f"artifacts/adapter/{name}/v001.safetensors").read_bytes() for name in NAMES}
    shutil.rmtree("artifacts/adapter")
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    at_step(3, lambda _: signal.raise_signal(signal.SIGTERM))
    stopped = train()
    assert (stopped.code, stopped.out) == (143, "") and "stopped at step 3 of 6, state saved" in stopped.err
    assert not Path("artifacts/adapter").exists() and len(list(Path(".objtune/state").rglob("*.safetensors"))) == 1
    at_step(0, lambda _: None)
    resumed = train()
    signal.signal(signal.SIGTERM, handler)
    assert resumed.code == 0 and "resumes at step 3" in resumed.err
    assert {name: Path(f"artifacts/adapter/{name}/v001.safetensors").read_bytes() for name in NAMES} == unbroken
    assert list(Path(".objtune/state").iterdir()) == []


def test_one_that_ends_early_is_there_while_the_others_go_on(train, at_step, monkeypatch):
    """And one cut off right after that loses nothing and repeats nothing that is published."""
    from objtune_cli.training.trainer import Trainer

    total = Trainer.total.fget
    monkeypatch.setattr(Trainer, "total", property(lambda self: 3 if "cup" in self.tokens.trainable else total(self)))
    assert train().code == 0
    unbroken = {name: Path(f"artifacts/adapter/{name}/v001.safetensors").read_bytes() for name in NAMES}
    assert Store.at(Path()).read_record(parse("adapter/cup@1")).metrics["steps"] == 3
    shutil.rmtree("artifacts/adapter")

    def cut(trainers):
        assert [t.name for t in trainers] == ["run0", "run2"] and Path(
            "artifacts/adapter/cup/v001.safetensors"
        ).is_file()
        raise MemoryError

    at_step(4, cut)
    assert train().code == 7
    at_step(0, lambda _: None)
    resumed = train()
    assert resumed.code == 0 and "resumes at step 3" in resumed.err
    assert {name: Path(f"artifacts/adapter/{name}/v001.safetensors").read_bytes() for name in NAMES} == unbroken


def test_room_for_all_states_is_held_from_before_the_first_step(train, at_step, monkeypatch, project):
    """Twice all states at first, for one is written beside the other; less as they end; nothing at the end."""
    from objtune_cli.training.trainer import Trainer

    total, held, published = Trainer.total.fget, [], []
    monkeypatch.setattr(Trainer, "total", property(lambda self: 3 if "cup" in self.tokens.trainable else total(self)))

    def look(_):
        held.append(sum(p.stat().st_size for p in (project / ".objtune/tmp").iterdir()))
        published.append(len(list(Path("artifacts/adapter").glob("*/v*.safetensors"))))

    at_step(5, lambda _: signal.raise_signal(signal.SIGTERM))
    whole = parallel_trainers.train_step
    monkeypatch.setattr(parallel_trainers, "train_step", lambda trainers: (look(trainers), whole(trainers))[1])
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    stopped = train()
    signal.signal(signal.SIGTERM, handler)
    assert stopped.code == 143 and published == [0, 0, 0, 1, 1], stopped.err
    two = next(Path(".objtune/state").rglob("*.safetensors")).stat().st_size
    assert held[0] > 2 * 1.4 * two and held[0] == held[2] > held[3] > two
    assert list((project / ".objtune/tmp").iterdir()) == []
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    full = train("--force")
    assert full.code == 7 and "error: no space for what this will write below" in full.err and len(held) == 5


def test_one_that_diverges_stops_no_other(train, at_step):
    at_step(
        2, lambda trainers: {trainers[1]: GateError("training diverged at step 1: the loss is nan", "try a lower rate")}
    )
    done = train()
    assert (
        (done.code, done.out) == (9, "")
        and "cup diverged; the others are there" in done.err
        and "the loss is nan" in done.err
    )
    assert sorted(p.name for p in Path("artifacts/adapter").iterdir()) == ["rex", "tom"]
    at_step(0, lambda _: None)
    again = train()
    assert again.out.split() == [f"adapter/{name}@1" for name in NAMES] and again.err.count("is up to date") >= 2


def test_several_objects_of_one_of_the_photos_share_an_adapter(cli, train, photos):
    """`rex.png` with two objects beside a photo with one."""
    Path("rex-mask.png").rename("left.png")
    cover = np.zeros_like(np.asarray(Image.open("left.png")))
    cover[: cover.shape[0] // 5, : cover.shape[1] // 4] = 255
    Image.fromarray(cover).save("corner.png")
    done = cli(
        "train",
        "rex.png",
        "-c",
        "dog",
        "-c",
        "mug",
        "--mask",
        "dog=left.png",
        "--mask=mug=corner.png",
        *photos[2],
        *UNSCORED,
    )
    assert (done.code, done.out.split()) == (0, ["adapter/dog-mug@1", "adapter/tom@1"]), done.err


def test_a_photo_named_once_for_each_of_its_objects_makes_an_adapter_of_each(cli, photos):
    """Objects of one photo that are to share nothing: one command, a mask of its own for each, learned side by side."""
    half = np.asarray(Image.open("rex-mask.png")).copy()
    half[:, half.shape[1] // 2 :] = 0
    Image.fromarray(half).save("half.png")
    done = cli(
        "train",
        "rex.png",
        "-c",
        "dog",
        "--name",
        "rex",
        "--mask=rex-mask.png",
        "rex.png",
        "-c",
        "mug",
        "--name",
        "cup",
        "--mask=half.png",
        *UNSCORED,
    )
    assert (done.code, done.out.split()) == (0, ["adapter/rex@1", "adapter/cup@1"]), done.err
    for name, word in {"rex": "dog", "cup": "mug"}.items():
        record = Store.at(Path()).read_record(parse(f"adapter/{name}@1"))
        assert record.objects == {name: word}
    covered = [
        float((Store.at(Path()).read(parse(f"mask/{name}@1"))[1]["mask"] > 127).mean()) for name in ("rex", "cup")
    ]
    assert covered[1] < 0.7 * covered[0]


def test_scores_and_sheets_of_each(cli, photos):
    done = cli("train", *photos[0], *photos[2], *UNSCORED[:-3], "--json")
    document = json.loads(done.out)
    assert done.code == 0 and len(document["images"]) == 2 and all(Path(p).is_file() for p in document["images"])
    assert all({"identity", "drift", "copy", "prompt", "object"} <= set(m) for m in document["metrics"].values())
    assert "\nrex: identity " in done.err and "\ntom: identity " in done.err


def test_each_object_of_a_photo_has_the_steps_of_one():
    from objtune_cli.config.sections import Train
    from objtune_cli.training.train import fill_defaults

    own = {"max_steps": 350}
    assert [fill_defaults(Train(), own, n).max_steps for n in (1, 2, 3)] == [350, 700, 1050]
    assert [fill_defaults(Train(max_steps=40), own, n).max_steps for n in (1, 3)] == [40, 40]
    assert [fill_defaults(Train(), own, n).attention_loss_weight for n in (1, 2)] == [
        0.0,
        Train().multi_object_attention_loss_weight,
    ]
    assert fill_defaults(Train(attention_loss_weight=0.01), own, 2).attention_loss_weight == 0.01
    assert fill_defaults(Train(multi_object_attention_loss_weight=0.0), own, 2).attention_loss_weight == 0.0
    assert [fill_defaults(Train(), own, n).single_object_prob for n in (1, 2)] == [0.0, Train().single_object_prob]


def test_a_run_of_several_photos_is_told_to_a_command_for_one_of_them(project):
    settings, said = {"steps": 8, "lr": 0.5}, []
    records = [
        Record("adapter", name, {name: name}, {}, settings, {"id": "tiny", "fingerprint": "1"})
        for name in ("dog", "mug")
    ]
    state = Checkpoint(Project(project).store, "a" * 64)
    ctx = StageContext(Project(project), None, None, SimpleNamespace(note=said.append))
    state.about = unfinished_runs.checkpoint_header(
        ctx, [(record, SimpleNamespace(step=3, total=8)) for record in records], "cpu"
    )
    state.save({})
    faster = replace(records[1], config=settings | {"lr": 0.25, "steps": 9})
    for record, computed in ((records[0], "cpu"), (faster, "cpu"), (records[1], "cuda")):
        unfinished_runs.report_earlier_runs(ctx, record)
        unfinished_runs.report_restart(ctx, record, "b" * 64, computed)
    assert [line.split("stopped at 3 and is not resumed: ")[1].split("; the command")[0] for line in said] == [
        "a run of several photos and a run of one photo cannot resume each other",
        "the settings differ (max_steps 8, now 9; learning_rate 0.5, now 0.25)",
        "the device, number format or number of threads differs (cpu, now cuda)",
    ]
    unfinished_runs.report_earlier_runs(ctx, records[0])
    unfinished_runs.report_restart(ctx, records[0], "a" * 64, "cpu")
    assert len(said) == 3, "its own state is gone on with"
    assert unfinished_runs.changed_settings({}, {f.name: f.metadata["absent"] for f in fields(Train)}) == ""
