"""The whole path through the command line, on a random base in SD 1.5's layout."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from objtune_cli.store import refs
from objtune_cli.store.store import Store
from tests.support import quick_runs
from tests.support.quick_runs import FAST, write_settings

pytestmark = [pytest.mark.usefixtures("fast_sampling", "cached_segmentation"), pytest.mark.commands]


@pytest.fixture
def objtune(cli, base, monkeypatch):
    """`cli` with the tiny base as a setting of the project; its CLIP knows nothing, so that nothing it says is asked of a mask."""
    write_settings(base, max_steps=4)
    return cli


def lines(text: str) -> list[str]:
    return text.splitlines()


def test_stages_one_by_one_make_the_same_artifacts_as_the_one_command(
    objtune, dog_photo, tmp_path, cached_segmentation
):
    cached_segmentation.clear()
    first = objtune("segment", dog_photo, "--class", "dog")
    second = objtune("init-embedding", "-", *FAST, stdin=first.out)
    third = objtune("train", "-", *FAST, stdin=second.out)
    assert [lines(r.out) for r in (first, second, third)] == [["mask/dog@1"], ["embedding/dog@1"], ["adapter/dog@1"]]
    assert {r.code for r in (first, second, third)} == {0}

    settings = Path("objtune.toml").read_text()
    other = tmp_path / "other"
    other.mkdir()
    (other / "objtune.toml").write_text(settings)
    cached_segmentation.clear()  # the mask is found again too
    whole = objtune("train", dog_photo, "--class", "dog", *FAST, "--project", other)
    assert (whole.code, lines(whole.out)) == (0, ["adapter/dog@1"])
    for kind in ("mask", "embedding", "prior", "adapter"):
        path = Path("artifacts", kind, "dog", "v001.safetensors")
        assert path.read_bytes() == (other / path).read_bytes(), kind


def test_a_second_run_reuses_everything_and_writes_nothing(objtune, dog_photo):
    command = ("train", dog_photo, "--class", "dog", *FAST)
    first = objtune(*command)
    before = {p: p.stat().st_mtime_ns for p in Path().rglob("*") if p.is_file()}
    second = objtune(*command, "--json")
    assert {p: p.stat().st_mtime_ns for p in Path().rglob("*") if p.is_file()} == before
    document = json.loads(second.out)
    assert [r["ref"] for r in document["refs"]] == lines(first.out) and document["refs"][0]["reused"]
    assert document["images"] == ["artifacts/adapter/dog/v001/preview.png"] or Path(document["images"][0]).is_file()


def test_a_rough_mask_is_made_exact_by_train_as_by_segment(objtune, dog_photo):
    """The same object by the same words: what the one found is there for the other."""
    found = np.zeros((640, 640), np.uint8)
    found[200:500, 150:450] = 255
    Image.fromarray(found).save("rough.png")
    hints = (dog_photo, "--class", "dog", "--refine-mask", "rough.png")
    assert objtune("segment", *hints).code == 0
    done = objtune("train", *hints, *FAST, "--no-preview", "--set", "train.self_evaluation=false", "--json")
    assert done.code == 0, done.err
    assert [r["ref"] for r in json.loads(done.out)["refs"]] == ["adapter/dog@1"] and [
        line.split("\t")[0] for line in lines(objtune("list", "mask").out)
    ] == ["mask/dog@1"]
    missing = objtune("train", dog_photo, "--class", "dog", "--refine-mask", "none.png")
    assert missing.code == 3 and "there is no mask none.png" in missing.err


def test_train_says_how_good_it_is_in_numbers_and_words(objtune, dog_photo, monkeypatch):
    """From the base's own CLIP; numbers in the record too, and what to change where one is bad."""
    from objtune_cli.training.self_evaluation import SelfEvaluation

    done = objtune("train", dog_photo, "--class", "dog", *FAST, "--no-preview", "--json")
    found = json.loads(done.out)["metrics"]["adapter/dog@1"]
    assert {"identity", "prompt", "drift", "copy"} <= found.keys() and found["steps"] == 4
    assert f"identity {found['identity']:.2f}  prompt {found['prompt']:.2f}" in done.err
    assert Store.at(Path()).read_record(refs.Ref("adapter", "dog", 1)).metrics == found

    monkeypatch.setattr(SelfEvaluation, "scores", lambda *_: {"identity": 0.1, "prompt": 0.2, "copy": 0.9})
    monkeypatch.setattr(SelfEvaluation, "drift", lambda *_: 0.5)
    bad = objtune("train", dog_photo, "--class", "dog", *FAST, "--no-preview", "--force").err
    assert all(
        word in bad
        for word in (
            "copy the photo",
            "class came to look like the object",
            "not well learned",
            "images follow their scenes less",
        )
    )
    monkeypatch.setattr(SelfEvaluation, "scores", lambda *_: {"identity": 0.9, "prompt": 1.0, "copy": 0.0})
    monkeypatch.setattr(SelfEvaluation, "drift", lambda *_: 0.0)
    good = objtune("train", dog_photo, "--class", "dog", *FAST, "--no-preview", "--force").err
    assert "identity 0.90" in good and "--set" not in good


