"""Several processes that train one model, started by `torchrun`; one alone needs none of this.

Each computes its rows of every batch, with the categories of the whole batch: all processes
draw the same batch, so these need no messages.  The logits are gathered, which makes the loss,
text-to-video direction included, that of the whole batch; gradients are added up, not averaged.

B videos of a batch, b of them here, k categories.
"""

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from bieff.features.errors import ConfigError


def device_name(device: torch.device) -> str:
    """A device as people call it."""
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return f"{device}, {platform.processor() or platform.machine()}"


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of a run, and which of them this is."""

    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """True in the one process that writes the run."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This process's share of `count` rows; shares differ by one at most.

        Raises:
            ConfigError: If there are fewer rows than processes.
        """
        if count < self.size:
            raise ConfigError(
                f"a batch of {count} videos for {self.size} processes; expected at least one "
                "each, start fewer or raise batch_size"
            )
        bounds = self._bounds(count)
        return slice(bounds[self.rank], bounds[self.rank + 1])

    def gather(self, own: Float[Tensor, "b k"], count: int) -> Float[Tensor, "B k"]:
        """The rows of all processes in order, `count` in all; not differentiable."""
        if self.size == 1:
            return own
        bounds = self._bounds(count)
        sizes = [stop - start for start, stop in pairwise(bounds)]
        # a collective takes equal sizes
        padded = own.new_zeros(max(sizes), own.shape[1])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all processes into each tensor, by one message."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, here: bool) -> bool:
        """True everywhere if it is so in any process."""
        if self.size == 1:
            return here
        flag = torch.tensor([float(here)], device=_message_device())
        dist.all_reduce(flag)
        return bool(flag.item())

    def collect(self, own: Any) -> list[Any]:
        """The value of each process, in their order; it is pickled."""
        if self.size == 1:
            return [own]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, own)
        return found

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def _bounds(self, count: int) -> list[int]:
        short, longer = divmod(count, self.size)
        return [rank * short + min(rank, longer) for rank in range(self.size + 1)]


def current() -> Group:
    """The group this process belongs to, or itself alone."""
    if not dist.is_available() or not dist.is_initialized():
        return Group()
    return Group(dist.get_rank(), dist.get_world_size())


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, if it did; gives the device of this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def sharers() -> int:
    """Processes of the group on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if current().size > 1 else 1


def _message_device() -> torch.device:
    """The device that messages of this group are taken from."""
    is_nccl = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if is_nccl else torch.device("cpu")
