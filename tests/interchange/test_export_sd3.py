"""Exported files of SD 3 and 3.5: read by diffusers to the same numbers; kohya's by diffusers' own map of the first repository's layers."""

from pathlib import Path
from typing import Any

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)
from objtune_cli.store.store import Store

# isort: split
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.loaders import TextualInversionLoaderMixin
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors import safe_open
from safetensors.torch import load_file

from objtune_cli.errors import IncompatibleError
from objtune_cli.interchange import export, lora_keys
from objtune_cli.interchange.diffusers_example import write_example
from objtune_cli.lora import layers as adapter
from objtune_cli.models import families, loading
from objtune_cli.models.families.family import Family
from objtune_cli.models.placeholders import Placeholders
from tests.interchange.test_export import FRESH_ROWS, NO_TEXT_LORA, listening
from tests.interchange.test_export_families import published
from tests.support import full_size_configs, tiny_families, tiny_sd1

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

CPU = torch.device("cpu")
KEYS = Path(__file__).parent / "keys"
NAMES = ("sd3", "sd35")
PROMPT = "a photo of <rex> in the snow"


class Pipeline(TextualInversionLoaderMixin, StableDiffusion3Pipeline):
    """With words of its own."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("exports")
    return {
        "sd3": tiny_families.sd3(top / "three", with_clip=False),
        "sd35": tiny_families.sd3(top / "three-five", with_clip=False, newer=True),
    }


def pipeline(folder: Path, name: str) -> Any:
    return Pipeline.from_pretrained(folder, local_files_only=True, **tiny_families.LEFT_OUT[name])


def own_memory(network: torch.nn.Module) -> torch.nn.Module:
    """The same weights where no file is mapped: kernels round by where numbers lie."""
    for p in network.parameters():
        p.data = p.data.clone(memory_format=torch.contiguous_format)
    return network


def predicted(transformer: Any) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    z, words, pooled = (
        torch.randn(*shape, generator=g)
        for shape in ((2, 16, 8, 8), (2, 333, tiny_families.WIDTH_3), (2, tiny_sd1.WIDTH + tiny_families.WIDTH_2))
    )
    with torch.no_grad():
        return transformer(z, words, pooled, torch.tensor([10.0, 700.0])).sample


@pytest.mark.parametrize("name", NAMES)
def test_diffusers_reads_it_as_we_do(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    ref, tensors, _ = published(Store.at(tmp_path / "store"), folders[name], name)
    (file,) = export.run(Store.at(tmp_path / "store"), ref, "diffusers", tmp_path / "out")
    assert all(key.startswith("transformer.transformer_blocks.") for key in load_file(file))
    model = loading.load(folders[name], CPU, torch.float32)
    adapter.load(model, tensors)
    pipe = pipeline(folders[name], name)
    plain = predicted(pipe.transformer)
    with listening() as warned:
        pipe.load_lora_weights(file.parent, weight_name=file.name)
    assert [text for text in warned if not text.startswith(NO_TEXT_LORA)] == []
    shown = predicted(own_memory(pipe.transformer))
    assert float((shown - predicted(own_memory(model.denoiser))).abs().max()) == 0
    assert float((shown - plain).abs().max()) > 0.01


OUTSIDE = ("pos_embed", "x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "context_embedder", "y_embedder.mlp.0", "y_embedder.mlp.2",
           "final_layer.linear", "final_layer.adaLN_modulation.1")  # fmt: skip


def whole(deltas: dict[str, torch.Tensor], layers: int, *, newer: bool) -> dict[str, torch.Tensor]:
    """A checkpoint of the first repository whose layers are the deltas; what no LoRA changes is zeros."""
    zeros = torch.zeros(48, 16)
    found = {
        f"{part}.{kind}".removesuffix(".weight" if part == "pos_embed" else ""): zeros
        for part in OUTSIDE
        for kind in ("weight", "bias")
    }
    for i in range(layers):
        for stream in ("x_block", "context_block"):
            for part in (
                "attn.qkv",
                "attn.proj",
                "attn2.qkv",
                "attn2.proj",
                "adaLN_modulation.1",
                "mlp.fc1",
                "mlp.fc2",
            ):
                found |= {
                    f"joint_blocks.{i}.{stream}.{part}.{kind}": zeros
                    for kind in ("weight", "bias")
                    if newer or "attn2" not in part
                }
            found |= {
                f"joint_blocks.{i}.{stream}.{a}.ln_{k}.weight": zeros for a in ("attn", "attn2") for k in "qk" if newer
            }
    return found | {f"{name}.weight": delta for name, delta in deltas.items()}


@pytest.mark.parametrize("modules", ["attention", "cross-kv", "all"])
@pytest.mark.parametrize("name", NAMES)
def test_kohyas_file_holds_the_same_layers(folders: dict[str, Path], tmp_path: Path, name: str, modules: str) -> None:
    """Deltas of its layers, taken apart by diffusers' converter of whole checkpoints, are B A of each layer of ours, and zero in the others."""
    ref, tensors, _ = published(Store.at(tmp_path / "store"), folders[name], name, modules)
    (file,) = export.run(Store.at(tmp_path / "store"), ref, "kohya", tmp_path / "out")
    read = load_file(file)
    names = {key.split(".")[0] for key in read}
    dotted = {n: n.removeprefix("lora_unet_").replace("joint_blocks_", "joint_blocks.").replace("_x_block_", ".x_block.")
              .replace("_context_block_", ".context_block.").replace("attn_", "attn.").replace("attn2_", "attn2.").replace("mlp_", "mlp.") for n in names}  # fmt: skip
    deltas = {
        dotted[n]: float(read[f"{n}.alpha"])
        / len(read[f"{n}.lora_down.weight"])
        * read[f"{n}.lora_up.weight"]
        @ read[f"{n}.lora_down.weight"]
        for n in names
    }
    found = convert_sd3_transformer_checkpoint_to_diffusers(whole(deltas, 3, newer=name == "sd35"))
    layers = {
        key.removeprefix("unet.").removesuffix(".lora_A.weight") for key in tensors if key.endswith("lora_A.weight")
    }
    for layer in layers:
        own = tensors[f"unet.{layer}.lora_B.weight"] @ tensors[f"unet.{layer}.lora_A.weight"]
        torch.testing.assert_close(found[f"{layer}.weight"], own, rtol=1e-5, atol=1e-6)
    rest = {key for key in found if key.endswith(".weight")} - {f"{layer}.weight" for layer in layers}
    assert rest and not any(found[key].any() for key in rest)


