"""Placeholder words: their rows, their ids, and where gradients go."""

import pytest
import torch
from torch import nn

from objtune_cli.models.base_model import BaseModel
from objtune_cli.models.placeholders import ExtendedEmbedding, Placeholders, class_token_embeddings
from objtune_cli.models.prompts import with_class_words


def _rows(count: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_known_ids_are_read_from_the_frozen_table() -> None:
    table = nn.Embedding(10, 4)
    extended = ExtendedEmbedding(table)
    ids = torch.arange(10).view(2, 5)
    assert torch.equal(extended(ids), table(ids))
    extended.added_rows["rex"] = _rows(2, 4)
    assert torch.equal(extended(ids), table(ids))
    assert extended.weight is table.weight  # not a copy


def test_ids_past_the_end_take_the_added_rows_in_order() -> None:
    extended = ExtendedEmbedding(nn.Embedding(10, 4))
    extended.added_rows = {"rex": _rows(2, 4), "cup": _rows(1, 4, seed=1)}
    out = extended(torch.tensor([[12, 3, 10, 11]]))[0]
    assert torch.equal(out[0], extended.added_rows["cup"][0])
    assert torch.equal(out[1], extended.weight[3])
    assert torch.equal(out[2:], extended.added_rows["rex"])


def test_gradient_flows_to_the_rows_alone(model: BaseModel) -> None:
    words = Placeholders(model)
    rows = _rows(2).requires_grad_()
    words.add("rex", rows)
    model.encode_prompt([words.expand("a photo of <rex>")]).sequence.square().sum().backward()
    assert rows.grad is not None and (rows.grad.abs().sum(1) > 0).all()
    assert all(p.grad is None for p in model.text_encoder.parameters())


def test_an_unused_word_gets_no_gradient_and_changes_nothing(model: BaseModel) -> None:
    before = model.encode_prompt(["a photo of a dog"]).sequence.detach()
    words = Placeholders(model)
    words.add("rex", _rows(2).requires_grad_())
    after = model.encode_prompt(["a photo of a dog"]).sequence
    assert torch.equal(after.detach(), before)


def test_a_word_with_the_class_vectors_reads_like_the_class(model: BaseModel) -> None:
    words = Placeholders(model)
    words.add("rex", class_token_embeddings(model, "dog"))
    mine, plain = model.encode_prompt([words.expand("a photo of a <rex>"), "a photo of a dog"]).sequence
    end = len(model.tokenizer("a photo of a dog").input_ids)
    torch.testing.assert_close(mine[:end], plain[:end])


def test_replaced_rows_are_used(model: BaseModel) -> None:
    words = Placeholders(model)
    words.add("rex", _rows(2))
    first = model.encode_prompt([words.expand("<rex>")]).sequence.detach()
    words.replace("rex", _rows(2, seed=5))
    assert not torch.allclose(model.encode_prompt([words.expand("<rex>")]).sequence.detach(), first)
    words.replace("rex", _rows(2))
    assert torch.equal(model.encode_prompt([words.expand("<rex>")]).sequence.detach(), first)


def test_two_words_have_rows_of_their_own(model: BaseModel) -> None:
    words = Placeholders(model)
    words.add("rex", _rows(3))
    words.add("cup", _rows(2, seed=1))
    ids = model.token_ids([words.expand("<cup> and <rex>")])
    vectors = words.table(ids)[0]
    assert torch.equal(vectors[words.token_positions(ids, "rex")[0]], _rows(3))
    assert torch.equal(vectors[words.token_positions(ids, "cup")[0]], _rows(2, seed=1))


def test_positions_are_those_of_the_words_tokens(model: BaseModel) -> None:
    words = Placeholders(model)
    words.add("rex", _rows(2))
    words.add("cup", _rows(1))
    ids = model.token_ids([words.expand("a <rex>"), words.expand("<cup>")])
    assert words.token_positions(ids, "rex").nonzero().tolist() == [[0, 2], [0, 3]]  # start, a, then the two
    assert words.token_positions(ids, "cup").nonzero().tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("prompt", "expanded"),
    [
        ("a photo of <rex>", "a photo of <|rex:0|> <|rex:1|>"),
        ("<rex@2> on the beach", "<|rex:0|> <|rex:1|> on the beach"),
        ("<rex><rex>", "<|rex:0|> <|rex:1|><|rex:0|> <|rex:1|>"),
        ("<rex@>, <@2>, <REX> and <r ex>", "<rex@>, <@2>, <REX> and <r ex>"),
        ("<bob> and <bob@3>", "<bob> and <bob@3>"),
        ("1 < 2 > 0", "1 < 2 > 0"),
        ("<tea-cup.v_2>", "<|tea-cup.v_2:0|>"),
    ],
)
def test_expand(model: BaseModel, prompt: str, expanded: str) -> None:
    words = Placeholders(model)
    words.add("rex", _rows(2))
    words.add("tea-cup.v_2", _rows(1))
    assert words.expand(prompt) == expanded


def test_expanded_words_are_one_token_each_beside_punctuation(model: BaseModel) -> None:
    words = Placeholders(model)
    words.add("rex", _rows(2))
    ids = model.token_ids([words.expand("<rex>, <rex>!")])
    assert int(words.token_positions(ids, "rex").sum()) == 4


