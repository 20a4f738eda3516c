"""Weights, breaks and escapes in prompts: read as A1111 and ComfyUI read them, written so that they are read again."""

import hashlib
import json
import re
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objtune_cli.composition import layout_from_prompt
from objtune_cli.models import prompt_encoding, prompt_syntax
from objtune_cli.models.families import bundled_tokenizers
from objtune_cli.models.prompt_syntax import MAX_WEIGHT, ParsedPrompt, parse, write
from objtune_cli.models.prompts import with_class_words

SYNTAXES = ("a1111", "comfyui")
OTHER_TOOLS = json.loads((Path(__file__).parent / "prompts_of_other_tools.json").read_text())
"""50 prompts as the parsers of A1111 (1.10) and ComfyUI read them: pieces, and a hash of the token ids and weights of all chunks."""

PIECES = (
    "a photo of", " ", "dog", "<dog>", "<cup>", "(", ")", "[", "]", ":1.2)", ":", "\\", "\\(", "\\]", "BREAK", " BREAK ", "AND", "|", "[a|b]", "[a:b:0.5]", "(x:1.3)",
    "<lora:film:0.7>", "{a|b}", "犬", "🐕", ",", "-1", ":.5)", "((", "))", "the red", "\n",
)  # fmt: skip
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=14).map("".join)


def contents(parsed: ParsedPrompt) -> tuple[str, tuple[float, ...], tuple[int, ...]]:
    return parsed.text, parsed.weights, parsed.breaks


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("row", OTHER_TOOLS, ids=lambda row: row["prompt"][:40])
def test_tokens_and_weights_are_those_of_other_tools(row: dict, syntax: str) -> None:
    tokenizer = bundled_tokenizers.clip_tokenizer("<|endoftext|>")
    chunks = prompt_encoding.split(tokenizer, parse(row["prompt"], syntax), syntax)
    pairs = [
        [token, round(weight, 6)]
        for ids, weights in zip(chunks.ids, chunks.weights, strict=True)
        for token, weight in zip(ids, weights, strict=True)
    ]
    assert len(chunks.ids) == len(row[f"{syntax}_chunks"])
    assert hashlib.sha256(json.dumps(pairs).encode()).hexdigest() == row[f"{syntax}_tokens_sha256"], row[syntax]


def test_the_table_of_other_tools_has_50_prompts() -> None:
    assert len({row["prompt"] for row in OTHER_TOOLS}) == 50
    assert sum(len(row["a1111_chunks"]) > 1 for row in OTHER_TOOLS) >= 6


@pytest.mark.parametrize(
    ("typed", "syntax", "chunks"),
    [
        ("a (dog:1.3) x", "a1111", [[("a ", 1), ("dog", 1.3), (" x", 1)]]),
        ("((a:1.2) b:1.5)", "a1111", [[("a", 1.8), (" b", 1.5)]]),
        ("((a:1.2) b:1.5)", "comfyui", [[("a", 1.2), (" b", 1.5)]]),
        ("[a] [[b]]", "a1111", [[("a", 0.909091), (" ", 1), ("b", 0.826446)]]),
        ("[a] (b)", "comfyui", [[("[a] ", 1), ("b", 1.1)]]),
        ("a BREAK b", "a1111", [[("a ", 1)], [("b", 1)]]),
        ("(a BREAK b:1.2)", "a1111", [[("a", 1.2), (" ", 1)], [("b", 1.2)]]),
        ("a BREAK b", "comfyui", [[("a BREAK b", 1)]]),
        ("[a|b] [cat:dog:0.5] [<|dog:0|>]", "a1111", [[("[a|b] [cat:dog:0.5] ", 1), ("<|dog:0|>", 0.909091)]]),
        ("a (b [c) d] e", "a1111", [[("a ", 1), ("b ", 1.1), ("c", 1), (" d", 0.909091), (" e", 1)]]),
        ("(a:1e3) (b:x)", "a1111", [[("a:1e3", 1.1), (" ", 1), ("b:x", 1.1)]]),
        ("(a:1.3)", "plain", [[("(a:1.3)", 1)]]),
        ("(" * 99 + "a" + ")" * 99, "a1111", [[("a", MAX_WEIGHT)]]),
    ],
)
def test_weights_and_breaks(typed: str, syntax: str, chunks: list) -> None:
    assert parse(typed, syntax).chunks() == chunks


@settings(max_examples=400, deadline=None)
@given(text=texts, syntax=st.sampled_from([*SYNTAXES, "plain"]))
def test_any_text_is_read_and_what_is_written_reads_the_same(text: str, syntax: str) -> None:
    parsed = parse(text, syntax)
    assert len(parsed.weights) == len(parsed.text) and all(abs(weight) <= MAX_WEIGHT for weight in parsed.weights)
    assert [*parsed.breaks] == sorted(parsed.breaks) and all(0 < at <= len(parsed.text) for at in parsed.breaks)
    assert "".join(run for chunk in parsed.chunks() for run, _ in chunk) == parsed.text
    again = parse(write(parsed, syntax), syntax)
    assert contents(again) == contents(parsed)
    assert prompt_syntax.find_fault(write(parsed, syntax), syntax) == (-1, "")


