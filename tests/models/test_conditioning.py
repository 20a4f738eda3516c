"""Encoded prompts as one value: what a batch of them does, and the layout in which class priors store them."""

from dataclasses import replace

import pytest
import torch

from objtune_cli.models.conditioning import Conditioning

G = torch.Generator().manual_seed(0)
SEQUENCE, POOLED = torch.randn(3, 5, 8, generator=G), torch.randn(3, 6, generator=G)
BATCH = Conditioning(SEQUENCE, POOLED)


def test_samples_are_taken_from_every_field() -> None:
    for index in (slice(1, 3), [2, 0], torch.tensor([1]), torch.tensor([], dtype=torch.int64)):
        some = BATCH[index]
        assert torch.equal(some.sequence, SEQUENCE[index]) and torch.equal(some.pooled, POOLED[index])
        assert len(some) == len(SEQUENCE[index])
    assert [len(part) for part in BATCH.split(2)] == [2, 1] and [len(part) for part in BATCH] == [1, 1, 1]
    assert torch.equal([*BATCH][2].pooled, POOLED[2:])


def test_batches_are_joined_and_single_samples_repeated() -> None:
    joined = Conditioning.concat(BATCH.split(2))
    assert torch.equal(joined.sequence, SEQUENCE) and torch.equal(joined.pooled, POOLED)
    repeated = BATCH[:1].expand(4)
    assert torch.equal(repeated.sequence, SEQUENCE[:1].repeat(4, 1, 1)) and repeated.pooled.shape == (4, 6)
    assert repeated.sequence.data_ptr() == SEQUENCE.data_ptr()


def test_every_field_is_moved_and_detached() -> None:
    condition = Conditioning(SEQUENCE.clone().requires_grad_(), POOLED.clone().requires_grad_())
    assert not any(tensor.requires_grad for tensor in condition.detach().tensors())
    assert {tensor.dtype for tensor in condition.to(torch.bfloat16).tensors()} == {torch.bfloat16}
    assert condition.dtype == torch.float32 and condition.device == torch.device("cpu")


def test_rows_of_tokens_come_from_another_prompt_and_the_pooled_vector_stays() -> None:
    tokens = torch.tensor([False, True, False, True, False])
    mixed = BATCH.with_tokens(BATCH.map(torch.zeros_like), tokens)
    assert not mixed.sequence[:, tokens].any() and torch.equal(mixed.sequence[:, ~tokens], SEQUENCE[:, ~tokens])
    assert torch.equal(mixed.pooled, POOLED)


@pytest.mark.parametrize("size", [0, 6, 8])
def test_a_packed_tensor_is_read_back(size: int) -> None:
    condition = Conditioning(SEQUENCE, torch.cat([POOLED, POOLED], 1)[:, :size] if size else None)
    packed = condition.pack()
    assert packed.shape == (3, 5 + bool(size), 8)
    if size:  # the pooled vectors are the last row, with zeros behind them
        assert torch.equal(packed[:, -1, :size], condition.pooled) and not packed[:, -1, size:].any()
    again = Conditioning.unpack(packed, size)
    assert torch.equal(again.sequence, SEQUENCE) and (again.pooled is None) == (not size)
    assert again.pooled is None or torch.equal(again.pooled, condition.pooled)


def test_a_family_without_pooled_vectors_has_one_tensor() -> None:
    condition = replace(BATCH, pooled=None)
    assert condition.tensors() == [SEQUENCE] and condition.pack() is SEQUENCE
    assert condition[:2].pooled is None and Conditioning.concat([condition, condition]).pooled is None
