"""Where exports go and what they are called: nothing of others is overwritten, no common word becomes a trigger, half precision."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from objtune_cli.interchange import export, number_formats, trigger_words
from objtune_cli.models import registry
from objtune_cli.store.artifacts import Record
from objtune_cli.store.store import Store
from tests.interchange.test_export import _ours, _predict, _random_lora, _rows, _theirs

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

STORE = Store.at(Path())


@pytest.fixture(scope="module")
def tiny_base(base: Path) -> Path:
    return base


@pytest.fixture(scope="module")
def lora(tiny_base: Path) -> dict[str, torch.Tensor]:
    return _random_lora(tiny_base, "cross-kv", 2)


@pytest.fixture
def store(cli, tiny_base: Path, lora: dict[str, torch.Tensor]):
    """A project with the adapters dog and cup, and pair, which holds <rex> and <mat>."""

    def publish(name: str, *objects: str, scale: float = 1.0, into: Store = STORE) -> None:
        tokens = {f"token.{o}": _rows(2, seed=len(o)) * scale for o in objects}
        record = Record(
            "adapter", name, {o: "dog" for o in objects}, {}, {"rank": 2}, registry.resolve(str(tiny_base)).record()
        )
        into.create(record, {k: v * scale for k, v in lora.items()} | tokens)

    publish("dog", "dog")
    publish("cup", "cup", scale=0.5)
    publish("pair", "rex", "mat", scale=0.25)
    cli.publish = publish
    return cli


def said(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return opened.metadata()


def refused(result, path: str) -> None:
    assert (result.code, result.out) == (2, ""), result.err
    assert f"error: {path} exists" in result.err and "hint: `--force`" in result.err


def test_lora_and_embedding_of_one_object_lie_in_one_folder(store, tiny_base):
    for form in ("kohya", "embedding", "bundle", "diffusers"):
        assert store("export", "dog", "--format", form).code == 0
    assert sorted(p.name for p in Path().glob("*.safetensors")) == [
        "dog-bundle.safetensors", "dog-objtune.safetensors", "dog.safetensors", "pytorch_lora_weights.safetensors",
    ]  # fmt: skip
    about = said(Path("dog.safetensors"))
    assert about["modelspec.usage_hint"] == "with the embedding dog-objtune.safetensors of the same object"
    assert (
        about["modelspec.trigger_phrase"] == "dog-objtune"
        and said(Path("dog-bundle.safetensors"))["modelspec.usage_hint"] == "the embedding is inside"
    )
    assert list(load_file("dog-objtune.safetensors")) == ["<dog>"]  # what diffusers calls it
    back = store(
        "import", "dog.safetensors", "dog-objtune.safetensors", "--class", "dog", "--name", "back", "--base", tiny_base
    )
    assert back.code == 0, back.err
    old, new = (
        STORE.read(export.Ref("adapter", "dog", 1))[1],
        STORE.read(export.Ref("adapter", "back", 1))[1],
    )
    assert all((value == new[key.replace("token.dog", "token.back")]).all() for key, value in old.items())


@pytest.mark.parametrize("form", ["kohya", "diffusers", "embedding", "bundle"])
def test_what_is_not_ours_is_not_overwritten(store, form):
    name = {"kohya": "dog", "diffusers": "pytorch_lora_weights", "embedding": "dog-objtune", "bundle": "dog-bundle"}[
        form
    ]
    file = Path("out with spaces", f"{name}.safetensors")
    command = ("export", "dog", "--format", form, "--out", file.parent)
    file.parent.mkdir()
    save_file({"theirs": torch.ones(3)}, file)
    before = file.read_bytes()
    refused(store(*command), str(file))
    assert file.read_bytes() == before
    forced = store(*command, "--force")
    assert forced.code == 0 and f"{file} is replaced" in forced.err
    made, when = file.read_bytes(), file.stat().st_mtime_ns
    again = store(*command)
    assert (
        again.code == 0
        and file.read_bytes() == made
        and file.stat().st_mtime_ns == when
        and "replaced" not in again.err
    )
    store.publish("dog", "dog", scale=2.0)  # a newer version of the same object: the old file can be made again
    newer = store(*command)
    assert newer.code == 0 and "another export of the same object" in newer.err and file.read_bytes() != made
    half = store(*command, "--dtype", "fp16")
    assert half.code == 0 and file.stat().st_size < len(made)
    assert store(*command).code == 0 and store("export", "dog@1", *command[2:]).code == 0 and file.read_bytes() == made
    edited = load_file(file)
    save_file(
        {key: value * 2 for key, value in edited.items()}, file, metadata=said(file)
    )  # somebody's own work on our file
    refused(store(*command), str(file))


def test_another_object_or_project_of_the_same_name_is_not_ours(store, tmp_path):
    assert store("export", "dog", "--out", "out").code == 0
    refused(store("export", "cup", "--out", "out"), "out/pytorch_lora_weights.safetensors")
    store.publish("dog", "dog", scale=3.0, into=Store.at(tmp_path / "other"))
    for form, name in (("kohya", "dog"), ("embedding", "dog-objtune")):
        export.run(Store.at(tmp_path / "other"), export.Ref("adapter", "dog", 1), form, Path("shared"))
        refused(store("export", "dog", "--format", form, "--out", "shared"), f"shared/{name}.safetensors")


def test_two_files_of_one_command_are_not_one(store):
    store.publish("dog", "dog", scale=2.0)
    store.publish("both", "dog", "cup")
    for refs, form in ((("dog@1", "dog@2"), "kohya"), (("dog", "both"), "embedding")):
        result = store("export", *refs, "--format", form, "--out", "out")
        assert result.code == 2 and "error: two files have the name out/dog" in result.err and not Path("out").exists()
    assert (
        store("export", "pair", "--format", "embedding", "--trigger", "rex=Zwx", "--trigger", "mat=zwx").code == 2
    )  # one file on Windows


def test_two_objects_of_a_bundle_have_two_triggers(store):
    for words in (("mat=zwx", "rex=zwx"), ("mat=a.b", "rex=A_b")):
        result = store(
            "export", "pair", "--format", "bundle", *(part for word in words for part in ("--trigger", word))
        )
        assert (
            result.code == 2
            and "mat and rex would have the same trigger" in result.err
            and not Path("pair-bundle.safetensors").exists()
        )
        hint = result.err.partition("hint: ")[2].split("`")[1].split()
        assert store("export", "pair", "--format", "bundle", "--trigger", words[0], *hint, "--force").code == 0
        assert len([key for key in load_file("pair-bundle.safetensors") if key.startswith("bundle_emb.")]) == 2
        Path("pair-bundle.safetensors").unlink()


def test_nothing_is_said_to_be_replaced_where_nothing_is_written(store):
    assert store("export", "dog", "--format", "hub", "--out", "out").code == 0
    Path("out/README.md").write_text("mine")
    result = store("export", "dog", "--format", "hub", "--dtype", "fp16", "--out", "out")
    refused(result, "out/README.md")
    assert "replaced" not in result.err


def test_a_repository_does_not_touch_a_readme_of_others(store, tmp_path):
    Path("repo").mkdir()
    Path("repo/README.md").write_text("# Mine\n")
    refused(store("export", "dog", "--format", "hub", "--out", "repo"), "repo/README.md")
    assert [p.name for p in Path("repo").iterdir()] == ["README.md"] and Path(
        "repo/README.md"
    ).read_text() == "# Mine\n"  # nothing before all is checked
    command = ("export", "dog", "--format", "hub", "--out", "card")
    assert store(*command).code == 0
    store.publish("dog", "dog", scale=2.0)
    assert store(*command).code == 0 and "objtune card of adapter/dog@2" in Path("card/README.md").read_text()
    Path("card/README.md").write_text(Path("card/README.md").read_text().replace("# dog", "# My dog"))
    refused(store(*command, "--dtype", "fp16"), "card/README.md")
    text = Path("card/README.md").read_text()
    assert (
        "`dog-objtune`" in text
        and 'load_textual_inversion("embeddings/dog-objtune.safetensors")' in text
        and "would make every dog" in text
    )


def test_a_folder_with_other_files_is_not_uploaded(store):
    Path("up/more").mkdir(parents=True)
    Path("up/more/secret.txt").write_text("mine")
    result = store("export", "dog", "--push", "you/dog", "--out", "up")
    assert result.code == 2 and "which also has up/more/secret.txt" in result.err


def test_a_trigger_that_is_a_common_word_is_named_and_avoidable(store):
    plain = store("export", "dog", "--format", "embedding", "--out", "a")
    assert plain.out == "a/dog-objtune.safetensors\n" and "common word" not in plain.err
    common = store("export", "dog", "--format", "embedding", "--out", "b", "--trigger", "dog")
    assert common.out == "b/dog.safetensors\n"
    assert (
        'the trigger "dog" is a common word' in common.err and "`--trigger dog=dog-objtune` avoids that" in common.err
    )
    avoided = store("export", "dog", "--format", "embedding", "--out", "c", "--trigger", "dog=dog-objtune")
    assert (
        "common word" not in avoided.err
        and Path("c/dog-objtune.safetensors").read_bytes() == Path("b/dog.safetensors").read_bytes()
    )
    bundle = store("export", "dog", "--format", "bundle", "--trigger", "rex", "--out", "d")
    assert 'every "rex"' in bundle.err and "bundle_emb.rex.string_to_param.*" in load_file("d/dog-bundle.safetensors")
    several = store("export", "pair", "--format", "embedding", "--out", "e", "--trigger", "mat=zwx.1")
    assert (
        several.out == "e/rex-objtune.safetensors\ne/zwx.1.safetensors\n"
        or several.out == "e/zwx.1.safetensors\ne/rex-objtune.safetensors\n"
    )
    assert store("export", "pair", "--format", "bundle", "--out", "e", "--trigger", "mat=zwx.1").code == 0
    assert said(Path("e/pair-bundle.safetensors"))["modelspec.trigger_phrase"].split() == [
        "zwx_1",
        "rex-objtune",
    ]  # a dot would end the word
    both = store("export", "dog", "cup", "--format", "embedding", "--out", "f", "--trigger", "cup=zwx")
    assert both.out == "f/dog-objtune.safetensors\nf/zwx.safetensors\n"


@pytest.mark.parametrize("word", ["dog", "Dog", "rex", "a", "hound"])
def test_common_words(word):
    assert trigger_words.is_common_word(word, ["hound"])


@pytest.mark.parametrize("word", ["dog-objtune", "rex7q", "zwx-dog", "zzyzx"])
def test_words_of_several_tokens_are_not_common(word):
    assert not trigger_words.is_common_word(word, ["hound"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["my dog"], "'my dog' cannot be a trigger"), (["con"], "'con' cannot be a trigger"), (["LPT1.x"], "cannot be a trigger"), (["dog/x"], "cannot be a trigger"),
        ([""], "'' cannot be a trigger"), (["cup=x"], "--trigger cup=x is for cup"), (["=x"], "is for no object"), (["a", "b"], "gives dog two words"),
    ],
)  # fmt: skip
def test_triggers_that_cannot_be(store, given, message):
    result = store("export", "dog", "--format", "embedding", *[part for word in given for part in ("--trigger", word)])
    assert result.code == 2 and message in result.err and "hint: " in result.err
    assert "does not name its object" in store("export", "pair", "--trigger", "x").err


def test_out_may_name_a_file(store):
    assert (
        store("export", "dog", "--format", "kohya", "--out", "new/My Dog.safetensors").out == "new/My Dog.safetensors\n"
    )
    word = store("export", "dog", "--format", "embedding", "--out", "hound.safetensors")
    assert word.out == "hound.safetensors\n" and "the name dog-objtune.safetensors avoids that" in word.err
    refused(store("export", "dog", "--format", "kohya", "--out", "hound.safetensors"), "hound.safetensors")
    for command, message in (
        (("pair", "--format", "embedding", "--out", "x.safetensors"), "embedding writes several files"),
        (("dog", "--format", "hub", "--out", "x.safetensors"), "hub writes several files"),
        (("dog", "--format", "kohya", "--out", "x.pt"), "x.pt has a file format that is not written"),
        (("dog", "cup", "--format", "kohya", "--out", "x.safetensors"), "two files have the name x.safetensors"),
        (("dog", "--format", "embedding", "--out", "x.safetensors", "--trigger", "y"), "do not match"),
        (("dog", "--format", "kohya", "--out", "objtune.toml"), "objtune.toml is a file, not a folder"),
        (("dog", "--format", "kohya", "--out", "objtune.toml/a/b"), "objtune.toml is a file, not a folder"),
    ):
        result = store("export", *command)
        assert result.code == 2 and message in result.err and not Path("x.safetensors").exists()


def test_folders_links_and_pipes_at_the_path(store):
    Path("a/dog.safetensors").mkdir(parents=True)
    assert "is a folder" in store("export", "dog", "--format", "kohya", "--out", "a").err
    Path("b").mkdir()
    Path("b/dog.safetensors").symlink_to("nowhere")
    assert "is a broken link" in store("export", "dog", "--format", "kohya", "--out", "b").err
    Path("b/dog.safetensors").unlink()
    Path("b/dog.safetensors").symlink_to("dog.safetensors")
    assert store("export", "dog", "--format", "kohya", "--out", "b").code == 2
    Path("c").mkdir()
    os.mkfifo("c/dog.safetensors")
    assert "not a regular file" in store("export", "dog", "--format", "kohya", "--out", "c").err
    assert store("export", "dog@1", "--format", "kohya", "--out", "real").code == 0
    store.publish("dog", "dog", scale=2.0)
    Path("linked").mkdir()
    Path("linked/dog.safetensors").symlink_to(Path("real/dog.safetensors").absolute())
    assert (
        store("export", "dog", "--format", "kohya", "--out", "linked").code == 0
    )  # the file behind the link, which stays
    assert Path("linked/dog.safetensors").is_symlink() and '@2"' in said(Path("real/dog.safetensors"))["objtune"]


def test_a_folder_that_cannot_be_written_is_one_line(store, monkeypatch):
    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", deny)
    result = store("export", "dog", "--format", "kohya", "--out", "out")
    assert result.code == 7 and "another folder with `--out DIR`" in result.err and not list(Path("out").iterdir())


@pytest.mark.parametrize(("dtype", "kind", "error"), [("fp16", torch.float16, 2e-3), ("bf16", torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_half_files_are_read_by_diffusers(store, tiny_base, lora, form, dtype, kind, error):
    (file,) = export.run(STORE, export.Ref("adapter", "dog", 1), form, Path("out"), dtype=dtype)
    held = load_file(file)
    assert {v.dtype for k, v in held.items() if not k.endswith(".alpha")} == {kind}
    if form == "diffusers":
        assert all(torch.equal(held[key], value.to(kind)) for key, value in lora.items())  # torch rounds the same way
    else:
        assert all(float(v) == 2 for k, v in held.items() if k.endswith(".alpha"))
    pipe = _theirs(tiny_base)
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    expected = _ours(tiny_base, lora)
    assert float((_predict(pipe.unet) - expected).abs().max()) < error
    (words,) = export.run(STORE, export.Ref("adapter", "dog", 1), "embedding", Path("out"), dtype=dtype)
    pipe.load_textual_inversion(words)
    ids = pipe.tokenizer(pipe.maybe_convert_prompt("<dog>", pipe.tokenizer), add_special_tokens=False).input_ids
    torch.testing.assert_close(pipe.text_encoder.get_input_embeddings().weight[ids], _rows(2).to(kind).float())


def test_half_files_are_imported_again(store, tiny_base):
    assert store("export", "dog", "--format", "bundle", "--dtype", "bf16").code == 0
    back = store("import", "dog-bundle.safetensors", "--class", "dog", "--name", "back", "--base", tiny_base)
    assert back.code == 0, back.err
    old, new = (
        STORE.read(export.Ref("adapter", "dog", 1))[1],
        STORE.read(export.Ref("adapter", "back", 1))[1],
    )
    assert all(np.allclose(value, new[key.replace("token.dog", "token.back")], rtol=5e-3) for key, value in old.items())


def test_values_that_do_not_fit_half_precision_are_named(store):
    ref, notes = export.Ref("adapter", "dog", 1), []
    weights = {
        "unet.a": np.array([7e4], np.float32),
        "unet.b": np.array([1e-9], np.float32),
        "unet.c": np.array([2e-9], np.float32),
    }
    with pytest.raises(
        export.UsageError, match=r"unet\.a of adapter/dog@1 has the value 7e\+04; the maximum of fp16 is 65504"
    ):
        number_formats.convert(ref, weights, "fp16")
    del weights["unet.a"]
    number_formats.convert(ref, weights, "fp16", notes.append)
    assert len(notes) == 1 and notes[0].startswith("unet.b and 1 other tensors of adapter/dog@1 are too small for fp16")
    number_formats.convert(ref, weights | {"unet.a": np.array([7e4], np.float32)}, "bf16", notes.append)
    assert len(notes) == 1
    with pytest.raises(export.UsageError, match="the maximum of bf16 is"):
        number_formats.convert(ref, {"unet.a": np.array([3.4e38], np.float32)}, "bf16")
    assert (
        store("export", "dog", "--dtype", "int8").code == 2
        and json.loads(store("export", "dog", "--dtype", "bf16", "--json").out)["files"]
    )


def test_bf16_rounds_as_torch_does():
    values = (
        torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-30, 30).repeat(17)[:1000]
    )
    ours = torch.from_numpy(number_formats._to_bf16(values.numpy()).view(np.int16)).view(torch.bfloat16)
    assert torch.equal(ours, values.to(torch.bfloat16))


def test_the_library_takes_the_same_options(store, tiny_base):
    from objtune_cli import ObjtuneError, api

    studio = api.project(".", base=str(tiny_base))
    assert [f.name for f in api.export(studio, "dog", "embedding", "lib", dtype="fp16", trigger="zwx")] == [
        "zwx.safetensors"
    ]
    Path("lib/dog.safetensors").write_bytes(b"theirs")
    with pytest.raises(ObjtuneError, match="exists and is not an export"):
        api.export(studio, "dog", "kohya", "lib")
    assert api.export(studio, "dog", "kohya", "lib", force=True)
