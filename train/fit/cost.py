"""What a run costs: seconds of both stages, parameters, memory, arithmetic (Tables 1 and 3)."""

import ctypes
import resource
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bieff.features.store import FeatureStore
from bieff.train.config import TrainConfig
from bieff.train.fit.step import Trainer, cut
from bieff.train.method.pre_prompt import prompt_rows
from bieff.train.text.tree import Tree


@dataclass(frozen=True, slots=True)
class Flops:
    """Of one pass forward, and of the pass back."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def times(self, count: int) -> "Flops":
        """The same so many times."""
        return Flops(count * self.forward, count * self.backward)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What the products of a batch depend on, beside the settings."""

    videos: int
    """B."""

    frames: int
    """T."""

    dim: int
    """D."""

    text_width: int
    """W."""

    text_layers: int
    text_positions: int
    """Of a whole prompt with its padding, 77."""

    patches: tuple[int, int] | None
    """Number and width, where the prompts see them."""

    @property
    def context(self) -> int:
        """C."""
        return self.frames if self.patches is None else self.patches[0]


def linear(rows: int, inputs: int, outputs: int, gradients: int) -> Flops:
    """A product with a matrix; of how many of its two operands the gradient is taken."""
    once = 2 * rows * inputs * outputs
    return Flops(once, gradients * once)


def attention(rows: int, keys: int, width: int, *, has_gradient: bool = True) -> Flops:
    """Similarities and mixture of all heads; masked places are multiplied too."""
    return linear(rows, keys, width, 2 * has_gradient).times(2)


def text_rows(tree: Tree, videos: int) -> int:
    """Rows the text tower computes for a batch: the prefix, and those of each video."""
    return tree.num_prefix + (videos if tree.num_video_rows else 1) * tree.num_rows


def text_flops(config: TrainConfig, sizes: Sizes, tree: Tree) -> Flops:
    """The frozen text tower over the tree, and the words of the picked categories."""
    width, prefix = sizes.text_width, tree.num_prefix
    rows, passes = text_rows(tree, sizes.videos), int(_has_text(config))
    total = linear(rows, width, 2 * width, passes)  # keys and values of the last layer
    for index in range(sizes.text_layers - 1):
        if index == 0:
            total += _first_projection(config, sizes, tree)
        else:
            total += linear(rows, width, 3 * width, passes)
        total += attention(prefix, prefix, width, has_gradient=bool(passes))
        total += _in_groups(config, sizes, tree)
        total += linear(rows, width, 9 * width, passes)  # out, and 4 W twice
    copies = sizes.videos if tree.num_video_rows else 1
    ends = _in_groups(config, sizes, tree, ends_only=True)
    total += _last_layer(copies * _num_names(tree), ends, sizes, passes)
    if config.word_guided:
        total += _words(config, sizes, tree)
        if config.word_source == "words":  # all rows are finished, without a gradient
            whole = _in_groups(config, sizes, tree)
            finished = _last_layer(copies * tree.num_rows, whole, sizes, passes)
            similarity = linear(sizes.videos * tree.num_rows, sizes.dim, 1, 0)
            total += Flops(finished.forward) + similarity
    return total


def _first_projection(config: TrainConfig, sizes: Sizes, tree: Tree) -> Flops:
    """Queries, keys and values of the first layer; a name's are the same for all videos."""
    width, passes = sizes.text_width, int(_has_text(config))
    videos = sizes.videos if tree.num_video_rows else 1
    is_stored = config.design == "a1" and _sees_stored(config) and sizes.dim == width
    # the prefix of design A2 is SOT alone
    total = linear(tree.num_prefix, width, 3 * width, 0 if config.design == "a2" else passes)
    own = linear(videos * tree.num_video_rows, width, 3 * width, 0 if is_stored else passes)
    return total + own + linear(len(tree.tokens), width, 3 * width, 0)


def _words(config: TrainConfig, sizes: Sizes, tree: Tree) -> Flops:
    """The words of Eq. 8: the last layer of a name's rows, or all layers of a whole prompt."""
    width, has_gradient = sizes.text_width, _has_text(config)
    words = _num_words(config, sizes, tree)
    if config.word_rows == "name":
        keys = tree.num_prefix + tree.num_video_rows + words
        attended = attention(words, keys, width, has_gradient=has_gradient).times(sizes.videos)
        return _last_layer(sizes.videos * words, attended, sizes, int(has_gradient))
    rows = sizes.videos * words
    layer = linear(rows, width, 12 * width, int(has_gradient))
    layer += attention(words, words, width, has_gradient=has_gradient).times(sizes.videos)
    return layer.times(sizes.text_layers) + linear(rows, width, sizes.dim, int(has_gradient))


def _num_words(config: TrainConfig, sizes: Sizes, tree: Tree) -> int:
    return tree.words.shape[1] if config.word_rows == "name" else sizes.text_positions


def _in_groups(
    config: TrainConfig, sizes: Sizes, tree: Tree, *, ends_only: bool = False
) -> Flops:
    """Attention of the names' and videos' rows in one layer, or of the EOT rows alone."""
    total = Flops()
    for group in tree.groups:
        video_keys = tree.num_video_rows if group.start else 0  # the first group holds them
        total += attention(
            group.num_names if ends_only else group.num_rows,
            tree.num_prefix + video_keys + group.num_rows,
            sizes.text_width,
            has_gradient=_has_text(config),
        )
    return total.times(sizes.videos if tree.num_video_rows else 1)