@settings(max_examples=300, deadline=None)
@given(text=texts, syntax=st.sampled_from(SYNTAXES))
def test_brackets_are_balanced_or_the_first_fault_has_a_position(text: str, syntax: str) -> None:
    position, fault = prompt_syntax.find_fault(text, syntax)
    assert bool(fault) == (position >= 0) and position < max(len(text), 1)
    if "`" in fault:
        assert text[position] in "()[]" and fault.startswith(f"`{text[position]}`")
    simple = re.sub(r"[^()]", "", text)
    if not re.search(r"[\\\[\]<>:]", text):  # nothing but round brackets
        depth, lowest = 0, 0
        for character in simple:
            depth += 1 if character == "(" else -1
            lowest = min(lowest, depth)
        assert bool(fault) == (depth != 0 or lowest < 0)


@settings(max_examples=300, deadline=None)
@given(text=texts, syntax=st.sampled_from([*SYNTAXES, "plain"]))
def test_class_words_stand_in_the_plain_text_as_they_do_without_syntax(text: str, syntax: str) -> None:
    classes = {"dog": "dog (toy)", "cup": "[old] mug"}
    named = prompt_syntax.name_class_words(text, classes, syntax)
    assert prompt_syntax.plain_text(named, syntax) == with_class_words(prompt_syntax.plain_text(text, syntax), classes)


@settings(max_examples=200, deadline=None)
@given(words=st.text(alphabet="abc <>-,.'!:|{}_+é犬\"", max_size=40))
def test_text_without_brackets_has_no_syntax(words: str) -> None:
    for syntax in SYNTAXES:
        assert not prompt_syntax.has_syntax(words, syntax)
        assert prompt_syntax.escape(words, syntax) == prompt_syntax.plain_text(words, syntax) == words


def test_a_class_word_has_the_weight_of_its_object() -> None:
    assert prompt_syntax.name_class_words("a photo of my (<dog>:1.3) at (night)", {"dog": "dog"}, "a1111") == (
        "a photo of my( dog:1.3) at (night:1.1)"
    )


def test_a_part_of_a_prompt_keeps_its_weights_and_breaks() -> None:
    def drop_cup(text: str) -> list[int]:
        start = text.index("cup")
        return [i for i in range(len(text)) if not start <= i < start + 3]

    assert prompt_syntax.edit("a (cup dog:1.3) BREAK b", "a1111", drop_cup) == "a ( dog:1.3) BREAK b"
    assert prompt_syntax.edit("a cup b", "a1111", drop_cup) == "a  b"


@pytest.mark.parametrize(
    ("typed", "text", "loras"),
    [
        ("a <lora:film:0.7> b", "a  b", (("film", 0.7),)),
        ("<lora:a b.c_d:1:0.5><LoRA: x : -1 >", "", (("a b.c_d", 1.0), ("x", -1.0))),
        ("<lora:x:te=0.5:unet=0.6> <lyco:y>", " ", (("x", 0.5), ("y", 1.0))),
        ("<lora:x:high> <hypernet:y:1> <lora:>", "<lora:x:high> <hypernet:y:1> <lora:>", ()),
        ("<lora:dog:0.8>", "<lora:dog:0.8>", ()),
    ],
)
def test_lora_tags_are_names_and_weights(typed: str, text: str, loras: tuple) -> None:
    assert prompt_syntax.extract_loras(typed, {"dog"}.__contains__) == (text, loras)


PROMPT = "a photo of a <dog> in a hat on the left and the <cup>, <dog> on the right, at night"


@pytest.mark.parametrize("name", ["dog", "cup"])
def test_the_prompt_of_one_object_keeps_weights_and_breaks(name: str) -> None:
    """Without syntax it is the plain one."""
    characters = partial(layout_from_prompt.object_characters, name=name)
    assert prompt_syntax.edit(PROMPT, "a1111", characters) == layout_from_prompt.object_prompt(PROMPT, name)
    weighted = (
        PROMPT.replace("<cup>", "(<cup>:1.3)").replace("a <dog>", "a [<dog>]").replace(", at", " BREAK at (big) ")
    )
    parsed = parse(prompt_syntax.edit(weighted, "a1111", characters), "a1111")
    plain = prompt_syntax.plain_text(weighted, "a1111")
    assert parsed.text == layout_from_prompt.object_prompt(plain, name) and len(parsed.breaks) == 1
    weights = dict(zip(parsed.text, parsed.weights, strict=True))
    assert weights["<"] == {"dog": 0.909091, "cup": 1.3}[name] and weights["b"] == 1.1
