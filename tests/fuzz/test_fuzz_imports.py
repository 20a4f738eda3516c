"""Random LoRA and embedding files: every layer's change is what the file says, or the file is refused in one line."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)

# isort: split
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from objtune_cli.lora.unet_names import original_name
from tests.support import tiny_sd1
from tests.support.fuzzing import Entrance, entrance, figures, tries  # noqa: F401  (a fixture)

ENDS = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "conv1.weight", "proj_in.weight")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES: dict[str, Any] = {
    "kohya": lambda n: ("lora_unet_" + n.replace(".", "_"), ".lora_down.weight", ".lora_up.weight"), "diffusers": lambda n: ("unet." + n, ".lora_A.weight", ".lora_B.weight"),
    "older diffusers": lambda n: ("unet." + n, ".lora.down.weight", ".lora.up.weight"), "peft": lambda n: ("base_model.model." + n, ".lora_A.weight", ".lora_B.weight"),
    "bare": lambda n: (n, ".lora_A.weight", ".lora_B.weight"), "comfyui": lambda n: ("diffusion_model." + original_name(n), ".lora_down.weight", ".lora_up.weight"),
    "first names": lambda n: ("lora_unet_" + original_name(n).replace(".", "_"), ".lora_down.weight", ".lora_up.weight"),
}  # fmt: skip
"""How programs name a layer, and the ends of its two factors."""
ALPHAS = [None, None, 1.0, 4.0, 16.0, 0.5, 0.0, -2.0, math.nan, math.inf, 1e30]
SPOILERS = ["none"] * 5 + ["nan", "half", "shape", "stray", "kind", "cut", "huge", "int"]
KINDS = {
    "dora": ".dora_scale",
    "loha": ".hada_w1_a",
    "lokr": ".lokr_w1",
    "norm": ".w_norm",
    "oft": ".oft_diag",
    "ia3": ".on_input",
    "glora": ".a1.weight",
}


@dataclass(frozen=True)
class Lora:
    """A LoRA file: its weights, and the change of each layer that it means."""

    names: str
    dtype: str
    alpha: float | None
    where: str
    spoiler: str
    detail: int
    weights: dict[str, torch.Tensor] = field(repr=False)
    deltas: dict[str, torch.Tensor] = field(repr=False)


def made(
    layers: dict[str, torch.Tensor], names: str, dtype: str, rank: int, alpha: float | None, where: str, seed: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights under a program's names, and each layer's change (out, in, …)."""
    g = torch.Generator().manual_seed(seed)
    weights, deltas = {}, {}
    for name, weight in layers.items():
        down = (torch.randn(rank, *weight.shape[1:], generator=g) * 0.1).to(DTYPES[dtype])
        up = (torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=g) * 0.1).to(DTYPES[dtype])
        stem, a, b = NAMES[names](name)
        weights |= {stem + a: down, stem + b: up}
        if alpha is not None and where == "layers":
            weights[stem + ".alpha"] = torch.tensor(alpha)
        deltas[name] = up.float().flatten(1) @ down.float().flatten(1) * ((alpha if alpha is not None else rank) / rank)
    return weights, deltas


