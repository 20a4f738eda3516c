"""F2, F5: training killed at random moments and begun again ends in the bytes of a run that nobody disturbed; and a disk that is nearly full."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.scaled import sized

SERVER = '''
"""A process that has imported everything once and forks a child for every attempt."""
import json, os, random, shutil, signal, sys, time
from pathlib import Path
base, photo, kills, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
SETTINGS = [f"train.max_steps={steps}", "train.rank=2", "train.num_augmentations=4", "init-embedding.steps=3", "prior.num_class_images=2", "prior.num_predictions=4", "train.num_teacher_samples=2",
            "train.self_evaluation=false", "segment.min_class_probability=0", "segment.min_score_margin=-99", "segment.min_score=-99"]
LINE = ["train", photo, "--class", "dog", "--base", base, "--no-preview", "--quiet", *(w for s in SETTINGS for w in ("--set", s))]
import objtune_cli.models.base_model
import torch
torch.set_num_threads(1)
import objtune_cli.training.trainer, objtune_cli.embedding.prototype, objtune_cli.training.class_prior, objtune_cli.models.clip, objtune_cli.segmentation.sam
import diffusers, transformers, peft, cv2
from objtune_cli.cli.app import run
from objtune_cli.training.trainer import Trainer
from objtune_cli.training import run_loop

def begin(folder, change=None):
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        run_loop.SAVE_INTERVAL = 0.0
        if change:
            change()
        code = run([*LINE, "--project", str(folder)])
    finally:
        os._exit(code)

def end(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def result(folder):
    return (folder / "artifacts/adapter/dog/v001.safetensors").read_bytes()

def leftovers(folder):
    return len(list((folder / ".objtune").rglob("*.*")))

def project(name):
    folder = Path(name)
    folder.mkdir()
    (folder / "objtune.toml").touch()
    return folder

whole = project("whole")
assert end(begin(whole)) == 0
shutil.rmtree(whole / "artifacts/adapter")
started = time.monotonic()
assert end(begin(whole)) == 0  # the stages before are there: this is the time of training alone
alone = time.monotonic() - started
wanted = result(whole)

def disturbed(folder, rng, limit, change=None):
    """Kill at random moments until it ends by itself; how often."""
    count = 0
    while True:
        pid = begin(folder, change)
        if count < limit:
            time.sleep(rng.uniform(0, alone))
            os.kill(pid, signal.SIGKILL)
        code = end(pid)
        if code != -signal.SIGKILL:
            assert code == 0, code
            return count
        count += 1

rng = random.Random(2)
killed = runs = differ = 0
started = time.monotonic()
while killed < kills:
    folder = project(f"run{runs}")
    shutil.copytree(whole / "artifacts", folder / "artifacts", ignore=shutil.ignore_patterns("adapter") if runs % 4 < 3 else None)
    if runs % 4 == 3:  # every fourth begins at the photo
        shutil.rmtree(folder / "artifacts")
    killed += disturbed(folder, rng, min(kills - killed, 12))
    differ += result(folder) != wanted
    runs += 1
    assert not list((folder / ".objtune/state").rglob("*.safetensors"))
    shutil.rmtree(folder)
taken = time.monotonic() - started

def forget_optimizer():
    restore = Trainer.restore
    def changed(self, kept):
        restore(self, kept)
        self.optimizer.state.clear()
    Trainer.restore = changed

def forget_step():
    restore = Trainer.restore
    def changed(self, kept):
        restore(self, kept)
        self.step = self.step - 1 if self.step > 1 else self.step
    Trainer.restore = changed

def die_after_four():
    """Killed once the state of the fourth step is on the disk: never before there is one, never after the end."""
    save, saved = run_loop.Checkpoint.save, []
    def changed(self, state):
        save(self, state)
        saved.append(True)
        if len(saved) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
    run_loop.Checkpoint.save = changed

noticed = {}
for change in (forget_optimizer, forget_step):
    folder = project(change.__name__)
    shutil.copytree(whole / "artifacts", folder / "artifacts", ignore=shutil.ignore_patterns("adapter"))
    assert end(begin(folder, die_after_four)) == -signal.SIGKILL
    assert end(begin(folder, change)) == 0
    noticed[change.__name__] = result(folder) != wanted
print(json.dumps({"killed": killed, "runs": runs, "differ": differ, "alone": alone, "taken": taken, "noticed": noticed}))
'''


@pytest.mark.timeout(3600)
@sized((2, 8), (200, 16))
def test_f2_killed_training(
    size: tuple[int, int], base: Path, dog_photo: Path, project: Path, say: Callable[[str], None]
) -> None:
    kills, steps = size
    line = [sys.executable, "-c", SERVER, str(base), str(dog_photo), str(kills), str(steps)]
    done = subprocess.run(line, cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed"] >= kills
    assert told["differ"] == 0
    assert told["noticed"] == {"forget_optimizer": True, "forget_step": True}, (
        "what is compared does not depend on the saved state"
    )
    say(
        f"F2  {told['killed']} SIGKILL in {told['runs']} trainings of {told['alone']:.1f} s, each begun again to the end: {told['differ']} of {told['runs']} "
        f"adapters differ from the undisturbed one; without optimizer state or a step back they do (negative controls); {told['taken']:.0f} s"
    )


NARROW = """
import json, os, shutil, sys
from pathlib import Path
from objtune_cli.cli.app import run
base, photo, shares = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
SETTINGS = ["train.max_steps=4", "train.rank=2", "train.num_augmentations=2", "init-embedding.steps=2", "prior.num_class_images=2", "prior.num_predictions=2", "train.num_teacher_samples=2", "train.self_evaluation=false", "segment.segmenter=grabcut",
            "segment.min_class_probability=0", "segment.min_score_margin=-99", "segment.min_score=-99"]
