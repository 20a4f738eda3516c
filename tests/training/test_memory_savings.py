"""Settings that take less memory: the same work where they promise it, one line where their library is not there."""

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)

# isort: split
import pytest
import torch

from objtune_cli.config.sections import Train
from objtune_cli.errors import ResourceError
from objtune_cli.lora import layers
from objtune_cli.models import loading, memory_savings
from objtune_cli.runtime import memory
from objtune_cli.training import dry_run
from objtune_cli.training import trainer as training
from tests.support import tiny_families, tiny_sd1

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

CPU = torch.device("cpu")
CONFIG = Train(
    max_steps=4, rank=2, num_augmentations=2, num_teacher_samples=2, learning_rate=1e-3, embedding_lr=0.01, batch_size=1, target_modules="attention", target_blocks="all", prior_loss_interval=1, single_forward=False,
    prior_loss_weight=0.0, early_stopping="off", ema_decay=0.0,
)  # fmt: skip
HERE = [pytest.param("adamw8bit", marks=pytest.mark.skipif(not find_spec("bitsandbytes"), reason="no bitsandbytes"))]


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.sdxl(tmp_path_factory.mktemp("memory") / "xl", with_clip=False)


def trained(
    folder: Path,
    config: Train,
    *,
    checkpointing: bool = False,
    quantised: str = "none",
    resumed: bool = False,
    objects: int = 1,
) -> dict[str, torch.Tensor]:
    """The layers after the run; `resumed`: from its state half-way, in a trainer of its own."""

    def fresh() -> training.Trainer:
        model = loading.load(folder, CPU, torch.float32)
        memory_savings.reduce_memory(model, checkpointing=checkpointing, quantised=quantised)
        return training.Trainer(model, tiny_sd1.subjects(model, objects), {}, config)

    trainer = fresh()
    for step in range(config.max_steps):
        if resumed and step == config.max_steps // 2:
            kept = trainer.state()
            trainer = fresh()
            trainer.restore(kept)
        trainer.train_step()
    return layers.state_dict(trainer.model) | trainer.tokens.as_tensors()


def test_recomputed_activations_give_the_same_weights(xl: Path) -> None:
    plain, again = trained(xl, CONFIG), trained(xl, CONFIG, checkpointing=True)
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[key], value) for key, value in again.items())


def test_recomputed_activations_keep_less(xl: Path) -> None:
    """What autograd holds on to between forward and backward, bytes."""

    def held(checkpointing: bool) -> int:
        model = loading.load(xl, CPU, torch.float32)
        memory_savings.reduce_memory(model, checkpointing=checkpointing, quantised="none")
        layers.add(model, 2, "attention", seed=0)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.nbytes), x)[1], lambda x: x):
            model.predict(torch.randn(1, 4, 8, 8), torch.tensor([5]), model.encode_prompt(["a dog"]))
        return sum(sizes)

    assert held(True) < held(False) / 3


