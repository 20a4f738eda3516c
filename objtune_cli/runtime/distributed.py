"""Several processes that train one adapter: each puts its share of a batch's rows through the denoiser, all see all predictions.

The loss is computed by every process on the whole batch, so that it is the one of a single process whatever its terms; gradients
run back through a process's own rows, and their sum over the processes is the whole. Started by `accelerate launch` or `torchrun`.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from objtune_cli.errors import UsageError


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The processes of one run: this one's number among them, and where it computes."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main_process(self) -> bool:
        """Whether this one writes and speaks."""
        return self.rank == 0

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The first process works inside, the others after it, when they find what it made."""
        if not self.is_main_process:
            dist.barrier()
        yield
        if self.is_main_process:
            dist.barrier()

    def barrier(self) -> None:
        """Wait for all."""
        dist.barrier()

    def all_reduce_max(self, value: int) -> int:
        """The largest of the processes' values: a signal that one got stops all at the same step."""
        found = torch.tensor([value], device=self.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def all_reduce_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Every gradient becomes the sum over the processes; those that had no row of their own give zeros."""
        for p in parameters:
            if p.requires_grad:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                dist.all_reduce(p.grad)

    def predict(
        self, alone: Callable[[Tensor, Tensor, Tensor], Tensor], z_t: Tensor, t: Tensor, condition: Tensor
    ) -> Tensor:
        """What `alone` gives for all rows, this process's rows computed here."""
        share = -(-len(z_t) // self.world_size)
        start, stop = (min(i * share, len(z_t)) for i in (self.rank, self.rank + 1))
        rows = (
            torch.arange(start, stop) if stop > start else torch.tensor([0])
        )  # one without rows computes one that nobody reads
        own = alone(z_t[rows], t[rows.to(t.device)], condition[rows.to(condition.device)])
        padded = torch.cat([own, own.new_zeros(share - len(own), *own.shape[1:])]) if len(own) < share else own
        predictions: Tensor = _Gathered.apply(padded, self, len(z_t), start, stop)  # type: ignore[no-untyped-call]
        return predictions


class _Gathered(torch.autograd.Function):
    """All processes' rows in their order; the gradient is that of this one's own."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, team: ProcessGroup, count: int, start: int, stop: int) -> Tensor:
        ctx.place = start, stop
        ctx.like = own.shape
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(team.world_size)]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)[:count]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        start, stop = ctx.place
        own = grads[0].new_zeros(ctx.like)
        own[: stop - start] = grads[0][start:stop]
        return own, None, None, None, None


def is_distributed() -> bool:
    """Whether a launcher started several processes; asks the environment alone."""
    size = os.environ.get("WORLD_SIZE", "")
    return size.isdecimal() and int(size) > 1


def join_process_group(device: str) -> ProcessGroup | None:
    """The processes that a launcher started, joined through accelerate; None: there is one.

    Raises:
        UsageError: `device` names one GPU for all of them.
    """
    if not is_distributed():
        return None
    if ":" in device:
        raise UsageError(f"{device} is one device for several processes", "leave --device away, or say `--device cpu`")
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    return ProcessGroup(state.process_index, state.num_processes, state.device)
