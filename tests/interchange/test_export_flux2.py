"""Exported files of FLUX.2 klein: read by diffusers to the same numbers, from its own names and from kohya's; every key at full size."""

from pathlib import Path
from typing import Any

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)
from objtune_cli.store.store import Store

# isort: split
import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.loaders import TextualInversionLoaderMixin
from diffusers.loaders.lora_conversion_utils import (
    _convert_kohya_flux2_lora_to_diffusers,
    _convert_non_diffusers_flux2_lora_to_diffusers,
)
from safetensors import safe_open

from objtune_cli.interchange import export, lora_keys
from objtune_cli.lora import flux2_names
from objtune_cli.lora import layers as adapter
from objtune_cli.models import families, loading
from objtune_cli.models.placeholders import Placeholders
from tests.interchange.test_export import FRESH_ROWS, NO_TEXT_LORA, listening
from tests.interchange.test_export_families import published
from tests.interchange.test_export_sd3 import own_memory
from tests.support import full_size_configs, tiny_families

CPU = torch.device("cpu")
NAME = "flux2-klein"
STATES = (1, 2, 3)


class Pipeline(TextualInversionLoaderMixin, Flux2KleinPipeline):
    """With words of its own."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.flux2_klein(tmp_path_factory.mktemp("exports") / "klein")


def predict(transformer: Any) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    z, words = torch.randn(1, 4, 16, generator=g), torch.randn(1, 6, 3 * tiny_families.QWEN_WIDTH, generator=g)
    ids = torch.cartesian_prod(torch.arange(1), torch.arange(2), torch.arange(2), torch.arange(1))
    text = torch.cartesian_prod(torch.arange(1), torch.arange(1), torch.arange(1), torch.arange(6))
    with torch.no_grad():
        return transformer(
            hidden_states=z, encoder_hidden_states=words, timestep=torch.tensor([0.7]), img_ids=ids, txt_ids=text
        ).sample


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_diffusers_reads_it_as_we_do(folder: Path, tmp_path: Path, form: str) -> None:
    ref, tensors, _ = published(Store.at(tmp_path / "store"), folder, NAME)
    (file,) = export.run(Store.at(tmp_path / "store"), ref, form, tmp_path / "out")
    model = loading.load(folder, CPU, torch.float32)
    adapter.load(model, tensors)
    pipe = Flux2KleinPipeline.from_pretrained(folder, local_files_only=True)
    plain = predict(pipe.transformer)
    with listening() as warned:
        pipe.load_lora_weights(file.parent, weight_name=file.name)
    assert [text for text in warned if not text.startswith(NO_TEXT_LORA)] == []
    shown, ours = predict(own_memory(pipe.transformer)), predict(own_memory(model.denoiser))
    assert float((shown - ours).abs().max()) < 1e-6
    assert float((shown - plain).abs().max()) > 0.01


@pytest.mark.parametrize("size", ["4b", "9b"])
def test_every_key_at_full_size_is_read_by_diffusers(size: str) -> None:
    """Its converters of kohya's and of the original repository's names leave no key over, and give our layers."""
    with torch.device("meta"):
        transformer = Flux2Transformer2DModel(**full_size_configs.FLUX2[size])
    family = families.get_family(NAME)
    linear = {n: m for n, m in transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    sizes = {n: m for n, m in linear.items() if any(n.endswith(f".{end}") for end in family.modules["all"])}
    made = {f"unet.{n}.lora_A.weight": torch.zeros(1, m.in_features) for n, m in sizes.items()}
    made |= {f"unet.{n}.lora_B.weight": torch.zeros(m.out_features, 1) for n, m in sizes.items()}
    wanted = lora_keys.to_diffusers(made, family)
    kohya = {key: torch.as_tensor(value) for key, value in lora_keys.to_kohya(made, family).items()}
    assert len(kohya) == 3 * (8 * transformer.config.num_layers + 2 * transformer.config.num_single_layers)
    with listening() as warned:
        read = _convert_kohya_flux2_lora_to_diffusers(kohya)
    assert warned == [] and read.keys() == wanted.keys()
    assert all(
        read[key].shape[-1 if "lora_A" in key else 0] == wanted[key].shape[-1 if "lora_A" in key else 0]
        for key in wanted
    )
    original = {
        f"diffusion_model.{flux2_names.original_name(n)[0]}": m for n, m in linear.items() if "attn.to_q" not in n
    }
    single = {f"{n}.lora_A.weight": torch.zeros(1, 1) for n in original if "qkv" not in n}
    assert len(_convert_non_diffusers_flux2_lora_to_diffusers(single)) == len(single)


def test_metadata_says_the_family(folder: Path, tmp_path: Path) -> None:
    ref, _, _ = published(Store.at(tmp_path / "store"), folder, NAME, "cross-kv")
    (file,) = export.run(Store.at(tmp_path / "store"), ref, "kohya", tmp_path / "out")
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata().items() >= {
            "modelspec.architecture": "Flux.2-klein-4b/lora", "ss_base_model_version": "flux_2_klein_4b",
            "ss_network_module": "networks.lora_flux_2", "ss_network_alpha": "3",
        }.items()  # fmt: skip


@torch.no_grad()
def test_the_cards_lines_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own lines, on the base in a folder: diffusers encodes the prompt as we do, difference 0."""
    ref, _, rows = published(Store.at(tmp_path / "store"), folder, NAME, "cross-kv")
    export.run(Store.at(tmp_path / "store"), ref, "hub", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'Other tools take the LoRA alone: write "dog"' in card and "A1111" not in card
    code = card.split("```python\n")[1].split("```")[0]
    assert 'Pipeline.from_pretrained("black-forest-labs/FLUX.2-klein-base-4B")' in code
    opened = Pipeline.from_pretrained(folder, local_files_only=True)
    monkeypatch.setattr(Flux2KleinPipeline, "from_pretrained", lambda *_: opened)
    monkeypatch.setattr(
        Flux2KleinPipeline, "__call__", lambda self, prompt: type("Drawn", (), {"images": [self.encode_prompt(prompt, text_encoder_out_layers=STATES)[0]]})
    )  # fmt: skip
    monkeypatch.chdir(tmp_path / "out")
    local: dict[str, Any] = {}
    with listening() as warned:
        exec(code, local)
    assert [text for text in warned if not text.startswith((FRESH_ROWS, NO_TEXT_LORA))] == []
    model = loading.load(folder, CPU, torch.float32)
    words = Placeholders(model)
    words.add("rex", rows, "dog")
    for network in (model.text_encoder, opened.text_encoder):
        own_memory(network)
    ours = model.encode_prompt([words.expand("a photo of <rex> on the beach")]).sequence
    theirs = opened.encode_prompt(f"a photo of{local['token']} on the beach", text_encoder_out_layers=STATES)[0]
    assert torch.equal(local["picture"], theirs) and torch.equal(ours, theirs)