@pytest.mark.parametrize("optimizer", ["adamw", *HERE])
def test_a_run_goes_on_from_its_state(xl: Path, optimizer: str) -> None:
    config = replace(
        CONFIG, optimizer=optimizer, rank=32, target_modules="attention+ff"
    )  # matrices large enough to be kept in 8 bits
    whole, parts = trained(xl, config), trained(xl, config, resumed=True)
    assert all(torch.equal(whole[key], value) for key, value in parts.items())


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_a_quantised_denoiser_is_learned_on(xl: Path, kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    model = loading.load(xl, CPU, torch.float32)
    before = sum(p.nbytes for p in model.denoiser.parameters())
    memory_savings.quantise(model, 4 if kind == "4bit" else 8)
    assert sum(p.nbytes for p in model.denoiser.parameters()) < before
    found, plain = trained(xl, CONFIG, quantised=kind), trained(xl, CONFIG)
    assert found.keys() == plain.keys() and all(bool(torch.isfinite(v).all()) for v in found.values())
    assert max(float(v.abs().max()) for k, v in found.items() if "lora_B" in k) > 0


def test_what_reads_no_added_words_reads_nothing_while_a_run_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5 has heard every sentence, in class words, before the first step."""
    model = loading.load(tiny_families.sd3(tmp_path / "b", with_clip=False), CPU, torch.float32)
    trainer = training.Trainer(
        model,
        [tiny_sd1.subject(model)],
        {},
        replace(CONFIG, context_words="placeholder", multiple_templates=True, max_steps=12),
    )
    assert len(model.t5_cache) == 3

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("T5 is asked")

    monkeypatch.setattr(type(model.text_encoder_3), "forward", asked)
    while not trainer.finished:
        trainer.train_step()


def test_without_the_library_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        ResourceError, match="train.optimizer=adamw8bit needs bitsandbytes: it is not installed"
    ) as error:
        memory_savings.bitsandbytes("train.optimizer=adamw8bit")
    assert error.value.code == 7 and "pip install bitsandbytes" in error.value.hint


def test_where_a_gpus_memory_ends_activations_are_computed_again(xl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the backward pass of the second step: the step is taken again, and the weights are those of an unbroken run."""
    model = loading.load(xl, CPU, torch.float32)
    trainer = training.Trainer(model, [tiny_sd1.subject(model)], {}, CONFIG)
    backward, calls = torch.Tensor.backward, iter(range(99))

    def full(loss: torch.Tensor, *args: Any, **named: Any) -> None:
        backward(loss, *args, **named)
        if next(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(torch.Tensor, "backward", full)
    seen = []
    while not trainer.finished:
        trainer.train_step()
        seen.append(model.denoiser.is_gradient_checkpointing)
    monkeypatch.undo()
    assert seen == [False, True, True, True] and next(calls) == 5
    plain, found = trained(xl, CONFIG), layers.state_dict(model) | trainer.tokens.as_tensors()
    assert all(torch.equal(plain[key], value) for key, value in found.items())


@pytest.mark.parametrize("given", ["off", "on", "several processes", "again already"])
def test_elsewhere_the_end_of_memory_is_an_error(given: str) -> None:
    unet = SimpleNamespace(is_gradient_checkpointing=given == "again already")
    model: Any = SimpleNamespace(
        denoiser=unet, process_group=object() if given == "several processes" else None, device=CPU
    )

    def work() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        memory_savings.retry_with_checkpointing(model, work, auto=given not in ("off", "on"))


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_the_attention_term_and_recomputed_activations_go_together(tmp_path: Path, family: str) -> None:
    """Two objects of one photo; the same weights to the last bit, and other ones than without the term."""
    folder = (
        tiny_families.sdxl(tmp_path / "b", with_clip=False)
        if family == "sdxl"
        else tiny_families.sd3(tmp_path / "b", with_clip=False)
    )
    config = replace(CONFIG, attention_loss_weight=0.5, early_stopping="off")

    def run(again: bool, config: Train) -> dict[str, torch.Tensor]:
        model = loading.load(folder, CPU, torch.float32)
        memory_savings.reduce_memory(model, checkpointing=again, quantised="none")
        first = tiny_sd1.subject(model)
        photo = first.photos[0]
        moved = replace(photo, mask=photo.mask.roll(8, -1))
        second = replace(first, name="cup", class_word="mug", photos=(moved,))
        trainer = training.Trainer(model, [first, second], {}, config)
        processors = dict(model.denoiser.attn_processors)
        for _ in range(config.max_steps):
            trainer.train_step()
        assert dict(model.denoiser.attn_processors) == processors
        return layers.state_dict(model) | trainer.tokens.as_tensors()

    plain, again, without = (
        run(False, config),
        run(True, config),
        run(False, replace(config, attention_loss_weight=0.0)),
    )
    assert all(torch.equal(plain[key], value) for key, value in again.items())
    assert not all(torch.equal(plain[key], value) for key, value in without.items())


def test_a_dry_run_measures_and_writes_nothing(cli: Any, xl: Path) -> None:
    before = sorted(Path().rglob("*"))
    done = cli("train", "--dry-run", "--base", xl, "--set", "train.max_steps=50", "--set", "train.rank=2", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)["dry_run"]
    assert found["base"] == "xl" and found["steps"] == 50 and found["step_mb"] > 0 and found["learned"] > 0
    assert found["seconds"] == pytest.approx(50 * found["step_seconds"], abs=1)
    assert sorted(p for p in Path().rglob("*") if p.suffix == ".safetensors") == [] and set(before) <= set(
        Path().rglob("*")
    )
    assert "step_mb" in cli("train", "--dry-run", "--base", xl).out


def test_advice_names_what_is_not_set_yet() -> None:
    found = {"step_mb": 900, "preparing_mb": 100, "room_mb": 500, "precision": "float32", "recomputed": False}
    assert dry_run.suggest_savings(found, Train(batch_size=1)).startswith(
        "`--set train.gradient_checkpointing=on`, `--precision bf16`"
    )
    assert dry_run.suggest_savings(found | {"recomputed": True}, Train(batch_size=1)).startswith("`--precision bf16`")
    assert dry_run.suggest_savings(found | {"room_mb": 1000}, Train()) == ""


def test_the_room_holds_what_the_process_has_already() -> None:
    before = memory.available_mb("cpu")
    if not before:
        pytest.skip("this system hides it")
    taken = torch.ones(50 * 2**20)  # 200 MB, all touched
    assert memory.available_mb("cpu") == pytest.approx(before, abs=150) and taken.numel()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_out_of_memory_names_the_settings(
    cli: Any, base: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(loading, "load", full)
    done = cli("train", "--dry-run", "--base", base)
    assert (
        done.code == 7
        and "train.gradient_checkpointing=on" in done.err
        and "--dry-run" in done.err
        and "Traceback" not in done.err
    )
