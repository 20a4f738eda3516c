"""Live bytes against sums done by hand: storages once, in blocks, and gone when they are freed; torch's own tracker agrees."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from objtune_cli.runtime.tensor_memory import BLOCK, LiveTensorCounter, module_tensors

KB = 1024


def zeros(kb: int) -> torch.Tensor:
    return torch.zeros(kb * KB // 4)


def test_what_is_made_counts_and_what_is_freed_leaves() -> None:
    with LiveTensorCounter() as live:
        a = zeros(8)
        b = zeros(4)
        assert (live.live_bytes, live.peak) == (12 * KB, 12 * KB)
        del b
        assert (live.live_bytes, live.peak) == (8 * KB, 12 * KB)
        c = a + 1  # both live while it is made
        assert (live.live_bytes, live.peak) == (16 * KB, 16 * KB)
        del a
        live.reset_peak()
        assert (live.live_bytes, live.peak) == (8 * KB, 8 * KB)
        del c
    assert (live.live_bytes, live.peak) == (0, 8 * KB) and not live._known


@pytest.mark.parametrize(("numbers", "blocks"), [(0, 0), (1, 1), (128, 1), (129, 2)])
def test_bytes_come_in_blocks(numbers: int, blocks: int) -> None:
    with LiveTensorCounter() as live:
        kept = torch.ones(numbers)
        assert live.live_bytes == blocks * BLOCK and kept.numel() == numbers


def test_views_and_in_place_work_are_the_same_storage() -> None:
    with LiveTensorCounter() as live:
        a = zeros(8)
        parts = [a.view(2, -1), a[:4], a.unflatten(0, (4, -1)).transpose(0, 1), a.detach()]
        a += 1
        a[3:5].mul_(2)
        assert (live.live_bytes, live.peak) == (8 * KB, 8 * KB)
        del a
        assert live.live_bytes == 8 * KB  # its views hold it
        del parts
        assert live.live_bytes == 0


def test_what_was_there_before_counts_once() -> None:
    layer = nn.Linear(64, 64)
    live = LiveTensorCounter()
    assert live.add(module_tensors(layer, None)) == 64 * 64 * 4 + BLOCK
    assert live.add([layer.weight.t()]) == 0
    with live, torch.no_grad():
        layer(torch.zeros(1, 64))  # its own rows are freed at once
    assert live.live_bytes == 64 * 64 * 4 + BLOCK and live.peak == live.live_bytes + 2 * BLOCK
    before = zeros(4)
    with live:
        before.sum()
    assert live.live_bytes == 64 * 64 * 4 + BLOCK + 4 * KB  # seen when first read


def test_what_autograd_keeps_lives_until_the_backward_pass() -> None:
    """exp keeps its result, sin its argument, the same: after three of each, three live beside x and the sum; then x and its gradient."""
    x = zeros(4).requires_grad_()
    with LiveTensorCounter() as live:
        y = x
        for _ in range(3):
            y = y.exp().sin()
        loss = y.sum()
        del y
        assert live.live_bytes == (1 + 3) * 4 * KB + BLOCK
        loss.backward()
        del loss
        assert live.live_bytes == 2 * 4 * KB and x.grad is not None


def _chain(again: bool) -> tuple[int, torch.Tensor]:
    """Peak, and gradient, of eight blocks of four tanh on 64 KB."""
    x = torch.linspace(0, 1, 16 * KB).requires_grad_()

    def block(y: torch.Tensor) -> torch.Tensor:
        return y.tanh().tanh().tanh().tanh()

    with LiveTensorCounter() as live:
        y = x
        for _ in range(8):
            y = checkpoint(block, y, use_reentrant=False) if again else block(y)
        y.sum().backward()
    assert x.grad is not None
    return live.peak, x.grad


def test_recomputed_activations_live_a_block_at_a_time() -> None:
    """Kept: x, 32 results and what flows back. Again: x, 8 results, and the four of one block."""
    (kept, plain), (again, twice) = _chain(False), _chain(True)
    block = 64 * KB
    assert 33 * block < kept <= 36 * block and 12 * block < again <= 16 * block
    assert torch.equal(plain, twice)


def test_an_optimizer_s_moments_stay() -> None:
    p = nn.Parameter(zeros(8))
    with LiveTensorCounter() as live:
        optimizer = torch.optim.AdamW([p], fused=True)
        (p * 2).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert live.live_bytes == 3 * 8 * KB + BLOCK  # the step's number is one float


def test_torchs_own_tracker_agrees() -> None:
    from torch.distributed._tools.mem_tracker import MemTracker

    def work() -> nn.Module:
        net = nn.Sequential(*(nn.Linear(128, 128) for _ in range(4)))
        net(torch.ones(32, 128)).square().mean().backward()
        return net

    with LiveTensorCounter() as live:
        kept = work()
    theirs = MemTracker()
    with theirs:
        again = work()
    peak = theirs.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    assert live.peak == pytest.approx(peak, rel=0.02) and len(list(kept.parameters())) == len(list(again.parameters()))


def test_products_of_zeros_take_as_much() -> None:
    """Linear layers, a convolution and attention, forward and back: the same bytes, and no number but zero."""

    def work(multiply: bool) -> tuple[int, float]:
        torch.manual_seed(0)
        net, conv = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)), nn.Conv2d(4, 8, 3, padding=1)
        live = LiveTensorCounter(multiply=multiply)
        live.add(module_tensors(net, conv))
        with live:
            x = net(torch.randn(2, 8, 16))
            q = x.unflatten(-1, (2, -1)).transpose(1, 2)
            out = (
                torch.nn.functional.scaled_dot_product_attention(q, q, q).flatten(1).square().mean()
                + conv(torch.randn(2, 4, 6, 6)).square().mean()
            )
            out.backward()
        return live.peak, float(out)

    (real, loss), (zeros, none) = work(True), work(False)
    assert real == zeros and loss > 0
    assert none == 0


def test_it_names_the_attention_that_ran() -> None:
    q = torch.randn(1, 2, 8, 16)
    with LiveTensorCounter() as live:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert any("flash" in name or "math" in name for name in live.attention)
