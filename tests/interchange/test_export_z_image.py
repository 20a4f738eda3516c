"""Exported files of Z-Image: read by diffusers to the same numbers, from its own names and from kohya's; every key at full size."""

from pathlib import Path
from typing import Any

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)
from objtune_cli.store.store import Store

# isort: split
import pytest
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from diffusers.loaders import TextualInversionLoaderMixin
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_z_image_lora_to_diffusers
from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers
from safetensors import safe_open

from objtune_cli.interchange import export, lora_keys
from objtune_cli.lora import file_names
from objtune_cli.lora import layers as adapter
from objtune_cli.models import families, loading
from objtune_cli.models.placeholders import Placeholders
from tests.interchange.test_export import FRESH_ROWS, NO_TEXT_LORA, listening
from tests.interchange.test_export_families import published
from tests.interchange.test_export_sd3 import own_memory
from tests.support import full_size_configs, tiny_families

CPU = torch.device("cpu")
NAME = "z-image"


class Pipeline(TextualInversionLoaderMixin, ZImagePipeline):
    """With words of its own."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.z_image(tmp_path_factory.mktemp("exports") / "z")


def predict(transformer: Any) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    z, words = torch.randn(4, 1, 8, 8, generator=g), torch.randn(6, tiny_families.QWEN_WIDTH, generator=g)
    with torch.no_grad():
        return ZImageTransformer2DModel.forward(transformer, [z], torch.tensor([0.3]), [words]).sample[0]


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_diffusers_reads_it_as_we_do(folder: Path, tmp_path: Path, form: str) -> None:
    ref, tensors, _ = published(Store.at(tmp_path / "store"), folder, NAME)
    (file,) = export.run(Store.at(tmp_path / "store"), ref, form, tmp_path / "out")
    model = loading.load(folder, CPU, torch.float32)
    adapter.load(model, tensors)
    pipe = ZImagePipeline.from_pretrained(folder, local_files_only=True)
    plain = predict(pipe.transformer)
    with listening() as warned:
        pipe.load_lora_weights(file.parent, weight_name=file.name)
    assert [text for text in warned if not text.startswith(NO_TEXT_LORA)] == []
    model.denoiser.mask = None
    shown, ours = predict(own_memory(pipe.transformer)), predict(own_memory(model.denoiser))
    assert float((shown - ours).abs().max()) < 1e-6
    assert float((shown - plain).abs().max()) > 0.01


def test_every_key_at_full_size_is_read_by_diffusers() -> None:
    """Its converter of other tools' names leaves no key over, and gives our layers; original names are those of its own converter."""
    with torch.device("meta"):
        transformer = ZImageTransformer2DModel(**full_size_configs.Z_IMAGE)
    family = families.get_family(NAME)
    linear = {n: m for n, m in transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    sizes = {n: m for n, m in linear.items() if any(n.endswith(f".{end}") for end in family.modules["all"])}
    made = {f"unet.{n}.lora_A.weight": torch.zeros(1, m.in_features) for n, m in sizes.items()}
    made |= {f"unet.{n}.lora_B.weight": torch.zeros(m.out_features, 1) for n, m in sizes.items()}
    wanted = lora_keys.to_diffusers(made, family)
    kohya = {key: torch.as_tensor(value) for key, value in lora_keys.to_kohya(made, family).items()}
    assert len(kohya) == 3 * 34 * 7
    with listening() as warned:
        read = _convert_non_diffusers_z_image_lora_to_diffusers(kohya)
    assert warned == [] and read.keys() == wanted.keys()
    assert all(read[key].shape == wanted[key].shape for key in wanted)
    names = file_names.of_family(family)
    original = {
        f"{name}.weight": torch.zeros(3, 1)
        for layer in sizes
        for name, _ in names.original_names(layer, transformer.config)
    }
    converted = convert_z_image_transformer_checkpoint_to_diffusers(original)
    assert {key.removesuffix(".weight") for key in converted} == {n for n in sizes if "feed_forward" not in n}


def test_metadata_says_the_family(folder: Path, tmp_path: Path) -> None:
    ref, _, _ = published(Store.at(tmp_path / "store"), folder, NAME, "cross-kv")
    (file,) = export.run(Store.at(tmp_path / "store"), ref, "kohya", tmp_path / "out")
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata().items() >= {
            "modelspec.architecture": "Z-Image/lora", "ss_base_model_version": "z_image",
            "ss_network_module": "networks.lora_zimage", "ss_network_alpha": "3",
        }.items()  # fmt: skip


@torch.no_grad()
def test_the_cards_lines_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own lines, on the base in a folder: diffusers encodes the prompt as we do, difference 0."""
    ref, _, rows = published(Store.at(tmp_path / "store"), folder, NAME, "cross-kv")
    export.run(Store.at(tmp_path / "store"), ref, "hub", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'Other tools take the LoRA alone: write "dog"' in card and "A1111" not in card
    code = card.split("```python\n")[1].split("```")[0]
    assert 'Pipeline.from_pretrained("Tongyi-MAI/Z-Image")' in code
    opened = Pipeline.from_pretrained(folder, local_files_only=True)
    monkeypatch.setattr(ZImagePipeline, "from_pretrained", lambda *_: opened)
    monkeypatch.setattr(
        ZImagePipeline, "__call__", lambda self, prompt: type("Drawn", (), {"images": [self.encode_prompt([prompt])[0][0]]})
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
    theirs = opened.encode_prompt([f"a photo of{local['token']} on the beach"])[0][0]
    assert torch.equal(local["picture"], theirs) and torch.equal(ours[0, : len(theirs)], theirs)
