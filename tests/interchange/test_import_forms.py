"""Every form of LoRA file: each layer's change is that of diffusers' `load_lora_weights` and `fuse_lora`, of peft's merge, or of the factors that were written."""

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)

# isort: split
import diffusers
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor

from objtune_cli.interchange import import_ as imported
from objtune_cli.interchange import import_sources
from objtune_cli.lora import file_names, import_keys
from objtune_cli.lora import layers as adapter
from objtune_cli.lora.layer_names import modules_of
from objtune_cli.lora.unet_names import original_name
from objtune_cli.models import base_model, families, loading
from tests.support import tiny_families

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

CPU = torch.device("cpu")
NAMES = ("sd1", "sd2", "sdxl", "sd3")
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "q_proj", "out_proj", "fc1")
Low = dict[str, tuple[Tensor, Tensor]]
"""A and B by the layer's name in an adapter."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_families.folders(tmp_path_factory.mktemp("forms"), NAMES)


@pytest.fixture(scope="module")
def ours(folders: dict[str, Path]) -> dict[str, base_model.BaseModel]:
    return {name: loading.load(folder, CPU, torch.float32) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def theirs(folders: dict[str, Path]) -> dict[str, Any]:
    return {
        name: getattr(diffusers, families.get_family(name).pipeline).from_pretrained(
            folder, local_files_only=True, **tiny_families.LEFT_OUT[name]
        )
        for name, folder in folders.items()
    }


def factors(
    model: base_model.BaseModel, ends: tuple[str, ...] = ATTENTION, ranks: tuple[int, ...] = (4,), start: str = ""
) -> Low:
    """Random factors of layers whose names end so, of the ranks in turn; of like blocks beside each other the first one's."""
    g = torch.Generator().manual_seed(7)
    found: Low = {}
    for own, module in modules_of(model).items():
        if own.startswith(start) and own.endswith(ends) and not re.search(r"\.(attentions\.[12]|resnets\.2)\.", own):
            rank, (out, *rest) = ranks[len(found) % len(ranks)], module.weight.shape
            found[own] = (
                torch.randn(rank, *rest, generator=g) * 0.3,
                torch.randn(out, rank, *(1 for _ in rest[1:]), generator=g) * 0.3,
            )
    assert len(found) >= 3
    return found


def plain(
    low: Low, denoiser: str = "unet", down: str = ".lora_A.weight", up: str = ".lora_B.weight"
) -> dict[str, Tensor]:
    """Keys of diffusers, with ends of one's own."""
    named = {
        own.replace("unet.", f"{denoiser}.", 1) if own.startswith("unet.") else own: pair for own, pair in low.items()
    }
    return {f"{name}{end}": side for name, pair in named.items() for end, side in zip((down, up), pair, strict=True)}


def kohya(
    low: Low,
    alpha: Callable[[int], float | None] = lambda _: None,
    name: Callable[[str], str] = lambda layer: layer,
    encoders: int = 1,
) -> dict[str, Tensor]:
    """Keys of kohya's scripts; `alpha` by the layer's number, `name` of a layer of the denoiser."""
    found = {}
    for i, (own, (down, up)) in enumerate(low.items()):
        network, layer = own.split(".", 1)
        start = {
            "unet": "lora_unet_",
            "text_encoder": "lora_te_" if encoders == 1 else "lora_te1_",
            "text_encoder_2": "lora_te2_",
        }[network]
        stem = start + (name(layer) if network == "unet" else layer).replace(".", "_")
        found |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        found |= {} if alpha(i) is None else {f"{stem}.alpha": torch.tensor(alpha(i))}
    return found


def header(ends: tuple[str, ...] = (*ATTENTION, "add_q_proj"), /, **networks: Mapping[str, Any]) -> dict[str, str]:
    """The header that diffusers writes for these settings."""
    full = {name: LoraConfig(target_modules=list(ends), **said).to_dict() for name, said in networks.items()}
    table = {f"{name}.{key}": value for name, said in full.items() for key, value in said.items()}
    return {"lora_adapter_metadata": json.dumps(table, default=list)}


