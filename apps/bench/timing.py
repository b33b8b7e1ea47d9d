"""Seconds and FLOP of a call, on a processor or a GPU, and what this machine can do at best."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils import benchmark
from torch.utils.flop_counter import FlopCounterMode

SECONDS = 1.0
"""Seconds for which quick calls are repeated."""

_COPIED = 256 << 20
_SIDE = {"cuda": 8192, "cpu": 2048}
"""Side of the square matrices that are multiplied."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """Rates that this machine reaches in the simplest programs."""

    precision: str
    """Type of the towers here: float32, or bfloat16 on CUDA."""

    flops: float
    """Rate of the product of two large square matrices; a multiplication and addition are 2."""

    copy_bytes: float
    """Bytes a second from memory to memory."""

    upload_bytes: float | None
    """Bytes a second from pinned memory to the device; None where there is no such device."""


def once(action: Callable[[], object]) -> float:
    """Seconds of one call, to its end on the current GPU."""
    begin = benchmark.timer()
    action()
    return benchmark.timer() - begin


def seconds(action: Callable[[], object], *, at_least: float = SECONDS) -> float:
    """Seconds of one call, the median of as many as fill `at_least`.

    The first call is to warm up, and counts only where it took so long on a processor that
    warming up is nothing beside it.
    """
    first = once(action)
    if first >= at_least and not torch.cuda.is_available():
        return first
    timer = benchmark.Timer(
        "action()", globals={"action": action}, num_threads=torch.get_num_threads()
    )
    return float(timer.blocked_autorange(min_run_time=at_least).median)


def flops_of(action: Callable[[], object]) -> float:
    """FLOP of the matrix products that `action` runs."""
    counter: Any = FlopCounterMode(display=False)
    with counter:
        action()
    return float(counter.get_total_flops())


def precision_of(device: torch.device) -> torch.dtype:
    """Type that towers and prompts run in by default."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def ceilings(device: torch.device) -> Ceilings:
    """Measure matrix products and copies."""
    dtype = precision_of(device)
    side = _SIDE.get(device.type, 2048)
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    source = torch.zeros(_COPIED, dtype=torch.uint8)
    target = torch.ones_like(source)
    upload = None
    if device.type == "cuda":
        pinned, there = source.pin_memory(), torch.empty_like(source, device=device)
        upload = _COPIED / seconds(lambda: there.copy_(pinned, non_blocking=True))
    return Ceilings(
        precision=str(dtype).removeprefix("torch."),
        flops=2 * side**3 / seconds(lambda: matrix @ matrix),
        copy_bytes=_COPIED / seconds(lambda: target.copy_(source)),
        upload_bytes=upload,
    )


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"cpu, {model}"