@pytest.mark.parametrize("name", NAMES)
def test_names_at_full_size_are_those_of_kohyas_scripts(name: str) -> None:
    """The frozen lists: every layer that may learn, by the module names of kohya's MMDiT (sd-scripts 48d368fa) at full size, of the same shapes."""
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(**full_size_configs.TRANSFORMERS[name])
    family = families.get_family(name)
    ends = family.modules["all"]
    sizes = {n: m for n, m in transformer.named_modules() if any(n.endswith("." + end) for end in ends)}
    made = {f"unet.{n}.lora_A.weight": torch.zeros(1, m.in_features) for n, m in sizes.items()}
    made |= {f"unet.{n}.lora_B.weight": torch.zeros(m.out_features, 1) for n, m in sizes.items()}
    assert len(sizes) == {"sd3": 285, "sd35": 337}[name]
    assert {key.split(".")[0] for key in lora_keys.to_kohya(made, family)} == set(
        (KEYS / f"{name}.txt").read_text().split()
    )


def test_a_layer_without_a_name_is_one_line() -> None:
    made = {f"unet.transformer_blocks.0.norm1.linear.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"}
    with pytest.raises(IncompatibleError, match=r"no name for the layer transformer_blocks\.0\.norm1\.linear") as error:
        lora_keys.to_kohya(made, families.get_family("sd3"))
    assert error.value.code == 6 and "--format diffusers" in error.value.hint


