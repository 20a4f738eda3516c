"""What `import` refuses, each by its name and with a way out: other kinds of adapters, broken values, contradictions, files that are something else."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)

# isort: split
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from objtune_cli.errors import IncompatibleError, InputError, ObjtuneError
from objtune_cli.interchange import import_ as imported
from objtune_cli.interchange import import_sources, textual_inversion
from objtune_cli.lora import import_keys, import_kinds
from objtune_cli.lora.import_source import Source
from objtune_cli.models import base_model as stacks
from objtune_cli.models import loading
from tests.support import tiny_families, tiny_sd1

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

CPU = torch.device("cpu")
STEM = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
DOTTED = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
NORM = "lora_unet_down_blocks_0_attentions_0_norm"
LAYER = {f"{STEM}.lora_down.weight": torch.ones(2, 16), f"{STEM}.lora_up.weight": torch.ones(16, 2)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> stacks.BaseModel:
    return loading.load(tiny_sd1.build(tmp_path_factory.mktemp("refusals") / "sd1", clip=False), CPU, torch.float32)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> stacks.BaseModel:
    return loading.load(
        tiny_families.sdxl(tmp_path_factory.mktemp("refusals") / "sdxl", with_clip=False), CPU, torch.float32
    )


def read(model: stacks.BaseModel, path: Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in import_sources.read_files([path]):
        source = imported.open_source(file, allow_pickle)
        found |= (
            import_keys.read_lora(model, source)
            if import_kinds.is_lora(source.weights)
            else {"rows": vectors(model, source)}
        )
    return found


def vectors(model: stacks.BaseModel, *opened: Source) -> Tensor:
    return textual_inversion.join_vectors(model, [each for each in map(textual_inversion.find_vectors, opened) if each])


def refused(call: Callable[[], Any]) -> ObjtuneError:
    with pytest.raises(ObjtuneError) as caught:
        call()
    assert (
        caught.value.hint and "\n" not in caught.value.message + caught.value.hint and len(caught.value.message) < 400
    )
    return caught.value


def changed(**parts: Any) -> dict[str, Tensor]:
    """The layer with other parts: `down`, `up`, `alpha`."""
    names = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}
    return LAYER | {f"{STEM}.{names[part]}": torch.as_tensor(value) for part, value in parts.items()}


KINDS: dict[str, tuple[Mapping[str, Tensor], str]] = {
    **{f"{STEM}.{key}": ({**LAYER, f"{STEM}.{key}": torch.zeros(2, 2)}, said) for key, said in {
        "hada_w1_a": "is a LoHa", "lokr_w1": "is a LoKr", "dora_scale": "is a DoRA", "oft_blocks": "is an OFT", "boft_R": "is a BOFT",
        "on_input": "is an IA3", "a1.weight": "is a GLoRA", "w_norm": "has trained norms", "b_norm": "has trained norms",
        "set_weight": "replaces whole weights", "reshape_weight": "changes the sizes of layers", "modules_to_save.weight": "has whole trained layers",
    }.items()},
    "peft's modules_to_save": ({**LAYER, "base_model.model.conv_in.weight": torch.zeros(8, 4, 3, 3)}, "has full trained weights (conv_in)"),
    "peft's biases": ({**LAYER, "unet.conv_in.bias": torch.zeros(8)}, "has full trained weights (unet.conv_in)"),
    "magnitude": ({f"{DOTTED}.lora_magnitude_vector": torch.zeros(16)}, "is a DoRA"),
    "peft's BOFT": ({f"{DOTTED}.boft_R": torch.zeros(1, 2, 2, 2)}, "is a BOFT"),
    "AdaLoRA": ({f"{DOTTED}.lora_E": torch.zeros(2, 1)}, "is an AdaLoRA"),
    "table of tokens": ({"text_encoder.text_model.embeddings.token_embedding.lora_embedding_A": torch.zeros(2, 2)}, "trains the table of tokens"),
    "the first scripts": ({"unet:0:up": torch.zeros(2, 2), "unet:0:down": torch.zeros(2, 2)}, "numbers its layers"),
    "Control-LoRA": ({"lora_controlnet": torch.zeros(1), "input_blocks.1.0.in_layers.2.up": torch.zeros(2, 2)}, "is a Control-LoRA"),
    "norm": ({**LAYER, f"{NORM}.diff": torch.zeros(8), f"{NORM}.diff_b": torch.zeros(8)}, "has full differences of norms"),
    "table": ({"lora_te_text_model_embeddings_token_embedding.diff": torch.zeros(8, 16)}, "has full differences of what is no linear layer"),
    "T5": ({"lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight": torch.zeros(2, 4)}, "has layers of T5"),
    "another base": ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(2, 4)}, "is for another base"),
    "no bias": ({f"{STEM}.diff_b": torch.ones(16)}, "which has none in this base"),
    "sizes": (changed(up=torch.ones(17, 2)), "has other sizes here"),
    "kernel in up": ({"lora_unet_conv_in.lora_down.weight": torch.ones(2, 4, 3, 3), "lora_unet_conv_in.lora_up.weight": torch.ones(8, 2, 3, 3)}, "has other sizes here"),
}  # fmt: skip


@pytest.mark.parametrize("case", KINDS)
def test_other_kinds_and_bases_are_named(model: stacks.BaseModel, case: str) -> None:
    weights, said = KINDS[case]
    assert import_kinds.whole_kind(dict(weights)) is None
    error = refused(lambda: import_keys.read_lora(model, Source("x.safetensors", dict(weights))))
    assert isinstance(error, IncompatibleError) and error.message.startswith("x.safetensors ") and said in error.message


NAN, INF = float("nan"), float("inf")
VALUES: dict[str, tuple[Mapping[str, Tensor], str]] = {
    "alpha nan": (changed(alpha=NAN), "NaN or infinite values in the alpha"),
    "alpha infinite": (changed(alpha=-INF), "NaN or infinite values in the alpha"),
    "alpha too large": (changed(alpha=1e30), "NaN or infinite values in the alpha"),
    "alpha nan in fp16": (changed(alpha=torch.tensor(NAN, dtype=torch.float16)), "NaN or infinite values in the alpha"),
    "alpha of two numbers": (changed(alpha=[1.0, 2.0]), "2 numbers as the alpha"),
    "alpha of none": (changed(alpha=torch.zeros(0)), "0 numbers as the alpha"),
    "down nan": (changed(down=torch.full((2, 16), NAN)), "NaN or infinite values"),
    "up infinite": (changed(up=torch.full((16, 2), INF)), "NaN or infinite values"),
    "too large with alpha": (changed(up=torch.full((16, 2), 40000.0), alpha=4.0), "too large to compute with"),
    "too large for fp32": (changed(up=torch.full((16, 2), 1e300, dtype=torch.float64)), "NaN or infinite values"),
    "int8": (changed(down=torch.ones(2, 16, dtype=torch.int8)), "contains int8 numbers"),
    "no rank": (changed(down=torch.ones(0, 16), up=torch.ones(16, 0)), "LoRA factors of a wrong shape"),
    "one dimension": (changed(down=torch.ones(16)), "LoRA factors of a wrong shape"),
    "half": ({f"{STEM}.lora_down.weight": torch.ones(2, 16)}, "half of the layer"),
    "alpha alone": ({f"{STEM}.alpha": torch.tensor(1.0)}, "half of the layer"),
    "unread": ({**LAYER, "something.else": torch.ones(2)}, "'something.else', which is not part of a layer"),
    "twice": ({**LAYER, f"{DOTTED}.lora_A.weight": torch.zeros(2, 16), f"{DOTTED}.lora_B.weight": torch.zeros(16, 2)}, "contains one layer twice"),
    "two adapters": ({f"{DOTTED}.lora_A.one.weight": torch.ones(2, 16), f"{DOTTED}.lora_A.two.weight": torch.zeros(2, 16)}, "contains one layer twice"),
    "middle": ({**LAYER, f"{STEM}.lora_mid.weight": torch.ones(3, 3, 1, 1)}, "factors of different sizes"),
}  # fmt: skip


@pytest.mark.parametrize("case", VALUES)
def test_values_that_cannot_be_right(model: stacks.BaseModel, case: str) -> None:
    weights, said = VALUES[case]
    error = refused(lambda: import_keys.read_lora(model, Source("x.safetensors", dict(weights))))
    assert isinstance(error, InputError) and said in error.message


def test_one_layer_under_two_names_with_the_same_values_is_one(model: stacks.BaseModel) -> None:
    same = {
        f"{DOTTED}.lora_A.weight": LAYER[f"{STEM}.lora_down.weight"],
        f"{DOTTED}.lora_B.weight": LAYER[f"{STEM}.lora_up.weight"],
    }
    assert (
        import_keys.read_lora(model, Source("x", {**LAYER, **same})).keys()
        == import_keys.read_lora(model, Source("x", LAYER)).keys()
    )


PEFT = {
    f"base_model.model.{DOTTED.removeprefix('unet.')}.lora_A.weight": torch.ones(2, 16),
    f"base_model.model.{DOTTED.removeprefix('unet.')}.lora_B.weight": torch.ones(16, 2),
}
SETTINGS: dict[str, tuple[Any, type[ObjtuneError], str]] = {
    "DoRA": ({"r": 2, "use_dora": True}, IncompatibleError, "is a DoRA"),
    "LoHa": ({"r": 2, "peft_type": "LOHA"}, IncompatibleError, "is a LOHA adapter"),
    "PiSSA": ({"r": 2, "init_lora_weights": "pissa_niter_4"}, IncompatibleError, "names changed base weights"),
    "aLoRA": ({"r": 2, "alora_invocation_tokens": [1]}, IncompatibleError, "activated LoRA"),
    "rank": ({"r": 4, "lora_alpha": 4}, InputError, "has rank 2"),
    "alpha nan": ({"r": 2, "lora_alpha": NAN}, InputError, "lora_alpha of"),
    "alpha text": ({"r": 2, "lora_alpha": "8"}, InputError, "lora_alpha of"),
    "rank 0": ({"r": 0}, InputError, "r of"),
    "pattern": ({"r": 2, "alpha_pattern": {"(": 1}}, InputError, "alpha_pattern of"),
    "endless pattern": ({"r": 2, "rank_pattern": {"(a+)+$": 1}}, InputError, "rank_pattern of"),
    "no table": ([1, 2], InputError, "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_beside_the_weights_and_in_the_header_are_checked(
    model: stacks.BaseModel, tmp_path: Path, case: str
) -> None:
    said, kind, text = SETTINGS[case]
    save_file(PEFT, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    error = refused(lambda: read(model, tmp_path))
    assert type(error) is kind and text in error.message
    if isinstance(said, dict):
        said = {f"unet.{key}": value for key, value in said.items()}
    file = tmp_path / "other.safetensors"
    save_file(
        {key.replace("base_model.model.", "unet."): value for key, value in PEFT.items()},
        file,
        {"lora_adapter_metadata": json.dumps(said)},
    )
    error = refused(lambda: read(model, file))
    assert type(error) is kind and text in error.message


def test_alpha_that_contradicts_the_settings_is_refused(model: stacks.BaseModel, tmp_path: Path) -> None:
    for alpha, good in ((8.0, True), (4.0, False)):
        file = tmp_path / "other.safetensors"
        save_file(
            changed(alpha=alpha), file, {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 8})}
        )
        if good:
            assert float(read(model, file)[f"{DOTTED}.lora_B.weight"].max()) == 4
        else:
            with pytest.raises(InputError, match="has two strengths"):
                read(model, file)


def torch_zip(value: Any) -> bytes:
    held = io.BytesIO()
    torch.save(value, held)
    return held.getvalue()


def plain_zip() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("rex.safetensors", b"x")
    return held.getvalue()


LAYERS = {
    "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2, 2),
    "cond_stage_model.transformer.text_model.x.weight": torch.zeros(2),
}
BYTES: dict[str, tuple[str, bytes, str]] = {
    "page": ("x.safetensors", b"\n<!DOCTYPE html><html><head><title>Sign in</title>" + b"x" * 3000, "is a web page"),
    "page as a pickle": ("x.pt", b"<html>" + b"x" * 300, "is a web page"),
    "error": ("x.safetensors", b'{"error":"Unauthorized","message":"x"}', "is an error of the site it was downloaded from: Unauthorized"),
    "text": ("x.safetensors", b"Access to model x/y is restricted. You must be authenticated.", "is text, not a model"),
    "settings": ("adapter_config.json", b'{"peft_type": "LORA", "r": 4}', "contains the settings of a LoRA"),
    "other settings": ("x.json", b'{"a": 1}', "is a JSON file"),
    "pointer": ("x.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a git-lfs pointer"),
    "zip": ("x.safetensors", plain_zip(), "is a zip archive"),
    "gzip": ("x.safetensors", b"\x1f\x8b" + b"\0" * 40, "is a gzip archive"),
    "picture": ("x.safetensors", b"\x89PNG\r\n" + b"\0" * 40, "is a picture"),
    "GGUF": ("x.safetensors", b"GGUF" + b"\0" * 40, "is a GGUF file"),
    "empty": ("x.safetensors", b"", "is empty"),
    "zeros": ("x.safetensors", b"\0" * 4000, "is empty"),
    "noise": ("x.safetensors", bytes(range(128, 256)) * 8, "is not a safetensors file"),
    "cut off": ("x.safetensors", save({"emb_params": torch.zeros(4, 16)})[:-40], "is cut off: 40 bytes of"),
    "pickle without leave": ("x.safetensors", torch_zip({"emb_params": torch.zeros(1, 16)}), "is a pickle"),
    "whole model": ("x.safetensors", save(LAYERS), "is a whole model"),
    "VAE": ("x.safetensors", save({"first_stage_model.encoder.conv_in.weight": torch.zeros(2)}), "is a VAE"),
    "diffusers' VAE": ("x.safetensors", save({"decoder.conv_in.weight": torch.zeros(2), "encoder.conv_in.weight": torch.zeros(2)}), "is a VAE"),
    "IP-Adapter": ("x.safetensors", save({"ip_adapter.1.to_k_ip.weight": torch.zeros(4, 4), "ip_adapter.0.to_q_lora.down.weight": torch.zeros(4, 4)}), "is an IP-Adapter"),
    "ControlNet": ("x.safetensors", save({"control_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)}), "is a ControlNet"),
    "diffusers' ControlNet": ("x.safetensors", save({"controlnet_cond_embedding.conv_in.weight": torch.zeros(4), "down_blocks.0.x.weight": torch.zeros(1)}), "is a ControlNet"),
    "denoiser": ("x.safetensors", save({"down_blocks.0.resnets.0.conv1.weight": torch.zeros(4, 4, 3, 3)}), "is a denoiser"),
    "text encoder": ("x.safetensors", save({"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(4, 4)}), "is a text encoder"),
    "hypernetwork": ("x.safetensors", save({"768.0.linear.0.weight": torch.zeros(4, 4)}), "is a hypernetwork"),
    "neither": ("x.safetensors", save({"a": torch.zeros(4, 4), "b": torch.zeros(3, 3)}), "is neither a LoRA nor an embedding: it contains a, b"),
}  # fmt: skip


@pytest.mark.parametrize("case", BYTES)
def test_files_that_are_something_else_are_named(model: stacks.BaseModel, tmp_path: Path, case: str) -> None:
    name, data, said = BYTES[case]
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / name).write_bytes(data)
    error = refused(lambda: read(model, folder / name))
    assert isinstance(error, InputError) and f"{name} {said}" in error.message
    assert "get it again" not in error.hint
    if case == "whole model":
        assert error.hint == f"give it as the base: `--base '{folder / name}'`"


def test_folders_that_do_not_say_which_file_is_meant(model: stacks.BaseModel, tmp_path: Path) -> None:
    assert "without a LoRA" in refused(lambda: read(model, tmp_path)).message
    for name in ("a.safetensors", "b.safetensors"):
        save_file(LAYER, tmp_path / name)
    assert "contains 2 files: a.safetensors, b.safetensors" in refused(lambda: read(model, tmp_path)).message
    save_file(LAYER, tmp_path / "pytorch_lora_weights.safetensors")
    assert f"{DOTTED}.lora_A.weight" in read(model, tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    assert "is a whole model" in refused(lambda: read(model, tmp_path)).message
    for path, said in {
        "https://civitai.com/models/1": "is an address",
        "nowhere.safetensors": "there is no such file",
        "x" * 300: "cannot be read",
    }.items():
        assert said in refused(lambda path=path: read(model, Path(path))).message


def source(**keys: Tensor) -> Source:
    return Source("x.safetensors", keys)


G = torch.Generator().manual_seed(0)
ONE, TWO = torch.randn(3, tiny_sd1.WIDTH, generator=G), torch.randn(3, tiny_families.WIDTH_2, generator=G)
EMBEDDINGS: dict[str, tuple[str, list[dict[str, Tensor]]]] = {
    "a token's name": ("sd1", [{"<rex>": ONE}]),
    "emb_params": ("sd1", [{"emb_params": ONE}]),
    "A1111's pickle": ("sd1", [{"string_to_param.*": ONE, "string_to_token.*": torch.tensor(265)}]),
    "another placeholder": ("sd1", [{"string_to_param.<rex>": ONE}]),
    "a vector a key": ("sd1", [{"<s1>": ONE[1], "<s0>": ONE[0], "<s2>": ONE[2]}]),
    "a vector a key, the first without a number": ("sd1", [{"<rex>": ONE[:1], "<rex>_1": ONE[1:2], "<rex>_2": ONE[2:]}]),
    "ComfyUI's key": ("sd1", [{"clip_l": ONE}]),
    "two text encoders": ("sdxl", [{"clip_g": TWO, "clip_l": ONE}]),
    "numbered text encoders": ("sdxl", [{"text_encoders_0": ONE, "text_encoders_1": TWO}]),
    "with T5's": ("sdxl", [{"clip_g": TWO, "clip_l": ONE, "t5xxl": ONE}]),
    "a pair": ("sdxl", [{"<rex>": ONE}, {"<rex>": TWO}]),
    "a pair the other way round": ("sdxl", [{"<rex>": TWO}, {"<rex>": ONE}]),
    "inside a LoRA": ("sdxl", [{**LAYER, "bundle_emb.rex.clip_l": ONE, "bundle_emb.rex.clip_g": TWO}]),
}  # fmt: skip


@pytest.mark.parametrize("form", EMBEDDINGS)
def test_every_form_of_embedding_gives_the_vectors_that_were_written(
    model: stacks.BaseModel, wide: stacks.BaseModel, form: str
) -> None:
    name, files = EMBEDDINGS[form]
    wanted = ONE if name == "sd1" else torch.cat([ONE, TWO], dim=1)
    assert torch.equal(vectors(model if name == "sd1" else wide, *(source(**keys) for keys in files)), wanted)


NO_EMBEDDINGS: dict[str, tuple[str, list[dict[str, Tensor]], type[ObjtuneError], str]] = {
    "half": ("sdxl", [{"<rex>": ONE}], IncompatibleError, "is half of an embedding for Stable Diffusion XL"),
    "half by its key": ("sdxl", [{"clip_g": TWO}], IncompatibleError, "is half of an embedding"),
    "two tokens": ("sdxl", [{"<rex>": ONE}, {"<cup>": TWO}], InputError, "are of two tokens: <cup>, <rex>"),
    "two of one kind": ("sd1", [{"<rex>": ONE}, {"<rex>": ONE}], InputError, "two files of the same kind"),
    "several tokens": ("sd1", [{"<rex>": ONE, "<cup>": ONE}], InputError, "contains several tokens"),
    "uneven": ("sdxl", [{"clip_l": ONE[:2], "clip_g": TWO}], InputError, "contains 2 and 3 vectors"),
    "of SDXL": ("sd1", [{"clip_l": ONE, "clip_g": TWO}], IncompatibleError, "is not an embedding for Stable Diffusion 1.x"),
    "of SD 2": ("sd1", [{"emb_params": torch.zeros(1, 1024)}], IncompatibleError, "have 1024 numbers; this base's have 16"),
    "too many": ("sd1", [{"emb_params": torch.zeros(76, 16)}], InputError, "76 vectors: a prompt has room for 75"),
    "no numbers": ("sd1", [{"emb_params": torch.full((1, 16), NAN)}], InputError, "NaN or infinite values"),
    "too large": ("sd1", [{"emb_params": torch.full((1, 16), 1e6)}], InputError, "too large"),
    "whole numbers": ("sd1", [{"emb_params": torch.zeros(1, 16, dtype=torch.int64)}], InputError, "int64 numbers"),
    "no vectors": ("sd1", [{"emb_params": torch.zeros(0, 16)}], InputError, "no token vectors"),
    "a scalar": ("sd1", [{"emb_params": torch.tensor(1.0)}], InputError, "no token vectors"),
    "more keys": ("sd1", [{"clip_l": ONE, "<rex>": ONE}], InputError, "does not read all of them"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_EMBEDDINGS)
def test_embeddings_that_cannot_be_used(model: stacks.BaseModel, wide: stacks.BaseModel, case: str) -> None:
    name, files, kind, said = NO_EMBEDDINGS[case]
    error = refused(lambda: vectors(model if name == "sd1" else wide, *(source(**keys) for keys in files)))
    assert type(error) is kind and said in error.message
    if case == "of SD 2":
        assert error.hint == "it looks like one of Stable Diffusion 2.x: `--base sd21`"
