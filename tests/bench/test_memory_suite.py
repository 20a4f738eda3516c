"""A GPU's memory counted on this machine: a tiny base through the command, true layouts in a reduced size, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from objtune_cli.bench.suites import memory as bench
from objtune_cli.config.sections import Bench
from objtune_cli.errors import UsageError
from objtune_cli.models import loading, random_weights
from objtune_cli.models.families import FAMILIES
from tests.support import tiny_sd1

OURS = "base at 32 px"
CPU = torch.device("cpu")
MEASURES = {
    "denoiser_mb", "text_encoders_mb", "vae_mb", "prepare_mb", "idle_mb", "step_mb", "step_attention_mb", "step_checkpointed_mb", "step_checkpointed_attention_mb",
    "sampling_mb",
}  # fmt: skip


def test_the_command_prints_what_a_run_takes(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trainer has the family's settings, the class's rows at every step, as many kept predictions as the base is asked for."""
    made: list[Any] = []
    steps = bench._steps
    monkeypatch.setattr(
        bench, "_steps", lambda ctx, live, trainer, label: (made.append(trainer), steps(ctx, live, trainer, label))[1]
    )
    folder = tiny_sd1.build(tmp_path / "tiny", clip=False)
    given = ("bench.memory_models=base", "train.rank=2", "train.num_augmentations=2", "prior.num_predictions=5")
    done = cli("bench", "memory", "--base", folder, *(word for each in given for word in ("--set", each)), "--json")
    assert done.code == 0, done.err
    _trained_as_a_run(made[0])
    rows = json.loads(done.out)["rows"]
    assert [*dict.fromkeys(r["method"] for r in rows)] == [OURS, f"{OURS}: dreambooth-lora", f"{OURS}: ratio"] and all(
        r["n"] == 1 for r in rows
    )
    ours, theirs, ratio = (
        {r["measure"]: r["mean"] for r in rows if r["method"] == name}
        for name in (OURS, f"{OURS}: dreambooth-lora", f"{OURS}: ratio")
    )
    assert (
        theirs.keys() == {"idle_mb", "step_mb"}
        and theirs["idle_mb"] > ours["denoiser_mb"] + ours["text_encoders_mb"] + ours["vae_mb"]
    )
    assert ratio == {"step_mb": pytest.approx(ours["step_mb"] / theirs["step_mb"], abs=1e-3)}
    found = ours
    assert found.keys() == MEASURES
    model = loading.load(folder, CPU, torch.bfloat16)
    bytes_of = {"denoiser": [model.denoiser], "text_encoders": model.text_encoders, "vae": [model.vae]}
    for part, modules in bytes_of.items():
        blocks = sum(-(-t.nbytes // 512) * 512 for m in modules for t in (*m.parameters(), *m.buffers()))
        assert found[f"{part}_mb"] == pytest.approx(blocks / 2**20, abs=1e-3)
    weights = found["denoiser_mb"] + found["text_encoders_mb"]
    assert weights < found["idle_mb"] < found["step_checkpointed_mb"] < found["step_mb"]
    assert weights + found["vae_mb"] < found["prepare_mb"]
    assert found["step_checkpointed_mb"] <= found["step_checkpointed_attention_mb"] < found["step_attention_mb"]
    assert "attention by _scaled_dot_product" in done.err


def _trained_as_a_run(trainer: Any) -> None:
    config = trainer.config
    assert (config.target_blocks, config.single_forward, config.batch_size, config.target_modules) == (
        "decoder",
        False,
        1,
        "attention",
    ) and config.prior_loss_interval == 1
    assert len(trainer.batches.views) == 3 and all(
        len(batch.indices) == len(batch.prediction) == 8
        for templates in trainer.teacher.predictions
        for batch in templates.values()
    )
    assert (
        len(trainer.batches.priors["dog"].noisy_latents) == 5 and trainer.model.loaded_vae is not None
    )  # back, for drawing


@pytest.mark.parametrize("name", random_weights.LAYOUTS)
def test_a_layout_is_the_real_one(name: str) -> None:
    """Parameters as the models' cards have them; on the meta device, which contains no bytes."""
    model = random_weights.random_base_model(name, torch.device("meta"), torch.bfloat16)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model.denoiser, *model.text_encoders, model.vae)]
    expected = {
        "sd15": [859_520_964, 123_060_480, 83_653_863], "sd21": [865_910_724, 340_387_840, 83_653_863],
        "sdxl": [2_567_463_684, 123_060_480, 694_659_840, 83_653_863], "sd3": [2_028_328_000, 123_650_304, 694_659_840, 83_819_683],
    }  # fmt: skip
    assert sizes == expected[name] and model.resolution == {"sd15": 512, "sd21": 768, "sdxl": 1024, "sd3": 1024}[name]
    assert (
        {p.dtype for p in model.denoiser.parameters()} == {p.dtype for p in model.vae.parameters()} == {torch.bfloat16}
    )
    assert {p.dtype for m in model.text_encoders for p in m.parameters()} == {
        torch.float32
    } and model.family in FAMILIES
    assert [len(t) for t in model.tokenizers] == [49408] * len(model.text_encoders)
    assert random_weights.random_base_model(name, torch.device("meta"), torch.bfloat16, 256).resolution == 256


def test_an_unknown_layout_is_one_line(cli: Callable[..., Any]) -> None:
    assert random_weights.parse_names(" sd15, base") == ["sd15", "base"] and random_weights.parse_names(
        Bench().memory_models
    ) == [
        "sd15",
        "sdxl",
    ]
    with pytest.raises(UsageError, match=r"bench.memory_models has the unknown sd9"):
        random_weights.parse_names("sd15,sd9")
    done = cli("bench", "memory", "--quick")
    assert done.code == 2 and "No such option: --quick" in done.err
