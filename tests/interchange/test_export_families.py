"""Exported files of every family: read by diffusers to the same numbers, named as ComfyUI, A1111 and kohya's scripts name layers."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)
from objtune_cli.store.store import Store

# isort: split
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file

from objtune_cli.errors import DamagedError, InputError, ResourceError
from objtune_cli.interchange import export, lora_keys, model_card
from objtune_cli.lora import layers as adapter
from objtune_cli.models import families, loading
from objtune_cli.models.families.module_sets import MODULES
from objtune_cli.models.placeholders import Placeholders, split_encoders
from objtune_cli.store import artifacts
from objtune_cli.store.artifacts import Record
from objtune_cli.store.kinds.adapter import AdapterArtifact
from objtune_cli.store.refs import Ref
from tests.interchange.test_export import FRESH_ROWS, NO_TEXT_LORA, listening
from tests.support import full_size_configs, tiny_families

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

CPU = torch.device("cpu")
KEYS = Path(__file__).parent / "keys"
SILENT = (NO_TEXT_LORA, FRESH_ROWS)
BASES = {
    "sd2": {"id": "sd21", "family": "sd2", "prediction": "v_prediction"},
    "sdxl": {"id": "sdxl", "family": "sdxl", "prediction": "epsilon"},
    "sd3": {"id": "sd3", "family": "sd3", "prediction": "flow"},
    "sd35": {"id": "sd35", "family": "sd35", "prediction": "flow"},
    "flux2-klein": {"id": "klein", "family": "flux2-klein", "prediction": "flow"},
    "z-image": {"id": "z-image", "family": "z-image", "prediction": "flow"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("exports")
    return {
        "sd2": tiny_families.sd2(top / "two", with_clip=False),
        "sdxl": tiny_families.sdxl(top / "xl", with_clip=False),
    }


def published(
    store: Store, folder: Path, name: str, modules: str = "all", rank: int = 3
) -> tuple[Ref, dict[str, torch.Tensor], torch.Tensor]:
    """An adapter with random layers and a word of two vectors; its ref, tensors and the word's vectors side by side."""
    model = loading.load(folder, CPU, torch.float32)
    adapter.add(model, rank, modules, seed=0)
    g = torch.Generator().manual_seed(1)
    weights = {k: torch.randn(v.shape, generator=g) * 0.2 for k, v in adapter.state_dict(model).items()}
    rows = torch.randn(2, sum(model.widths), generator=g)
    tensors = AdapterArtifact({"rex": split_encoders(rows, model.widths)}, weights).to_tensors()
    record = Record("adapter", "rex", {"rex": "dog"}, {}, {"rank": rank}, {**BASES[name], "fingerprint": "0"})
    return store.create(record, tensors), tensors, rows


def pipeline(folder: Path, name: str) -> Any:
    import diffusers

    kind = getattr(diffusers, families.get_family(name).pipeline)
    return kind.from_pretrained(folder, local_files_only=True, **({} if name == "sdxl" else {"safety_checker": None}))


