"""Exported files read by diffusers' own loaders into a fresh pipeline: the same picture, no key left over."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)
from objtune_cli.store.store import Store

# isort: split
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from objtune_cli.errors import IncompatibleError, MissingError, UsageError
from objtune_cli.interchange import export
from objtune_cli.lora import layers as adapter
from objtune_cli.models import loading
from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.families.module_sets import MODULES
from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import Ref
from tests.support import tiny_sd1

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd1.build(tmp_path_factory.mktemp("tiny"), clip=False)


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """Inside, everything that the libraries' loggers say, from warnings upwards (our own loading silences them)."""
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler, loggers = Keep(logging.WARNING), [logging.getLogger(n) for n in ("diffusers", "peft", "transformers")]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.addHandler(handler)
        log.setLevel(logging.WARNING)
    try:
        yield said
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.removeHandler(handler)
            log.setLevel(level)


NO_TEXT_LORA = "No LoRA keys associated to CLIPTextModel"
"""What diffusers says of every LoRA that leaves the text encoder alone; nothing is left over."""
FRESH_ROWS = "The new embeddings will be initialized"
"""What transformers says, once in a process, before diffusers overwrites the rows it has added."""


def _random_lora(base: Path, modules: str, rank: int) -> dict[str, torch.Tensor]:
    model = loading.load(base, CPU, torch.float32)
    adapter.add(model, rank, modules, seed=0)
    g = torch.Generator().manual_seed(1)
    return {k: torch.randn(v.shape, generator=g) * 0.2 for k, v in adapter.state_dict(model).items()}


def _publish(store: Store, weights: dict[str, torch.Tensor], **tokens: torch.Tensor) -> Ref:
    objects = {name: "dog" for name in tokens}
    record = Record("adapter", "-".join(objects), objects, {}, {"rank": 4}, {"id": "tiny", "fingerprint": "0"})
    return store.create(record, weights | {f"token.{k}": v for k, v in tokens.items()})


def _rows(count: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(count, tiny_sd1.WIDTH, generator=torch.Generator().manual_seed(seed))


def _settled(network: torch.nn.Module) -> torch.nn.Module:
    """Every weight in memory of its own: kernels round by how a tensor lies in memory, and one read from a mapped file lies anyhow."""
    for module in network.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = torch.nn.Parameter(
                    torch.empty(value.shape, dtype=value.dtype).copy_(value.detach()), requires_grad=False
                )
    return network


def _predict(unet: torch.nn.Module) -> torch.Tensor:
    _settled(unet)
    g = torch.Generator().manual_seed(0)
    z, condition = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 77, tiny_sd1.WIDTH, generator=g)
    with torch.no_grad():
        return unet(z, torch.tensor([10, 700]), encoder_hidden_states=condition).sample


