"""The toybox's tokenizer: one token a word of the world, and any other text without loss."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objtune_cli.toybox.captions import PLACES, vocabulary
from objtune_cli.toybox.recipe import tokenizer

LENGTH = 32


@pytest.fixture(scope="module")
def words():
    return tokenizer.build(LENGTH)


def test_every_word_of_the_world_is_one_token(words) -> None:
    ids = [words(word).input_ids for word in vocabulary()]
    assert all(len(i) == 3 and i[0] == words.bos_token_id and i[2] == words.eos_token_id for i in ids)
    assert len({i[1] for i in ids}) == len(ids)


def test_a_prompt_is_a_token_a_word(words) -> None:
    for place in (p for group in PLACES.values() for p in group):
        text = f"a photo of an orange and blue striped dog with a red hat {place}"
        assert len(words(text).input_ids) == 2 + len(text.split())


def test_the_end_has_the_largest_id(words) -> None:
    assert words.eos_token_id == len(words) - 1 == words.pad_token_id
    assert words.bos_token_id == len(words) - 2


@given(st.text(max_size=40))
@settings(deadline=None, max_examples=150)
def test_any_text_is_taken_without_an_unknown_token(words, text: str) -> None:
    ids = words(text).input_ids
    assert ids[0] == words.bos_token_id and ids[-1] == words.eos_token_id
    assert words.unk_token_id not in ids[1:-1]  # unknown would be the end token
    assert bool(text.split()) == (len(ids) > 2) or not text.strip()
    padded = words(text, padding="max_length", max_length=LENGTH, truncation=True).input_ids
    assert len(padded) == LENGTH and padded[-1] == words.eos_token_id


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyzäöüéñß日本語🐕 ", max_size=30))
@settings(deadline=None, max_examples=80)
def test_text_comes_back(words, text: str) -> None:
    shown = words.decode(words(text).input_ids, skip_special_tokens=True)
    assert "".join(shown.split()) == "".join(text.split())


def test_case_does_not_matter(words) -> None:
    assert words("A Photo of a DOG").input_ids == words("a photo of a dog").input_ids


def test_building_many_times_gives_the_same_ids(words) -> None:
    """Each part of the recipe builds the tokenizer anew: the text tower's rows must mean the same to all."""
    assert all(tokenizer.build(LENGTH).get_vocab() == words.get_vocab() for _ in range(6))