def predicted(unet: Any, name: str) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    z, words = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 77, unet.config.cross_attention_dim, generator=g)
    told = (
        {"text_embeds": torch.randn(2, tiny_families.WIDTH_2, generator=g), "time_ids": torch.full((2, 6), 32.0)}
        if name == "sdxl"
        else None
    )
    with torch.no_grad():
        return unet(z, torch.tensor([10, 700]), encoder_hidden_states=words, added_cond_kwargs=told).sample


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_diffusers_reads_it_as_we_do(folders: dict[str, Path], tmp_path: Path, name: str, form: str) -> None:
    ref, tensors, _ = published(Store.at(tmp_path / "store"), folders[name], name)
    (file,) = export.run(Store.at(tmp_path / "store"), ref, form, tmp_path / "out")
    model = loading.load(folders[name], CPU, torch.float32)
    model.denoiser.to(memory_format=torch.contiguous_format)
    adapter.load(model, tensors)
    pipe = pipeline(folders[name], name)
    plain = predicted(pipe.unet, name)
    with listening() as warned:
        pipe.load_lora_weights(file.parent, weight_name=file.name)
    assert [text for text in warned if not text.startswith(SILENT)] == []
    shown = predicted(pipe.unet, name)
    assert float((shown - predicted(model.denoiser, name)).abs().max()) == 0
    assert float((shown - plain).abs().max()) > 0.01


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_names_at_full_size_are_those_that_other_tools_know(name: str) -> None:
    """The frozen lists: every layer of the real denoiser that may learn, by names that three loaders' own maps accepted.

    Source: ComfyUI's `model_lora_keys_unet` (the copy in Fooocus 59f183ab), A1111's `convert_diffusers_name_to_compvis` (09da7558),
    and the module names of kohya's U-Nets (sd-scripts 48d368fa), run on these denoisers.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(**full_size_configs.DENOISERS[name])
    ends = MODULES["all"]
    layers = [n for n, _ in unet.named_modules() if any(n == end or n.endswith("." + end) for end in ends)]
    made = {f"unet.{layer}.lora_{side}.weight": torch.zeros(2, 2) for layer in layers for side in "AB"}
    stems = {key.split(".")[0] for key in lora_keys.to_kohya(made, families.get_family(name))}
    assert len(stems) == len(layers)
    assert stems == set((KEYS / f"{name}.txt").read_text().split())


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_an_embedding_file_gives_the_same_prompt(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    ref, _, rows = published(Store.at(tmp_path / "store"), folders[name], name, "cross-kv")
    (file,) = export.run(Store.at(tmp_path / "store"), ref, "embedding", tmp_path / "out")
    named, pipe = load_file(file), pipeline(folders[name], name)
    assert list(named) == (["clip_g", "clip_l"] if name == "sdxl" else ["<rex>"])
    if name == "sdxl":
        pipe.load_textual_inversion(
            named["clip_l"], token="<rex>", text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer
        )
        pipe.load_textual_inversion(
            named["clip_g"], token="<rex>", text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2
        )
    else:
        pipe.load_textual_inversion(file)
    model = loading.load(folders[name], CPU, torch.float32)
    words = Placeholders(model)
    words.add("rex", rows)
    ours = model.encode_prompt([words.expand("a photo of <rex> in the snow")]).sequence
    theirs = pipe.encode_prompt(
        "a photo of <rex> in the snow", device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False
    )[0]
    torch.testing.assert_close(theirs.detach(), ours.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "ends"), [("sd2", ["string_to_param.*"]), ("sdxl", ["clip_g", "clip_l"])])
def test_a_bundle_is_kohyas_file_with_the_words_inside(
    folders: dict[str, Path], tmp_path: Path, name: str, ends: list[str]
) -> None:
    ref, _, _ = published(Store.at(tmp_path / "store"), folders[name], name, "cross-kv")
    (kohya,), (bundle,) = (
        export.run(Store.at(tmp_path / "store"), ref, form, tmp_path / "out") for form in ("kohya", "bundle")
    )
    plain, both = load_file(kohya), load_file(bundle)
    assert sorted(both.keys() - plain.keys()) == [f"bundle_emb.rex-objtune.{end}" for end in ends]
    assert all(torch.equal(both[key], value) for key, value in plain.items())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "sd2",
            {
                "modelspec.architecture": "stable-diffusion-v2-768-v/lora",
                "ss_base_model_version": "sd_v2_v",
                "ss_v2": "True",
            },
        ),
        (
            "sdxl",
            {
                "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
                "ss_base_model_version": "sdxl_base_v1-0",
                "ss_v2": "False",
            },
        ),
    ],
)
def test_metadata_says_the_family_and_the_hash(
    folders: dict[str, Path], tmp_path: Path, name: str, said: dict[str, str]
) -> None:
    ref, _, _ = published(Store.at(tmp_path / "store"), folders[name], name, "cross-kv")
    (file,) = export.run(Store.at(tmp_path / "store"), ref, "kohya", tmp_path / "out")
    with safe_open(file, framework="pt") as opened:
        found = opened.metadata()
    assert found.items() >= said.items() and found["modelspec.license"] == "openrail++"
    data = file.read_bytes()
    body = data[8 + int.from_bytes(data[:8], "little") :]
    assert found["modelspec.hash_sha256"] == "0x" + found["sshs_model_hash"] == "0x" + hashlib.sha256(body).hexdigest()
    assert json.loads(found["objtune"])["ref"] == "adapter/rex@1"


def test_what_is_not_finite_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record("adapter", "rex", {"rex": "dog"}, {}, {}, {"id": "toybox", "fingerprint": "0"})
    monkeypatch.setattr(artifacts, "check_finite", lambda record, arrays: None)  # earlier versions published it
    ref = Store.at(tmp_path).create(record, {"token.rex": torch.tensor([[math.nan]])})
    with pytest.raises(DamagedError, match="adapter/rex@1 contains NaN or infinite values, first in token.rex"):
        export.run(Store.at(tmp_path), ref, "embedding", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_repository_has_all_forms_and_a_card(folders: dict[str, Path], tmp_path: Path) -> None:
    ref, _, _ = published(Store.at(tmp_path / "store"), folders["sdxl"], "sdxl", "cross-kv")
    (tmp_path / "store" / "artifacts" / "adapter" / "rex" / "v001").mkdir()
    (tmp_path / "store" / "artifacts" / "adapter" / "rex" / "v001" / "preview.png").write_bytes(b"a picture")
    files = export.run(Store.at(tmp_path / "store"), ref, "hub", tmp_path / "out")
    names = [file.relative_to(tmp_path / "out").as_posix() for file in files]
    assert names == [
        "pytorch_lora_weights.safetensors",
        "kohya/rex.safetensors",
        "embeddings/rex-objtune.safetensors",
        "pictures/preview.png",
        "README.md",
    ]
    text = (tmp_path / "out" / "README.md").read_text()
    import yaml

    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "stabilityai/stable-diffusion-xl-base-1.0" and front["license"] == "openrail++"
    assert front["instance_prompt"] == "a photo of <rex>" and "lora" in front["tags"]
    assert (
        "![pictures/preview.png](pictures/preview.png)" in text
        and "- `<rex>`: one dog" in text
        and "| rank | 3 |" in text
    )


def test_the_cards_lines_run(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the card says of diffusers is what diffusers does: its own lines, on the base in a folder."""
    import diffusers

    for name in ("sd2", "sdxl"):
        store, out = Store.at(tmp_path / name / "store"), tmp_path / name / "out"
        ref, _, _ = published(store, folders[name], name, "cross-kv")
        export.run(store, ref, "hub", out)
        code = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
        kind = getattr(diffusers, families.get_family(name).pipeline)
        opened = pipeline(folders[name], name)
        monkeypatch.setattr(kind, "from_pretrained", lambda *_, pipe=opened: pipe)
        monkeypatch.setattr(kind, "__call__", lambda self, prompt: type("Drawn", (), {"images": [prompt]}))
        monkeypatch.chdir(out)
        found: dict[str, Any] = {}
        exec(code, found)
        assert found["picture"] == "a photo of <rex> on the beach"
        assert opened.get_active_adapters() and len(opened.tokenizer("<rex>", add_special_tokens=False).input_ids) == 1
        if name == "sdxl":  # else the pooled vector would be read at the object's token, which has the largest id
            assert opened.text_encoder_2.text_model.eos_token_id == opened.tokenizer_2.eos_token_id