def test_without_an_image_tower_or_where_it_is_not_asked_for_there_are_no_numbers(cli, bare_base, base, dog_photo):
    fast = (
        *FAST,
        *quick_runs.set_options("train.max_steps=4", "train.rank=2"),
        *quick_runs.NO_GATE,
        "--no-preview",
        "--json",
    )
    done = cli("train", dog_photo, "--class", "dog", *fast, "--base", bare_base)
    assert done.code == 0 and "identity" not in json.loads(done.out)["metrics"]["adapter/dog@1"]
    done = cli(
        "train",
        dog_photo,
        "--class",
        "dog",
        *fast,
        "--base",
        base,
        "--no-scores",
        "--name",
        "rex",
    )
    assert done.code == 0 and "identity" not in json.loads(done.out)["metrics"]["adapter/rex@1"]
    again = cli("train", dog_photo, "--class", "dog", *fast, "--base", base, "--name", "rex")
    assert json.loads(again.out)["refs"][0]["reused"]  # scores are no part of what it is


def test_steps_may_be_left_to_the_run(objtune, dog_photo, monkeypatch):
    """Without a number it stops when its loss has stopped falling; a number is a number."""
    from objtune_cli.training import early_stopping

    for name, value in (("NUM_MEASUREMENTS", 700), ("MIN_MEASUREMENTS", 2), ("MIN_FALL_SHARE", 1e9)):
        monkeypatch.setattr(early_stopping, name, value)
    given = ("train", dog_photo, "--class", "dog", *FAST, "--set", "train.rank=2", "--no-preview", "--json")
    done = objtune(*given, "--steps", "auto")
    assert json.loads(done.out)["metrics"]["adapter/dog@1"]["steps"] == 3
    again = objtune(*given, "--set", "train.early_stopping=plateau")
    assert json.loads(again.out)["refs"][0]["reused"], again.err
    counted = objtune(*given, "--steps", "4")
    assert json.loads(counted.out)["metrics"]["adapter/dog@2"]["steps"] == 4
    assert objtune("train", dog_photo, "--class", "dog", "--steps", "some").code == 2


def test_interrupted_training_goes_on_to_the_same_bytes(objtune, dog_photo, monkeypatch):
    from objtune_cli.training import parallel_trainers

    objtune("train", dog_photo, "--class", "dog", *FAST, "--no-preview")
    unbroken = Path("artifacts/adapter/dog/v001.safetensors").read_bytes()
    shutil.rmtree("artifacts/adapter")

    whole = parallel_trainers.train_step

    def interrupted(trainers):
        import signal

        failed = whole(trainers)
        if trainers[0].step == 2:
            signal.raise_signal(signal.SIGTERM)
        return failed

    monkeypatch.setattr(parallel_trainers, "train_step", interrupted)
    stopped = objtune("train", dog_photo, "--class", "dog", *FAST, "--no-preview")
    assert stopped.code == 143 and stopped.out == ""
    assert "error: stopped at step 2 of 4, state saved" in stopped.err
    assert not Path("artifacts/adapter").exists() and len(list(Path(".objtune/state").rglob("*.safetensors"))) == 1

    monkeypatch.setattr(parallel_trainers, "train_step", whole)
    resumed = objtune("train", dog_photo, "--class", "dog", *FAST, "--no-preview")
    assert resumed.code == 0 and "resumes at step 2 of 4" in resumed.err
    assert Path("artifacts/adapter/dog/v001.safetensors").read_bytes() == unbroken
    assert not list(Path(".objtune/state").iterdir()) and not list(Path(".objtune/tmp").iterdir())


