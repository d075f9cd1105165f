"""The processes that train together. Alone, every operation here does nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train together. Rank 0 is the one writer."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls) -> Ranks:
        """Join the others when torchrun started this process."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        if not dist.is_initialized():
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            # its functions take the group there is at its first import as a default, and so would hold it, and its
            # threads, beyond `leave`: a thread that wants Python while that is ending aborts the process
            import_module("torch.distributed.nn.functional")
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def writes(self) -> bool:
        return self.rank == 0

    def leave(self) -> None:
        if self.count > 1 and dist.is_initialized():
            dist.barrier()  # nobody hangs up while another still speaks
            dist.destroy_process_group()

    def wait(self) -> None:
        if self.count > 1:
            dist.barrier()

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks, the same on each."""
        if self.count > 1:
            value = value.contiguous()
            dist.all_reduce(value)
        return value

    def gather(self, value: Tensor) -> Tensor:
        """All ranks' values one after the other along the first axis; how long it is may differ."""
        if self.count == 1:
            return value
        lengths = [torch.zeros((), dtype=torch.int64, device=value.device) for _ in range(self.count)]
        dist.all_gather(lengths, torch.tensor(len(value), device=value.device))
        longest = int(torch.stack(lengths).max())
        padded = value.new_zeros(longest, *value.shape[1:])
        padded[: len(value)] = value
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        dist.all_gather(parts, padded)
        return torch.cat([part[: int(length)] for part, length in zip(parts, lengths, strict=True)])

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up gradients in one message."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def copy_from_first(self, module: nn.Module) -> None:
        """Give every rank the weights and buffers of rank 0."""
        if self.count > 1:
            for tensor in [*module.parameters(), *module.buffers()]:
                dist.broadcast(tensor.data, 0)