def test_a_padded_table_keeps_its_unused_rows_apart(model: BaseModel) -> None:
    """Some bases have more rows than their tokenizer has words: new ids must lie behind all of them."""
    table = model.text_encoder.get_input_embeddings()
    wider = nn.Embedding(table.num_embeddings + 7, table.embedding_dim)
    with torch.no_grad():
        wider.weight[: table.num_embeddings] = table.weight
    model.text_encoder.set_input_embeddings(wider.requires_grad_(False))
    plain = model.encode_prompt(["a dog"]).sequence
    words = Placeholders(model)
    words.add("rex", _rows(2))
    words.add("cup", _rows(1, seed=1))
    ids = model.token_ids([words.expand("<rex> <cup>")])
    assert ids[0, 1:4].tolist() == [wider.num_embeddings + i for i in range(3)]
    assert torch.equal(words.table(ids)[0, 1:4], torch.cat([_rows(2), _rows(1, seed=1)]))
    assert torch.equal(model.encode_prompt(["a dog"]).sequence, plain)


def test_a_second_set_of_words_on_the_same_base_goes_on_after_the_first(model: BaseModel) -> None:
    Placeholders(model).add("rex", _rows(2))
    later = Placeholders(model)
    later.add("cup", _rows(1, seed=1))
    ids = model.token_ids([later.expand("<cup>")])
    assert torch.equal(later.table(ids)[0, 1], _rows(1, seed=1)[0])


@pytest.mark.parametrize("again", [1, 3])
def test_a_word_cannot_be_added_twice(model: BaseModel, again: int) -> None:
    words = Placeholders(model)
    words.add("rex", _rows(2))
    with pytest.raises(ValueError, match="placeholder <.*> exists"):
        words.add("rex", _rows(again, seed=2))


def test_class_rows_are_copies_of_the_words_token_vectors(model: BaseModel) -> None:
    rows = class_token_embeddings(model, "dog")
    table = model.text_encoder.get_input_embeddings().weight
    ids = model.tokenizer("dog", add_special_tokens=False).input_ids
    assert len(ids) == 3 and torch.equal(rows, table[ids])
    rows += 1
    assert not torch.equal(rows, table[ids])


@pytest.mark.parametrize(
    "prompt, plain",
    [
        ("a photo of <rex> on the beach", "a photo of a dog on the beach"),
        ("<rex> and <eel> in the snow", "a dog and an otter in the snow"),
        ("my <rex> next to a <eel>", "my dog next to a otter"),
        ("<rex@3>'s head", "a dog's head"),
        ("a photo of <rex@2> and my <eel> under the <rex>", "a photo of a dog and my otter under the dog"),
        ("a photo of <cup>", "a photo of <cup>"),
        ("a red <rex> and A big old <eel@2>", "a red dog and A big old otter"),
        ("My sleeping <rex> with <eel>", "My sleeping dog with an otter"),
        ("the cat chasing <rex>, the boy hugs <eel>", "the cat chasing a dog, the boy hugs an otter"),
        ("the hat of <rex> or <eel>", "the hat of a dog or an otter"),
    ],
)
def test_a_prompt_in_class_words(prompt: str, plain: str) -> None:
    assert with_class_words(prompt, {"rex": "dog", "eel": "otter"}) == plain


def test_in_context_other_places_hear_the_class_word(model: BaseModel) -> None:
    words = Placeholders(model)
    words.add("rex", _rows(3))
    words.add("cup", _rows(2, seed=1))
    prompt, classes = "a photo of <rex> and <cup> on the beach", {"rex": "dog", "cup": "mug"}
    own, plain = model.encode_prompt([words.expand(prompt), "a photo of a dog and a mug on the beach"]).sequence
    ids, others = (
        model.token_ids([text])[0].tolist()
        for text in (words.expand(prompt), "a photo of a dog and a mug on the beach")
    )
    found = words.encode_with_class_context(prompt, classes).sequence[0]
    named = (words.token_positions(torch.tensor([ids]), "rex") | words.token_positions(torch.tensor([ids]), "cup"))[0]
    assert named.sum() == 5
    torch.testing.assert_close(found[named], own[named])
    end, last = ids.index(model.tokenizer.eos_token_id), others.index(model.tokenizer.eos_token_id)
    for back in range(4):  # beach, the, on and the end of the sentence
        assert torch.equal(found[end - back], plain[last - back])
    assert torch.equal(found[1:4], plain[1:4])
    assert (found[end] - own[end]).abs().max() > 1e-3  # which hears another word now


def test_no_more_is_read_than_up_to_the_last_added_word(model: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    words = Placeholders(model)
    words.add("rex", _rows(3))
    words.add("cup", _rows(2, seed=1))
    letters, read = len(model.tokenizer("a photo of", add_special_tokens=False).input_ids), []
    assert words.count_leading_tokens(["a photo of <rex> on the beach"]) == 1 + letters + 3
    assert words.count_leading_tokens(["<rex>", "a photo of <cup> on the beach"]) == 1 + letters + 2
    assert words.count_leading_tokens(["a photo of a dog"]) == 1
    inside = model.text_encoder.forward
    monkeypatch.setattr(
        model.text_encoder,
        "forward",
        lambda input_ids: (read.append(input_ids.shape[1]), inside(input_ids=input_ids))[1],
    )
    words.encode_with_class_context(
        "a photo of <rex> on the beach", {"rex": "dog"}, plain=model.encode_prompt(["a photo of a dog on the beach"])
    )
    assert read == [model.tokenizer.model_max_length, 1 + letters + 3]


def test_in_context_gradients_reach_the_words_through_their_own_places(model: BaseModel) -> None:
    words = Placeholders(model)
    rows = _rows(2).requires_grad_()
    words.add("rex", rows)
    found = words.encode_with_class_context("a photo of <rex> on the beach", {"rex": "dog"}).sequence
    named = words.token_positions(model.token_ids([words.expand("a photo of <rex> on the beach")]), "rex")
    (grad,) = torch.autograd.grad(found[~named].square().sum(), rows, retain_graph=True, allow_unused=True)
    assert grad is None or not grad.any()
    found.square().sum().backward()
    assert rows.grad is not None and (rows.grad.abs().sum(1) > 0).all()
