"""What a run costs: seconds of both stages, parameters, memory, arithmetic (Tables 1 and 3)."""

import ctypes
import resource
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from bieff.features.store import FeatureStore
from bieff.train.flops import Sizes, batch_flops, prompt_rows, text_rows
from bieff.train.step import Trainer, cut


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


def step_cost(trainer: Trainer, patches: tuple[int, int] | None) -> dict[str, Any]:
    """Rows of the text tower and FLOPs of the first batch, a video of it.

    Other batches hold some more or fewer categories.  With several processes, of all together.

    Args:
        trainer: Before its first step.
        patches: Number and width of the store's patch tokens.
    """
    config, text = trainer.config, trainer.text
    labels = trainer.batches.draw(0).labels
    sizes = Sizes(
        videos=len(labels),
        frames=trainer.num_frames,
        dim=text.dim,
        text_width=text.width,
        text_layers=len(text.blocks),
        text_positions=text.names.context_length,
        patches=patches if config.prompts_see == "patches" else None,
    )
    given = trainer.model.hand_crafted
    num_context, num_video_rows = prompt_rows(
        config, sizes.context, hand_crafted=0 if given is None else len(given)
    )
    tree = text.prompt_tree(num_context, num_video_rows, categories=labels.unique())
    parts = [part.stop - part.start for part in cut(sizes.videos, config.accumulate)]
    flops = batch_flops(config, sizes, tree, parts)
    a_video = {
        f"{name}_{way}": getattr(part, way) / sizes.videos
        for way in ("forward", "backward")
        for name, part in flops.items()
    }
    return {
        "videos": sizes.videos,
        "categories": len(tree.words),
        "text_rows": text_rows(tree, sizes.videos),
        "flops_a_video": {**a_video, "total": sum(a_video.values())},
    }


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
