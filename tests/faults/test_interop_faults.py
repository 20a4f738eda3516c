"""F11: exported files in diffusers' loaders and under the names that A1111 and ComfyUI look for."""

from collections.abc import Callable
from pathlib import Path

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)
from objtune_cli.store.store import Store

# isort: split
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from objtune_cli.interchange import export
from objtune_cli.models import loading
from objtune_cli.models.families.module_sets import MODULES
from tests.interchange.test_export import (
    CPU,
    FRESH_ROWS,
    NO_TEXT_LORA,
    _ours,
    _predict,
    _publish,
    _random_lora,
    _rows,
    _theirs,
    listening,
)
from tests.support import tiny_sd1
from tests.support.scaled import sized

PLACES = [
    f"{side}_blocks_{i}_attentions_{j}"
    for side, levels, each in (("down", (0, 1, 2), 2), ("up", (1, 2, 3), 3))
    for i in levels
    for j in range(each)
]
KOHYA = {
    f"lora_unet_{place}_transformer_blocks_0_attn{n}_to_{to}.{what}"
    for place in [*PLACES, "mid_block_attentions_0"] for n in (1, 2) for to in ("q", "k", "v", "out_0") for what in ("lora_down.weight", "lora_up.weight", "alpha")
}  # fmt: skip
"""The attention layers of SD 1.x as kohya's trainer names them and A1111 and ComfyUI read them: 128 layers, three keys each."""


def sd15_shaped() -> UNet2DConditionModel:
    """SD 1.5's denoiser, block by block, a few channels wide."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8, 16, 16),
        cross_attention_dim=tiny_sd1.WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of random weights whose denoiser has SD 1.5's layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_sd1, "unet", sd15_shaped)
        return tiny_sd1.build(tmp_path_factory.mktemp("sd15") / "sd15", clip=False)


def test_names_are_those_that_other_tools_know(sd15: Path, tmp_path: Path) -> None:
    weights = _random_lora(sd15, "attention", 2)
    ref = _publish(Store.at(tmp_path / "store"), weights, rex=_rows(1))
    (kohya,) = export.run(Store.at(tmp_path / "store"), ref, "kohya", tmp_path / "kohya")
    (plain,) = export.run(Store.at(tmp_path / "store"), ref, "diffusers", tmp_path / "plain")
    assert len(KOHYA) == 128 * 3
    assert set(load_file(kohya)) == KOHYA
    model = loading.load(sd15, CPU, torch.float32)
    layers = {
        name for name, layer in model.denoiser.named_modules() if isinstance(layer, torch.nn.Linear) and ".attn" in name
    }
    assert set(load_file(plain)) == {f"unet.{name}.lora_{side}.weight" for name in layers for side in "AB"}


@sized([("attention", 1), ("all", 4)], [(m, r) for m in MODULES if m != "none" for r in (1, 2, 4, 8)])
def test_f11_reloaded_elsewhere(
    size: list[tuple[str, int]], sd15: Path, tmp_path: Path, say: Callable[[str], None]
) -> None:
    """Both LoRA files and the embedding in a fresh pipeline: the same prediction, every key used; and `.alpha` is obeyed there."""
    worst = least = keys = files = 0.0
    least = 9.0
    for modules, rank in size:
        weights, rows = _random_lora(sd15, modules, rank), _rows(3)
        folder = tmp_path / f"{modules}{rank}"
        store = Store.at(folder)
        ref, expected = _publish(store, weights, rex=rows), _ours(sd15, weights)
        for form in ("diffusers", "kohya"):
            (file,) = export.run(store, ref, form, folder / form)
            worst = max(worst, float((_read(sd15, file) - expected).abs().max()))
            keys, files = keys + len(load_file(file)), files + 1
        halved = {k: v / 2 if k.endswith(".alpha") else v for k, v in load_file(file).items()}
        save_file(halved, folder / "halved.safetensors")
        by_hand = {k: v / 2 if ".lora_B." in k else v for k, v in weights.items()}
        shown = _read(sd15, folder / "halved.safetensors")
        assert float((shown - _ours(sd15, by_hand)).abs().max()) <= 1e-5, "alpha of half the rank is half the LoRA"
        least = min(least, float((shown - expected).abs().max()))
        (file,) = export.run(store, ref, "embedding", folder / "embedding")
        assert _words(sd15, file, "<rex>", 3) == 0, "no vector differs"
        files += 1
    assert worst == 0, "not one bit of a prediction differs"
    assert least > 1e-3, "a wrong alpha would show"
    say(
        f"F11 {files:.0f} files reloaded in diffusers ({len(size)} kinds of LoRA on SD 1.5's layers): {keys:.0f} of {keys:.0f} keys used, "
        f"largest difference {worst:.1g}, of the embeddings 0; half the alpha moves it by {least:.2g} and more; 384 of 384 kohya names known to A1111 and ComfyUI"
    )


def _read(base: Path, file: Path) -> torch.Tensor:
    """What a fresh pipeline predicts with a LoRA file, which it must use to the last key."""
    pipe = _theirs(base)
    with listening() as warned:
        pipe.load_lora_weights(file.parent, weight_name=file.name)
    assert [text for text in warned if not text.startswith(NO_TEXT_LORA)] == []
    return _predict(pipe.unet)


def _words(base: Path, file: Path, token: str, count: int) -> float:
    """The largest difference between an embedding file's vectors and what a fresh pipeline has for its token."""
    pipe = _theirs(base)
    with listening() as warned:
        pipe.load_textual_inversion(file)
    assert [text for text in warned if not text.startswith(FRESH_ROWS)] == []
    ids = pipe.tokenizer(pipe.maybe_convert_prompt(token, pipe.tokenizer), add_special_tokens=False).input_ids
    assert len(ids) == count
    return float((pipe.text_encoder.get_input_embeddings().weight[ids] - load_file(file)[token]).abs().max())
