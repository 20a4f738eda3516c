"""Prompts as people type and paste them: cleaned, their objects found wherever they stand, or refused in one line."""

import io
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from objtune_cli.composition import mentions
from objtune_cli.errors import InputError
from objtune_cli.store.artifacts import Record
from objtune_cli.store.refs import Ref
from objtune_cli.store.store import Store
from objtune_cli.workflow import prompt_request, prompt_text
from objtune_cli.workflow.trained_objects import PromptObject

pytestmark = pytest.mark.usefixtures("fast_sampling", "cached_segmentation")

WIDTH = 16
TRAINED = {"dog", "cup", "tea-cup", "dog-2", "dog.b"}.__contains__


@pytest.mark.parametrize(
    ("typed", "cleaned"),
    [
        ("a photo of <dog>\non the beach", "a photo of <dog> on the beach"),
        ("a\tdog \r\n  on\u00a0the\u3000beach\u2028now\u2029", "a dog on the beach now"),
        ("\ufeffa dog", "a dog"),
        ("a\u200bdog <do\u200dg> <dog\u200c> be\u00adach", "a dog <dog> <dog> beach"),
        ("\u200ea \u202edog\u202c \u2066x\u2069", "a dog x"),
        (
            "👨\u200d👩\u200d👧 می\u200cخواهم \U0001f3f4\U000e0067\U000e007f",
            "👨\u200d👩\u200d👧 می\u200cخواهم \U0001f3f4\U000e0067\U000e007f",
        ),
        ("a\U000e0067 dog\n", "a dog"),
        ("  two  spaces stay ", "  two  spaces stay "),
        ("כלב ❤\ufe0f é", "כלב ❤\ufe0f é"),
    ],
)
def test_white_space_is_white_space_and_invisible_characters_go(typed: str, cleaned: str) -> None:
    assert prompt_text.clean_prompt(typed) == cleaned == prompt_text.clean_prompt(cleaned)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("a dog\x1b[31m", r"U\+001B \(ESC\) at character 6"), ("\0a", r"U\+0000 \(NUL\) at character 1"), ("a\x7f", r"U\+007F"), ("a\x9b", r"U\+009B"),
        ("a\ufffe", r"U\+FFFE"), ("a\udcff", "is not UTF-8 at character 2"), ("", "is empty"), (" \n\u3000", "is empty"), ("\ufeff", "is empty"),
        ("x" * 20_001, "has 20001 characters; the maximum is 20000"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_with_its_place(typed: str, said: str) -> None:
    with pytest.raises(InputError, match=f"line 3 of stdin .*{said}|line 3 of stdin {said}"):
        prompt_text.clean_prompt(typed, "line 3 of stdin")


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("&lt;dog&gt; at night", "<dog> at night"), ("&LT;dog&#62;", "<dog>"), ("＜dog＞", "<dog>"), ("＜ｄｏｇ＠２＞", "<dog@2>"), ("‹dog›", "<dog>"), ("⟨dog⟩", "<dog>"),
        ("< dog >", "<dog>"), ("<Dog>", "<dog>"), ("<DOG@2>", "<dog@2>"), ("<Tea Cup>", "<tea-cup>"), (r"\<dog\>", "<dog>"), ("%3Cdog%3E", "<dog>"),
        ("&lt;hat&gt;", "<hat>"), ("＜hat＞", "＜hat＞"), ("«bonjour»", "«bonjour»"), ("<dog@2> and <cup>", "<dog@2> and <cup>"), ("<dog.b>, <dog-2>", "<dog.b>, <dog-2>"),
        ("<Hat>", "<Hat>"), ("1 < 2", "1 < 2"), ("<Dog : 0.8>", "<dog:0.8>"), ("<dog:0.8>", "<dog:0.8>"), ("< tea cup @ 2 : .5 >", "<tea-cup@2:.5>"),
    ],
)  # fmt: skip
def test_brackets_of_web_pages_shells_and_keyboards_are_brackets(typed: str, read: str) -> None:
    found, changes = prompt_text.read_names(typed, TRAINED)
    assert found == read and bool(changes) == (typed != read)