def _last_layer(rows: int, attended: Flops, sizes: Sizes, passes: int) -> Flops:
    """What is left of the last layer for some rows: queries, out, 4 W twice, projection."""
    width = sizes.text_width
    return attended + linear(rows, width, 10 * width + sizes.dim, passes)


def _num_names(tree: Tree) -> int:
    return sum(group.num_names for group in tree.groups)


def head_flops(config: TrainConfig, sizes: Sizes, tree: Tree) -> Flops:
    """The tunable parts and the cosines: all that is not the text tower."""
    videos, frames, dim = sizes.videos, sizes.frames, sizes.dim
    total = Flops()
    if config.temporal_layers:
        rows = videos * frames
        per_layer = linear(rows, dim, 12 * dim, 2)
        per_layer += attention(frames, frames, dim).times(videos)
        total += per_layer.times(config.temporal_layers)
    looks = config.prompt == "pre-prompt" or config.post_prompt
    if sizes.patches is not None and looks:
        total += linear(videos * sizes.patches[0], sizes.patches[1], dim, 2)
    if config.prompt == "pre-prompt":
        total += _pre_prompt(config, sizes)
    if config.post_prompt:
        each = videos * _num_names(tree)
        total += _cross(each if tree.num_video_rows else _num_names(tree), each, sizes)
        total += _cross(each, each, sizes).times(config.post_layers - 1)
    return total + _comparisons(config, sizes, tree)


def _comparisons(config: TrainConfig, sizes: Sizes, tree: Tree) -> Flops:
    """Cosines of Eq. 8 and 10, the pick, and the weighted mean of Eq. 9."""
    videos, dim = sizes.videos, sizes.dim
    names = _num_names(tree)
    has_frames = config.temporal_layers > 0
    has_text = _has_text(config)
    has_video = has_frames or (config.word_guided and (config.mean_pool or has_text))
    has_classes = has_text or config.post_prompt
    total = linear(videos * names, dim, 1, has_video + has_classes)
    if config.word_guided:
        words = _num_words(config, sizes, tree)
        has_words = has_text or config.word_norms
        total += linear(videos * sizes.frames * words, dim, 1, has_frames + has_words)
        has_weights = has_frames or has_words
        total += linear(videos * sizes.frames, dim, 1, has_frames + has_weights)
        if config.word_source == "classes":
            total += linear(videos * names, dim, 1, 0)
    return total


def _pre_prompt(config: TrainConfig, sizes: Sizes) -> Flops:
    videos, dim, width = sizes.videos, sizes.dim, sizes.text_width
    narrow = max(1, dim // 4)

    def to_text(rows: int, gradients: int = 2) -> Flops:
        return Flops() if dim == width else linear(rows, dim, width, gradients)

    if config.design == "a1":
        return to_text(videos * sizes.context, 1 if _sees_stored(config) else 2)
    if config.design == "a2":
        rows = config.num_context
        return _cross(rows, videos * rows, sizes) + to_text(videos * rows)
    is_bare = config.meta_attention == "bare"
    total = _cross(1, videos, sizes, is_bare=is_bare)
    if config.design == "a3":
        return total + to_text(videos)
    if config.adapter == "residual":
        return total + linear(videos, dim, 2 * narrow, 2) + to_text(videos)
    return total + linear(videos, narrow, dim + width, 2)


def _cross(queries: int, rows: int, sizes: Sizes, *, is_bare: bool = False) -> Flops:
    """A block of cross-attention to the visual context.

    Args:
        queries: Rows that ask; some serve all videos.
        rows: Rows that come out, of all videos.
        sizes: Of the batch.
        is_bare: Whether the output projection is left out.
    """
    dim = sizes.dim
    total = linear(queries, dim, dim, 2)
    total += linear(sizes.videos * sizes.context, dim, 2 * dim, 2)
    total += attention(rows, sizes.context, dim)
    return total + linear(rows, dim, (8 if is_bare else 9) * dim, 2)


def _has_text(config: TrainConfig) -> bool:
    """Whether a gradient passes through the text tower."""
    return config.prompt in ("learnable", "pre-prompt")


def _sees_stored(config: TrainConfig) -> bool:
    """Whether the prompts see what the store holds, which needs no gradient."""
    return config.prompts_see == "frames" or (
        config.prompts_see == "temporal" and not config.temporal_layers
    )


def batch_flops(
    config: TrainConfig, sizes: Sizes, tree: Tree, parts: Sequence[int]
) -> dict[str, Flops]:
    """Of a whole batch, text tower and heads.

    Args:
        config: Settings.
        sizes: Of the batch.
        tree: Of its categories.
        parts: Videos in each of the parts that the batch is computed in; with several, each
            is computed forward twice.
    """
    total = {"text": Flops(), "heads": Flops()}
    for part in parts:
        some = replace(sizes, videos=part)
        for name, count in (("text", text_flops), ("heads", head_flops)):
            flops = count(config, some, tree)
            again = flops.forward if len(parts) > 1 else 0
            total[name] += Flops(flops.forward + again, flops.backward)
    return total


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