def old_processors(low: Low) -> dict[str, Tensor]:
    """Keys of diffusers 0.1x: attention processors of the denoiser, `to_q_lora` in the text encoder."""
    found = {}
    to = {"q_proj": "to_q", "out_proj": "to_out", "k_proj": "to_k", "v_proj": "to_v"}
    for own, (down, up) in low.items():
        stem, last = own.removesuffix(".0").rsplit(".", 1)
        stem = f"{stem}.processor" if own.startswith("unet.") else stem
        found |= {
            f"{stem}.{to.get(last, last)}_lora.down.weight": down,
            f"{stem}.{to.get(last, last)}_lora.up.weight": up,
        }
    return found


def typed(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {key: value.to(dtype) for key, value in weights.items()}


CONVOLUTIONS = (
    "conv1",
    "conv2",
    "conv_shortcut",
    "time_emb_proj",
    "proj_in",
    "proj_out",
    "downsamplers.0.conv",
    "ff.net.0.proj",
    "ff.net.2",
    *ATTENTION,
)
ALL = (*CONVOLUTIONS, "upsamplers.0.conv", "linear_1", "linear_2", "conv_in", "conv_out")
PLACES = (
    "conv1",
    "conv_shortcut",
    "time_emb_proj",
    "proj_in",
    "sampler.0.conv",
    "samplers.0.conv",
    "ff.net.2",
    "linear_1",
    "linear_2",
    "conv_in",
    "conv_out",
    "text_projection",
    "fc1",
    "out_proj",
)
FEW = ("attn2.to_k", "to_out.0", "out_proj")
BIASED = ("to_out.0", "ff.net.2", "conv1", "q_proj", "fc1")
SELF = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
"""Layers that old names of diffusers know."""
Made = tuple[dict[str, Tensor], dict[str, str]]
FORMS: dict[str, tuple[str, Callable[[base_model.BaseModel], Made]]] = {
    "peft's keys": ("sd1", lambda s: (plain(factors(s)), {})),
    "peft's keys, several ranks": ("sd1", lambda s: (plain(factors(s, ranks=(4, 2, 3))), {})),
    "peft's keys, SD 2": ("sd2", lambda s: (plain(factors(s)), {})),
    "peft's keys, SDXL, three networks": ("sdxl", lambda s: (plain(factors(s, FEW)), {})),
    "peft's keys, SD 3": ("sd3", lambda s: (plain(factors(s), "transformer"), {})),
    "fp16": ("sd1", lambda s: (typed(plain(factors(s)), torch.float16), {})),
    "bf16": ("sd1", lambda s: (typed(plain(factors(s)), torch.bfloat16), {})),
    "convolutions": ("sd1", lambda s: (plain(factors(s, ("conv2", "downsamplers.0.conv", "proj_in"))), {})),
    "the denoiser alone": ("sd1", lambda s: (plain(factors(s, start="unet.")), {})),
    "alpha in the header": ("sd1", lambda s: (plain(factors(s)), header(unet={"r": 4, "lora_alpha": 16}, text_encoder={"r": 4, "lora_alpha": 4}))),
    "alpha in the header, SDXL": ("sdxl", lambda s: (plain(factors(s, FEW)), header(FEW, unet={"r": 4, "lora_alpha": 16}, text_encoder={"r": 4, "lora_alpha": 2}, text_encoder_2={"r": 4, "lora_alpha": 8}))),
    "alpha in the header, SD 3": ("sd3", lambda s: (plain(factors(s, start="unet."), "transformer"), header(transformer={"r": 4, "lora_alpha": 12}))),
    "rank-stabilised": ("sd1", lambda s: (plain(factors(s, start="unet.")), header(unet={"r": 4, "lora_alpha": 4, "use_rslora": True}))),
    "alpha pattern": ("sd1", lambda s: (plain(factors(s, start="unet.")), header(unet={"r": 4, "lora_alpha": 4, "alpha_pattern": {"to_k": 1, "attn2.to_v": 12, r"mid_block.*to_q": 2}}))),
    "rank and alpha pattern": ("sd1", lambda s: (by_pattern(s), header(unet={"r": 4, "lora_alpha": 8, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_q": 3}}))),
    "kohya, no alpha": ("sd1", lambda s: (kohya(factors(s)), {})),
    "kohya, alpha half the rank": ("sd1", lambda s: (kohya(factors(s), lambda _: 2.0), {})),
    "kohya, alpha below 0": ("sd1", lambda s: (kohya(factors(s), lambda _: -2.0), {})),
    "kohya, alpha 0": ("sd1", lambda s: (kohya(factors(s), lambda _: 0.0), {})),
    "kohya, alpha of one dimension": ("sd1", lambda s: ({k: v[None] if k.endswith("alpha") else v for k, v in kohya(factors(s), lambda _: 1.0).items()}, {})),
    "kohya, several ranks, one alpha": ("sd1", lambda s: (kohya(factors(s, ranks=(4, 8)), lambda _: 4.0), {})),
    "kohya, convolutions": ("sd1", lambda s: (kohya(factors(s, (*CONVOLUTIONS, "linear_1", "conv_in")), lambda _: 1.0), {})),
    "kohya, SD 2": ("sd2", lambda s: (kohya(factors(s), lambda _: 1.0), {})),
    "kohya, SDXL by diffusers' names": ("sdxl", lambda s: (kohya(factors(s, FEW), lambda _: 1.0, encoders=2), {})),
    "kohya, SDXL by the first repository's names": ("sdxl", lambda s: (kohya(factors(s, PLACES), lambda _: 1.0, original_name, 2), {})),
    "lora.down": ("sd1", lambda s: (plain(factors(s, SELF, start="unet."), down=".lora.down.weight", up=".lora.up.weight"), {})),
    "lora_linear_layer": ("sd1", lambda s: (linear_layers(s), {})),
    "biases": ("sd1", lambda s: (with_biases(plain(factors(s, BIASED))), header(BIASED, unet={"r": 4, "lora_alpha": 8, "lora_bias": True}, text_encoder={"r": 4, "lora_alpha": 8, "lora_bias": True}))),
    "old attention processors": ("sd1", lambda s: (old_processors(factors(s, SELF)), {})),
}  # fmt: skip
"""Files that diffusers reads: the base, and what makes their tensors and metadata."""


def with_biases(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A bias beside every B."""
    g = torch.Generator().manual_seed(9)
    return weights | {
        key.replace("weight", "bias"): torch.randn(len(value), generator=g)
        for key, value in weights.items()
        if "lora_B" in key
    }


def by_pattern(model: base_model.BaseModel) -> dict[str, Tensor]:
    """Rank 2 in queries, 4 elsewhere."""
    low = factors(model, start="unet.")
    return plain({own: (a[:2], b[:, :2]) if own.endswith("to_q") else (a, b) for own, (a, b) in low.items()})


def linear_layers(model: base_model.BaseModel) -> dict[str, Tensor]:
    """The text encoder's layers as diffusers 0.2x named them."""
    words = factors(model, SELF, start="text_encoder.")
    return plain(factors(model, SELF, start="unet.")) | plain(
        words, down=".lora_linear_layer.down.weight", up=".lora_linear_layer.up.weight"
    )


def deltas(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an adapter adds to each layer, as a matrix, and to its bias."""
    ends = sorted(key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight"))
    found = {
        own: tensors[f"{own}.lora_B.weight"].flatten(1) @ tensors[f"{own}.lora_A.weight"].flatten(1) for own in ends
    }
    return found | {f"{own}.bias": tensors[f"{own}.lora_B.bias"] for own in ends if f"{own}.lora_B.bias" in tensors}


def read(model: base_model.BaseModel, path: Path) -> dict[str, Tensor]:
    """The layers of a file or folder, as `import` reads it."""
    found: dict[str, Tensor] = {}
    for file in import_sources.read_files([path]):
        found |= import_keys.read_lora(model, imported.open_source(file, False))
    return found


def changed(pipe: Any, file: Path) -> Iterator[tuple[str, Tensor]]:
    """What diffusers changes in each weight of a pipeline, by the adapter's names; the pipeline is left as it was."""
    networks = {
        name: getattr(pipe, name)
        for name in ("unet", "transformer", "text_encoder", "text_encoder_2")
        if getattr(pipe, name, None) is not None
    }
    before = {name: {k: v.clone() for k, v in network.state_dict().items()} for name, network in networks.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="While injecting the PEFT adapters"
        )  # headers name layers that the file has not
        pipe.load_lora_weights(file.parent, weight_name=file.name)
    pipe.fuse_lora(components=[name for name in networks if getattr(networks[name], "peft_config", None)])
    pipe.unload_lora_weights()
    for name, network in networks.items():
        for key, value in network.state_dict().items():
            change = value - before[name][key]
            layer = (
                key.removesuffix(".weight")
                if name in ("unet", "transformer") or key.startswith("text_")
                else f"text_model.{key.removesuffix('.weight')}"
            )
            if bool(change.any()):
                yield (
                    f"{'unet' if name == 'transformer' else name}.{layer}",
                    change.flatten(1) if change.ndim > 1 else change,
                )
        network.load_state_dict(before[name])


def assert_same(mine: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Every layer, to what adding to a weight in fp32 rounds."""
    acting = {own: delta for own, delta in mine.items() if bool(delta.any())}
    assert set(acting) == set(wanted)
    for own, delta in acting.items():
        torch.testing.assert_close(delta, wanted[own], rtol=1e-4, atol=1e-6, msg=lambda text, own=own: f"{own}: {text}")


@pytest.mark.parametrize("form", FORMS)
def test_every_layer_changes_as_in_diffusers(
    ours: dict[str, base_model.BaseModel], theirs: dict[str, Any], tmp_path: Path, form: str
) -> None:
    name, make = FORMS[form]
    weights, metadata = make(ours[name])
    file = tmp_path / "other.safetensors"
    save_file({k: v.contiguous() for k, v in weights.items()}, file, {"format": "pt"} | metadata)
    mine = read(ours[name], file)
    wanted = dict(changed(theirs[name], file))
    assert bool(wanted) == ("alpha 0" not in form)
    assert_same(deltas(mine), wanted)
    assert len(FORMS) >= 25


def delta(pair: tuple[Tensor, Tensor]) -> Tensor:
    return pair[1].flatten(1) @ pair[0].flatten(1)


def comfy(
    low: Low, model: base_model.BaseModel, start: str = "diffusion_model.", flat: bool = False
) -> dict[str, Tensor]:
    """ComfyUI's own names: the first repository's, queries, keys and values of SD 3 in one layer; text encoders by the file's name for them."""
    found: dict[str, Tensor] = {}
    own = file_names.of_family(model.family).to_kohya(
        {o.removeprefix("unet."): pair for o, pair in low.items() if o.startswith("unet.")}
    )
    if model.family.name != "sd3":
        own = {original_name(o.removeprefix("unet.")): pair for o, pair in low.items() if o.startswith("unet.")}
    for name, pair in own.items():
        stem = start + (name.replace(".", "_") if flat else name)
        found |= {
            f"{stem}.{end}.weight": torch.as_tensor(side)
            for end, side in zip(("lora_down", "lora_up"), pair, strict=True)
        }
    for o, pair in low.items():
        network, layer = o.split(".", 1)
        tower = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}.get(network)
        if tower:
            found |= {
                f"text_encoders.{tower}.transformer.{layer}.{end}.weight": side
                for end, side in zip(("lora_down", "lora_up"), pair, strict=True)
            }
    return found


def per_layer(i: int) -> float:
    return (1.0, 2.0, 8.0)[i % 3]


def named(
    low: Low, change: Callable[[str], str], ends: tuple[str, str] = (".lora_A.weight", ".lora_B.weight")
) -> dict[str, Tensor]:
    return {f"{change(own)}{end}": side for own, pair in low.items() for end, side in zip(ends, pair, strict=True)}


UNITS: dict[str, tuple[str, tuple[str, ...], str, Callable[[Low, base_model.BaseModel], dict[str, Tensor]], Callable[[int], float]]] = {
    "ComfyUI": ("sd1", ALL, "", comfy, lambda _: 1.0),
    "ComfyUI, SD 2": ("sd2", ATTENTION, "", lambda low, s: {k.replace("clip_l", "clip_h"): v for k, v in comfy(low, s).items()}, lambda _: 1.0),
    "ComfyUI, SDXL": ("sdxl", PLACES, "", comfy, lambda _: 1.0),
    "ComfyUI, SD 3": ("sd3", ("to_q", "add_v_proj", "ff.net.2", "q_proj"), "", comfy, lambda _: 1.0),
    "kohya, SD 3": ("sd3", ("to_k", "to_add_out"), "unet.", lambda low, s: comfy(low, s, "lora_unet_", flat=True), lambda _: 1.0),
    "kohya, SD 1 by the first repository's names": ("sd1", ALL, "", lambda low, s: kohya(low, lambda _: 4.0, original_name), lambda _: 1.0),
    "kohya, an alpha a layer": ("sd1", ATTENTION, "", lambda low, s: kohya(low, per_layer), lambda i: per_layer(i) / 4),
    "kohya, an alpha a layer, fp16": ("sdxl", FEW, "", lambda low, s: {k: v.half() if "alpha" in k else v for k, v in kohya(low, per_layer, encoders=2).items()}, lambda i: per_layer(i) / 4),
    "fp8": ("sd1", ATTENTION, "unet.", lambda low, s: typed(plain(low), torch.float8_e4m3fn), lambda _: 1.0),
    "OneTrainer, SD 3": ("sd3", ("to_k", "ff.net.2"), "unet.", lambda low, s: named(low, lambda o: "lora_transformer_" + o.removeprefix("unet.").replace(".", "_"), (".lora_down.weight", ".lora_up.weight")), lambda _: 1.0),
    "SimpleTuner": ("sd1", ATTENTION, "unet.", lambda low, s: named(low, lambda o: "lycoris_" + o.removeprefix("unet.").replace(".", "_"), (".lora_down.weight", ".lora_up.weight")), lambda _: 1.0),
    "an adapter's name, a compiled network": ("sd1", ATTENTION, "unet.", lambda low, s: named(low, lambda o: o.replace("unet.", "unet._orig_mod."), (".lora_A.rex.weight", ".lora_B.rex.weight")), lambda _: 1.0),
    "no network's name": ("sd1", ATTENTION, "unet.", lambda low, s: old_processors({o.removeprefix("unet."): p for o, p in low.items()}), lambda _: 1.0),
    "a text encoder alone": ("sd1", ("q_proj", "fc1"), "text_", lambda low, s: kohya(low, lambda _: 4.0), lambda _: 1.0),
    "the second text encoder's projection": ("sdxl", ("text_projection", "q_proj"), "text_encoder_2.", lambda low, s: kohya(low, lambda _: 4.0, encoders=2), lambda _: 1.0),
}  # fmt: skip
"""Files that ComfyUI or A1111 read and diffusers does not, or (an alpha a layer) takes for others: base, layers, what makes the tensors, and the strength of each layer."""


@pytest.mark.parametrize("form", UNITS)
def test_every_layer_is_the_product_of_its_factors(
    ours: dict[str, base_model.BaseModel], tmp_path: Path, form: str
) -> None:
    name, ends, start, make, strength = UNITS[form]
    low = factors(ours[name], ends, start=start)
    weights = make(low, ours[name])
    save_file({k: v.contiguous() for k, v in weights.items()}, tmp_path / "other.safetensors")
    wanted = {own: delta(pair) * strength(i) for i, (own, pair) in enumerate(low.items())}
    if form == "fp8":
        wanted = {
            own: delta((a.to(torch.float8_e4m3fn).float(), b.to(torch.float8_e4m3fn).float()))
            for own, (a, b) in low.items()
        }
    assert_same(deltas(read(ours[name], tmp_path / "other.safetensors")), wanted)


PEFT: dict[str, dict[str, Any]] = {
    "alpha": {"r": 4, "lora_alpha": 8},
    "rank-stabilised": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {r"attn2\.to_k": 2, "to_v": 6},
        "alpha_pattern": {"down_blocks.*to_q": 1, "to_v": 3},
    },
    "rank-stabilised, patterns": {
        "r": 2,
        "lora_alpha": 3,
        "use_rslora": True,
        "rank_pattern": {"to_q": 6},
        "alpha_pattern": {"to_q": 1},
    },
}
"""Settings in `adapter_config.json`."""


@pytest.mark.parametrize("case", PEFT)
def test_a_folder_of_peft_is_as_strong_as_there(
    folders: dict[str, Path], ours: dict[str, base_model.BaseModel], tmp_path: Path, case: str
) -> None:
    """The folder, one of its files, and a file of another name beside its settings."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(folders["sd1"] / "unet", local_files_only=True)
    wrapped = get_peft_model(
        unet, LoraConfig(target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False, **PEFT[case])
    )
    wrapped.save_pretrained(tmp_path / "folder")
    layers = {name: module for name, module in unet.named_modules() if hasattr(module, "get_delta_weight")}
    wanted = {f"unet.{name}": module.get_delta_weight("default").detach() for name, module in layers.items()}
    assert_same(deltas(read(ours["sd1"], tmp_path / "folder")), wanted)
    (tmp_path / "folder" / "adapter_model.safetensors").rename(tmp_path / "folder" / "rex.safetensors")
    assert_same(deltas(read(ours["sd1"], tmp_path / "folder" / "rex.safetensors")), wanted)


def test_a_folder_of_pefts_examples_has_a_network_in_each_folder(
    folders: dict[str, Path], ours: dict[str, base_model.BaseModel], tmp_path: Path
) -> None:
    """`unet/` and `text_encoder_2/`, each with settings of its own; names do not say which text encoder it is."""
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(folders["sdxl"], local_files_only=True)
    wanted = {}
    for network, modules, alpha in (("unet", ["to_q"], 8), ("text_encoder_2", ["q_proj"], 2)):
        wrapped = get_peft_model(
            getattr(pipe, network), LoraConfig(target_modules=modules, init_lora_weights=False, r=4, lora_alpha=alpha)
        )
        wrapped.save_pretrained(tmp_path / network)
        inner = getattr(pipe, network).named_modules()
        wanted |= {
            f"{network}.{name}": module.get_delta_weight("default").detach()
            for name, module in inner
            if hasattr(module, "get_delta_weight")
        }
    assert_same(deltas(read(ours["sdxl"], tmp_path)), wanted)


def test_tucker_factors_and_whole_differences_are_layers_too(
    ours: dict[str, base_model.BaseModel], tmp_path: Path
) -> None:
    """LyCORIS: of convolutions a factor in the middle, and differences of full rank, on a layer that has factors as well."""
    modules = modules_of(ours["sd1"])
    g = torch.Generator().manual_seed(3)
    conv, wide, tall = (
        "unet.mid_block.resnets.0.conv1",
        "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2",
        "unet.time_embedding.linear_1",
    )
    out, into, *kernel = modules[conv].weight.shape
    down, mid, up = (
        torch.randn(3, into, 1, 1, generator=g),
        torch.randn(3, 3, *kernel, generator=g),
        torch.randn(out, 3, 1, 1, generator=g),
    )
    differences = {own: torch.randn(modules[own].weight.shape, generator=g) for own in (wide, tall)}
    low = factors(ours["sd1"], start="unet.")
    weights = kohya({**low, **factors(ours["sd1"], ("ff.net.2",))}, lambda _: 2.0)
    stems = {own: "lora_unet_" + own.removeprefix("unet.").replace(".", "_") for own in (conv, wide, tall)}
    weights |= {f"{stems[own]}.diff": value for own, value in differences.items()}
    weights |= {
        f"{stems[conv]}.{end}": v
        for end, v in (
            ("lora_down.weight", down),
            ("lora_mid.weight", mid),
            ("lora_up.weight", up),
            ("alpha", torch.tensor(1.5)),
        )
    }
    save_file(weights, tmp_path / "other.safetensors")
    found = read(ours["sd1"], tmp_path / "other.safetensors")
    mine = deltas(found)
    torch.testing.assert_close(
        mine[conv], torch.einsum("op,pqhw,qi->oihw", up[:, :, 0, 0], mid, down[:, :, 0, 0]).flatten(1) / 2
    )
    torch.testing.assert_close(mine[tall], differences[tall])
    torch.testing.assert_close(mine[wide], differences[wide] + delta(factors(ours["sd1"], ("ff.net.2",))[wide]) / 2)
    ranks = {own: len(found[f"{own}.lora_A.weight"]) for own in mine}
    assert set(ranks.values()) == {4, 4 + min(modules[wide].weight.shape), min(modules[tall].weight.shape)}
    assert {ranks[own] for own in low} == {4}


@pytest.mark.parametrize("name", ["text_encoder_2.text_projection", "text_encoder_2.text_model.text_projection"])
def test_the_projection_of_the_second_text_encoder_acts(folders: dict[str, Path], name: str) -> None:
    """Under its own name, and under the one that earlier versions gave it."""
    model = loading.load(folders["sdxl"], CPU, torch.float32)
    before = model.encode_prompt(["a photo"])
    down, up = torch.arange(tiny_families.WIDTH_2)[None].float() / 10, torch.ones(tiny_families.WIDTH_2, 1)
    assert adapter.load(model, {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up})
    after = model.encode_prompt(["a photo"])
    assert torch.equal(after.sequence, before.sequence)
    assert not torch.allclose(after.pooled, before.pooled, atol=1e-3)
