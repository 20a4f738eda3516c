"""Two processes (gloo): the run of one process with the same rows, within float error, and the same command line."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)

# isort: split
import pytest
import torch
from safetensors.torch import load_file

from objtune_cli.runtime import distributed
from tests.conftest import REPOSITORY
from tests.training.test_memory_savings import CONFIG, trained

pytestmark = [pytest.mark.usefixtures("fast_sampling", "cached_segmentation"), pytest.mark.commands]

WORK = """
import torch
import sys
from dataclasses import replace
from pathlib import Path
from safetensors.torch import save_file
from objtune_cli.lora import layers
from objtune_cli.models import loading
from objtune_cli.runtime import distributed
from objtune_cli.training import trainer as training
from tests.support import tiny_sd1
from tests.training.test_memory_savings import CONFIG, CPU
team = distributed.join_process_group("cpu")
model = loading.load(Path(sys.argv[1]), CPU, torch.float32)
model.process_group = team
trainer = training.Trainer(model, tiny_sd1.subjects(model, int(sys.argv[4])), {}, replace(CONFIG, batch_size=int(sys.argv[3])))
for _ in range(CONFIG.max_steps):
    trainer.train_step()
save_file(layers.state_dict(model) | trainer.tokens.as_tensors(), f"{sys.argv[2]}.{team.rank}")
"""


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")


def environment() -> dict[str, str]:
    variables = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    return variables | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def launched(*args: object, cwd: Path, by: tuple[str, ...] = TORCHRUN) -> subprocess.CompletedProcess[str]:
    """Two processes by a launcher, torch's if no other is named."""
    return subprocess.run(
        [sys.executable, *by, *map(str, args)], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=280
    )


@pytest.mark.parametrize(("batch", "objects"), [(4, 2), pytest.param(3, 1, marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_learns_from_as_many_rows(
    base: Path, tmp_path: Path, batch: int, objects: int
) -> None:
    """Also where the rows do not divide evenly, and of several objects, whose tokens rest while others are shown."""
    (tmp_path / "work.py").write_text(WORK)
    done = launched("work.py", base, tmp_path / "out", batch, objects, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (load_file(tmp_path / f"out.{rank}") for rank in (0, 1))
    alone = trained(base, replace(CONFIG, batch_size=batch), objects=objects)
    assert first.keys() == alone.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())  # the processes hold the same
    for key, value in first.items():
        torch.testing.assert_close(value, alone[key], rtol=1e-4, atol=2e-6)
    half = trained(base, replace(CONFIG, batch_size=2), objects=objects)
    assert max(float((first[key] - half[key]).abs().max()) for key in first) > 1e-4  # half the rows are another run


@pytest.mark.parametrize("by", [TORCHRUN, ACCELERATE, ()], ids=["torchrun", "accelerate", "our own option"])
@pytest.mark.slow
def test_the_command_line_in_two_processes(by: tuple[str, ...], cli, base: Path, dog_photo: Path) -> None:
    few = ["--set", "train.max_steps=3", "--set", "train.num_augmentations=2", "--set", "train.rank=2", "--set", "prior.num_class_images=2", "--set", "prior.num_predictions=4", "--set", "train.num_teacher_samples=2",
           "--set", "init-embedding.steps=2", "--set", "train.batch_size=2", "--set", "segment.min_class_probability=0"]  # fmt: skip
    command = [
        "train",
        dog_photo,
        "--class",
        "dog",
        "--box",
        "40,40,600,600",
        "--base",
        base,
        "--no-preview",
        "--device",
        "cpu",
        *few,
    ]
    own = [] if by else ["--num-processes", "2"]
    done = launched("-m", "objtune_cli", *command, *own, cwd=Path.cwd(), by=by)
    assert (done.returncode, done.stdout) == (0, "adapter/dog@1\n"), done.stderr[-2000:]
    two = load_file("artifacts/adapter/dog/v001.safetensors")
    assert cli(*command, "--force").out == "adapter/dog@2\n"
    one = load_file("artifacts/adapter/dog/v002.safetensors")
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_what_one_of_several_cannot_do_is_said_once_with_its_exit_code(
    project: Path, dog_photo: Path, base: Path
) -> None:
    """The first process refuses the mask before the others meet it; they are not waited for."""
    command = [
        "train",
        dog_photo,
        "--class",
        "dog",
        "--base",
        base,
        "--device",
        "cpu",
        "--num-processes",
        "2",
        "--set",
        "segment.min_class_probability=1",
    ]
    done = launched("-m", "objtune_cli", *command, cwd=project, by=())
    assert (done.returncode, done.stdout) == (9, ""), done.stderr
    assert [
        line.split(":")[0] for line in done.stderr.splitlines() if line.startswith(("error", "hint", "Traceback"))
    ] == [
        "error",
        "hint",
    ], done.stderr


@pytest.mark.slow
def test_a_signal_stops_all_of_them_with_their_state_saved(project: Path, dog_photo: Path, base: Path) -> None:
    command = ["train", dog_photo, "--class", "dog", "--box", "40,40,600,600", "--base", base, "--no-preview", "--device", "cpu", "--steps", "5000",
               "--set", "segment.min_class_probability=0", "--set", "prior.num_class_images=2", "--set", "prior.num_predictions=4", "--set", "train.num_teacher_samples=2", "--set", "init-embedding.steps=2", "--num-processes", "2"]  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-m", "objtune_cli", *map(str, command)],
        cwd=project,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("train "):
                break
        running.send_signal(signal.SIGTERM)
        said = running.communicate(timeout=60)[1]
    assert (
        running.returncode == 143 and "Traceback" not in said and list((project / ".objtune").rglob("*.safetensors"))
    ), said


def test_numbers_of_processes_that_are_none_are_2(cli, dog_photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (["--num-processes", "0"], ["--num-processes=two"], ["--num-processes"]):
        done = cli("train", dog_photo, "--class", "dog", *given)
        assert (done.code, done.out) == (2, "") and "--num-processes" in done.err
    for name, value in {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    assert "`accelerate launch --cpu` starts one process" in cli("train", "nothing.jpg", "--class", "dog").err


def test_one_process_is_no_team(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.join_process_group("cpu") is None and not distributed.is_distributed()