def _ours(base: Path, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    model: BaseModel = loading.load(base, CPU, torch.float32)
    model.denoiser.to(memory_format=torch.contiguous_format)
    adapter.load(model, weights)
    return _predict(model.denoiser)


def _theirs(base: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(base, safety_checker=None, local_files_only=True)


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("modules", [m for m in MODULES if m != "none"])
@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_diffusers_reads_it_as_we_do(tiny_base: Path, tmp_path: Path, form: str, modules: str, rank: int) -> None:
    weights = _random_lora(tiny_base, modules, rank)
    (file,) = export.run(
        Store.at(tmp_path / "store"),
        _publish(Store.at(tmp_path / "store"), weights, rex=_rows(2)),
        form,
        tmp_path / "out",
    )
    expected = _ours(tiny_base, weights)
    pipe = _theirs(tiny_base)
    base = _predict(pipe.unet)
    with listening() as warned:
        pipe.load_lora_weights(file.parent, weight_name=file.name)
    assert [text for text in warned if not text.startswith(NO_TEXT_LORA)] == []
    shown = _predict(pipe.unet)
    assert torch.equal(shown, expected)
    assert float((shown - base).abs().max()) > 0.01


def test_a_key_that_fits_nowhere_would_be_noticed(tiny_base: Path, tmp_path: Path) -> None:
    """The test above can fail: diffusers says so when a key is left over."""
    from safetensors.torch import save_file

    weights = _random_lora(tiny_base, "attention", 1)
    stranger = {k.replace("mid_block", "mid_block_of_sdxl"): v.clone() for k, v in weights.items()}
    save_file(weights | stranger, tmp_path / "odd.safetensors")
    pipe = _theirs(tiny_base)
    with listening() as warned:
        pipe.load_lora_weights(tmp_path, weight_name="odd.safetensors")
    assert any("mid_block_of_sdxl" in text for text in warned)


def test_every_layer_is_in_the_file(tiny_base: Path, tmp_path: Path) -> None:
    weights = _random_lora(tiny_base, "all", 4)
    ref = _publish(Store.at(tmp_path / "store"), weights, rex=_rows(2))
    (plain,) = export.run(Store.at(tmp_path / "store"), ref, "diffusers", tmp_path / "a")
    (kohya,) = export.run(Store.at(tmp_path / "store"), ref, "kohya", tmp_path / "b")
    assert (plain.name, kohya.name) == ("pytorch_lora_weights.safetensors", "rex.safetensors")
    assert load_file(plain).keys() == weights.keys()
    layers = {k.rsplit(".lora_", 1)[0] for k in weights}
    named = load_file(kohya)
    assert len(named) == 3 * len(layers)
    for layer in layers:
        stem = "lora_unet_" + layer.removeprefix("unet.").replace(".", "_")
        assert torch.equal(named[f"{stem}.lora_down.weight"], weights[f"{layer}.lora_A.weight"])
        assert torch.equal(named[f"{stem}.lora_up.weight"], weights[f"{layer}.lora_B.weight"])
        assert float(named[f"{stem}.alpha"]) == 4 and named[f"{stem}.alpha"].shape == ()  # alpha = rank: scale 1


def test_kohyas_metadata_names_rank_and_words(tiny_base: Path, tmp_path: Path) -> None:
    ref = _publish(Store.at(tmp_path / "store"), _random_lora(tiny_base, "attention", 3), rex=_rows(2), cup=_rows(1))
    (file,) = export.run(Store.at(tmp_path / "store"), ref, "kohya", tmp_path / "out")
    with safe_open(file, framework="pt") as f:
        said = f.metadata()
    assert said["ss_network_dim"] == said["ss_network_alpha"] == "3"
    assert said["modelspec.trigger_phrase"] == "cup-objtune rex-objtune" and said["ss_sd_model_name"] == "tiny"


@pytest.mark.parametrize("count", [1, 3])
def test_textual_inversion_gives_the_same_vectors(tiny_base: Path, tmp_path: Path, count: int) -> None:
    rows = _rows(count)
    (file,) = export.run(
        Store.at(tmp_path / "store"),
        _publish(Store.at(tmp_path / "store"), _random_lora(tiny_base, "attention", 1), rex=rows),
        "embedding",
        tmp_path / "out",
    )
    pipe = _theirs(tiny_base)
    with listening() as warned:
        pipe.load_textual_inversion(file)
    assert [text for text in warned if not text.startswith(FRESH_ROWS)] == []
    ids = pipe.tokenizer(pipe.maybe_convert_prompt("<rex>", pipe.tokenizer), add_special_tokens=False).input_ids
    assert len(ids) == count
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[ids], rows)


def test_a_prompt_reads_the_same_with_exported_words(tiny_base: Path, tmp_path: Path) -> None:
    from objtune_cli.models.placeholders import Placeholders

    rows = _rows(3)
    (file,) = export.run(
        Store.at(tmp_path / "store"),
        _publish(Store.at(tmp_path / "store"), _random_lora(tiny_base, "attention", 1), rex=rows),
        "embedding",
        tmp_path / "out",
    )
    pipe = _theirs(tiny_base)
    pipe.load_textual_inversion(file)
    theirs, _ = pipe.encode_prompt("a photo of <rex> in the snow", CPU, 1, False)
    model = loading.load(tiny_base, CPU, torch.float32)
    words = Placeholders(model)
    words.add("rex", rows)
    with torch.no_grad():
        ours = model.encode_prompt([words.expand("a photo of <rex> in the snow")]).sequence
    torch.testing.assert_close(theirs.detach(), ours, rtol=1e-5, atol=1e-5)


def test_each_object_has_a_file_of_its_own(tiny_base: Path, tmp_path: Path) -> None:
    ref = _publish(Store.at(tmp_path / "store"), _random_lora(tiny_base, "attention", 1), rex=_rows(2), cup=_rows(1, 4))
    files = export.run(Store.at(tmp_path / "store"), ref, "embedding", tmp_path / "out")
    assert [f.name for f in files] == [
        "cup-objtune.safetensors",
        "rex-objtune.safetensors",
    ]  # by name, as records are kept
    assert torch.equal(load_file(files[0])["<cup>"], _rows(1, 4))


def test_exporting_twice_writes_the_same_bytes(tiny_base: Path, tmp_path: Path) -> None:
    ref = _publish(Store.at(tmp_path / "store"), _random_lora(tiny_base, "all", 2), rex=_rows(2))
    for form in (f for f in export.FORMATS if f != "hub"):
        (a,), (b,) = (export.run(Store.at(tmp_path / "store"), ref, form, tmp_path / form / side) for side in "ab")
        assert a.read_bytes() == b.read_bytes()


def test_what_cannot_be_exported(tiny_base: Path, tmp_path: Path) -> None:
    ref = _publish(Store.at(tmp_path), _random_lora(tiny_base, "attention", 1), rex=_rows(1))
    with pytest.raises(UsageError, match="no format onnx"):
        export.run(Store.at(tmp_path), ref, "onnx", tmp_path / "out")
    with pytest.raises(IncompatibleError, match="is not an adapter"):
        export.run(Store.at(tmp_path), Ref("mask", "rex", 1), "kohya", tmp_path / "out")
    with pytest.raises((MissingError, OSError), match="v009"):
        export.run(Store.at(tmp_path), Ref("adapter", "rex", 9), "kohya", tmp_path / "out")
    assert not (tmp_path / "out").exists()