def spoil(weights: dict[str, torch.Tensor], how: str, detail: int) -> dict[str, torch.Tensor]:
    """A file with something wrong in it."""
    keys = sorted(k for k in weights if not k.endswith(".alpha"))
    key = keys[detail % len(keys)]
    value = weights[key]
    if how == "half":
        return {k: v for k, v in weights.items() if k != key}
    if how == "stray":
        return weights | {
            ["mystery.weight", "lora_unet_nowhere.lora_down.weight", "text_encoder.what.lora_A.weight"][
                detail % 3
            ]: torch.zeros(4, 4)
        }
    if how == "kind":
        return weights | {key.rsplit(".lora", 1)[0] + list(KINDS.values())[detail % len(KINDS)]: torch.zeros(4, 4)}
    changed = {
        "nan": lambda: torch.full_like(value, math.nan),
        "shape": lambda: torch.zeros(value.shape[0] + 1, *value.shape[1:]),
        "huge": lambda: torch.full(value.shape, 3e38),
        "int": lambda: value.to(torch.int8),
    }
    return weights | {key: changed[how]()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd1.build(tmp_path_factory.mktemp("fuzz") / "tiny", clip=True)


@pytest.fixture(scope="module")
def layers(base: Path) -> Iterator[dict[str, torch.Tensor]]:
    """Layers of the base's denoiser that a LoRA may have."""
    weights = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    yield {k.removesuffix(".weight"): v for k, v in weights.items() if k.endswith(ENDS)}


@st.composite
def loras(draw: Any, layers: dict[str, torch.Tensor]) -> Lora:
    names = draw(st.sampled_from(sorted(NAMES)))
    chosen = draw(st.lists(st.sampled_from(sorted(layers)), min_size=1, max_size=6, unique=True))
    dtype, rank = draw(st.sampled_from(sorted(DTYPES))), draw(st.integers(1, 6))
    alpha, where = (
        draw(st.sampled_from(ALPHAS)),
        draw(st.sampled_from(["layers", "layers", "header"] if names in ("diffusers", "bare") else ["layers"])),
    )
    weights, deltas = made({n: layers[n] for n in chosen}, names, dtype, rank, alpha, where, draw(st.integers(0, 1000)))
    spoiler, detail = draw(st.sampled_from(SPOILERS)), draw(st.integers(0, 1000))
    if spoiler not in ("none", "cut"):
        weights = spoil(weights, spoiler, detail)
    return Lora(names, dtype, alpha, where, spoiler, detail, weights, deltas)


def save(item: Lora, file: Path, rank: int) -> None:
    """Write the file; the strength stands in its header where `where` says so."""
    header = {"format": "pt"}
    if item.where == "header" and item.alpha is not None:
        config = {"r": rank, "lora_alpha": item.alpha, "use_rslora": False}
        header["lora_adapter_metadata"] = json.dumps({f"unet.{k}": v for k, v in config.items()})
    save_file({k: v.contiguous() for k, v in item.weights.items()}, file, metadata=header)
    if item.spoiler == "cut":
        data = file.read_bytes()
        file.write_bytes(data[: max(1, len(data) * (item.detail % 100) // 100)])


def stored_deltas(tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Each layer's change in an adapter."""
    found = {}
    for key, down in tensors.items():
        if key.endswith(".lora_A.weight"):
            name = key.removesuffix(".lora_A.weight")
            up = tensors[f"{name}.lora_B.weight"]
            found[name.removeprefix("unet.")] = torch.tensor(up).flatten(1) @ torch.tensor(down).flatten(1)
    return found


def test_lora_files(entrance: Entrance, record_property: Any, base: Path, layers: dict[str, torch.Tensor]) -> None:  # noqa: F811
    @tries(1800, 25)
    @given(item=loras(layers))
    def check(item: Lora) -> None:
        folder = entrance.empty()
        rank = next(
            (
                v.shape[0]
                for k, v in item.weights.items()
                if k.endswith(("lora_down.weight", "lora_A.weight", ".down.weight"))
            ),
            1,
        )
        save(item, folder / "lora.safetensors", rank)
        done = entrance.run("import", "lora.safetensors", "--class", "dog", "--name", "rex", "--base", base)
        finite = item.alpha is None or math.isfinite(item.alpha)
        if done.code == 0:
            assert item.spoiler in ("none", "int", "huge") and finite, item
            found = stored_deltas(entrance.load("adapter", "rex")[1])
            assert found.keys() == item.deltas.keys()
            if item.spoiler == "none":
                for name, delta in item.deltas.items():
                    assert torch.allclose(found[name], delta, rtol=1e-4, atol=1e-6 * max(1.0, abs(item.alpha or 1))), (
                        name,
                        item,
                    )
        else:
            assert item.spoiler != "none" or not finite or (item.alpha or 0) > 1e20, (item, done.err)

    check()
    figures(entrance, record_property, "LoRA files")


VALUES = ["finite"] * 6 + ["nan", "inf", "text shape", "wide"]
FORMS = {
    "emb_params": lambda v: {"emb_params": v}, "string_to_param": lambda v: {"string_to_param.*": v}, "token": lambda v: {"<dog>": v}, "bare token": lambda v: {"rex": v},
    "clip_l": lambda v: {"clip_l": v}, "bundle": lambda v: {"bundle_emb.rex.string_to_param.*": v}, "numbered": lambda v: {"<dog>": v[:1]} | {f"<dog>_{i}": row[None] for i, row in enumerate(v[1:], 1)} if v.ndim == 2 else {"<dog>": v},
    "two words": lambda v: {"<dog>": v, "<cat>": v + 1},
}  # fmt: skip


@dataclass(frozen=True)
class Embedding:
    """An embedding file's weights, and the vectors that it means."""

    form: str
    dtype: str
    value: str
    rows: torch.Tensor = field(repr=False)


@st.composite
def embeddings(draw: Any) -> Embedding:
    count, value, dtype = (
        draw(st.sampled_from([1, 1, 2, 4, 8, 64, 75, 76])),
        draw(st.sampled_from(VALUES)),
        draw(st.sampled_from(sorted(DTYPES))),
    )
    rows = (
        torch.randn(count, tiny_sd1.WIDTH, generator=torch.Generator().manual_seed(draw(st.integers(0, 1000)))) * 0.1
    ).to(DTYPES[dtype])
    if value in ("nan", "inf"):
        rows[draw(st.integers(0, count - 1)), 0] = float(value)
    if value == "wide":
        rows = torch.cat([rows, rows], 1)
    if value == "text shape":
        rows = rows[None, None]
    if count == 1 and value == "finite" and draw(st.booleans()):
        rows = rows[0]
    return Embedding(draw(st.sampled_from(sorted(FORMS))), dtype, value, rows)


def test_embedding_files(entrance: Entrance, record_property: Any, base: Path) -> None:  # noqa: F811
    @tries(1200, 15)
    @given(item=embeddings())
    def check(item: Embedding) -> None:
        folder = entrance.empty()
        save_file({k: v.contiguous() for k, v in FORMS[item.form](item.rows).items()}, folder / "word.safetensors")
        done = entrance.run("import", "word.safetensors", "--class", "dog", "--name", "rex", "--base", base)
        if done.code:
            assert (
                item.value != "finite"
                or item.form == "two words"
                or len(item.rows) > 64
                or item.form in ("clip_l", "numbered")
            ), (item, done.err)
            return
        assert item.value in ("finite", "text shape") and item.form != "two words", item
        found = torch.tensor(entrance.load("adapter", "rex")[1]["token.rex"])
        assert torch.equal(found, item.rows.float().reshape(-1, tiny_sd1.WIDTH)), item

    check()
    figures(entrance, record_property, "embedding files")