def test_resuming_without_the_optimizer_state_would_be_noticed(objtune, dog_photo, monkeypatch):
    """The negative control of the test above: what it compares does depend on the saved state."""
    from objtune_cli.training import parallel_trainers

    objtune("train", dog_photo, "--class", "dog", *FAST, "--no-preview")
    unbroken = Path("artifacts/adapter/dog/v001.safetensors").read_bytes()
    whole = parallel_trainers.train_step

    def forgetful(trainers):
        if trainers[0].step == 2:
            trainers[0].optimizer.state.clear()
        return whole(trainers)

    monkeypatch.setattr(parallel_trainers, "train_step", forgetful)
    objtune("train", dog_photo, "--class", "dog", *FAST, "--no-preview", "--force")
    v2 = Store.at(Path()).read(refs.Ref("adapter", "dog", 2))[1]
    v1 = Store.at(Path()).read(refs.Ref("adapter", "dog", 1))[1]
    assert any(not np.array_equal(v1[k], v2[k]) for k in v1) and unbroken


def test_diverged_training_publishes_nothing(objtune, dog_photo):
    result = objtune(
        "train", dog_photo, "--class", "dog", *FAST, "--set", "train.learning_rate=1e30", "--set", "train.max_steps=40"
    )
    assert result.code == 9 and "training diverged at step" in result.err and not Path("artifacts/adapter").exists()


@pytest.fixture
def trained(objtune, trained_artifacts):
    """A project of its own with a copy of <dog> and <cup>."""
    shutil.copytree(trained_artifacts, "artifacts")
    return objtune


def test_generate_prints_pictures_that_say_how_they_were_made(trained):
    result = trained("generate", "a photo of <dog> on the beach", "-n", 2, "--steps", 2, "--negative", "blur")
    paths = lines(result.out)
    assert result.code == 0 and [Path(p).name for p in paths] == ["001.png", "002.png"]
    texts = Image.open(paths[1]).text
    assert texts["parameters"].splitlines()[:2] == ["a photo of <dog> on the beach", "Negative prompt: blur"]
    assert "Steps: 2" in texts["parameters"] and "Seed: 1" in texts["parameters"]
    assert json.loads(texts["objtune"])["scene"] == "scene/dog@1"
    assert np.asarray(Image.open(paths[0])).shape == (32, 32, 3)


def test_prompts_come_from_stdin_one_a_line(trained):
    result = trained(
        "generate", "<dog> at night", "-", "-n", 1, "--steps", 1, stdin="a <dog>\n\n  <dog> in the snow \n"
    )
    assert result.code == 0 and len(lines(result.out)) == 3
    asked = [Store.at(Path()).read_record(ref).config["prompt"] for ref in Store.at(Path()).list("scene")]
    assert asked == ["<dog> at night", "a <dog>", "<dog> in the snow"]
    none = trained("generate", "-", stdin="\n")
    assert (none.code, none.out) == (2, "") and "error: there is no prompt" in none.err


def test_pictures_that_are_gone_are_decoded_again(trained):
    command = ("generate", "<dog>", "-n", 2, "--steps", 2)
    paths = [Path(p) for p in lines(trained(*command).out)]
    before = [p.read_bytes() for p in paths]
    paths[0].unlink()
    again = trained(*command)
    assert [Path(p) for p in lines(again.out)] == paths and [p.read_bytes() for p in paths] == before
    assert "scene/dog@1 is up to date" in again.err


