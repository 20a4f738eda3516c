"""A denoiser alone in one file, as ComfyUI keeps it, with the other parts of a diffusers folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from objtune_cli.errors import DamagedError, IncompatibleError, ResourceError
from objtune_cli.lora import flux2_names
from objtune_cli.models import loading, registry
from tests.support import tiny_families

CPU = torch.device("cpu")
NORMS = {"norm_q": "norm.query_norm.scale", "norm_k": "norm.key_norm.scale"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.flux2_klein(tmp_path_factory.mktemp("parts") / "klein")


def original_names(folder: Path) -> dict[str, torch.Tensor]:
    """The denoiser under the names of the original repository: queries, keys and values in one, and the last modulation swapped."""
    tensors: dict[str, torch.Tensor] = {}
    thirds: dict[str, dict[int, torch.Tensor]] = {}
    for key, value in load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors").items():
        layer = key.removesuffix(".weight")
        stem, _, norm = layer.rpartition(".")
        if norm.startswith("norm_") and stem.endswith("attn"):
            kind, number, _ = stem.split(".")
            end = NORMS[norm.replace("added_", "")]
            stream = "txt_attn." if "added" in norm else "img_attn."
            name = (
                f"single_blocks.{number}.{end}"
                if kind.startswith("single")
                else f"double_blocks.{number}.{stream}{end}"
            )
            tensors[name] = value
            continue
        found = flux2_names.original_name(layer)
        assert found is not None, layer
        name, part = found
        if isinstance(part, int):
            thirds.setdefault(name, {})[part] = value
        else:
            tensors[f"{name}.weight"] = torch.cat(value.chunk(2)[::-1]) if part == "swapped" else value
    fused = {f"{name}.weight": torch.cat([parts[i] for i in range(3)]) for name, parts in thirds.items()}
    return {key: value.contiguous() for key, value in (tensors | fused).items()}


@pytest.fixture
def make(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    def write(change: Callable[[dict[str, torch.Tensor]], None] = lambda tensors: None, prefix: str = "") -> Path:
        tensors = original_names(folder)
        change(tensors)
        path = tmp_path / "flux-2-klein-base-4b.safetensors"
        save_file({prefix + key: value for key, value in tensors.items()}, path)
        return path

    return write


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model."])
def test_every_weight_is_that_of_the_folder(folder: Path, make: Callable[..., Path], prefix: str) -> None:
    path = make(prefix=prefix)
    base = registry.resolve(str(path), parts=str(folder))
    assert (base.id, base.family.name, base.folder, base.weights) == (path.name, "flux2-klein", folder, path)
    assert base.fingerprint != registry.resolve(str(folder)).fingerprint
    assert "does not say whether it is distilled" in base.notes[0] and base.resolution == 32
    ours = loading.load(base.folder, CPU, torch.float32, base.weights)
    theirs = loading.load(folder, CPU, torch.float32)
    weights = theirs.denoiser.state_dict()
    assert ours.denoiser.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in ours.denoiser.state_dict().items())
    assert torch.equal(ours.encode_prompt(["a dog"]).sequence, theirs.encode_prompt(["a dog"]).sequence)


def test_fp8_is_read_to_its_values(folder: Path, make: Callable[..., Path]) -> None:
    def convert(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if "blocks" in key and "norm" not in key]:
            tensors[key] = tensors[key].to(torch.float8_e4m3fn)

    path = make(convert)
    denoiser = loading.load(folder, CPU, torch.float32, path).denoiser
    own = original_names(folder)["single_blocks.1.linear2.weight"].to(torch.float8_e4m3fn).float()
    assert torch.equal(denoiser.single_transformer_blocks[1].attn.to_out.weight, own)


def test_what_does_not_fit_is_one_line(
    folder: Path, make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(path: Path, parts: str = str(folder)) -> None:
        registry.resolve(str(path), parts=parts)

    monkeypatch.setattr(registry.hub_cache, "find_snapshot", lambda repository: None)
    with pytest.raises(ResourceError, match="is a denoiser alone") as absent:
        resolve(make(), "")
    assert "`objtune fetch --base klein`" in absent.value.hint
    with pytest.raises(IncompatibleError, match="toybox has no parts for it"):
        resolve(make(), "toybox")
    with pytest.raises(IncompatibleError, match=r"its denoiser is 2 \+ 1 blocks, 32 wide, that one's 2 \+ 2 blocks"):
        resolve(make(lambda t: [t.pop(key) for key in [*t] if key.startswith("single_blocks.1.")]))
    with pytest.raises(IncompatibleError, match="quantised weights with separate scales"):
        resolve(make(lambda t: t.update({"single_blocks.0.linear1.weight_scale": torch.ones(1)})))
    path = make(lambda t: t.pop("txt_in.weight"))
    with pytest.raises(DamagedError, match="lacks context_embedder|its denoiser"):
        loading.load(folder, CPU, torch.float32, path)
    with pytest.raises(IncompatibleError, match="whose VAE cannot be replaced"):
        registry.resolve(str(folder), vae=str(folder / "vae"))
