"""Random prompts: every object that a prompt names is remembered by the scene, or one line says why not."""

import html
import re
import unicodedata
from pathlib import Path
from typing import Any

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)

# isort: split
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.support import tiny_sd1
from tests.support.fuzzing import Entrance, entrance, figures, tries  # noqa: F401  (a fixture)

PIECES = (
    "a photo of", "on the beach", "and", "dog", "<rex>", "<rex>", "<rex>", "<cup>", "<rex@1>", "<rex@2>", "<nosuch>", "<Rex>", "< rex >", "<rex:0.5>", "<rex:1>", "<rex", "rex>", "&lt;rex&gt;", "＜rex＞", "rex",
    "(<rex>:1.3)", "((dog))", "[dog]", "[a|b]", "[a:b:0.5]", "BREAK", "{a|b}", "__place__", "(", "]", ":1.2)", "<lora:film:1>", "<lora:rex:0.8>", "embedding:rex", "dog++", "::2", "--ar 3:2", "\\(", "'", '"', "犬と", "собака", "🐕‍🦺", "é", "e\u0301",
    "\n", "\t", "\u00a0", "\u3000", "\u2028", "\r\n", "\u200b", "\u200d", "\ufeff", "\u00ad", "\u202e", "\x1b[31m", "\x00", "\ud800", "<", ">", "<>", "<<rex>>", "@", "%s", "{}", "very nice sunny golden", "x" * 40, ",", ".",
)  # fmt: skip
NAMED = re.compile(r"<([a-z0-9][a-z0-9._-]*)(?:@[0-9]+)?(?::[0-9.]+)?>")
VECTORS = {"rex": 1, "cup": 2}

prompts = st.builds(
    lambda parts, glue: glue.join(parts),
    st.lists(st.sampled_from(PIECES) | st.text(max_size=6), min_size=1, max_size=9),
    st.sampled_from([" ", " ", " ", "", "  "]),
)
negatives = st.one_of(st.none(), st.none(), prompts)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, entrance: Entrance) -> Path:  # noqa: F811
    """A base, and two objects that were imported for it: <rex> with a LoRA, <cup> with vectors alone."""
    folder = entrance.empty()
    base = tiny_sd1.build(tmp_path_factory.mktemp("fuzz") / "tiny", clip=False)
    g = torch.Generator().manual_seed(0)
    weights = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    lora = {}
    for key, value in weights.items():
        if key.endswith(("to_k.weight", "to_v.weight")):
            name = "unet." + key.removesuffix(".weight")
            lora |= {
                f"{name}.lora_A.weight": torch.randn(2, value.shape[1], generator=g),
                f"{name}.lora_B.weight": torch.randn(value.shape[0], 2, generator=g),
            }
    save_file(lora, folder / "lora.safetensors")
    for name, rows in VECTORS.items():
        save_file({"emb_params": torch.randn(rows, tiny_sd1.WIDTH, generator=g)}, folder / f"{name}.safetensors")
    assert (
        entrance.run(
            "import", "lora.safetensors", "rex.safetensors", "--class", "dog", "--name", "rex", "--base", base
        ).code
        == 0
    )
    assert entrance.run("import", "cup.safetensors", "--class", "mug", "--name", "cup", "--base", base).code == 0
    return base


def plain(prompt: str) -> str:
    """A prompt as a reader of it would write it: full-width and escaped brackets as brackets, no invisible characters."""
    text = html.unescape(unicodedata.normalize("NFC", prompt)).translate({ord("＜"): "<", ord("＞"): ">"})
    return "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace())


def test_prompts(entrance: Entrance, record_property: Any, project: Path) -> None:  # noqa: F811
    @tries(1200, 20)
    @given(prompt=prompts, negative=negatives, seed=st.integers(0, 2**64 - 1))
    def check(prompt: str, negative: str | None, seed: int) -> None:
        options = [f"--negative={negative}"] if negative is not None else []
        done = entrance.run(
            "generate", "-n", 1, "--steps", 1, f"--seed={seed}", "--base", project, "--force", *options, "--", prompt
        )
        if done.code:
            assert (
                not re.fullmatch(r"[a-z, ]*(<rex>|<cup>)?[a-z, ]*", prompt)
                or len(prompt) > 60
                or negative is not None
                or not prompt.strip()
            ), (prompt, done.err)
            return
        scene = Path(done.out.strip())
        record, _ = entrance.load("scene", scene.parent.parent.name)
        picture = Image.open(scene)
        assert np.asarray(picture).std() > 0 and "Steps: 1" in picture.info["parameters"]
        for name in NAMED.findall(plain(prompt)):
            assert any(name in str(item["ref"]) for item in record.inputs.values()), (prompt, name, record.inputs)
        for name in NAMED.findall(plain(negative or "")):
            assert any(name in str(item["ref"]) for item in record.inputs.values()), (negative, name, record.inputs)

    check()
    figures(entrance, record_property, "prompts")
