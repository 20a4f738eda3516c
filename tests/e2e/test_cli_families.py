"""The whole path through the command line on random bases of the other families."""

import json
from pathlib import Path

import pytest
import torch

from objtune_cli.store import refs
from objtune_cli.store.store import Store
from tests.support import tiny_families, tiny_sd1

pytestmark = [pytest.mark.usefixtures("fast_sampling", "cached_segmentation"), pytest.mark.commands]

SETTINGS = """
base = "{base}"
[train]
max_steps = 3
rank = 2
num_augmentations = 2
num_teacher_samples = 2
[prior]
num_class_images = 2
num_predictions = 4
[init-embedding]
steps = 3
[generate]
num_inference_steps = 2
num_images = 1
[segment]
min_class_probability = 0.0
min_score_margin = -99.0
min_score = -99.0
"""
WIDTHS = {
    "sd2": (tiny_sd1.WIDTH,),
    "sdxl": (tiny_sd1.WIDTH, tiny_families.WIDTH_2),
    "sd3": (tiny_sd1.WIDTH, tiny_families.WIDTH_2),
    "sd35": (tiny_sd1.WIDTH, tiny_families.WIDTH_2),
    "flux2-klein": (tiny_families.QWEN_WIDTH,),
    "z-image": (tiny_families.QWEN_WIDTH,),
}
QUICK = ("sdxl", "flux2-klein", "z-image")
"""The families that are not left to `-m slow`."""


@pytest.fixture(scope="session")
def kin_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("kin")
    return {
        "sd2": tiny_families.sd2(top / "two"), "sdxl": tiny_families.sdxl(top / "xl"), "sd3": tiny_families.sd3(top / "three"), "sd35": tiny_families.sd3(top / "three-five", newer=True),
        "flux2-klein": tiny_families.flux2_klein(top / "klein", with_clip=True), "z-image": tiny_families.z_image(top / "z", with_clip=True),
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name not in QUICK else name for name in WIDTHS]
)
def test_train_generate_compose_export(cli, kin_bases, dog_photo, name):
    Path("objtune.toml").write_text(SETTINGS.format(base=kin_bases[name]))
    for which in ("rex", "cup"):
        done = cli("train", dog_photo, "--class", "dog", "--name", which, "--json")
        assert done.code == 0, done.err
    assert Path("artifacts/adapter/cup/v001/preview.png").is_file()
    assert json.loads(done.out)["metrics"]["adapter/cup@1"].keys() >= {"identity", "copy", "drift"}
    store = Store.at(Path())
    record, tensors = store.read(refs.Ref("adapter", "rex", 1))
    assert record.base["family"] == name
    stored = [tensors[key].shape[1] for key in ("token.rex", "token_2.rex") if key in tensors]
    assert stored == list(WIDTHS[name])
    _, started = store.read(refs.Ref("embedding", "rex", 1))
    for first, last in zip(("text_encoder", "text_encoder_2"), ("token.rex", "token_2.rex"), strict=True):
        if first in started:  # every tower's vectors learn, and keep their length
            assert not (started[first][0] == tensors[last][0]).all()
            lengths = [float(torch.tensor(t[0]).norm()) for t in (started[first], tensors[last])]
            assert lengths[0] == pytest.approx(lengths[1], rel=1e-4)

    shown = cli("generate", "a photo of <rex>")
    assert (shown.code, shown.out.split()) == (0, ["artifacts/scene/rex/v001/001.png"])
    both = cli("compose", "<rex> and <cup>", "--place", "rex=left", "--place", "cup=right", "--retries", 0)
    assert both.code == 0 and Path("artifacts/scene/rex-cup/v001/001.png").is_file(), both.err
    for form in ("diffusers", "kohya", "embedding"):
        assert cli("export", "rex", "--format", form, "--out", f"out-{form}").code == 0


@pytest.mark.parametrize("name", [pytest.param("sdxl", marks=pytest.mark.slow), "sd3", "flux2-klein", "z-image"])
def test_a_run_goes_on_where_it_stopped(cli, kin_bases, dog_photo, monkeypatch, name):
    from objtune_cli.cli.signals import StopFlag

    Path("objtune.toml").write_text(SETTINGS.format(base=kin_bases[name]))
    command = ("train", dog_photo, "--class", "dog", "--no-preview", "--set", "train.self_evaluation=false")
    assert cli(*command).code == 0
    whole = Path("artifacts/adapter/dog/v001.safetensors").read_bytes()
    Path("artifacts/adapter/dog/v001.safetensors").unlink()
    from objtune_cli.training import parallel_trainers

    train_step, asked = parallel_trainers.train_step, []
    with monkeypatch.context() as patch:
        patch.setattr(parallel_trainers, "train_step", lambda trainers: (train_step(trainers), asked.append(1))[0])
        patch.setattr(StopFlag, "stop_signal", lambda self: 15 if len(asked) == 2 else 0)
        assert cli(*command).code == 143
    resumed = cli(*command)
    assert resumed.code == 0 and "resumes at step 2" in resumed.err
    assert Path("artifacts/adapter/dog/v001.safetensors").read_bytes() == whole


def test_objects_of_another_family_are_refused(cli, kin_bases, dog_photo):
    Path("objtune.toml").write_text(SETTINGS.format(base=kin_bases["sd2"]))
    assert cli("train", dog_photo, "--class", "dog", "--no-preview", "--set", "train.self_evaluation=false").code == 0
    other = cli("generate", "a photo of <dog>", "--base", kin_bases["sdxl"])
    assert other.code == 6 and "made with the base two, this command uses xl" in other.err


@pytest.mark.parametrize("form", ["folder", "file"])
def test_the_image_tower_is_named_by_a_setting(cli, kin_bases, dog_photo, tmp_path, form):
    """The same start as from the base's own folder; which tower it was stands in the record."""
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(kin_bases["sd2"], bare)
    shutil.move(bare / "clip", tmp_path / "tower")
    Path("objtune.toml").write_text(SETTINGS.format(base=bare))
    assert (
        "has no CLIP vision encoder"
        in cli("segment", dog_photo, "--class", "dog", "--box", "110,240,530,535").err
        + cli("init-embedding", "dog").err
    )
    given = tmp_path / "tower" if form == "folder" else tmp_path / "tower" / "model.safetensors"
    done = cli("init-embedding", "dog", "--set", f"clip_model={given}", "--json")
    assert done.code == 0 and "cos_after" in json.loads(done.out)["metrics"]["embedding/dog@2"]
    assert Store.at(Path()).read_record(refs.Ref("embedding", "dog", 2)).config["clip_model"] == given.name


@pytest.mark.parametrize(
    ("tower", "code", "said"),
    [
        ("nobody/nothing", 7, "is not on this machine"),
        ("a,b", 2, "names 2 models"),
        ("{here}/objtune.toml", 3, "is not a safetensors file"),
    ],
)
def test_a_tower_that_is_not_there_is_one_line(cli, kin_bases, dog_photo, tower, code, said):
    Path("objtune.toml").write_text(SETTINGS.format(base=kin_bases["sd2"]))
    done = cli("segment", dog_photo, "--class", "dog", "--set", f"clip_model={tower.format(here=Path.cwd())}")
    assert done.code == code and said in done.err
