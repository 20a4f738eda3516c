"""Two trainings side by side, timed: what they build, what they say, what happens when one ends."""

import mmap
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from objtune_cli.bench.methods import METHODS
from objtune_cli.bench.suites import speed
from objtune_cli.bench.suites.speed import StepTimer, Task
from objtune_cli.bench.worker_processes import WorkerProcesses
from objtune_cli.errors import ResourceError
from objtune_cli.runtime import memory

pytestmark = pytest.mark.commands

TRAINING = {
    "max_steps": 9,
    "learning_rate": 1e-3,
    "embedding_lr": 1e-2,
    "target_modules": "all",
    "batch_size": 2,
    "target_blocks": "all",
    "prior_loss_interval": 2,
    "single_forward": False,
}


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support import tiny_sd1

    return tiny_sd1.build(tmp_path_factory.mktemp("speed") / "tiny", clip=True)


@pytest.mark.parametrize("name", speed.COMPARED)
def test_what_is_timed_is_the_methods_own_step(tiny_base: Path, name: str) -> None:
    task = Task("base", str(tiny_base), TRAINING, name, "cpu", "fp32")
    trainer = speed.build_trainer(task, speed._load_model(task))
    own = METHODS[name].train
    assert trainer.config.batch_size == own.get(
        "batch_size", TRAINING["batch_size"]
    ) and trainer.config.single_forward == own.get("single_forward", False)
    assert trainer.config.prior_loss_interval == own.get("prior_loss_interval", 2) and len(trainer.batches.priors) == 1
    before = [p.detach().clone() for p in trainer.lora]
    found = StepTimer(trainer).round(2)
    assert trainer.step == 2 and any(not torch.equal(a, b) for a, b in zip(before, trainer.lora, strict=True))
    assert found.keys() == {"step_s", *(f"{p}_s" for p in speed.PARTS), "memory_mb"}
    assert found["step_s"] == pytest.approx(sum(found[f"{p}_s"] for p in speed.PARTS))
    assert all(v > 0 for k, v in found.items() if k.endswith("_s"))


def test_live_tensors_are_the_weights_and_what_a_step_makes(tiny_base: Path) -> None:
    """More rows, more of what a step makes; the steps are taken."""
    found = {}
    for rows in (2, 8):
        task = Task("base", str(tiny_base), {**TRAINING, "batch_size": rows}, "objtune", "cpu", "fp32")
        trainer = speed.build_trainer(task, speed._load_model(task))
        weights = (
            sum(
                t.untyped_storage().nbytes()
                for m in (trainer.model.denoiser, trainer.model.text_encoder)
                for t in m.parameters()
            )
            / memory.MB
        )
        found[rows] = speed.measure_live_tensors(trainer, 2)["live_tensors_mb"] - weights
        assert trainer.step == 3
    assert 0 < 2 * found[2] < found[8]


@pytest.mark.parametrize("count", speed.JOINT)
def test_so_many_objects_of_one_photo_are_learned_together(tiny_base: Path, count: int) -> None:
    """Each in a part of its own of the same area in all; the frozen base is asked as often for all combinations as for one object."""
    trainer, seconds = speed._build_timed(Task("base", str(tiny_base), TRAINING, "objtune", "cpu", "fp32", count))
    masks = torch.stack([s.photos[0].mask for s in trainer.subjects])
    assert len(masks) == count and masks.sum(0).max() == 1 and seconds > 0
    assert float(masks.sum()) == pytest.approx(16 * 16, rel=0.1)
    assert len(trainer.batches.views) == 2**count - 1
    cached = trainer.teacher.predictions
    asked = sum(len(batch.indices) for templates in cached for batch in templates.values()) / len(cached[0])
    assert 24 <= asked < 24 + len(trainer.batches.views)
    trainer.train_step()


def test_the_cost_of_objects_is_told_beside_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 0.1, 0.2 and 0.3 s, 9, 18 and 27 of them, after 1, 2 and 3 s."""
    monkeypatch.setattr(
        speed,
        "_side_by_side",
        lambda ctx, label, tasks, rounds: {
            n: [{"prepare_s": t.objects, "step_s": t.objects / 10}] * rounds for n, t in tasks.items()
        },
    )
    base = SimpleNamespace(training=TRAINING)
    ctx = SimpleNamespace(base=base, common=SimpleNamespace(base="tiny", device="cpu", precision="fp32"))
    rows = {(r["method"], r["measure"]): r["mean"] for r in speed.measure_joint_training(ctx, 2)}
    assert rows["1 object of a photo", "run_s"] == pytest.approx(1.9) and rows[
        "3 objects of a photo", "run_s"
    ] == pytest.approx(11.1)
    assert rows["ratio of 2 to 1", "run_s"] == pytest.approx(5.6 / 1.9, abs=1e-3) and rows[
        "ratio of 3 to 1", "step_s"
    ] == pytest.approx(3)


def test_the_clock_counts_each_part_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 1 s words, 3 s forward, 5 s backward and 2 s optimizer, on a clock of our own."""
    now = [0.0]

    def spend(seconds: float):
        return lambda *_, **__: now.__setitem__(0, now[0] + seconds)

    model = SimpleNamespace(
        text_encoder=SimpleNamespace(forward=spend(1)),
        denoiser=SimpleNamespace(forward=spend(3)),
        device=torch.device("cpu"),
    )
    trainer = SimpleNamespace(model=model, optimizer=SimpleNamespace(step=spend(2)))

    def advance() -> None:
        trainer.model.text_encoder.forward(), trainer.model.denoiser.forward(), spend(5)(), trainer.optimizer.step()

    trainer.train_step = advance
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    found = StepTimer(trainer).round(4)
    assert {k: v for k, v in found.items() if k.endswith("_s")} == {
        "step_s": 11,
        "text_encoder_s": 1,
        "forward_s": 3,
        "backward_s": 5,
        "optimizer_s": 2,
    }


def test_the_peak_is_forgotten_and_seen_anew() -> None:
    memory.reset_peak("cpu")
    low = memory.peak_mb("cpu")
    if not low:
        pytest.skip("this system hides it")
    with mmap.mmap(-1, 200 * 2**20) as block:  # given back at once, as memory of an allocator is not
        block.write(b"1" * len(block))
        high = memory.peak_mb("cpu")
    assert high > low + 100
    memory.reset_peak("cpu")
    assert memory.peak_mb("cpu") < high - 100


def _ends(pipe, task) -> None:
    pipe.close()


def _fails(pipe, task) -> None:
    pipe.send({"failed": "no such device", "hint": "take another"})


@pytest.mark.parametrize(
    ("child", "said"), [(_ends, "the process that measures objtune ended"), (_fails, "no such device")]
)
def test_a_child_that_ends_is_heard(child, said: str) -> None:
    import multiprocessing

    with pytest.raises(ResourceError, match=said), WorkerProcesses(speed._work) as children:
        mine, theirs = multiprocessing.Pipe()
        child(theirs, None)
        children.pipes["objtune"] = mine
        children.receive("objtune", lambda: None)


def test_the_large_model_opens_in_a_process_that_has_opened_nothing() -> None:
    code = "from objtune_cli.models import random_weights; print(random_weights.UNet2DConditionModel.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "UNet2DConditionModel\n", done.stderr[-2000:]