def test_a_version_in_the_prompt_is_the_one_that_is_drawn(trained, dog_photo):
    trained("train", dog_photo, "--class", "dog", *FAST, "--no-preview", "--seed", 2**64 - 1)
    document = json.loads(trained("generate", "<dog@1>", "-n", 1, "--steps", 1, "--json").out)
    newest = json.loads(trained("generate", "<dog>", "-n", 1, "--steps", 1, "--json").out)
    record = Store.at(Path()).read_record(refs.parse(document["refs"][0]["ref"]))
    assert record.inputs["adapter.dog"]["ref"] == "adapter/dog@1"
    assert document["refs"][0]["sha256"] != newest["refs"][0]["sha256"]


def test_what_the_base_does_not_say_of_the_object_makes_another_picture(trained):
    """A base that names no weight adds nothing, in a scene's closer look as little, and what was drawn before is found again."""
    for command, prompt, least in (("generate", "a photo of <dog>", "0"), ("compose", "<dog> and <cup>", "-1")):
        found = {}
        for weight in ("", least, "0", "3"):
            setting = ("--set", f"{command}.object_guidance={weight}") if weight else ()
            path = lines(trained(command, prompt, "-n", 1, "--steps", 2, *setting).out)[0]
            found[weight] = path, np.asarray(Image.open(path)).tobytes()
        assert (
            found[""] == found[least] == found["0"]
            and found["3"][0] != found["0"][0]
            and found["3"][1] != found["0"][1]
        )


def test_what_the_base_says_of_the_other_words_makes_another_picture(trained):
    """An object alone has no other words; a base that names no weight adds nothing, and a scene of before is found again."""
    pixels = {}
    for prompt in ("a photo of <dog>", "a photo of <dog> in a hat"):
        for weight in ("auto", "0", "3"):
            path = lines(
                trained(
                    "generate", prompt, "-n", 1, "--steps", 2, "--set", f"generate.prompt_guidance_scale={weight}"
                ).out
            )[0]
            pixels[prompt, weight] = np.asarray(Image.open(path))
    assert [
        len({pixels[prompt, w].tobytes() for w in ("auto", "0", "3")})
        for prompt in ("a photo of <dog>", "a photo of <dog> in a hat")
    ] == [1, 2]
    kept = [
        Store.at(Path()).read_record(ref).config.get("prompt_guidance_scale") for ref in Store.at(Path()).list("scene")
    ]
    assert kept == [None, 3.0, None, 3.0]


def test_pictures_begin_as_the_class_where_it_is_asked_for(trained):
    """A base that says nothing of it begins with the object; the scene says which; a composed scene minds it not."""
    found = {
        level: lines(
            trained(
                "generate",
                "<dog> at sea",
                "-n",
                1,
                "--steps",
                4,
                "--set",
                f"generate.subject_conditioning_start={level}",
            ).out
        )[0]
        for level in ("-1", "1", "0.5")
    }
    assert found["-1"] == found["1"] and Image.open(found["0.5"]).tobytes() != Image.open(found["1"]).tobytes()
    assert (
        "Subject conditioning start: 0.5" in Image.open(found["0.5"]).text["parameters"]
        and "Subject conditioning start" not in Image.open(found["1"]).text["parameters"]
    )
    composed = {
        level: lines(
            trained(
                "compose",
                "<dog> and <cup>",
                "-n",
                1,
                "--steps",
                2,
                "--set",
                f"generate.subject_conditioning_start={level}",
            ).out
        )[0]
        for level in ("1", "0.5")
    }
    assert composed["1"] == composed["0.5"]


def test_out_copies_pictures(trained, tmp_path):
    result = trained("generate", "<dog>", "<cup>", "-n", 1, "--steps", 1, "--out", tmp_path / "new" / "folder")
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["cup-001-001.png", "dog-001-001.png"]
    assert [Path(p).parent for p in lines(result.out)] == [tmp_path / "new" / "folder"] * 2


