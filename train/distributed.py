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
        short, longer = divmod(count, self.size)
        start = self.rank * short + min(self.rank, longer)
        return slice(start, start + short + (self.rank < longer))

    def gather(self, own: Float[Tensor, "b k"], count: int) -> Float[Tensor, "B k"]:
        """The rows of all processes in order, `count` in all; not differentiable."""
        if self.size == 1:
            return own
        whole = own.new_zeros(count, own.shape[1])
        whole[self.part(count)] = own
        dist.all_reduce(whole)  # a row is 0 in all processes but one
        return whole

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
        return any(self.collect(here))

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


def current() -> Group:
    """The group this process belongs to, or itself alone."""
    is_alone = not dist.is_available() or not dist.is_initialized()
    return Group() if is_alone else Group(dist.get_rank(), dist.get_world_size())


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, if it did; gives the device of this one.

    Where there are more of them than GPUs they share these, and find each other over gloo, as
    NCCL takes one process a GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    backend = "gloo"
    if device.type == "cuda":
        count = torch.cuda.device_count()
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % count)
        torch.cuda.set_device(device)
        if int(os.environ["LOCAL_WORLD_SIZE"]) <= count:
            backend = "nccl"
    dist.init_process_group(backend)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def sharers() -> int:
    """Processes of the group on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if current().size > 1 else 1
