"""`objtune bench` and `objtune evaluate` as commands: what they refuse, what they print; and a token that was learned alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before transformers asks for it)
from objtune_cli.store.store import Store

# isort: split
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from objtune_cli.bench import single_training
from objtune_cli.bench.single_training import TrainingResult
from objtune_cli.bench.suites import base_model as base_stage
from objtune_cli.bench.suites import objects
from objtune_cli.evaluation import rendering
from objtune_cli.store import refs
from objtune_cli.toybox.recipe import dataset
from tests.conftest import REPOSITORY
from tests.support import quick_runs, tiny_sd1
from tests.support.json_schema import check

Cli = Callable[..., Any]
TOKEN = (
    "train.target_modules=none",
    "train.max_steps=2",
    "train.batch_size=1",
    "train.num_augmentations=1",
    "train.prior_loss_weight=0",
    "init-embedding.init=class",
)
ALONE = (*(word for setting in TOKEN for word in ("--set", setting)), *quick_runs.NO_GATE)


@pytest.fixture(scope="session")
def plain_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No world; its CLIP folder has a tokenizer, so that it can be a judge too."""
    folder = tiny_sd1.build(tmp_path_factory.mktemp("measure") / "plain", clip=True)
    tiny_sd1.tokenizer().save_pretrained(folder / "clip")
    return folder