def test_compose_draws_both_and_keeps_the_layout(trained):
    result = trained(
        "compose",
        "<dog> and <cup> on the beach",
        "--place",
        "dog=left",
        "--place",
        "cup=0.5,0.4,0.95,0.9",
        "-n",
        1,
        "--steps",
        2,
    )
    assert result.code == 0, result.err
    record = Store.at(Path()).read_record(refs.Ref("scene", "dog-cup", 1))
    assert record.config["places"] == {"dog": [0.02, 0.25, 0.5, 0.95], "cup": [0.5, 0.4, 0.95, 0.9]}
    assert Path("artifacts/scene/dog-cup/v001/layout.png").is_file()
    Path("scene.toml").write_text('dog = "left"\ncup = [0.5, 0.4, 0.95, 0.9]\n')
    again = trained("compose", "<dog> and <cup> on the beach", "--layout", "scene.toml", "-n", 1, "--steps", 2)
    assert again.out == result.out and "up to date" in again.err


def test_two_objects_of_one_photo_are_learned_together(objtune, dog_photo, monkeypatch):
    from objtune_cli.training import load_subjects

    seen, whole = [], load_subjects.load_subjects
    monkeypatch.setattr(load_subjects, "load_subjects", lambda ctx, starts: seen.append(whole(ctx, starts)) or seen[-1])
    pair = dog_photo.with_name("pair.jpg")
    hints = ("--box", "dog=20,240,345,570", "--box", "mug=330,240,630,560")
    result = objtune("train", pair, "--class", "dog", "--class", "mug", *hints, *FAST)
    assert (result.code, lines(result.out)) == (0, ["adapter/dog-mug@1"]), result.err
    _, tensors = Store.at(Path()).read(refs.Ref("adapter", "dog-mug", 1))
    assert {"token.dog", "token.mug"} <= set(tensors)
    assert objtune("generate", "<mug>", "-n", 1, "--steps", 1).code == 0
    joint = objtune("generate", "<dog-mug>")
    assert joint.code == 4 and "name them: <dog>, <mug>" in joint.err
    dog, mug = (
        subject.photos[0] for subject in seen[0]
    )  # behind either stands neither of them, and the rest of the photo as it is
    assert (dog.background == mug.background).all()
    changed = (dog.background - dog.picture).abs().amax(0)
    for each in (dog, mug):
        assert changed[each.mask > 0.9].mean() > 0.2
    assert changed[0].max() < 0.02


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("generate", "<cat>"), 4, "no trained object <cat>"),
        (("generate", "<dog@7>"), 4, "there is no adapter/dog@7"),
        (("generate", " "), 3, "the prompt is empty"),
        (("generate", "<dog> and <dog@1>", "<dog@2>"), 4, "there is no adapter/dog@2"),
        (("compose", "a dog"), 3, "names no trained object"),
        (("compose", "<dog>", "--place", "cup=left"), 3, "does not mention <cup>"),
        (("compose", "<dog>", "--place", "dog=nowhere"), 2, "'dog=nowhere' is not a place"),
        (("compose", "<dog>", "--layout", "none.toml"), 3, "none.toml does not exist"),
        (("generate", "<dog>", "--base", "toybox"), 6, "was made with the base tiny, this command uses toybox"),
        (("generate", "<dog>", "--base", "nowhere/at/all"), 2, "there is no base nowhere/at/all"),
        (("generate", "a photo of <Hat>"), 3, "<Hat> cannot be the name of an object"),
        (("generate", "<dog>", "--base", "sd15"), 7, "are not on this machine"),
        (("generate", "<dog>", "--device", "cuda:9", "--seed", "5"), 7, "device cuda:9 is not available"),
        (("init-embedding", "adapter/dog"), 6, "is an adapter"),
        (("train", "adapter/dog@1", "--steps", "9"), 6, "training does not go on from an adapter"),
        (("compose", "a <dog:0>"), 3, "names no trained object with a strength above 0"),
        (("export", "dog", "--format", "ckpt"), 2, "there is no format ckpt"),
    ],
)
def test_mistakes_get_one_line_and_their_exit_code(trained, args, code, said):
    result = trained(*args)
    assert (result.code, result.out) == (code, ""), result.err
    errors = [line for line in lines(result.err) if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0], result.err
    assert "Traceback" not in result.err


