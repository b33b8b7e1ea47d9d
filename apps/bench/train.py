"""Stage two, measured on a store of random features: reading, steps, evaluation, text.

B videos, k names, M context tokens, Q rows of a video, W width of the tower, D joint width.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bieff.apps.bench.timing import flops_of, precision_of, seconds
from bieff.clip import Clip
from bieff.extract.datasets.official import class_names
from bieff.features.schema import PartitionPlan, ShardData, Status, Video
from bieff.features.store import FeatureStore, Partition
from bieff.train.config import TrainConfig
from bieff.train.fit.step import Trainer
from bieff.train.text.tower import TextTower

FRAMES = (8, 16, 32)
"""Those of the paper."""

STORED, VIEWS, VIDEOS = 32, 2, 512
NAMED = ("k400", "ucf101", "hmdb51")
EVALUATED = {"cuda": 32, "cpu": 1}
"""Videos at a time; `bieff eval` takes up to 32, which changes memory more than speed."""

WHOLE = {"cuda": (8, 32), "cpu": (1, 16)}
"""Videos and names whose prompts are encoded whole; the time is linear in their product."""

_BATCHES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreRate:
    """Random batches of videos a second, each of `row_bytes`."""

    videos: float
    memmap: float
    """The same rows out of one plain file."""

    row_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCost:
    """Cost of a training step."""

    frames: int
    videos: int
    seconds: float
    flops: float
    """FLOP of its matrix products, forward and backward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalCost:
    """Cost of one view of one video, compared with all classes of a data set."""

    data_set: str
    names: int
    seconds: float
    flops: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TextCost:
    """Cost of the prompts of one batch, forward and backward."""

    videos: int
    names: int
    tree: float
    """Seconds."""

    whole: float
    """Seconds with every prompt encoded whole, from fewer prompts, multiplied."""

    flops: float
    """FLOP of the tree's matrix products."""


def make_store(folder: Path, clip: Clip) -> FeatureStore:
    """A finished store of random features under the class names of Kinetics-400."""
    names = [readable for _, readable in class_names("k400")]
    draw = np.random.default_rng(0)
    labels = draw.integers(len(names), size=VIDEOS).tolist()
    videos = [
        Video(id=str(row), path=f"{row}.mp4", label=label) for row, label in enumerate(labels)
    ]
    store = FeatureStore.create(
        folder / "store",
        recipe={"data_set": "bench", "frames": STORED, "dim": clip.dim, "patches": None},
        class_names=names,
        partitions={"train": PartitionPlan(videos=videos, num_views=VIEWS)},
        versions={},
    )
    partition = store.partitions["train"]
    for shard in range(partition.num_shards):
        shape = (len(partition.geometry.rows(shard)), VIEWS, STORED)
        data = ShardData(
            draw.standard_normal((*shape, clip.dim), dtype=np.float32).astype(np.float16),
            np.zeros(shape, np.int32),
            np.full(shape[0], int(Status.OK), np.uint8),
        )
        partition.write_shard(shard, data, errors=[], seconds={})
    return store


def measure_store(partition: Partition, folder: Path, *, batch_size: int) -> StoreRate:
    """Random batches by way of the store, and by way of `np.memmap` of the same bytes."""
    rows = np.arange(partition.num_videos)
    plain = folder / "plain"
    partition.read(rows).tofile(plain)
    shape = (len(rows), partition.num_views, partition.num_frames, partition.dim)
    mapped = np.memmap(plain, np.float16, mode="r", shape=shape)
    draw = np.random.default_rng(1)
    batches = [draw.integers(0, len(rows), batch_size) for _ in range(_BATCHES)]

    def rate(read: Callable[[Any], object]) -> float:
        taken = seconds(lambda: [read(batch) for batch in batches], at_least=0.5)
        return _BATCHES * batch_size / taken

    return StoreRate(
        videos=rate(partition.read),
        memmap=rate(mapped.__getitem__),
        row_bytes=2 * int(np.prod(shape[1:])),
    )


def measure_steps(few: Trainer, many: Trainer) -> list[StepCost]:
    """Whole steps, as a run takes them, the batch drawn and brought included.

    Two numbers of frames in turns, the quicker of two rounds; what is between them is
    interpolated, as the matrix products grow with the frames by a constant.
    """
    steps = [stepping(few), stepping(many)]
    measured = [few.num_frames, many.num_frames]
    flops = np.interp(FRAMES, measured, [flops_of(step) for step in steps])  # also warms up
    rounds = [[seconds(step) for step in steps] for _ in range(2)]
    taken = np.interp(FRAMES, measured, np.min(rounds, axis=0))
    videos = min(few.config.batch_size, len(few.features))
    return [
        StepCost(frames=frames, videos=videos, seconds=float(times), flops=float(count))
        for frames, times, count in zip(FRAMES, taken, flops, strict=True)
    ]


