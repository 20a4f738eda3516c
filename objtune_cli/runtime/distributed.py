"""Training of one adapter by several processes: each runs the denoiser on its share of a batch, and all gather the predictions.

Every process computes the loss on the whole batch, so the loss equals that of a single process for any loss terms. Gradients flow
through a process's own samples; their sum over the processes is the full gradient. `accelerate launch` or `torchrun` starts them.
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
    """The processes of one run: the rank of this one, their number, and its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run the block in the first process, and then in the others, which find its files."""
        if not self.is_main_process:
            dist.barrier()
        yield
        if self.is_main_process:
            dist.barrier()

    def barrier(self) -> None:
        """Wait until all processes are here."""
        dist.barrier()

    def all_reduce_max(self, value: int) -> int:
        """Return the largest of the processes' values, so that a signal to one stops all at the same step."""
        largest = torch.tensor([value], device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def all_reduce_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its sum over the processes; a process without samples adds zeros."""
        for p in parameters:
            if p.requires_grad:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                dist.all_reduce(p.grad)

    def predict(
        self, predict: Callable[[Tensor, Tensor, Any], Tensor], z_t: Tensor, t: Tensor, condition: Any
    ) -> Tensor:
        """Return the predictions for a batch (B, …), of which this process computes its share.

        Args:
            predict: The denoiser of one process, called with samples of z_t, t and condition.
        """
        share = -(-len(z_t) // self.world_size)
        start, stop = (min(i * share, len(z_t)) for i in (self.rank, self.rank + 1))
        # A process without samples computes one that is dropped.
        samples = torch.arange(start, stop) if stop > start else torch.tensor([0])
        own = predict(z_t[samples], t[samples.to(t.device)], condition[samples.to(condition.device)])
        padded = torch.cat([own, own.new_zeros(share - len(own), *own.shape[1:])]) if len(own) < share else own
        predictions: Tensor = _Gather.apply(padded, self, len(z_t), start, stop)  # type: ignore[no-untyped-call]
        return predictions


class _Gather(torch.autograd.Function):
    """Gathers all processes' samples in order; the gradient reaches this process's own samples."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: ProcessGroup, count: int, start: int, stop: int) -> Tensor:
        ctx.place = start, stop
        ctx.like = own.shape
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(group.world_size)]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)[:count]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        start, stop = ctx.place
        own = grads[0].new_zeros(ctx.like)
        own[: stop - start] = grads[0][start:stop]
        return own, None, None, None, None


def is_distributed() -> bool:
    """Whether a launcher started several processes, by the environment."""
    size = os.environ.get("WORLD_SIZE", "")
    return size.isdecimal() and int(size) > 1


def join_process_group(device: str) -> ProcessGroup | None:
    """Join the processes that a launcher started, through accelerate; None if there is only one.

    Raises:
        UsageError: `device` names one GPU for all of them.
    """
    if not is_distributed():
        return None
    if ":" in device:
        raise UsageError(f"{device} is one device for several processes", "leave out `--device`, or use `--device cpu`")
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    return ProcessGroup(state.process_index, state.num_processes, state.device)
