"""Timing on a processor or a GPU, and what this machine can do at best."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

SECONDS = 1.0
"""What is quick is repeated for so long."""

_COPIED = 256 << 20
_SIDE = {"cuda": 8192, "cpu": 2048}
"""Of the square matrices that are multiplied."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """What this machine reaches in the simplest programs."""

    precision: str
    """Of the towers here: float32, or bfloat16 on CUDA."""

    flops: float
    """In the product of two large square matrices; a multiplication and an addition are 2."""

    copy_bytes: float
    """Bytes a second from memory to memory."""

    upload_bytes: float | None
    """Bytes a second from pinned memory to the device; None where there is no such device."""


def precision_of(device: torch.device) -> torch.dtype:
    """What towers and prompts run in by default."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def ceilings(device: torch.device) -> Ceilings:
    """Measure them."""
    dtype = precision_of(device)
    side = _SIDE.get(device.type, 2048)
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    source = torch.zeros(_COPIED, dtype=torch.uint8)
    target = torch.ones_like(source)
    upload = None
    if device.type == "cuda":
        pinned, there = source.pin_memory(), torch.empty_like(source, device=device)
        upload = _COPIED / seconds(lambda: there.copy_(pinned, non_blocking=True), device)
    return Ceilings(
        precision=str(dtype).removeprefix("torch."),
        flops=2 * side**3 / seconds(lambda: matrix @ matrix, device),
        copy_bytes=_COPIED / seconds(lambda: target.copy_(source), device),
        upload_bytes=upload,
    )


def seconds(
    action: Callable[[], object], device: torch.device, *, at_least: float = SECONDS
) -> float:
    """Seconds of one call, to its end on the device; the median of several.

    The first call is to warm up, and counts only where it took so long on a processor that
    warming up is nothing beside it.
    """
    first = _once(action, device)
    if device.type == "cpu" and first >= at_least:
        return first
    times: list[float] = []
    while not times or (sum(times) < at_least and len(times) < 1000):
        times.append(_once(action, device))
    return statistics.median(times)


def flops_of(action: Callable[[], object]) -> float:
    """FLOP of the matrix products that `action` runs."""
    counter: Any = FlopCounterMode(display=False)
    with counter:
        action()
    return float(counter.get_total_flops())


def _once(action: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