LINE = ["train", photo, "--class", "dog", "--base", base, "--no-preview", "--quiet", *(w for s in SETTINGS for w in ("--set", s))]
Path("objtune.toml").touch()
assert run(LINE) == 0
size = Path("artifacts/adapter/dog/v001.safetensors").stat().st_size
told = []
for megabytes in shares:
    shutil.rmtree("artifacts/adapter", ignore_errors=True)
    there = os.statvfs(".")
    Path("filler").write_bytes(bytes(max(0, there.f_bavail * there.f_frsize - int(megabytes * 1e6))))
    pid = os.fork()
    if not pid:
        code = 99
        try:
            code = run([*LINE, "--events", sys.argv[4]])
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said = [json.loads(line) for line in open(sys.argv[4])]
    os.unlink(sys.argv[4])
    steps = sum(each.get("stage") == "train" for each in said)
    left = len(list(Path(".objtune/tmp").iterdir())) + len(list(Path(".objtune/state").rglob("*.safetensors")))
    told.append([code, steps, left])
    os.unlink("filler")
print(json.dumps(told))
"""


@pytest.mark.timeout(900)
@sized([0.5, 8.0], [0.25 * i for i in range(1, 17)])
def test_f5_training_on_a_disk_that_is_nearly_full(
    size: list[float], base: Path, dog_photo: Path, tmp_path: Path, say: Callable[[str], None]
) -> None:
    """Either it says before the first step that what it will write does not fit, or it comes to its end: never in between."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=64m tmpfs "$1" && cd "$1" && shift && exec "$@"'
    line = [sys.executable, "-c", NARROW, str(base), str(dog_photo), json.dumps(size), str(tmp_path / "events")]
    done = subprocess.run(
        ["unshare", "-Urm", "bash", "-c", script, "bash", str(disk), *line], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = [tuple(each) for each in json.loads(done.stdout.splitlines()[-1])]
    assert set(told) == {(7, 0, 0), (0, 4, 0)}, told
    refused = told.count((7, 0, 0))
    assert told[:refused] == [(7, 0, 0)] * refused, "what refuses with more room than another run had is wrong"
    say(
        f"F5  training with {size[0]} to {size[-1]} MB free, {len(size)} runs: {refused} refused before the first step (exit 7), {len(size) - refused} came to their end, 0 stopped in between"
    )
