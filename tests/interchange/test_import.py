"""Files of other tools as adapters: the same prediction as in diffusers, drawn and composed here; everything wrong is one line."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import objtune_cli.models.base_model  # noqa: F401  (repairs torchvision before the libraries below ask for it)
from objtune_cli.store.store import Store

# isort: split
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, load_file, save_file

from objtune_cli.composition import object_loras
from objtune_cli.interchange import export, lora_keys, pickle_sandbox
from objtune_cli.lora import import_keys
from objtune_cli.lora import layers as adapter
from objtune_cli.lora.import_source import Source
from objtune_cli.lora.layer_names import modules_of
from objtune_cli.models import base_model as stacks
from objtune_cli.models import families, loading
from objtune_cli.models.placeholders import class_token_embeddings, split_encoders
from objtune_cli.store import artifacts, refs
from objtune_cli.store.kinds.adapter import AdapterArtifact
from tests.generation.test_image_metadata import of_lora, read
from tests.interchange.test_export_families import predicted
from tests.interchange.test_import_refusals import torch_zip
from tests.support import tiny_families, tiny_sd1

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

CPU = torch.device("cpu")
NAMES = ("sd1", "sd2", "sdxl")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_families.folders(tmp_path_factory.mktemp("imports"), NAMES)


def layers(folder: Path, rank: int = 2, modules: str = "all") -> dict[str, torch.Tensor]:
    model = loading.load(folder, CPU, torch.float32)
    adapter.add(model, rank, modules, seed=0)
    g = torch.Generator().manual_seed(1)
    return {k: torch.randn(v.shape, generator=g) * 0.2 for k, v in adapter.state_dict(model).items()}


def kohya(weights: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {k: torch.as_tensor(v) for k, v in lora_keys.to_kohya(weights, families.get_family(name)).items()}


def of_encoder(prefix: str, width: int, rank: int = 2) -> dict[str, torch.Tensor]:
    """A LoRA of two layers of a text encoder, by kohya's names, alpha half the rank."""
    g = torch.Generator().manual_seed(5)
    found = {}
    for layer in ("q_proj", "out_proj"):  # diffusers knows a text encoder's layers by the latter
        stem = f"{prefix}text_model_encoder_layers_0_self_attn_{layer}"
        down, up = torch.randn(rank, width, generator=g), torch.randn(width, rank, generator=g)
        found |= {
            f"{stem}.lora_down.weight": down,
            f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": torch.tensor(rank / 2),
        }
    return found


def theirs(folder: Path, name: str, file: Path) -> Any:
    import diffusers

    kind = getattr(diffusers, families.get_family(name).pipeline)
    pipe = kind.from_pretrained(folder, local_files_only=True, **({} if name == "sdxl" else {"safety_checker": None}))
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    return pipe


def imported(cli: Any, base: Path, *args: object) -> tuple[artifacts.Record, dict[str, torch.Tensor]]:
    done = cli("import", *args, "--class", "dog", "--name", "rex", "--base", base)
    assert done.code == 0, done.err
    record, arrays = Store.at(Path()).read(Store.at(Path()).find("rex", ("adapter",)))
    return record, {k: torch.from_numpy(v.copy()) for k, v in arrays.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_kohya_file_acts_as_in_diffusers(cli: Any, folders: dict[str, Path], name: str) -> None:
    """Layers of denoiser and text encoders, alpha half the rank."""
    file = Path("other.safetensors")
    weights = kohya(layers(folders[name]), name)
    weights = {k: v / 2 if k.endswith(".alpha") else v for k, v in weights.items()}
    weights |= of_encoder("lora_te1_" if name == "sdxl" else "lora_te_", tiny_sd1.WIDTH)
    weights |= of_encoder("lora_te2_", tiny_families.WIDTH_2) if name == "sdxl" else {}
    save_file(weights, file)
    _, tensors = imported(cli, folders[name], file)
    model = loading.load(folders[name], CPU, torch.float32)
    plain = model.encode_prompt(["a photo"]).pack()
    model.denoiser.to(memory_format=torch.contiguous_format)
    assert adapter.load(model, tensors, "lora0")
    adapter.set_active(model, ["lora0"])
    pipe = theirs(folders[name], name, file)
    torch.testing.assert_close(predicted(model.denoiser, name), predicted(pipe.unet, name), rtol=1e-5, atol=1e-5)
    told = pipe.encode_prompt("a photo", device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False)[0]
    ours = model.encode_prompt(["a photo"])
    torch.testing.assert_close(ours.sequence, told, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours.pack(), plain, atol=1e-3)
    adapter.set_active(model, [])
    assert torch.equal(model.encode_prompt(["a photo"]).pack(), plain)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["diffusers", "kohya", "bundle"])