def stepping(trainer: Trainer) -> Callable[[], object]:
    """One step after the other, from the first again after the last."""
    numbers = itertools.cycle(range(trainer.num_steps))
    return lambda: trainer.step(next(numbers))


def measure_evaluation(
    trainer: Trainer, clip: Clip, named: Sequence[str] = NAMED
) -> list[EvalCost]:
    """Views of videos beside all class names of each data set."""
    model = trainer.model.eval()
    count = EVALUATED.get(trainer.device.type, 1)
    frames = torch.randn(count, trainer.num_frames, clip.dim, device=trainer.device)
    found = []
    for name in named:
        names = [readable for _, readable in class_names(name)]
        text = TextTower(clip.model, clip.tokenize(names)).to(trainer.device)
        # with a graph, which the counter wants
        flops = flops_of(partial(model, frames[:1], text))
        with torch.no_grad():
            taken = seconds(partial(model, frames, text)) / count
        found.append(EvalCost(data_set=name, names=len(names), seconds=taken, flops=flops))
    model.train()
    return found


def measure_text(
    clip: nn.Module, tokens: Int[Tensor, "k length"], *, batch_size: int, device: torch.device
) -> TextCost:
    """Encode the prompts of a batch as a tree, and whole, as the authors' code does."""
    tower = TextTower(clip, tokens).to(device)
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        rows = 0.02 * torch.randn(*shape, tower.width, generator=generator)
        return rows.to(device).requires_grad_()

    context, video = leaf(TrainConfig().num_context), leaf(batch_size, 1)

    def learn(encode: Callable[[], Tensor]) -> None:
        dtype = precision_of(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            classes = encode()
        classes.float().sum().backward()

    def tree() -> None:
        learn(lambda: tower(context, video).classes)

    most_videos, most_names = WHOLE.get(device.type, (1, 16))
    some, names = video[:most_videos], tokens[:most_names].to(device)

    def whole() -> None:
        learn(lambda: encode_in_full(clip, names, context, some, ends_only=True))

    share = batch_size * len(tokens) / (len(some) * len(names))
    return TextCost(
        videos=batch_size,
        names=len(tokens),
        tree=seconds(tree),
        whole=share * seconds(whole),
        flops=flops_of(tree),
    )


def encode_in_full(
    clip: nn.Module,
    tokens: Int[Tensor, "k length"],
    context: Float[Tensor, "M W"] | None,
    video: Float[Tensor, "B Q W"] | None,
    *,
    cut: int | None = None,
    ends_only: bool = False,
) -> Float[Tensor, "B k rows D"]:
    """Encode B x k whole prompts as the authors do, in the joint space.

    Args:
        clip: Any open_clip model with a causal text tower.
        tokens: The bare names with SOT and EOT.
        context: The same for all prompts, after SOT.
        video: Rows of each video, after the context.
        cut: Encode this many positions only; all 77 by default.
        ends_only: Project EOT rows only, as open_clip does, and return these alone.
    """
    tower: Any = getattr(clip, "text", clip)
    embedded = tower.token_embedding(tokens)[None]  # (1, k, length, W)
    num_videos = 1 if video is None else len(video)
    parts = [
        embedded[:, :, :1],
        *([] if context is None else [context[None, None]]),
        *([] if video is None else [video[:, None]]),
        embedded[:, :, 1:],
    ]
    prompts = torch.cat([part.expand(num_videos, len(tokens), -1, -1) for part in parts], dim=2)
    length = cut or tokens.shape[1]
    x = prompts[:, :, :length].flatten(0, 1) + tower.positional_embedding[:length]
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    x = tower.ln_final(x).unflatten(0, (num_videos, len(tokens)))
    if ends_only:
        ends = tokens.argmax(dim=1) + prompts.shape[2] - tokens.shape[1]
        x = x[:, torch.arange(len(tokens)), ends, None]
    projection = tower.text_projection
    if isinstance(projection, nn.Linear):
        x = projection(x)
    elif projection is not None:
        x = x @ projection
    encoded: Tensor = x
    return encoded
