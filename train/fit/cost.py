"""Cost of a run: seconds of both stages, parameters, memory, arithmetic (Tables 1 and 3)."""

import ctypes
import resource
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bieff.features.store import FeatureStore
from bieff.train.data import Batch
from bieff.train.fit.step import Trainer, cut
from bieff.train.text.tower import TextTower
from bieff.train.text.whole import WholeTower


def stage_one(store: FeatureStore) -> dict[str, dict[str, Any]]:
    """Videos of each partition, and the seconds of its finished shards, by what took them.

    Read from the ledger, so it is what the extraction of the store took on its machine.
    Seconds of several workers are added up; "total" is a shard from its beginning to its end.
    """
    cost: dict[str, dict[str, Any]] = {}
    for name, partition in store.partitions.items():
        seconds: Counter[str] = Counter()
        for shard in range(partition.num_shards):
            marker = partition.marker(shard)
            seconds.update({} if marker is None else marker.seconds)
        rounded = {what: round(value, 3) for what, value in seconds.items()}
        # where only some are trained on, all were extracted
        cost[name] = {"videos": partition.geometry.num_videos, "seconds": rounded}
    return cost


def step_cost(trainer: Trainer) -> dict[str, Any]:
    """Rows of the text tower and FLOPs of the first batch, a video of it.

    Other batches hold some more or fewer categories.  With several processes, of all together;
    parts that follow one another are computed forward twice.
    """
    index = trainer.batches.draw(0)
    count, categories = len(index.labels), index.labels.unique()
    some = index.pick(trainer.features, slice(0, 1)).to(trainer.device)
    shared, own = trainer.model.prompt_rows
    if isinstance(trainer.text, WholeTower):
        with torch.no_grad():  # prompts that are encoded once a run are no step's cost
            trainer.score(some, categories)
    one, two = (flops(trainer, some, n, categories) for n in (1, 2))
    parts = [part.stop - part.start for part in cut(count, trainer.config.accumulate)]
    # a video more costs the same again; what all videos share is computed once a part
    forward, backward = (
        sum(first + (size - 1) * (second - first) for size in parts)
        for first, second in zip(one, two, strict=True)
    )
    forward *= 2 if len(parts) > 1 else 1
    return {
        "videos": count,
        "categories": len(categories),
        "text_rows": trainer.text.num_rows(shared, own, count, categories),
        "flops_a_video": {
            "forward": forward / count,
            "backward": backward / count,
            "total": (forward + backward) / count,
        },
    }


def slow_text(trainer: Trainer) -> str | None:
    """What to know before training where every video has prompts of its own that share no rows.

    The seconds are those of a few prompts here, multiplied.
    """
    shared, own = trainer.model.prompt_rows
    if isinstance(trainer.text, TextTower) or not own:
        return None
    labels, width = trainer.batches.draw(0).labels, trainer.text.width
    names = labels.unique()
    few = names[:4]
    context = torch.zeros(shared, width, device=trainer.device)
    video = torch.zeros(1, own, width, device=trainer.device, requires_grad=True)
    for _ in range(2):  # the first time is slower
        begin = time.perf_counter()
        with FlopCounterMode(display=False) as counter:
            classes = trainer.text(context, video, categories=few).classes
            classes.sum().backward()
            assert video.grad is not None
            video.grad.sum().item()  # waits for the device
        taken = time.perf_counter() - begin
    times = len(labels) * len(names) / len(few)
    hours = times * taken * trainer.num_steps / trainer.group.size / 3600
    took = f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
    return (
        f"this CLIP's prompts share no rows: a step encodes {len(labels)} x {len(names)} whole "
        f"prompts, {times * counter.get_total_flops() / 1e12:,.2f} TFLOP, and all "
        f"{trainer.num_steps:,} steps take about {took} here; with prompt=learnable a "
        f"step encodes {len(names)}"
    )


def flops(
    trainer: Trainer, one: Batch, count: int, categories: Int[Tensor, " k"]
) -> tuple[int, int]:
    """FLOPs of a pass forward and back of a batch that has `one` video `count` times.

    As torch counts products; changes nothing.  Attention is counted in its plain form, whose
    products torch sees, masked places included.
    """
    batch = one.each(lambda part: part.expand(count, *part.shape[1:]))
    weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            logits = trainer.score(batch, categories).logits
        with FlopCounterMode(display=False) as backward:
            torch.autograd.grad(logits.sum(), weights, allow_unused=True)
    return forward.get_total_flops(), backward.get_total_flops()


def forget_peak(device: torch.device) -> None:
    """Begin `peak_memory` anew, so that what came before in this process does not count."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(AttributeError):  # what the C library keeps of freed memory; glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # elsewhere than on Linux there is no such file
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes at the worst moment: of the device's memory, or of the process on the CPU.

    The process with its libraries, the CLIP and the features.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    # also what a process was before it became this one: its parent's, once forked
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