def test_what_was_exported_comes_back_as_it_was(cli: Any, folders: dict[str, Path], name: str, form: str) -> None:
    weights = layers(folders[name], modules="cross-kv")
    model = loading.load(folders[name], CPU, torch.float32)
    rows = torch.randn(2, sum(model.widths), generator=torch.Generator().manual_seed(2))
    tensors = AdapterArtifact({"rex": split_encoders(rows, model.widths)}, weights).to_tensors()
    record = artifacts.Record(
        "adapter",
        "old",
        {"rex": "dog"},
        {},
        {},
        {"id": "x", "fingerprint": "0", "family": "" if name == "sd1" else name},
    )
    ref = Store.at(Path()).create(record, tensors)
    files = export.run(Store.at(Path()), ref, form, Path("out"))
    if form != "bundle":
        files += export.run(Store.at(Path()), ref, "embedding", Path("words"))
    kept, found = imported(cli, folders[name], *files)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], value) for key, value in tensors.items())
    assert kept.metrics == {"rank": 2, "vectors": 2, "layers": len(weights) // 2} and kept.inputs["file.0"]["ref"] == ""


def test_older_names_of_diffusers_are_read(folders: dict[str, Path]) -> None:
    weights = layers(folders["sd1"], modules="attention")
    old = {k.replace(".to_out.0.lora", ".to_out.lora"): v for k, v in weights.items()}
    old = {
        k.replace(".to_", ".processor.to_")
        .replace(".lora_A.weight", "_lora.down.weight")
        .replace(".lora_B.weight", "_lora.up.weight"): v
        for k, v in old.items()
    }
    found = import_keys.read_lora(loading.load(folders["sd1"], CPU, torch.float32), Source("old", old))
    assert found.keys() == weights.keys() and all(torch.equal(found[k], v) for k, v in weights.items())


def test_layers_of_several_ranks_become_one_rank(folders: dict[str, Path]) -> None:
    weights = layers(folders["sd1"], rank=4, modules="cross-kv")
    first = next(k for k in weights if k.endswith("lora_A.weight")).rsplit(".lora_", 1)[0]
    weights[f"{first}.lora_A.weight"] = weights[f"{first}.lora_A.weight"][:1]
    weights[f"{first}.lora_B.weight"] = weights[f"{first}.lora_B.weight"][:, :1]
    found = import_keys.read_lora(loading.load(folders["sd1"], CPU, torch.float32), Source("mixed", weights))
    assert {v.shape[0] for k, v in found.items() if k.endswith("lora_A.weight")} == {4}
    for stem in {k.rsplit(".lora_", 1)[0] for k in weights}:
        delta = [w[f"{stem}.lora_B.weight"] @ w[f"{stem}.lora_A.weight"] for w in (found, weights)]
        torch.testing.assert_close(*delta)


def test_without_vectors_the_token_says_the_words_it_was_trained_under(cli: Any, folders: dict[str, Path]) -> None:
    save_file(kohya(layers(folders["sd1"], modules="cross-kv"), "sd1"), "other.safetensors")
    _, tensors = imported(cli, folders["sd1"], "other.safetensors", "--trigger", "sks dog")
    assert torch.equal(
        tensors["token.rex"], class_token_embeddings(loading.load(folders["sd1"], CPU, torch.float32), "sks dog")
    )


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_imported_objects_are_drawn_and_composed(cli: Any, folders: dict[str, Path], name: str) -> None:
    te = of_encoder("lora_te1_" if name == "sdxl" else "lora_te_", tiny_sd1.WIDTH)
    save_file(kohya(layers(folders[name], modules="cross-kv"), name) | te, "a.safetensors")
    width = (tiny_sd1.WIDTH, tiny_families.WIDTH_2) if name == "sdxl" else (tiny_sd1.WIDTH,)
    keys = ("clip_l", "clip_g") if name == "sdxl" else ("emb_params",)
    save_file({key: torch.randn(2, w) for key, w in zip(keys, width, strict=True)}, "b.safetensors")
    common = ("--class", "dog", "--base", folders[name])
    assert cli("import", "a.safetensors", "--name", "rex", *common).out == "adapter/rex@1\n"
    assert cli("import", "b.safetensors", "--name", "cup", *common).code == 0
    again = cli("import", "b.safetensors", "--name", "cup", *common)
    assert (again.code, again.out) == (0, "adapter/cup@1\n") and "up to date" in again.err
    few = ("-n", 1, "--set", "generate.num_inference_steps=2", "--base", folders[name])
    both = cli("generate", "<rex> beside <cup>", *few)
    assert both.code == 0, both.err
    made = cli("compose", "<rex> and <cup>", "--place", "rex=left", "--place", "cup=right", "--retries", 0, *few)
    assert made.code == 0 and "text encoder" not in made.err, made.err
    assert Store.at(Path()).read_record(refs.Ref("scene", "rex-cup", 2)).config["text_encoders"] == ["rex"]


def drawn(cli: Any, base: Path, *args: object) -> dict[str, np.ndarray]:
    """The tensors of a composed scene of <rex>, on all of the picture."""
    done = cli(
        "compose",
        "a photo of <rex>",
        "--place",
        "rex=0,0,1,1",
        "--retries",
        0,
        "-n",
        1,
        "--base",
        base,
        "--set",
        "generate.num_inference_steps=4",
        *args,
    )
    assert done.code == 0, done.err
    newest = Store.at(Path()).resolve(refs.Ref("scene", "rex"))
    return Store.at(Path()).read(newest)[1]


def test_layers_of_text_encoders_act_in_composed_scenes(
    cli: Any, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the scene and in the closer look; without them nothing else is encoded than before, and where they are zeros not a bit changes."""
    plain = kohya(layers(folders["sd1"], modules="cross-kv"), "sd1")
    words = of_encoder("lora_te_", tiny_sd1.WIDTH)
    kinds = {
        "with": plain | words,
        "zeros": plain | {k: torch.zeros_like(v) if "lora_up" in k else v for k, v in words.items()},
        "without": plain,
    }
    found, counts, encode = {}, {}, stacks.BaseModel.encode_prompt
    for name, weights in kinds.items():
        said: list[str] = []
        monkeypatch.setattr(
            stacks.BaseModel,
            "encode_prompt",
            lambda self, texts, max_tokens=0, said=said: said.extend(texts) or encode(self, texts, max_tokens),
        )
        save_file(weights, f"{name}.safetensors")
        imported(cli, folders["sd1"], f"{name}.safetensors", "--trigger", "dog")
        said.clear()
        found[name], counts[name] = drawn(cli, folders["sd1"]), len(said)
    # own words, class words, no words; the closer look's, no words; the check's of the class and of the object
    assert counts == {"with": 8, "zeros": 8, "without": 7}
    for part in ("latents", "close.rex"):
        assert np.array_equal(found["zeros"][part], found["without"][part])
        assert np.abs(found["with"][part] - found["without"][part]).max() > 1e-3


@pytest.mark.parametrize(("name", "method"), [("sd1", "linear"), ("sd2", "dare"), ("sdxl", "linear"), ("sdxl", "ties")])
def test_merged_layers_of_text_encoders_are_exported_and_act_in_diffusers(
    cli: Any, folders: dict[str, Path], name: str, method: str
) -> None:
    """<rex> has them, <cup> has not: the sum's is half of the one's own, in ours and in diffusers, both files' keys."""
    weights = kohya(layers(folders[name], modules="cross-kv"), name)
    words = of_encoder("lora_te1_" if name == "sdxl" else "lora_te_", tiny_sd1.WIDTH)
    words |= of_encoder("lora_te2_", tiny_families.WIDTH_2) if name == "sdxl" else {}
    save_file(weights | words, "a.safetensors")
    save_file(weights, "b.safetensors")
    for file, called in (("a.safetensors", "rex"), ("b.safetensors", "cup")):
        assert cli("import", file, "--name", called, "--class", "dog", "--base", folders[name]).code == 0
    done = cli("merge", "rex=0.5", "cup", "--name", "pair", "--method", method)
    assert done.code == 0, done.err
    one, pair = (
        {k: torch.tensor(v) for k, v in Store.at(Path()).read(refs.Ref("adapter", called, 1))[1].items()}
        for called in ("rex", "pair")
    )
    stems = {k.rsplit(".lora_", 1)[0] for k in one if k.startswith("text_encoder")}
    assert len(stems) == len(words) / 3 and stems == {
        k.rsplit(".lora_", 1)[0] for k in pair if k.startswith("text_encoder")
    }
    for stem in stems if method == "linear" else ():
        own, both = (w[f"{stem}.lora_B.weight"] @ w[f"{stem}.lora_A.weight"] for w in (one, pair))
        torch.testing.assert_close(both, own / 2)
    model = loading.load(folders[name], CPU, torch.float32)
    before = model.encode_prompt(["a photo"]).sequence
    adapter.load(model, pair)
    ours = model.encode_prompt(["a photo"]).sequence
    assert not torch.allclose(ours, before, atol=1e-3)
    for form in ("kohya", "diffusers"):
        (file,) = export.run(Store.at(Path()), refs.Ref("adapter", "pair", 1), form, Path(form))
        keys = load_file(file)
        starts = {
            "kohya": ("lora_te1_", "lora_te2_") if name == "sdxl" else ("lora_te_",),
            "diffusers": ("text_encoder.", "text_encoder_2."),
        }[form]
        assert all(any(k.startswith(start) for k in keys) for start in starts[: len(model.text_encoders)])
        pipe = theirs(folders[name], name, file.absolute())
        told = pipe.encode_prompt("a photo", device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False)[0]
        torch.testing.assert_close(ours, told, rtol=1e-4, atol=1e-4)


def test_a_file_for_another_family_is_one_line_that_names_it(cli: Any, folders: dict[str, Path]) -> None:
    stem = "lora_unet_input_blocks_7_1_transformer_blocks_9_attn2_to_k"
    save_file(
        {f"{stem}.lora_down.weight": torch.zeros(4, 2048), f"{stem}.lora_up.weight": torch.zeros(1280, 4)},
        "xl.safetensors",
    )
    done = cli("import", "xl.safetensors", "--class", "dog", "--base", folders["sd1"])
    assert (
        done.code == 6 and done.err.splitlines()[-1] == "hint: it looks like one of Stable Diffusion XL: `--base sdxl`"
    )
    save_file(kohya(layers(folders["sd2"], modules="cross-kv"), "sd2"), "two.safetensors")
    done = cli("import", "two.safetensors", "--class", "dog", "--base", folders["sdxl"])
    assert done.code == 6 and "two.safetensors is for another base" in done.err and not Path("artifacts").exists()


BAD = {
    "half": (
        {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(1, 16, 1, 1)},
        3,
        "half of the layer",
    ),
    "loha": ({"lora_unet_x.hada_w1_a": torch.zeros(2, 2)}, 6, "is a LoHa"),
    "nan": ({"emb_params": torch.full((1, 16), float("nan"))}, 3, "NaN or infinite values"),
    "wide": ({"emb_params": torch.zeros(1, 768)}, 6, "768 numbers; this base's have 16"),
    "pair": (
        {"clip_l": torch.zeros(1, 16), "clip_g": torch.zeros(1, 24)},
        6,
        "not an embedding for Stable Diffusion 1.x",
    ),
    "deep": ({"emb_params": torch.zeros(1, 1, 16)}, 3, "no token vectors"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_cannot_be_used(cli: Any, folders: dict[str, Path], case: str) -> None:
    tensors, code, said = BAD[case]
    save_file(tensors, "bad.safetensors")
    done = cli("import", "bad.safetensors", "--class", "dog", "--base", folders["sd1"])
    assert (done.code, done.out) == (code, "") and said in done.err and "Traceback" not in done.err
    assert not list(Path().glob("artifacts/adapter/*/*"))


@pytest.mark.parametrize("data", [b"", b"1234567", b"\xff" * 64, (200).to_bytes(8, "little") + b"{}"])
def test_files_that_are_no_safetensors(cli: Any, folders: dict[str, Path], data: bytes) -> None:
    Path("bad.safetensors").write_bytes(data)
    done = cli("import", "bad.safetensors", "--class", "dog", "--base", folders["sd1"])
    assert done.code == 3 and "bad.safetensors" in done.err and "Traceback" not in done.err


class Evil:
    """Writes a file if it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, ("touch canary",)


def test_pickles_are_read_when_they_are_allowed_and_never_run(
    cli: Any, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A1111's `.pt` and diffusers' `learned_embeds.bin`; a file that holds a program is refused with the variable set, too, that trusts all."""
    rows = torch.randn(2, tiny_sd1.WIDTH, generator=torch.Generator().manual_seed(0))
    table = torch.nn.ParameterDict({"*": torch.nn.Parameter(rows)})
    torch.save(
        {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": table, "name": "rex", "step": 9}, "rex.pt"
    )
    torch.save({"<rex>": rows}, "learned_embeds.bin")
    Path("evil.pt").write_bytes(pickle.dumps({"emb_params": Evil()}))
    common = ("--class", "dog", "--name", "rex", "--base", folders["sd1"])
    refused = cli("import", "rex.pt", *common)
    assert refused.code == 3 and "--allow-pickle" in refused.err
    for i, file in enumerate(("rex.pt", "learned_embeds.bin"), 1):
        assert cli("import", file, "--allow-pickle", *common).code == 0
        assert torch.equal(torch.tensor(Store.at(Path()).read(refs.Ref("adapter", "rex", i))[1]["token.rex"]), rows)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    evil = cli("import", "evil.pt", "--allow-pickle", *common)
    assert evil.code == 3 and "not a pickle of plain tensors" in evil.err and not Path("canary").exists()


def test_what_is_missing_on_the_command_line(cli: Any, folders: dict[str, Path]) -> None:
    assert cli("import", "a.safetensors", "--base", folders["sd1"]).code == 2
    assert cli("import", "a.safetensors", "--class", "dog", "--base", folders["sd1"]).code == 3
    save_file({"emb_params": torch.zeros(1, tiny_sd1.WIDTH)}, "a.safetensors")
    save_file({"emb_params": torch.ones(1, tiny_sd1.WIDTH)}, "b.safetensors")
    two = cli("import", "a.safetensors", "b.safetensors", "--class", "dog", "--base", folders["sd1"])
    assert two.code == 3 and "two files of the same kind" in two.err


def test_the_hash_in_a_picture_is_that_of_the_file(cli: Any, folders: dict[str, Path]) -> None:
    """By which Civitai finds a LoRA: of what follows the header, and of an embedding the whole file; nothing stands there for what the file does not hold."""
    weights = kohya(layers(folders["sd1"], modules="cross-kv"), "sd1")
    save_file(weights, "a.safetensors", {"ss_network_dim": "2"})
    save_file(
        {"emb_params": torch.randn(2, tiny_sd1.WIDTH, generator=torch.Generator().manual_seed(0))}, "b.safetensors"
    )
    common = ("--class", "dog", "--base", folders["sd1"])
    for name, files in {
        "one": ["a.safetensors"],
        "two": ["b.safetensors"],
        "both": ["a.safetensors", "b.safetensors"],
    }.items():
        assert cli("import", *files, "--name", name, *common).code == 0
    done = cli("generate", "<one>", "<two>", "<both>", "-n", 1, "--steps", 1, "--base", folders["sd1"])
    lora, embedding = (
        of_lora(Path("a.safetensors")),
        hashlib.sha256(Path("b.safetensors").read_bytes()).hexdigest()[:12],
    )
    told = [read(Image.open(path).text["parameters"])[2] for path in done.out.splitlines()]
    assert [values.get("Lora hashes") for values in told] == [f"one: {lora}", None, f"both: {lora}"]
    assert [bool(values.get("TI hashes")) for values in told] == [False, True, True]
    assert all(values["TI hashes"].endswith(f": {embedding}") for values in told[1:])
    assert (
        cli("import", "a.safetensors", "--name", "one", *common).out == "adapter/one@1\n"
    )  # the hash is no part of what the work is


def test_parameter_tables_in_pickles_are_read_and_nothing_of_them_runs(tmp_path: Path) -> None:
    """The first textual inversion's `.pt`; what needs anything else, or is cut off, is explained in a line of ours."""
    rows = torch.randn(2, tiny_sd1.WIDTH, generator=torch.Generator().manual_seed(0))
    file = tmp_path / "first.pt"
    for table in (torch.nn.ParameterDict, dict):
        torch.save(
            {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": table({"*": torch.nn.Parameter(rows)})},
            file,
        )
        assert torch.equal(load(pickle_sandbox.convert(str(file)))["string_to_param.*"], rows)
    torch.save({"state_dict": {"lora_unet_x.alpha": rows}, "epoch": 1}, file)  # as PyTorch Lightning saves weights
    assert list(load(pickle_sandbox.convert(str(file)))) == ["lora_unet_x.alpha"]
    torch.save({"string_to_param": {"*": rows}}, file)
    reasons = {}
    for name, data in {
        "cut off": file.read_bytes()[:-300],
        "module": torch_zip(torch.nn.Linear(2, 2)),
        "program": pickle.dumps(Evil()),
    }.items():
        file.write_bytes(data)
        with pytest.raises(Exception) as caught:  # of whatever kind
            pickle_sandbox.convert(str(file))
        reasons[name] = pickle_sandbox.describe_error(caught.value)
    assert reasons["cut off"] == "it is cut off or damaged" and not Path("canary").exists()
    assert reasons["module"] == "it needs torch.nn.modules.linear.Linear, which is code, not data"
    assert reasons["program"] == "it contains more than tensors"


def test_a_pair_of_files_and_a_folder_of_diffusers_are_one_object(cli: Any, folders: dict[str, Path]) -> None:
    first, second = torch.randn(2, tiny_sd1.WIDTH), torch.randn(2, tiny_families.WIDTH_2)
    Path("folder").mkdir()
    save_file({"<s>": first}, "folder/learned_embeds.safetensors")
    save_file({"<s>": second}, "folder/learned_embeds_2.safetensors")
    _, tensors = imported(cli, folders["sdxl"], *Path("folder").iterdir())
    assert torch.equal(tensors["token.rex"], first) and torch.equal(tensors["token_2.rex"], second)
    save_file(layers(folders["sdxl"], modules="cross-kv"), "folder/pytorch_lora_weights.safetensors")
    kept, tensors = imported(cli, folders["sdxl"], "folder")
    assert torch.equal(tensors["token_2.rex"], second) and kept.metrics["layers"] > 0
    done = cli("import", "folder/learned_embeds.safetensors", "--class", "dog", "--base", folders["sdxl"])
    assert done.code == 6 and "half of an embedding" in done.err


def test_as_many_vectors_as_a_prompt_has_room_for(cli: Any, folders: dict[str, Path]) -> None:
    save_file({"emb_params": torch.randn(75, tiny_sd1.WIDTH)}, "long.safetensors")
    done = cli("import", "long.safetensors", "--class", "dog", "--name", "rex", "--base", folders["sd1"])
    assert done.code == 0 and "they leave 0 of a prompt's 75 tokens for other words" in done.err


def test_notes_of_what_is_not_known_or_changes_nothing(cli: Any, folders: dict[str, Path]) -> None:
    zeros = {
        k: torch.zeros_like(v) if "lora_B" in k else v for k, v in layers(folders["sd1"], modules="cross-kv").items()
    }
    save_file({k.replace("unet.", "base_model.model."): v for k, v in zeros.items()}, "rex.safetensors")
    done = cli("import", "rex.safetensors", "--class", "dog", "--name", "rex", "--base", folders["sd1"])
    assert done.code == 0 and "has no effect" in done.err and "no adapter_config.json next to it" in done.err


def test_what_an_earlier_version_took_over_is_looked_at_again(
    cli: Any, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An artifact of a file whose alpha is no number is no finished work, and settings in a header make other work of a file."""
    from objtune_cli.models import registry

    weights = layers(folders["sd1"], modules="cross-kv")
    alphas = {f"{k.removesuffix('.lora_A.weight')}.alpha": torch.tensor(float("nan")) for k in weights if "lora_A" in k}
    save_file(weights | alphas, "a.safetensors")
    save_file(weights, "b.safetensors", {"lora_adapter_metadata": '{"unet.r": 2, "unet.lora_alpha": 8}'})
    common = ("--class", "dog", "--base", folders["sd1"])
    for i, (file, broken) in enumerate((("a.safetensors", True), ("b.safetensors", False))):
        name, inputs = f"o{i}", {"file.0": {"ref": "", "sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest()}}
        record = artifacts.Record(
            "adapter", name, {name: "dog"}, inputs, {"word": ""}, registry.resolve(str(folders["sd1"]), "").record()
        )
        old = {k: v * float("nan") if broken else v for k, v in weights.items()} | {
            f"token.{name}": torch.zeros(1, tiny_sd1.WIDTH)
        }
        with monkeypatch.context() as patch:
            patch.setattr(artifacts, "check_finite", lambda *_: None)
            Store.at(Path()).create(record, old)
        done = cli("import", file, "--name", name, *common)
        assert (done.code, done.out) == ((3, "") if broken else (0, "adapter/o1@2\n")), done.err


def test_biases_and_whole_differences_act_everywhere_and_are_exported(cli: Any, folders: dict[str, Path]) -> None:
    """In a picture, in a scene, merged, and in the files that are written; a text encoder has some too."""
    name, g = "sd1", torch.Generator().manual_seed(4)
    weights = layers(folders[name], modules="attention")
    bottom, words = (
        "unet.mid_block.attentions.0.transformer_blocks.0",
        "text_encoder.text_model.encoder.layers.0.self_attn.out_proj",
    )
    weights[f"{bottom}.attn2.to_out.0.lora_B.bias"] = torch.randn(16, generator=g)
    weights |= {
        f"{bottom}.attn1.to_out.0.diff_b": torch.randn(16, generator=g),
        f"{bottom}.ff.net.2.diff": torch.randn(16, 64, generator=g) * 0.3,
    }
    weights |= {f"{words}.diff_b": torch.randn(16, generator=g)}
    save_file(weights, "a.safetensors")
    _, tensors = imported(cli, folders[name], "a.safetensors")
    model = loading.load(folders[name], CPU, torch.float32)
    plain = predicted(model.denoiser, name)
    modules = modules_of(model)
    with torch.no_grad():  # the same by hand
        for own, module in modules.items():
            if f"{own}.lora_A.weight" in tensors:
                product = tensors[f"{own}.lora_B.weight"].flatten(1) @ tensors[f"{own}.lora_A.weight"].flatten(1)
                module.weight += product.view(module.weight.shape)
            if f"{own}.lora_B.bias" in tensors:
                module.bias += tensors[f"{own}.lora_B.bias"]
    wanted, told = predicted(model.denoiser, name), model.encode_prompt(["a photo"]).pack()
    assert not torch.allclose(wanted, plain, atol=1e-2)
    assert cli("merge", "rex=1", "other=1", "--name", "pair").code == 4
    save_file({"emb_params": torch.zeros(1, tiny_sd1.WIDTH)}, "b.safetensors")
    assert cli("import", "b.safetensors", "--class", "dog", "--name", "other", "--base", folders[name]).code == 0
    assert cli("merge", "rex=1", "other=1", "--name", "pair").code == 0
    for called in ("rex", "pair"):
        held = {k: torch.tensor(v) for k, v in Store.at(Path()).read(refs.Ref("adapter", called, 1))[1].items()}
        again = loading.load(folders[name], CPU, torch.float32)
        adapter.load(again, held)
        torch.testing.assert_close(predicted(again.denoiser, name), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(again.encode_prompt(["a photo"]).pack(), told, rtol=1e-4, atol=1e-4)
    alone = loading.load(folders[name], CPU, torch.float32)
    with object_loras.single_lora(alone, tensors):
        torch.testing.assert_close(predicted(alone.denoiser, name), wanted, rtol=1e-4, atol=1e-4)
    for form in ("diffusers", "kohya"):
        (file,) = export.run(Store.at(Path()), refs.Ref("adapter", "rex", 1), form, Path(form))
        back = import_keys.read_lora(loading.load(folders[name], CPU, torch.float32), Source(form, load_file(file)))
        for own in modules:
            assert (f"{own}.lora_A.weight" in back) == (f"{own}.lora_A.weight" in tensors)
            if f"{own}.lora_A.weight" in back:
                a, b = (
                    held[f"{own}.lora_B.weight"].flatten(1) @ held[f"{own}.lora_A.weight"].flatten(1)
                    for held in (back, tensors)
                )
                torch.testing.assert_close(a, b)
        assert {k for k in back if "bias" in k} == {k for k in tensors if "bias" in k}
        assert all(torch.equal(v, tensors[k]) for k, v in back.items() if "bias" in k)
    pipe = theirs(folders[name], name, Path("diffusers/pytorch_lora_weights.safetensors").absolute())
    torch.testing.assert_close(predicted(pipe.unet, name), wanted, rtol=1e-4, atol=1e-4)