@pytest.mark.parametrize(
    ("typed", "said", "hint"),
    [
        ("<lora:dog:0.8>", "<lora:dog:0.8> cannot be the name", "write `<dog>`, or `<dog:0.8>` at that strength"), ("<lora:dog:high>", "cannot be", "write `<dog>`:"), ("<lora:my_Hat:0.8>", "cannot be the name", "objtune import FILE --class WORD --name my-hat"),
        ("<dog 0.8>", "cannot be the name", "`<dog:0.8>`"), ("<dog=0.8>", "cannot be the name", "`<dog:0.8>`"), ("<dog|cup>", "cannot be the name", "`<dog@2>`"),
        ("<hypernet:dog:1>", "cannot be the name", "`<rex@2>`"), ("<dog@v1>", "cannot be the name", "write `<dog>`"), ("<dog on the beach", "`<dog` has only one bracket", "write `<dog>`"), ("a dog> here", "`dog>` has only one bracket", "write `<dog>`"),
    ],
)  # fmt: skip
def test_brackets_without_a_name_are_refused_with_what_to_write(typed: str, said: str, hint: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        prompt_text.check_brackets(typed, TRAINED)
    assert hint in caught.value.hint


@pytest.mark.parametrize("typed", ["dog->cat", "I <3 it", "a < b", "<dog> <cup@1>", "<hat on", "<nobody>"])
def test_other_brackets_are_text_or_names(typed: str) -> None:
    prompt_text.check_brackets(typed, TRAINED)


@pytest.mark.parametrize(
    ("typed", "pieces"),
    [
        ("a photo of (<dog>:1.3) BREAK on the {beach|snow}", ["(<dog>:1.3)", "{beach|snow}", "BREAK"]),
        (
            "((best)), [worst], [a|b], [a:b:0.5] AND __place__",
            ["((best))", "[worst]", "[a|b]", "[a:b:0.5]", "__place__", "AND"],
        ),
        (
            "embedding:bad dog+++ cat-- (red hat)1.2 <dog>++",
            ["embedding:bad", "dog+++", "cat--", "(red hat)1.2", "<dog>++"],
        ),
        ("dog::2 cat --ar 3:2 --v 6", ["::2", "--ar 3:2", "--v 6"]),
        (r"a \(wet\) dog", [r"\(", r"\)"]),
        ("<dog>:0.8 and <dog>1.2, <dog>(0.5) <dog> 2 <dog>2nd <dog>: 3", ["<dog>:0.8", "<dog>1.2", "<dog>(0.5)"]),
        (
            "<dog> Negative prompt: blurry Steps: 20, Sampler: Euler a, Seed: 1",
            ["Negative prompt:", "Steps: 20, Sampler: Euler a, Seed: 1"],
        ),
        ("a dog (happy), well-known -- C++, 3:2, at 10:30; A_B", []),
        ("A <dog> AND A CAT", []),
    ],
)
def test_syntax_of_other_tools_is_found(typed: str, pieces: list[str]) -> None:
    assert prompt_text.find_other_syntax(typed) == pieces


@pytest.mark.parametrize(
    "piece", ["(", "_", '"', "\U000e0067", "a-", "[", "&lt;a", "a>", "+", "-", "\\", "é\u200d", " \n", "<"]
)
def test_a_long_prompt_is_read_in_no_time(piece: str) -> None:
    typed = piece * (prompt_text.MAX_LENGTH // len(piece))
    start = time.process_time()
    text, _ = prompt_text.read_names(prompt_text.clean_prompt(typed, may_be_empty=True), TRAINED)
    prompt_text.check_brackets(text, TRAINED)
    prompt_text.find_other_syntax(prompt_text.escape_syntax(text))
    prompt_text.find_plain_names(text, {"dog": "dog", "tea-cup": "tea cup"})
    assert time.process_time() - start < 1


def test_names_are_found_as_plain_words() -> None:
    objects = {
        "cup": "mug",
        "dog": "dog",
        "dog-2": "dog",
        "tea-cup": "tea cup",
        "sobaka": "собака",
        "gou": "狗",
        "rex": "dog",
    }
    assert prompt_text.find_plain_names('{dog} "DOG" tea cup', objects) == {"dog": "dog", "tea-cup": "tea cup"}
    assert prompt_text.find_plain_names("dog-2, CUP", objects) == {"cup": "CUP", "dog-2": "dog-2"}
    assert prompt_text.find_plain_names("hotdog, dogs and a mug", objects) == {}
    assert prompt_text.find_plain_names("фото: Собака, 一只狗在海滩", objects) == {"gou": "狗", "sobaka": "Собака"}


def test_every_mention_has_a_name_of_its_own() -> None:
    record = Record("adapter", "dog", {"dog": "dog", "dog-2": "cat"}, {}, {}, {})
    dog, cat = PromptObject("dog", record, ""), PromptObject("dog-2", record, "")
    text, found = mentions.name_mentions("<dog@1> and <dog-2>, <dog@1> and <dog>", [dog, cat])
    assert text == "<dog> and <dog-2>, <dog-3> and <dog-4>"
    assert [(o.name, o.own_name, o.class_word) for o in found] == [
        ("dog", "dog", "dog"),
        ("dog-2", "dog-2", "cat"),
        ("dog-3", "dog", "dog"),
        ("dog-4", "dog", "dog"),
    ]


def test_an_object_of_both_prompts_keeps_its_strength() -> None:
    dog, cup = (PromptObject(name, Record("adapter", name, {name: name}, {}, {}, {}), "") for name in ("dog", "cup"))
    asked = prompt_request.PromptRequest(["<dog>"], [[replace(dog, strength=0.5)]], "<dog>, <cup>", [dog, cup])
    assert [(o.name, o.strength) for o in asked.objects] == [("dog", 0.5), ("cup", 1.0)] and asked.negative_objects(
        0
    ) == [cup]


@pytest.fixture(scope="module")
def store(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Objects of random numbers: <dog> and <cup> with LoRA, <bad> and <worse> without."""
    from objtune_cli.models import registry

    store, about = Store.at(tmp_path_factory.mktemp("prompts")), registry.resolve(str(base)).record()
    draw = torch.Generator().manual_seed(1)
    layers = {
        k[:-7]: v
        for k, v in load_file(next((base / "unet").glob("*.safetensors"))).items()
        if k.endswith(("to_q.weight", "to_v.weight"))
    }
    for name, word in {"dog": "dog", "cup": "mug", "bad": "thing", "worse": "thing"}.items():
        tensors = {f"token.{name}": torch.randn(3, WIDTH, generator=draw)}
        for layer, weight in layers.items() if name in ("dog", "cup") else ():
            tensors[f"unet.{layer}.lora_A.weight"] = torch.randn(2, weight.shape[1], generator=draw)
            tensors[f"unet.{layer}.lora_B.weight"] = torch.randn(weight.shape[0], 2, generator=draw)
        store.create(Record("adapter", name, {name: word}, {}, {}, about), tensors)
    return store


@pytest.fixture
def drawn(cli, base: Path, store: Store):
    """`cli` in a project with these objects; `drawn(prompt, …)` draws one picture in one step."""
    Path("objtune.toml").write_text(f'base = "{base}"\ngenerate.n = 1\ngenerate.steps = 1\ncompose.retries = 0\n')
    shutil.copytree(store.backend.path("artifacts"), "artifacts")
    return cli


def latents(version: int, name: str = "dog") -> np.ndarray:
    return Store.at(Path()).read(Ref("scene", name, version))[1]["latents"]


def record_of(version: int, name: str = "dog") -> Record:
    return Store.at(Path()).read_record(Ref("scene", name, version))


def test_white_space_and_brackets_draw_the_same_scene(drawn) -> None:
    """One scene, reused: the record holds the prompt on one line, in plain brackets."""
    first = drawn("generate", "a photo of <dog> on the beach")
    assert first.code == 0 and "<dog>" not in first.err, first.err
    for typed in (
        "a photo of <dog>\non the beach",
        "a photo of <dog>\ton the beach",
        "a photo of <dog>\u00a0on the beach",
        "\ufeffa photo of <d\u200dog> on the beach\r\n",
    ):
        again = drawn("generate", typed)
        assert (again.code, again.out) == (0, first.out) and "up to date" in again.err and "read as" not in again.err, (
            again.err
        )
    for typed in ("&lt;dog&gt;", "＜dog＞", "< dog >", "<Dog>", r"\<dog\>"):
        again = drawn("generate", f"a photo of {typed} on the beach")
        assert (again.code, again.out) == (0, first.out) and f"read as object names: {typed} as <dog>" in again.err
    piped = drawn("generate", "-", stdin="\ufeffa photo of <dog> on the beach\r\n\r\n\ufeff\n")
    assert (piped.code, piped.out) == (0, first.out)
    assert record_of(1).config["prompt"] == "a photo of <dog> on the beach"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_lines_of_stdin_are_read_in_any_unicode(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    from objtune_cli.cli import stdin as given

    monkeypatch.setattr(
        "sys.stdin", io.TextIOWrapper(io.BytesIO("a <dog> 🐕\r\n\r\n\tb\u00a0c\u2028d\n".encode(encoding)))
    )
    assert given.read_prompts(["-", "e\u00a0f"]) == ["a <dog> 🐕", "b c d", "e\u00a0f"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("mask/dog@1\t5\r\ncup\r\n".encode(encoding))))
    assert given.read_refs(["-"]) == ["mask/dog@1", "cup"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a dog\n\xe9t\xe9\n")))
    with pytest.raises(InputError, match="stdin is not UTF-8 text: byte 7, in line 2"):
        given.read_prompts(["-"])


def test_a_run_whose_sentences_of_measuring_are_too_long_is_kept_without_scores() -> None:
    """What was learned in shorter sentences is published all the same."""
    from objtune_cli.training import publish

    def scores(words: object, names: list[str]) -> dict[str, float]:
        raise InputError("<dog> is at tokens 70 to 78 of the prompt, but the base reads only the first 76")

    said: list[str] = []
    ctx = SimpleNamespace(report=SimpleNamespace(note=said.append))
    trainer = SimpleNamespace(
        tokens=SimpleNamespace(trainable={"dog": None}, sync=lambda: None), shares_model=False, step=5
    )
    run = SimpleNamespace(trainer=trainer, log_prefix="")
    assert publish._self_evaluate(ctx, run, SimpleNamespace(scores=scores)) == {}  # type: ignore[arg-type]
    assert said == ["no scores: <dog> is at tokens 70 to 78 of the prompt, but the base reads only the first 76"]


def test_a_line_of_stdin_that_is_no_text_is_named(drawn) -> None:
    refused = drawn("generate", "-", stdin="<dog>\n\n<cup>\x1b[0m\n")
    assert (
        refused.code == 3
        and "line 3 of stdin contains the control character U+001B (ESC) at character 6" in refused.err
    )
    second = drawn("generate", "<dog>", "a\x07dog")
    assert (
        second.code == 3
        and "prompt 2 contains the control character U+0007 (BEL)" in second.err
        and not Path("artifacts/scene").exists()
    )
    negative = drawn("generate", "<dog>", "--negative", "a\x1b")
    assert negative.code == 3 and "the negative prompt contains" in negative.err


def test_an_object_of_the_negative_prompt_is_its_vectors(drawn) -> None:
    plain, avoided, letters = (
        drawn("generate", "a photo of <dog>", "--negative", text) for text in ("", "<bad>", "< ba d >")
    )
    assert (plain.code, avoided.code, letters.code) == (0, 0, 3), letters.err
    assert np.abs(latents(1) - latents(2)).max() > 1e-3
    assert "negative.bad" not in record_of(1).inputs and record_of(1).inputs.keys() == {"adapter.dog"}
    assert record_of(2).inputs["negative.bad"]["ref"] == "adapter/bad@1" and record_of(2).objects == {"dog": "dog"}
    said = Image.open(avoided.out.strip()).text["parameters"]
    assert re.search(r'TI hashes: "dog-objtune: \w{12}, bad-objtune: \w{12}"', said) and re.search(
        r'Lora hashes: "?dog: \w{12}"?,', said
    )
    assert (
        drawn("generate", "a photo of <dog>", "--negative", "<worse>").code == 0
        and np.abs(latents(2) - latents(3)).max() > 1e-4
    )
    assert drawn("generate", "a photo of <dog>", "--negative", "<bad@1>").code == 0 and np.array_equal(
        latents(4), latents(2)
    )
    for text, code, message in (
        ("<nosuch>", 4, "no trained object <nosuch>"),
        ("<bad@7>", 4, "there is no adapter/bad@7"),
    ):
        refused = drawn("generate", "a photo of <dog>", "--negative", text)
        assert refused.code == code and message in refused.err
        assert drawn("compose", "a photo of <dog>", "--negative", text).code == code


def test_the_lora_of_an_object_that_is_avoided_does_not_act(drawn) -> None:
    """Its token alone is what is gone away from: with and without LoRA it is the same picture."""
    store = Store.at(Path())
    record, tensors = store.read(Ref("adapter", "cup", 1))
    store.create(replace(record, name="bare", objects={"bare": "mug"}), {"token.bare": tensors["token.cup"]})
    for negative in ("<cup>", "<bare>"):
        assert drawn("generate", "<dog>", "--negative", negative).code == 0
    assert np.array_equal(latents(1), latents(2))
    assert drawn("generate", "<dog>", "--negative", "<dog>").code == 0  # named by both, it acts, and is one input
    assert record_of(3).inputs.keys() == {"adapter.dog"} and np.abs(latents(3) - latents(1)).max() > 1e-4
    given = drawn("generate", "<dog>", "--negative", "<cup>", "--adapter", "dog")
    assert given.code == 0, given.err
    never = drawn("generate", "<dog>", "--negative", "<cup>", "--set", "generate.guidance_interval_high=0")
    assert never.code == 0 and "the negative prompt has no effect, because" in never.err, never.err
    silent = drawn("generate", "<dog>", "--negative", "<cup>", "--guidance", 1)
    assert silent.code == 0 and "the negative prompt has no effect at a guidance of 1" in silent.err


LONG = "a photo of " + "very nice sunny golden " * 4 + "beach with <dog>"
"""Every letter is a token of the tiny base, which reads 77."""


def test_an_object_behind_what_the_base_reads_is_refused_in_plain_syntax(drawn, monkeypatch) -> None:
    monkeypatch.setenv("OBJTUNE_GENERATE_PROMPT_SYNTAX", "plain")
    for command in (
        ("generate", "<cup>", LONG),
        ("compose", LONG),
        ("generate", "<dog>", "--negative", LONG),
        ("compose", "<dog>", "--negative", LONG),
    ):
        refused = drawn(*command)
        where = "the negative prompt" if "--negative" in command else "the prompt"
        assert refused.code == 3 and re.search(
            rf"<dog> is at tokens (\d+) to \d+ of {where}, but the base reads only the first 76\b", refused.err
        ), refused.err
        assert "move <dog> forward" in refused.err
    assert not Path("artifacts/scene").exists()
    cut = drawn("generate", "-q", "x" * 73 + " <dog>")  # the first of its three tokens is read
    assert cut.code == 3 and "<dog> is at tokens 77 to 77" in cut.err
    fits = drawn("generate", "x" * 72 + " <dog>")
    assert fits.code == 0 and "tokens" not in fits.err
    words = drawn("generate", "<dog> " + "x" * 90)
    assert words.code == 0 and "the prompt has 95 tokens; the base reads the first 77" in words.err


def test_a_prompt_of_any_length_is_read_in_chunks(drawn) -> None:
    for command in (
        ("generate", LONG),
        ("compose", LONG),
        ("generate", "<dog>", "--negative", LONG),
        ("compose", "<cup>", "--negative", LONG),
    ):
        done = drawn(*command)
        assert done.code == 0 and "reads the first" not in done.err, done.err
    assert record_of(1).config["prompt_syntax"] == "a1111"
    assert drawn("generate", LONG.replace("beach", "shore")).code == 0
    assert np.abs(latents(1) - latents(4)).max() > 1e-4  # a word in the second chunk acts
    again = drawn("generate", LONG)
    assert again.code == 0 and "scene/dog@1 is up to date" in again.err


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (
            "a photo of ((<dog>) on the beach",
            "the prompt is wrong at character 12, `((<dog>) on the beach`: `(` is not closed",
        ),
        ("<dog>) x", "the prompt is wrong at character 6, `) x`: `)` closes nothing"),
        ("a [<dog>", "the prompt is wrong at character 3, `[<dog>`: `[` is not closed"),
        ("(<dog>:99)", "the prompt is wrong at character 8, `99)`: the weight is not from -20 to 20"),
    ],
)
def test_brackets_without_a_partner_are_refused_with_their_position(drawn, prompt: str, said: str) -> None:
    for command in ("generate", "compose"):
        refused = drawn(command, prompt)
        assert refused.code == 3 and said in refused.err and refused.err.count("error:") == 1, refused.err
    negative = drawn("generate", "<dog>", "--negative", prompt.replace("<dog>", "dog"))
    assert negative.code == 3 and "the negative prompt is wrong at character" in negative.err
    assert not Path("artifacts/scene").exists()


def test_a_strength_stands_inside_of_weights(drawn) -> None:
    done = drawn("generate", "a (photo of <dog:0.5>:1.2) at night")
    assert done.code == 0 and record_of(1).config["strengths"] == {"dog": 0.5}
    assert record_of(1).config["prompt"] == "a (photo of <dog>:1.2) at night"
    assert Image.open(done.out.strip()).text["parameters"].startswith("a (photo of <dog:0.5>:1.2) at night\n")
    zero = drawn("generate", "a ((big <dog:0>)) at night")
    assert zero.code == 0 and record_of(1, "scene").config["prompt"] == "a (big dog:1.21) at night"


def test_lora_tags_are_loras_of_their_own_prompts(drawn) -> None:
    """As `--lora` does; those of the negative prompt do not act."""
    tensors = Store.at(Path()).read(Ref("adapter", "cup", 1))[1]
    Path("loras").mkdir()
    for name in ("style", "film"):
        save_file(
            {k: torch.from_numpy(v.copy()) for k, v in tensors.items() if "lora" in k}, f"loras/{name}.safetensors"
        )
    plain = drawn("generate", "a photo of <dog>")
    tagged = drawn("generate", "a photo of <dog> <lora:style:0.7>", "a photo of <dog>", "a photo of <dog><lora:film>")
    assert tagged.code == 0 and tagged.out.split()[1] == plain.out.strip(), tagged.err
    assert [record_of(i).config.get("loras", [{}])[0].get("name") for i in (1, 2, 3)] == [None, "style", "film"]
    assert record_of(2).config["prompt"] == "a photo of <dog>" and np.abs(latents(1) - latents(2)).max() > 1e-4
    option = drawn("generate", "a photo of <dog>", "--lora", "loras/style.safetensors:0.7")
    assert option.code == 0 and "scene/dog@2 is up to date" in option.err
    assert drawn("compose", "<dog> <lora:style:0.5>").code == 0 and record_of(4).config["loras"][0]["strength"] == 0.5
    negative = drawn("generate", "a photo of <dog>", "--negative", "blurry <lora:film:1>")
    assert negative.code == 0 and "not applied: <lora:film> in the negative prompt" in negative.err
    missing = drawn("generate", "a <dog> <lora:nosuch:0.7>")
    assert missing.code == 4 and "there is no LoRA nosuch" in missing.err
    only = drawn("generate", "<lora:style:0.7>")
    assert only.code == 3 and "the prompt has no words besides its LoRA tags" in only.err


def test_two_of_the_same_object_are_two(drawn) -> None:
    given = drawn("compose", "<dog> and <dog> at night", "--place", "dog=left", "--place", "dog=right")
    assert given.code == 0 and "the prompt names <dog> 2 times, so the scene has 2: dog, dog-2" in given.err, given.err
    record = record_of(1)
    assert (
        record.objects == {"dog": "dog"}
        and record.inputs.keys() == {"adapter.dog"}
        and record.config["prompt"] == "<dog> and <dog> at night"
    )
    assert record.config["places"] == {"dog": [0.02, 0.25, 0.5, 0.95], "dog-2": [0.5, 0.25, 0.98, 0.95]}
    assert record.metrics["objects"] == ["dog", "dog-2"]
    _, arrays = Store.at(Path()).read(Ref("scene", "dog", 1))
    assert {"close.dog", "close.dog-2"} < set(arrays)
    fast = ("--set", "compose.refine_strength=0", "--set", "compose.presence_check=false")
    free = drawn("compose", "<dog@1> to the left of a <dog> at night", *fast)
    assert free.code == 0 and "placed by default: dog=" in free.err, free.err
    places = record_of(2).config["places"]
    assert places["dog"][2] <= places["dog-2"][0] + 0.01
    assert drawn("compose", "<dog> at night", *fast).code == 0 and record_of(3).config["places"].keys() == {"dog"}
    more = drawn("compose", "<dog>", "--place", "dog=left", "--place", "dog=right")
    assert more.code == 2 and "2 places for dog, but the prompt names <dog> once" in more.err
    crowd = drawn("compose", "<dog> " * 17)
    assert crowd.code == 3 and "the prompt names 17 objects; a scene has at most 16" in crowd.err


def test_prompts_that_forgot_the_brackets_are_told(drawn) -> None:
    said = drawn("generate", "a photo of dog on the beach")
    assert (
        said.code == 0
        and "the prompt names no object: to draw what was trained, write <dog> instead of dog" in said.err
    )
    several = drawn("generate", "a photo of [dog]", "a dog", "a cup with <dog>")
    assert (
        "2 of 3 prompts name no object: to draw what was trained, write <dog> instead of dog" in several.err
        and "<cup>" not in several.err
    )
    assert "names no object" not in drawn("generate", "a photo of a cat").err
    words = drawn("generate", "a", "photo", "of", "<dog>")
    assert (
        words.code == 0
        and 'these are 4 prompts of one word each; put one prompt in quotes: "a photo of <dog>"' in words.err
    )
    Path("prompts.txt").write_text("<dog>")
    assert "`objtune generate - < prompts.txt` reads prompts from it" in drawn("generate", "prompts.txt").err
    composed = drawn("compose", "a dog and a cup")
    assert composed.code == 3 and "hint: write <cup> instead of cup, <dog> instead of dog" in composed.err


OTHER_TOOLS = (
    "a (<dog>:1.3) BREAK on the {beach|snow}",
    "a [<dog>] AND (snow), [cat:dog:0.5]",
    "--negative",
    "((ugly))",
)


def test_syntax_of_other_tools_is_told_once_and_stays_text_in_other_tools(drawn) -> None:
    said = drawn("generate", *OTHER_TOOLS)
    assert said.code == 0, said.err
    assert said.err.count("drawn as plain text") == 1 and "another tool's syntax: AND\n" in said.err
    first, second = (Image.open(path).text["parameters"].splitlines() for path in said.out.split())
    drawn_prompt = "a (<dog>:1.3) BREAK on the snow"  # the choice of the first seed
    assert first[:2] == [drawn_prompt, "Negative prompt: ((ugly))"]
    assert second[0] == "a [<dog>] and (snow), [cat:dog:0.5]"
    assert record_of(1).config["prompt"] == drawn_prompt
    assert record_of(1).config["prompt_syntax"] == "a1111"
    refused = drawn("generate", "a photo of <lora:dog:0.8>")
    assert refused.code == 3 and "write `<dog>`" in refused.err


def test_in_plain_syntax_all_brackets_are_text(drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBJTUNE_GENERATE_PROMPT_SYNTAX", "plain")
    said = drawn("generate", *OTHER_TOOLS)
    listed = "(<dog>:1.3), {beach|snow}, BREAK, [<dog>], [cat:dog:0.5], AND and 1 more"
    assert said.code == 0 and listed in said.err, said.err
    first, second = (Image.open(path).text["parameters"].splitlines() for path in said.out.split())
    assert first[:2] == [r"a \(<dog>:1.3\) break on the {beach|snow}", r"Negative prompt: \(\(ugly\)\)"]
    assert second[0] == r"a \[<dog>\] and \(snow\), \[cat:dog:0.5\]"
    assert "prompt_syntax" not in record_of(1).config
    assert drawn("generate", "a (<dog> on the beach").code == 0


def test_prompts_of_a_jobs_file_are_read_before_anything_is_trained(drawn, dog_photo: Path) -> None:
    Path("jobs.toml").write_text(f'[[job]]\nphoto = "{dog_photo}"\nclass = "dog"\nprompts = ["<dog>", "a\\u001Bdog"]\n')
    refused = drawn("run", "jobs.toml")
    assert (
        refused.code == 3
        and "prompt 2 in job 1 of jobs.toml contains the control character U+001B (ESC)" in refused.err
    )
    for prompt, code, said in (
        ("<dgo>", 4, "a prompt of the job rex names <dgo>, which is not trained"),
        ("<rex|cup>", 3, "<rex|cup> cannot be the name"),
    ):
        Path("jobs.toml").write_text(
            f'[[job]]\nphoto = "{dog_photo}"\nclass = "dog"\nname = "rex"\nprompts = ["<rex> and &lt;cup&gt;", "{prompt}"]\n'
        )
        refused = drawn("run", "jobs.toml")
        assert refused.code == code and said in refused.err and not Path("artifacts/mask").exists()
    Path("jobs.toml").write_text(
        f'[[job]]\nphoto = "{dog_photo}"\nclass = "dog"\nname = "rex"\nset = "generate.negative_prompt=<dgo>"\nprompts = "<rex>"\n'
    )
    refused = drawn("run", "jobs.toml")
    assert (
        refused.code == 4 and "names <dgo>, which is not trained" in refused.err and not Path("artifacts/mask").exists()
    )
