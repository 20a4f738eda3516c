"""One trial: the training process and its end, what a result depends on, which pictures are kept."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from objtune_cli.bench import command_runner, photo_variants, single_training
from objtune_cli.bench.methods import BASELINES, Method
from objtune_cli.config.sections import Common
from objtune_cli.errors import BusyError, Stopped
from objtune_cli.evaluation import benchmark_objects, rendering
from objtune_cli.evaluation.benchmark_objects import OBJECT_SLOT, Case, Prompt
from objtune_cli.lora import layers
from objtune_cli.store.checkpoints import Checkpoint
from objtune_cli.toybox.evaluator import inference
from objtune_cli.toybox.world import EASY
from objtune_cli.workflow.context import StageContext

TINY = Method(
    "a token",
    "",
    {"init": "class", "num_vectors": 1},
    {"target_modules": "none", "max_steps": 2, "batch_size": 1, "num_augmentations": 1, "prior_loss_weight": 0.0},
)


@pytest.fixture(scope="module")
def case() -> Case:
    return benchmark_objects.make_cases(EASY, 1, 0)[0]


def _python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_command_gives_its_document_time_and_memory(context: Callable[..., StageContext]) -> None:
    text = "import time; x = b'1' * 80_000_000; time.sleep(0.5); print('{\"refs\": []}')"
    document, seconds, memory = command_runner.run_command(context(), _python(text), "it")
    assert document == {"refs": []} and 0.3 <= seconds < 20
    assert (
        memory > 80
        and command_runner.run_command(context(), _python("import time; time.sleep(0.3); print('{}')"), "it")[2] < 60
    )  # not ours


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("import sys; print('half {'); sys.exit('oh\\nno such thing')", 1, "no such thing"),
        ("import os; os.kill(os.getpid(), 9)", -9, "it printed nothing"),
        ("pass", 0, "it printed nothing"),
    ],
)
def test_a_command_without_a_document_is_an_error(
    text: str, code: int, said: str, context: Callable[..., StageContext]
) -> None:
    assert command_runner.run_command(context(), _python(text), "it")[0] == {"error": {"code": code, "message": said}}


def test_settings_of_the_surroundings_do_not_reach_a_trial(
    context: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OBJTUNE_TRAIN_MAX_STEPS", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    text = "import json, os; print(json.dumps({k: v for k, v in os.environ.items() if k.startswith('O')}))"
    seen = command_runner.run_command(context(), _python(text), "it")[0]
    assert seen["OMP_NUM_THREADS"] == "1" and "OBJTUNE_TRAIN_MAX_STEPS" not in seen


def test_a_signal_ends_the_child_too(context: Callable[..., StageContext], tmp_path: Path) -> None:
    file = tmp_path / "pid"
    text = f"import os, time; open({str(file)!r} + '~', 'w').write(str(os.getpid())); os.rename({str(file)!r} + '~', {str(file)!r}); time.sleep(100)"
    ctx = context(stopped=lambda: 15 if file.exists() else 0)
    started = time.monotonic()
    with pytest.raises(Stopped, match="stopped during it; finished objects are kept") as caught:
        command_runner.run_command(ctx, _python(text), "it")
    assert caught.value.code == 143 and time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)


def test_a_child_may_finish_what_it_does_before_it_ends(context: Callable[..., StageContext], tmp_path: Path) -> None:
    """TERM, not KILL: `objtune train` saves its state."""
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    text = (
        "import pathlib, signal, sys, time\n"
        f"def end(*_):\n    time.sleep(0.3)\n    pathlib.Path({str(saved)!r}).touch()\n    sys.exit(143)\n"
        f"signal.signal(signal.SIGTERM, end)\npathlib.Path({str(ready)!r}).touch()\ntime.sleep(100)"
    )
    with pytest.raises(Stopped):
        command_runner.run_command(context(stopped=lambda: 2 if ready.exists() else 0), _python(text), "it")
    assert saved.exists()


@pytest.mark.commands
def test_a_trial_is_the_real_command_on_photo_and_mask(context: Callable[..., StageContext], case: Case) -> None:
    """And what it learned is drawn with."""
    ctx = context()
    for kind in ("mask", "embedding", "adapter", "prior"):
        (ctx.store.backend.path("artifacts") / kind / "left-over").mkdir(parents=True)
    state = Checkpoint(ctx.store, "left-over")
    state.save({"step": torch.ones(1)})
    with Checkpoint(ctx.store, "bench").lock():  # as in a run of the bench: nobody else may begin one
        trained = single_training._train_case(ctx, case, "tiny", TINY)
        with pytest.raises(BusyError), Checkpoint(ctx.store, "bench").lock():
            pass
    assert not state.exists()
    assert set(trained.weights) == {f"token.{case.name}"}  # no layers, no image tower
    assert trained.weights[f"token.{case.name}"].shape == (1 + len(case.instance.kind), 16)
    assert trained.seconds > 0.5 and 100 < trained.memory_mb < 8000
    assert sorted(p.name for p in ctx.store.backend.path("artifacts").iterdir()) == [
        "adapter",
        "embedding",
        "mask",
        "prior",
    ]
    assert (
        not list(ctx.store.backend.path("artifacts").glob("[!p]*/left-over"))
        and (ctx.store.backend.path("artifacts/prior") / "left-over").exists()
    )
    assert not list(ctx.project.folder.glob("tmp*"))  # photo and mask are gone again
    from objtune_cli.store.refs import Ref

    record, arrays = ctx.store.read(Ref("mask", case.name, 1))
    rgb, mask = case.picture()
    assert np.array_equal(arrays["rgb"], rgb) and record.objects == {case.name: case.instance.kind}
    assert ((arrays["mask"] > 127) == (mask > 127)).mean() > 0.995
    config = ctx.store.read_record(Ref("adapter", case.name, 1)).config
    assert {k: config[k] for k in TINY.train} == TINY.train
    model, words = rendering.load_adapter(ctx, case.name, trained.weights)
    assert rendering.sample_case(ctx, model, words, case, f"<{case.name}>").shape == (len(case.prompts), 32, 32, 3)


@pytest.mark.commands
def test_a_method_of_several_photos_trains_on_all_of_them(context: Callable[..., StageContext], case: Case) -> None:
    from objtune_cli.store.refs import Ref

    ctx = context()
    single_training._train_case(ctx, case, "tiny", replace(TINY, num_photos=3))
    own = ctx.store.read_record(Ref("embedding", case.name, 1)).inputs
    assert [own[role]["ref"] for role in ("mask", "mask.2", "mask.3")] == [f"mask/{case.name}@{n}" for n in (1, 2, 3)]
    photos = [ctx.store.read(Ref("mask", case.name, n))[1]["rgb"] for n in (1, 2, 3)]
    assert np.array_equal(photos[0], case.picture()[0])
    for stored, (rgb, _) in zip(photos[1:], photo_variants.make_further_photos(case, EASY, 2), strict=True):
        assert np.array_equal(stored, rgb) and not np.array_equal(stored, photos[0])


def test_a_training_that_fails_says_which_and_why(context: Callable[..., StageContext], case: Case) -> None:
    wrong = Method("wrong", "", train={"max_steps": -1})
    with pytest.raises(
        command_runner.TrainingFailed, match=f"wrong on {case.name} failed: .*train.max_steps is -1"
    ) as caught:
        single_training._train_case(context(), case, "wrong", wrong)
    assert caught.value.code == 2


def test_a_training_that_was_killed_says_so(case: Case) -> None:
    killed = command_runner.TrainingFailed("m", case, -9, "it printed nothing")
    assert killed.code == 7 and killed.message == f"m on {case.name} was ended by signal 9" and "memory" in killed.hint
    assert command_runner.TrainingFailed("m", case, 0, "it printed nothing").code == 1


def test_a_key_is_the_same_for_the_same_work(context: Callable[..., StageContext], case: Case) -> None:
    again = benchmark_objects.make_cases(EASY, 3, 0)[0]
    assert single_training.result_key(context(), case, "m", TINY, 0) == single_training.result_key(
        context(), again, "m", replace(TINY, title="other", source="other"), 0
    )


def test_a_key_depends_on_everything_that_a_result_depends_on(
    context: Callable[..., StageContext], case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ctx = context()
    other = Common(base=ctx.common.base, device="cpu", precision="bf16")
    keys = [
        single_training.result_key(ctx, case, "m", TINY, 0),
        single_training.result_key(ctx, case, "n", TINY, 0),
        single_training.result_key(ctx, case, "m", TINY, 1),
        single_training.result_key(ctx, replace(case, prompts=case.prompts[1:]), "m", TINY, 0),
        single_training.result_key(ctx, benchmark_objects.make_cases(EASY, 1, 1)[0], "m", TINY, 0),
        single_training.result_key(ctx, case, "m", replace(TINY, train={**TINY.train, "max_steps": 3}), 0),
        single_training.result_key(ctx, case, "m", replace(TINY, embed={**TINY.embed, "num_vectors": 2}), 0),
        single_training.result_key(ctx, case, "m", replace(TINY, prior={"num_class_images": 2}), 0),
        single_training.result_key(ctx, case, "m", replace(TINY, photo_variant="small"), 0),
        single_training.result_key(ctx, case, "m", replace(TINY, num_photos=2), 0),
        single_training.result_key(ctx, case, "m", replace(TINY, num_photos=4), 0),
        single_training.result_key(ctx, case, "m", replace(TINY, sampling={"prompt_guidance_scale": 1.0}), 0),
        single_training.result_key(ctx, case, "m", replace(TINY, sampling={"autoguidance_scale": 1.0}), 0),
        single_training.result_key(ctx, case, "m", replace(TINY, sampling={"subject_conditioning_start": 0.9}), 0),
        single_training.result_key(ctx, case, "m", replace(TINY, train={**TINY.train, "sample_vae_latents": False}), 0),
        single_training.result_key(replace(ctx, common=other), case, "m", TINY, 0),
        single_training.result_key(replace(ctx, common=replace(other, base="toybox"), _base=None), case, "m", TINY, 0),
        *(single_training.result_key(ctx, case, "m", m, 0) for m in BASELINES.values()),
    ]
    (tmp_path / "other.safetensors").write_bytes(b"another evaluator")
    monkeypatch.setattr(inference, "WEIGHTS", tmp_path / "other.safetensors")
    single_training.evaluator_digest.cache_clear()
    try:
        keys.append(single_training.result_key(ctx, case, "m", TINY, 0))
    finally:
        single_training.evaluator_digest.cache_clear()
    assert len(set(keys)) == len(keys)


def test_a_setting_that_says_the_default_changes_nothing(context: Callable[..., StageContext], case: Case) -> None:
    same = replace(TINY, train={**TINY.train, "loss_region": "mask-normalized"})
    assert single_training.result_key(context(), case, "m", same, 0) == single_training.result_key(
        context(), case, "m", TINY, 0
    )


@pytest.mark.parametrize(
    ("kinds", "kept"),
    [("ssssswpwp", [0, 1, 2, 5]), ("sspp", [0, 1, 2]), ("wp", [0, 1]), ("p", [0]), ("sssss", [0, 1, 2])],
)
def test_the_strip_shows_scenes_first_and_then_one_of_each_kind(kinds: str, kept: list[int], case: Case) -> None:
    names = {"s": "scene", "w": "wearing", "p": "pair"}
    asked = replace(
        case, prompts=tuple(Prompt(names[k], OBJECT_SLOT, "snow", "", None, i) for i, k in enumerate(kinds))
    )
    shown = np.arange(len(kinds)).reshape(-1, 1, 1, 1) * np.ones((1, 2, 2, 3), int)
    assert single_training.sheet_row(asked, shown)[:, 0, 0, 0].tolist() == kept


@pytest.fixture(scope="module")
def calibrated(case: Case):
    """Evaluator and scale of the case, from a few drawings."""
    network = inference.load()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendering, "REFERENCES", 8), patch.setattr(rendering, "OTHER_INSTANCES", 16)
        return network, rendering.calibrate(network, case, EASY, 0)


def test_the_truth_is_near_one_and_a_stranger_near_zero(case: Case, calibrated) -> None:
    network, scale = calibrated
    assert scale.references.shape == (8, 64)
    assert scale.ceiling > scale.floor + 0.2 and scale.spread > 0
    found, shown = single_training.ground_truth(network, case, EASY, scale, 0)
    assert shown.shape == (len(case.prompts), rendering.SIDE, rendering.SIDE, 3)
    assert found["identity"] == pytest.approx(1, abs=0.2) and found["prompt"] == found["all_present"] == 1
    assert found["background_leakage"] < 0.1 and 0.4 < found["diversity"] < 2
    other, _ = single_training.other_instance(network, case, EASY, scale, 0)
    assert (
        other["identity"] < 0.6
        and other["all_present"] < 1
        and other["prompt"] == 1
        and other["background_leakage"] < 0.1
    )


def test_through_the_autoencoder_the_truth_has_the_bases_size(
    case: Case, calibrated, context: Callable[..., StageContext], monkeypatch
) -> None:
    """Where the autoencoder changes nothing, the truth comes back but for its size."""
    network, scale = calibrated
    ctx = context()
    shown = single_training.vae_reconstruction(ctx, network, case, EASY, scale, 0)[1]
    assert shown.shape == (len(case.prompts), 32, 32, 3)
    model = ctx.load_base_model()
    monkeypatch.setattr(type(model), "encode_image", lambda self, x: x)
    monkeypatch.setattr(type(model), "decode_latents", lambda self, x: x)
    _, shown = single_training.vae_reconstruction(ctx, network, case, EASY, scale, 0)
    _, true = single_training.ground_truth(network, case, EASY, scale, 0)
    mean = true.reshape(-1, 32, 4, 32, 4, 3).mean((2, 4))
    assert np.abs(shown - mean).max() <= 1


def test_the_base_told_in_words_is_scored_as_a_method_is(
    case: Case, calibrated, context: Callable[..., StageContext]
) -> None:
    network, scale = calibrated
    found, shown = single_training.prompt_only(context(), network, case, scale)
    assert found.keys() == {
        "identity",
        "detection_rate",
        "duplicate_rate",
        "prompt",
        "background_leakage",
        "diversity",
        "all_present",
    }
    assert shown.shape == (len(case.prompts), 32, 32, 3) and all(np.isfinite(list(found.values())))


def test_pictures_of_any_size_are_brought_to_the_evaluators() -> None:
    for side in (32, 128, 320):
        shown = np.full((2, side, side, 3), 77, np.uint8)
        fitted = rendering.resize_images(shown)
        assert fitted.shape == (2, 128, 128, 3) and (fitted == 77).all()
        assert (fitted is shown) == (side == 128)


def test_each_prompt_is_drawn_from_its_own_noise(
    context: Callable[..., StageContext], case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone or in a batch, for any method: the same seed, the same picture."""
    ctx = context()
    model, _ = rendering.load_adapter(ctx, "", None)
    texts, seeds = ["a dog", "a cat", "a dog"], [5, 6, 7]
    whole = rendering.sample_images(ctx, model, texts, seeds, "")
    monkeypatch.setattr(rendering, "BATCH", 2)
    assert np.abs(rendering.sample_images(ctx, model, texts, seeds, "").astype(int) - whole).max() <= 1
    assert np.abs(rendering.sample_images(ctx, model, texts[1:2], seeds[1:2], "")[0].astype(int) - whole[1]).max() <= 1
    assert not np.array_equal(whole[0], whole[2])


def test_what_was_learned_is_in_the_words_and_in_the_denoiser(context: Callable[..., StageContext]) -> None:
    ctx = context()
    rows = torch.ones(2, 16)
    model, words = rendering.load_adapter(ctx, "rex", {"token.rex": rows})
    assert len(words.expand("<rex>").split()) == 2 and layers.state_dict(model) == {}
    _, bare = rendering.load_adapter(ctx, "rex", None)
    assert bare.expand("<rex>") == "<rex>"
    params = layers.add(model, 2, "cross-kv", seed=0)
    for p in params:
        p.data.fill_(0.1)
    learned = layers.state_dict(model)
    again, _ = rendering.load_adapter(ctx, "rex", {"token.rex": rows, **learned})
    held = layers.state_dict(again)
    assert held.keys() == learned.keys() and all(torch.equal(held[k], v) for k, v in learned.items())