def test_each_prompt_is_drawn_with_its_own_objects_alone(trained):
    """One command with several prompts draws what a command for each draws."""
    together = trained("generate", "<dog> at night", "<cup> at night", "at night", "-n", 1, "--steps", 2)
    first = [Path(p).read_bytes() for p in lines(together.out)]
    shutil.rmtree("artifacts/scene")
    apart = [
        trained("generate", prompt, "-n", 1, "--steps", 2).out.strip()
        for prompt in ("<dog> at night", "<cup> at night", "at night")
    ]
    pixels = [np.asarray(Image.open(p)) for p in apart]
    assert all(np.array_equal(np.asarray(Image.open(io.BytesIO(a))), b) for a, b in zip(first, pixels, strict=True))
    assert not np.array_equal(pixels[0], pixels[2]), "the LoRA changes nothing: the test could not fail"


def test_composing_again_loads_nothing_and_prints_the_same(trained, monkeypatch):
    from objtune_cli.workflow.context import StageContext

    command = ("compose", "<dog> and <cup>", "-n", 2, "--steps", 1)
    first = trained(*command)
    monkeypatch.setattr(StageContext, "load_base_model", lambda self, **_: pytest.fail("the base was loaded"))
    assert trained(*command).out == first.out and len(lines(first.out)) == 2


def test_a_missing_place_is_the_free_one(trained):
    trained("compose", "<dog> and <cup>", "--place", "dog=right", "-n", 1, "--steps", 1)
    record = Store.at(Path()).read_record(refs.Ref("scene", "dog-cup", 1))
    assert record.config["places"]["cup"][2] <= 0.5 <= record.config["places"]["dog"][0]


def test_a_lost_preview_is_drawn_again(objtune, dog_photo):
    command = ("train", dog_photo, "--class", "dog", *FAST)
    objtune(*command)
    preview = Path("artifacts/adapter/dog/v001/preview.png")
    before = preview.read_bytes()
    preview.unlink()
    again = objtune(*command)
    assert again.out == "adapter/dog@1\n" and preview.read_bytes() == before


def test_force_makes_the_asked_for_artifact_again_and_no_other(objtune, dog_photo):
    command = ("train", dog_photo, "--class", "dog", *FAST, "--no-preview")
    objtune(*command)
    assert objtune(*command, "--force").out == "adapter/dog@2\n"
    assert [Store.at(Path()).list_versions(kind, "dog") for kind in ("mask", "embedding", "prior", "adapter")] == [
        [1],
        [1],
        [1],
        [1, 2],
    ]


def test_the_same_run_twice_at_once_is_refused(objtune, dog_photo, monkeypatch):
    from objtune_cli.training import parallel_trainers

    seen = []

    def busy(trainers):
        if not seen:
            seen.append(None)
            seen.append(objtune("train", "dog", *FAST, "--no-preview"))
            seen.append(objtune("train", "dog", *FAST, "--no-preview"))
        raise KeyboardInterrupt

    monkeypatch.setattr(parallel_trainers, "train_step", busy)
    assert objtune("train", dog_photo, "--class", "dog", *FAST, "--no-preview").code == 130
    assert [r.code for r in seen[1:]] == [8, 8] and "another process" in seen[1].err
    monkeypatch.undo()


def test_a_base_without_image_tower_starts_at_the_class_word(cli, bare_base, dog_photo):
    cli("segment", dog_photo, "--class", "dog")
    result = cli("init-embedding", "dog", "--base", bare_base, *FAST)
    assert result.code == 0 and "has no CLIP vision encoder" in result.err
    record = Store.at(Path()).read_record(refs.Ref("embedding", "dog", 1))
    assert record.config["init"] == "class"
    asked = cli("init-embedding", "dog", "--base", bare_base, "--init", "prototype")
    assert asked.code == 7 and "no CLIP vision encoder for a prototype" in asked.err


def test_a_damaged_input_is_named_and_left_alone(trained):
    path = Path("artifacts/adapter/dog/v001.safetensors")
    trained("generate", "<dog>", "-n", 1, "--steps", 1)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    result = trained("verify")
    assert result.code == 5 and str(path) in result.err and path.read_bytes() == bytes(data)
