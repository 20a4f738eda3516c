"""Kinds of artifacts: names on disk stand in one module each, and what is written is read back."""

import ast
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from objtune_cli import lora
from objtune_cli.lora import layers
from objtune_cli.store.kinds import adapter, scene
from objtune_cli.store.kinds.adapter import AdapterArtifact
from objtune_cli.store.kinds.embedding import EmbeddingArtifact
from objtune_cli.store.kinds.mask import MaskArtifact
from objtune_cli.store.kinds.prior import PriorArtifact
from objtune_cli.store.kinds.scene import SceneArtifact

PACKAGE = Path(lora.__file__).parents[1]
NAMES = (
    "token.",
    "token_2.",
    "close.",
    "asked",
    "embedding.",
    "prior.",
    "negative.",
    "body.",
    "unet.",
    "text_encoder.",
)
"""Names and prefixes that stand in store/kinds alone."""
OTHER_TOOLS = {
    "unet.": {"lora/layers.py", "lora/import_keys.py", "lora/layer_names.py"},
    "text_encoder.": {"lora/layers.py", "lora/import_keys.py", "lora/layer_names.py"},
}
"""Modules in which the same text is a name in LoRA files of diffusers."""


@cache
def literals(path: Path) -> set[str]:
    """The texts in a module that are no docstrings, those before a placeholder of an f-string included."""
    return {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


@pytest.mark.parametrize("name", NAMES)
def test_names_on_disk_stand_in_one_package(name: str) -> None:
    users = {path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.rglob("*.py")) if name in literals(path)}
    kinds = {user for user in users if user.startswith("store/kinds/")}
    assert len(kinds) == 1
    assert users - kinds <= OTHER_TOOLS.get(name, set())


def test_adapters_name_layers_as_the_lora_package_does() -> None:
    assert (adapter.DENOISER, adapter.TEXT_ENCODERS) == (layers.DENOISER_PREFIX, layers.TEXT_ENCODER_PREFIXES)


def arrays(count: int) -> list[np.ndarray]:
    return [np.full((2, 3), i, np.float32) for i in range(count)]


def test_mask_tensors() -> None:
    rgb, mask = arrays(2)
    tensors = MaskArtifact(rgb, mask).to_tensors()
    assert list(tensors) == ["rgb", "mask"] and tensors["mask"] is mask
    assert MaskArtifact.from_tensors(tensors).rgb is rgb


@pytest.mark.parametrize("count", [1, 2])
def test_embedding_tensors(count: int) -> None:
    vectors = arrays(count)
    tensors = EmbeddingArtifact(vectors).to_tensors()
    assert list(tensors) == ["text_encoder", "text_encoder_2"][:count]
    assert EmbeddingArtifact.from_tensors(tensors).vectors == vectors


def test_adapter_tensors_of_two_objects_with_dots_in_their_names() -> None:
    a, b, c, d = arrays(4)
    lora = {"unet.x.lora_A.weight": a, "text_encoder.token.lora_B.weight": b}
    tensors = AdapterArtifact({"rex": [c], "v1.2": [c, d]}, lora).to_tensors()
    assert set(tensors) == {*lora, "token.rex", "token.v1.2", "token_2.v1.2"}
    read = AdapterArtifact.from_tensors(tensors)
    assert read.lora == lora and {name: len(vectors) for name, vectors in read.vectors.items()} == {"rex": 1, "v1.2": 2}
    assert read.vectors["v1.2"][1] is d


def test_what_an_adapter_has_is_known_by_names_alone() -> None:
    token, denoiser, encoder = "token.rex", "unet.x.lora_B.weight", "text_encoder_2.x.lora_B.weight"
    assert not adapter.has_lora([token]) and adapter.has_lora([token, denoiser])
    assert not adapter.has_text_encoder_lora([token, denoiser]) and adapter.has_text_encoder_lora([encoder])


def test_prior_tensors() -> None:
    prior = PriorArtifact(*arrays(6))
    tensors = prior.to_tensors()
    assert list(tensors) == ["latents", "z_t", "t", "pred", "asked", "conditions"]
    assert tensors["asked"] is prior.prompt_index and tensors["t"] is prior.timesteps
    read = PriorArtifact.from_tensors(tensors)
    assert read.noisy_latents is prior.noisy_latents and read.predictions is prior.predictions
    assert prior.map(lambda array: array + 1).conditions[0, 0] == 6


def test_scene_tensors() -> None:
    latents, close = arrays(2)
    assert list(SceneArtifact(latents).to_tensors()) == ["latents"]
    tensors = SceneArtifact(latents, {"rex": close}).to_tensors()
    assert list(tensors) == ["latents", "close.rex"]
    read = SceneArtifact.from_tensors(tensors)
    assert read.latents is latents and read.refined == {"rex": close} and scene.REFINED == "close."