@pytest.fixture(scope="session")
def world_base(plain_base: Path) -> Path:
    folder = plain_base.with_name("world")
    shutil.copytree(plain_base, folder)
    about = {
        "dial": "easy", "seed": 1, "pictures": 4, "captions": 1, "sampling": {"num_inference_steps": 2, "guidance_scale": 1.5},
        "training": {"max_steps": 2, "learning_rate": 1e-3, "embedding_lr": 1e-2, "target_modules": "attention"},
    }  # fmt: skip
    (folder / "toybox.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="session")
def vit(plain_base: Path) -> Path:
    torch.manual_seed(0)
    folder = plain_base.with_name("vit")
    shape = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    ViTModel(ViTConfig(**shape, image_size=32, patch_size=16)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def learned(world_base: Path, dog_photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """<rex>, a token without layers: the artifacts of its project."""
    from objtune_cli.cli.app import run as command

    folder = tmp_path_factory.mktemp("learned")
    line = ["train", str(dog_photo), "--class", "dog", "--name", "rex", *ALONE, "--no-preview", "--quiet"]
    assert command([*line, "--base", str(world_base), "--project", str(folder)]) == 0
    return folder / "artifacts"


@pytest.fixture
def objtune(cli: Cli, world_base: Path) -> Cli:
    """`cli` with the base of the easy world."""
    Path("objtune.toml").write_text(f'base = "{world_base}"\n')
    return cli


@pytest.fixture
def rex(objtune: Cli, learned: Path) -> Cli:
    """And with <rex> in the project."""
    shutil.copytree(learned, "artifacts")
    return objtune


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A training gives a token; few and small drawings calibrate; only the truth needs none."""
    seen: list[tuple[str, str]] = []

    def train(ctx: object, case: Any, name: str, method: object) -> TrainingResult:
        seen.append((name, case.name))
        return TrainingResult({f"token.{case.name}": torch.ones(1, 16)}, 1.25, 100.0)

    monkeypatch.setattr(single_training, "_train_case", train)
    monkeypatch.setattr(objects.class_prior_stage, "run", lambda *_: None)
    monkeypatch.setattr(objects, "REFERENCE_METHODS", {"truth": objects.REFERENCE_METHODS["truth"]})
    for name, count in (("REFERENCES", 4), ("OTHER_INSTANCES", 4), ("CLASS_IMAGES", 2), ("SIDE", 64)):
        monkeypatch.setattr(rendering, name, count)
    monkeypatch.setattr(dataset, "SHARD", 3)
    return seen


def fails(done: Any, code: int, *words: str) -> None:
    """Nothing on stdout, one line of error and one of advice, no traceback."""
    assert (done.code, done.out) == (code, ""), done
    assert [line.split(":")[0] for line in done.err.splitlines()] == ["error", "hint"], done.err
    assert all(word in done.err for word in words), done.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["bench", "--methods", "dreambooth"], "there is no method dreambooth"),
        (["bench", "--methods", "objtune,,"], "there is no method"),
        (["bench", "--methods", "objtune+train.stepz=1"], "unknown key train.stepz"),
        (["bench", "--prompts", "scene,wandering"], "there is no kind of prompt wandering"),
        (["bench", "--speed", "--base-only"], "--speed and --base-only are different benchmarks"),
        (["bench", "speed", "--methods", "objtune"], "No such option: --methods"),
        (["bench", "--prompts", ""], "there is no kind of prompt"),
        (["bench", "--objects", "0"], "--objects is 0"),
        (["bench", "--objects", "many"], "Invalid value for '--objects'"),
        (["bench", "--seed", "-1"], "--seed is -1"),
        (["bench", "--set", "bench.prompt_rounds=0"], "bench.prompt_rounds is 0"),
        (["bench", "--set", "train.max_steps=3"], "--set train.max_steps would change no method"),
        (["bench", "--set", "bench.stepz=1"], "unknown key bench.stepz"),
        (["evaluate"], "Missing argument 'ref'"),
        (["evaluate", "a/b/c"], "is not a ref"),
        (["evaluate", "rex", "-n", "0"], "-n is 0"),
        (["evaluate", "rex", "--scene", "at night"], "--scene needs --clip or --dino"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong_usage_is_2(args: list[str], words: str, rex: Cli) -> None:
    fails(rex(*args), 2, words)
    assert not Path("bench").exists()


def test_methods_that_exist_are_listed(objtune: Cli) -> None:
    assert all(
        name in objtune("bench", "--methods", "ours").err
        for name in ("objtune", "textual-inversion", "no-placement", "baselines")
    )


def test_a_base_without_a_world_is_6_and_leaves_nothing(objtune: Cli, plain_base: Path) -> None:
    for args in (["bench"], ["bench", "base"]):
        fails(
            objtune(*args, "--base", plain_base),
            6,
            "the base plain is not of the toybox, so that there is no ground truth",
            "--base toybox",
        )
    assert not Path("bench").exists()


def test_a_world_that_the_evaluator_does_not_know_is_6(
    objtune: Cli, world_base: Path, tmp_path: Path, monkeypatch
) -> None:
    from objtune_cli.toybox.evaluator import inference

    monkeypatch.setattr(inference, "covers", lambda *given: False)
    fails(objtune("bench"), 6, "does not cover the dial of world (easy)")


def test_a_folder_that_cannot_be_made_is_refused(objtune: Cli, quick: list) -> None:
    Path("taken").write_text("")
    done = objtune("bench", "--out", "taken", "--objects", 1)
    assert done.code in (2, 7) and done.out == "" and "Traceback" not in done.err and "taken" in done.err
    assert quick == []


def test_json_of_the_bench_is_one_document_of_rows(objtune: Cli, quick: list) -> None:
    done = objtune("bench", "--objects", 1, "--methods", "objtune", "--set", "bench.prompt_rounds=1", "--json")
    document = json.loads(done.out)
    assert (done.code, document["command"], document["refs"]) == (0, "bench", [])
    assert {tuple(sorted(row)) for row in document["rows"]} == {("high", "low", "mean", "measure", "method", "n")}
    assert {row["method"] for row in document["rows"]} == {
        "truth",
        "objtune",
        "calibration floor",
        "calibration ceiling",
    }
    seconds = [row for row in document["rows"] if row["measure"] == "seconds"]
    assert seconds == [{"method": "objtune", "measure": "seconds", "mean": 1.25, "low": None, "high": None, "n": 1}]
    assert [Path(p).name for p in document["images"]] == ["sheet.png"] and Path(document["images"][0]).is_file()
    assert "objtune on dog-000: identity" in done.err and Path("bench/table.csv").is_file()
    assert not Path("artifacts").exists()  # the work lies in bench/work
    again = objtune("bench", "--objects", 1, "--methods", "objtune", "--set", "bench.prompt_rounds=1", "--json")
    assert quick == [("objtune", "dog-000")] and again.err == ""


def test_lines_for_programs_have_a_row_each_and_the_columns_names(objtune: Cli, quick: list) -> None:
    done = objtune("bench", "--objects", 1, "--methods", "objtune", "--prompts", "pair", "--out", "elsewhere")
    header, *lines = [line.split("\t") for line in done.out.splitlines()]
    assert header == ["method", "measure", "mean", "low", "high", "n"]
    rows = {(line[0], line[1]): line[2:] for line in lines}
    assert rows["truth", "all_present"] == ["1.0", "", "", "1"] and rows["objtune", "seconds"] == ["1.25", "", "", "1"]
    assert "picture: elsewhere/sheet.png" in done.err and not Path("bench").exists()


def test_quick_is_two_objects_of_two_methods_unless_said_otherwise(
    objtune: Cli, quick: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        objects, "run", lambda ctx, out, methods, config, published=None: seen.append((list(methods), config)) or []
    )
    for extra in ([], ["--objects", "3"], ["--methods", "masked-lora"], ["--seed", "5"]):
        assert objtune("bench", "--quick", *extra).code == 0
    assert [methods for methods, _ in seen] == [["objtune", "dreambooth-lora"]] * 2 + [
        ["masked-lora"],
        ["objtune", "dreambooth-lora"],
    ]
    assert [(c.num_objects, c.prompt_rounds, c.seed) for _, c in seen] == [(2, 1, 0), (3, 1, 0), (2, 1, 0), (2, 1, 5)]


def test_settings_of_the_bench_come_from_every_layer(
    objtune: Cli, quick: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(objects, "run", lambda ctx, out, methods, config, published=None: seen.append(config) or [])
    with Path("objtune.toml").open("a") as file:
        file.write('[bench]\nnum_objects = 7\nprompts = "pair, scene"\n')
    monkeypatch.setenv("OBJTUNE_BENCH_PROMPT_ROUNDS", "3")
    objtune("bench", "--set", "bench.seed=4"), objtune("bench", "--objects", 2)
    assert [(c.num_objects, c.prompt_rounds, c.kinds, c.seed) for c in seen] == [
        (7, 3, ("pair", "scene"), 4),
        (2, 3, ("pair", "scene"), 0),
    ]


def test_the_base_alone(objtune: Cli, quick: list) -> None:
    done = objtune("bench", "base", "--set", "bench.num_base_samples=16", "--json")
    document = json.loads(done.out)
    assert done.code == 0 and {row["method"] for row in document["rows"]} == {"base", "truth"} and quick == []
    assert {row["measure"] for row in document["rows"]} == {
        *base_stage.ATTRIBUTES,
        "background",
        "pair_accuracy",
        "frechet_distance",
        "edge_sharpness",
        "nn_distance_ratio",
        "memorization_rate",
    }
    assert Path(document["images"][0]).name == "base.png" and Path(document["images"][0]).is_file()


# `objtune evaluate`


def test_an_object_of_the_toybox_is_measured_by_its_evaluator(rex: Cli, quick: list) -> None:
    done = rex("evaluate", "rex", "-n", 1, "--json")
    rows = {row["measure"]: row for row in json.loads(done.out)["rows"]}
    assert done.code == 0 and set(rows) == {
        "identity",
        "detection_rate",
        "duplicate_rate",
        "diversity",
        "prompt",
        "background_leakage",
        "drift",
        "class_accuracy",
    }
    assert all((row["method"], row["n"], row["low"], row["high"]) == ("rex", 1, None, None) for row in rows.values())
    again = {row["measure"]: row for row in json.loads(rex("evaluate", "adapter/rex@1", "-n", 1, "--json").out)["rows"]}
    assert again == rows
    assert rex("evaluate", "rex", "-n", 1, "--seed", 1, "--json").out != done.out


def test_an_object_of_photographs_is_measured_by_given_models(
    rex: Cli, quick: list, plain_base: Path, vit: Path
) -> None:
    judges = ("--clip", plain_base / "clip", "--dino", vit)
    done = rex("evaluate", "rex", *judges, "--scene", "on the beach", "--scene", "in {brackets}", "-n", 2, "--json")
    rows = {row["measure"]: row["mean"] for row in json.loads(done.out)["rows"]}
    assert done.code == 0 and set(rows) == {
        "clip_i",
        "clip_i_masked",
        "clip_t",
        "dino",
        "dino_masked",
        "diversity",
        "drift",
    }
    assert all(-1 <= v <= 2 for v in rows.values()) and rows["diversity"] >= 0


def test_models_that_are_not_here_are_7(rex: Cli, plain_base: Path) -> None:
    fails(
        rex("evaluate", "rex", "--clip", "nobody/nothing", "--quiet"),
        7,
        "nobody/nothing is not on this machine",
        "--clip DIR",
    )
    fails(
        rex("evaluate", "rex", "--clip", plain_base / "clip", "--dino", "/nonexistent", "--quiet"),
        7,
        "/nonexistent is not on this machine",
        "--dino DIR",
    )


def test_a_model_of_another_family_is_2(rex: Cli, plain_base: Path, vit: Path) -> None:
    fails(rex("evaluate", "rex", "--clip", vit, "--quiet"), 2, "is a vit", "--clip takes one of: clip")


def test_what_is_not_there_or_of_another_base_is_refused(rex: Cli, plain_base: Path) -> None:
    fails(rex("evaluate", "cup"), 4, "there is no adapter/cup")
    fails(rex("evaluate", "mask/rex"), 6, "mask/rex is a mask")
    fails(rex("evaluate", "rex", "--name", "cup"), 3, "adapter/rex@1 has no cup")
    path = Path("objtune.toml")
    path.write_text(path.read_text().replace("world", "vanished"))
    assert rex("evaluate", "rex").code == 2


# A token without layers.


def test_a_token_alone_is_an_adapter_like_any_other(rex: Cli) -> None:
    record, tensors = Store.at(Path()).read(refs.Ref("adapter", "rex", 1))
    assert set(tensors) == {"token.rex"} and record.config["target_modules"] == "none"
    assert not any(role.startswith("prior.") for role in record.inputs) and not Path("artifacts/prior").exists()
    assert rex("verify").code == 0


def test_pictures_are_drawn_with_a_token_alone(rex: Cli) -> None:
    done = rex("generate", "a photo of <rex> on the beach", "a photo of a dog on the beach", "-n", 1)
    first, second = (Image.open(p) for p in done.out.splitlines())
    assert done.code == 0 and first.size == (32, 32) and first.tobytes() != second.tobytes()
    assert rex("compose", "<rex> at night", "--place", "rex=left", "-n", 1).code == 0


def test_a_token_alone_beside_an_object_with_layers(rex: Cli, dog_photo: Path) -> None:
    """One command with both draws what a command for each draws."""
    rex(
        "train",
        dog_photo.with_name("mug.jpg"),
        "--class",
        "mug",
        "--name",
        "cup",
        *ALONE,
        "--set",
        "train.target_modules=all",
        "--set",
        "train.learning_rate=0.1",
        "--no-preview",
    )
    together = rex("generate", "<rex> at night", "<cup> at night", "<rex> and <cup>", "-n", 1)
    assert together.code == 0, together.err
    before = [Image.open(p).tobytes() for p in together.out.splitlines()]
    shutil.rmtree("artifacts/scene")
    alone = [
        rex("generate", prompt, "-n", 1).out.strip()
        for prompt in ("<rex> at night", "<cup> at night", "<rex> and <cup>")
    ]
    assert [Image.open(p).tobytes() for p in alone] == before and len(set(before)) == 3


def test_a_token_alone_is_exported_as_an_embedding(rex: Cli) -> None:
    assert (
        rex("export", "rex", "--format", "embedding", "--out", "out").code == 0
        and Path("out/rex-objtune.safetensors").is_file()
    )
    for form in ("kohya", "diffusers"):
        fails(
            rex("export", "rex", "--format", form, "--out", "out"),
            6,
            "adapter/rex@1 contains only a token and no LoRA",
            "--format embedding",
        )


@pytest.mark.parametrize(
    "more", [["train.target_modules=none"], ["train.target_modules=all", "train.embedding_only_steps=2"]]
)
def test_a_training_that_would_learn_nothing_is_2(rex: Cli, more: list[str]) -> None:
    words = [word for setting in ("train.train_embedding=false", *more) for word in ("--set", setting)]
    fails(rex("train", "rex", *ALONE, *words), 2, "nothing learns")


def test_a_token_alone_that_is_to_rest_is_2(rex: Cli) -> None:
    fails(rex("train", "rex", *ALONE, "--set", "train.embedding_only_steps=1"), 2, "nothing learns")


@pytest.mark.parametrize("quick", [True, False])
def test_speed_prints_rows_of_both_and_their_ratio(objtune: Cli, monkeypatch: pytest.MonkeyPatch, quick: bool) -> None:
    from objtune_cli.bench.suites import speed

    def measured(
        ctx: object, label: str, tasks: dict[str, speed.Task], rounds: int
    ) -> dict[str, list[dict[str, float]]]:
        ours = {"step_s": 1.0, "text_encoder_s": 0.1, "memory_mb": 600.0, "prepare_s": 3.0}
        theirs = {k: 2 * v for k, v in ours.items()}
        return {name: [theirs if task.method == "dreambooth-lora" else ours] * rounds for name, task in tasks.items()}

    monkeypatch.setattr(speed, "_side_by_side", measured)
    done = objtune("bench", "speed", *(["--quick"] if quick else []), "--set", "bench.timing_rounds=2", "--json")
    rows = {(r["method"], r["measure"]): r for r in json.loads(done.out)["rows"]}
    sizes = ("base",) if quick else ("base", "sd15")
    assert {m for name, m in rows if name == "ratio"} == {f"{s}_{m}" for s in sizes for m in ("step_s", "memory_mb")}
    assert rows["ratio", "base_step_s"]["mean"] == 0.5 and rows["objtune", "base_text_encoder_s"]["n"] == 2
    ratio = {m: rows["ratio of 3 to 1", m]["mean"] for m in ("prepare_s", "step_s", "run_s")}
    assert ratio == pytest.approx({"prepare_s": 1, "step_s": 1, "run_s": 1.8}), (
        "two steps for one object, six for three"
    )
    assert rows["1 object of a photo", "prepare_s"]["mean"] == 3


def test_a_script_that_is_not_there_is_told_before_anything_is_measured(
    objtune: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from objtune_cli.bench.suites import speed

    monkeypatch.setattr(speed, "run", lambda *_: pytest.fail("a step was measured"))
    done = objtune("bench", "speed", "--set", "bench.diffusers_script=none.py")
    assert done.code == 3 and "none.py does not exist" in done.err


@pytest.mark.parametrize("kind", ["speed", "scenes", "masks", "base"])
def test_published_results_belong_to_methods_alone(kind: str, cli: Cli) -> None:
    done = cli("bench", kind, "--reuse", "results.jsonl")
    assert done.code == 2 and "No such option: --reuse" in done.err and done.out == ""


@pytest.mark.parametrize(
    "kind", [("speed",), ("masks",), ("base",), ("memory",), ("throughput", 2), ("dreambooth", ".")]
)
def test_what_is_measured_whole_takes_no_shard(kind: tuple[object, ...], objtune: Cli) -> None:
    done = objtune("bench", *kind, "--set", "bench.shard=1/2")
    assert done.code == 2 and "bench.shard is 1/2" in done.err and done.out == ""


def test_results_are_told_again_without_measuring(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from objtune_cli.bench.suites import objects

    monkeypatch.setattr(objects, "run", lambda *_: pytest.fail("something was measured"))
    published = REPOSITORY / "docs" / "results.jsonl"
    done = cli("bench", "show", published, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    check(document, "output", "bench")
    rows = {(r["method"], r["measure"]): r for r in document["rows"]}
    assert rows["objtune", "identity"]["n"] == rows["objtune - break-a-scene", "prompt"]["n"] == 40
    assert cli("bench", "show", published, "--objects", 3).code == cli("bench", "show", published, "--quick").code == 2
    assert cli("bench", "show", "none.jsonl").code == 3