@pytest.mark.parametrize("name", NAMES)
def test_metadata_says_the_family(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    ref, _, _ = published(Store.at(tmp_path / "store"), folders[name], name, "cross-kv")
    (file,) = export.run(Store.at(tmp_path / "store"), ref, "kohya", tmp_path / "out")
    with safe_open(file, framework="pt") as opened:
        found = opened.metadata()
    arch, version = {
        "sd3": ("stable-diffusion-3-medium", "medium"),
        "sd35": ("stable-diffusion-3-5-medium", "5-medium"),
    }[name]
    said = {
        "modelspec.architecture": f"{arch}/lora",
        "ss_base_model_version": version,
        "ss_network_module": "networks.lora_sd3",
    }
    assert found.items() >= said.items()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_an_embedding_file_gives_the_same_prompt(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    """Read as the card says, difference 0: T5 is told the class word, the pooled rows are read at the end of the sentence."""
    ref, _, rows = published(Store.at(tmp_path / "store"), folders[name], name, "cross-kv")
    (file,) = export.run(Store.at(tmp_path / "store"), ref, "embedding", tmp_path / "out")
    named, pipe = load_file(file), pipeline(folders[name], name)
    assert list(named) == ["clip_g", "clip_l"]
    with listening() as warned:
        pipe.load_textual_inversion(
            named["clip_l"], token="<rex>", text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer
        )
        pipe.load_textual_inversion(
            named["clip_g"], token="<rex>", text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2
        )
    assert [text for text in warned if not text.startswith(FRESH_ROWS)] == []
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        encoder.text_model.eos_token_id = pipe.tokenizer.eos_token_id
    model = loading.load(folders[name], CPU, torch.float32)
    for network in (pipe.text_encoder, pipe.text_encoder_2, *model.text_encoders):
        own_memory(network)
    words = Placeholders(model)
    words.add("rex", rows, "dog")
    ours = model.encode_prompt([words.expand(PROMPT)])
    said = pipe.maybe_convert_prompt(PROMPT, pipe.tokenizer)
    theirs, _, pooled, _ = pipe.encode_prompt(
        said, None, "a photo of a dog in the snow", device=CPU, do_classifier_free_guidance=False
    )
    assert torch.equal(ours.sequence, theirs) and torch.equal(ours.pooled, pooled)


@pytest.mark.parametrize("name", NAMES)
def test_the_cards_lines_run(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What the card says of diffusers is what diffusers does: its own lines, on the base in a folder."""
    ref, _, _ = published(Store.at(tmp_path / "store"), folders[name], name, "cross-kv")
    files = export.run(Store.at(tmp_path / "store"), ref, "hub", tmp_path / "out")
    assert {f.name for f in files} == {
        "pytorch_lora_weights.safetensors",
        "rex.safetensors",
        "rex-objtune.safetensors",
        "README.md",
    }
    code = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    hub = next(iter(families.get_family(name).hub.values()))[0]
    assert f'Pipeline.from_pretrained("{hub}")' in code
    opened = pipeline(folders[name], name)
    monkeypatch.setattr(StableDiffusion3Pipeline, "from_pretrained", lambda *_: opened)
    monkeypatch.setattr(
        StableDiffusion3Pipeline, "__call__", lambda self, *said, **more: type("Drawn", (), {"images": [(said, more)]})
    )
    monkeypatch.chdir(tmp_path / "out")
    found: dict[str, Any] = {}
    exec(code, found)
    (said,), more = found["picture"]
    assert said == "a photo of <rex> <rex>_1 on the beach" and more == {"prompt_3": "a photo of a dog on the beach"}
    assert opened.get_active_adapters() and len(opened.tokenizer("<rex>", add_special_tokens=False).input_ids) == 1


def test_a_card_of_every_family_has_lines_that_compile() -> None:
    for family in families.FAMILIES:
        assert isinstance(family, Family)
        compile("\n".join(write_example(family, "someone/base", "rex", "dog", "rex")), family.name, "exec")