def test_pushing_without_a_network_or_a_name_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    with pytest.raises(InputError, match="not a repository name"):
        model_card.push(tmp_path, "a/b/c", private=True)

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(HfApi, "create_repo", unreachable)
    with pytest.raises(ResourceError, match="cannot be reached: no route"):
        model_card.push(tmp_path, "you/rex", private=True)


def test_pushing_uploads_the_folder(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    calls: list[Any] = []
    monkeypatch.setattr(
        HfApi,
        "create_repo",
        lambda self, repo, private, exist_ok: calls.append((repo, private)) or f"https://hub/{repo}",
    )
    monkeypatch.setattr(
        HfApi,
        "upload_folder",
        lambda self, repo_id, folder_path, commit_message: calls.append(sorted(p.name for p in folder_path.iterdir())),
    )
    record = Record("adapter", "rex", {"rex": "dog"}, {}, {"rank": 1}, {"id": "toybox", "fingerprint": "0"})
    Store.at(Path()).create(record, {"token.rex": torch.ones(1, 4)})
    done = cli("export", "rex", "--push", "you/rex", "--out", "up", "--json")
    assert done.code == 0 and json.loads(done.out)["pushed"] == "https://hub/you/rex"
    assert calls == [("you/rex", True), ["README.md", "embeddings"]]
    assert "license: apache-2.0" in Path("up/README.md").read_text()
    assert cli("export", "rex", "--push", "you/rex", "--format", "kohya").code == 2
    assert cli("export", "rex", "--push", "you/rex").code == 2  # into this folder, which has other files
