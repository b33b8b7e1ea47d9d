"""Stage two, measured on a store of random features: reading, training steps, evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bieff.apps.bench.clock import flops_of, seconds
from bieff.clip import Clip
from bieff.extract.datasets.official import class_names
from bieff.features.schema import PartitionPlan, ShardData, Status, Video
from bieff.features.store import FeatureStore, Partition
from bieff.train.config import TrainConfig
from bieff.train.fit.loop import prepare
from bieff.train.fit.step import Trainer
from bieff.train.text.tower import TextTower

FRAMES = (8, 16, 32)
"""Those of the paper."""

STORED, VIEWS, VIDEOS = 32, 2, 512
NAMED = ("k400", "ucf101", "hmdb51")
EVALUATED = {"cuda": 32, "cpu": 1}
"""Videos at a time; `bieff eval` takes up to 32, which changes memory more than speed."""

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
    """Of a training step."""

    frames: int
    videos: int
    seconds: float
    flops: float
    """Of its matrix products, forward and backward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalCost:
    """Of one view of one video, compared with all classes of a data set."""

    data_set: str
    names: int
    seconds: float
    flops: float


def make_store(folder: Path, clip: Clip) -> FeatureStore:
    """A finished store of random features under the class names of Kinetics-400."""
    names = [readable for _, readable in class_names("k400")]
    draw = np.random.default_rng(0)
    labels = draw.integers(len(names), size=VIDEOS)
    videos = [
        Video(id=str(row), path=f"{row}.mp4", label=int(label))
        for row, label in enumerate(labels)
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
    here = torch.device("cpu")

    def rate(read: object) -> float:
        assert callable(read)
        taken = seconds(lambda: [read(batch) for batch in batches], here, at_least=0.5)
        return _BATCHES * batch_size / taken

    return StoreRate(
        videos=rate(partition.read),
        memmap=rate(lambda batch: mapped[batch]),
        row_bytes=2 * int(np.prod(shape[1:])),
    )


def trainer_for(store: FeatureStore, clip: Clip, frames: int) -> Trainer:
    """What a run of the paper's recipe would train with."""
    return prepare(store, clip, TrainConfig(frames=frames))


def measure_steps(few: Trainer, many: Trainer) -> list[StepCost]:
    """Whole steps, as a run takes them, the batch drawn and brought included.

    Two numbers of frames in turns, the quicker of two rounds; what is between them is
    interpolated, as the matrix products grow with the frames by a constant.
    """
    ends = [_Stepper(trainer) for trainer in (few, many)]
    flops = [flops_of(end.step) for end in ends]  # also warms up
    rounds = [[seconds(end.step, few.device) for end in ends] for _ in range(2)]
    taken = [min(times) for times in zip(*rounds, strict=True)]

    def between(frames: int, values: Sequence[float]) -> float:
        share = (frames - few.num_frames) / (many.num_frames - few.num_frames)
        return values[0] + share * (values[1] - values[0])

    return [
        StepCost(
            frames=frames,
            videos=min(few.config.batch_size, len(few.features)),
            seconds=between(frames, taken),
            flops=between(frames, flops),
        )
        for frames in FRAMES
    ]


class _Stepper:
    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._taken = trainer, 0

    def step(self) -> None:
        self._trainer.step(self._taken)
        self._taken += 1


def measure_evaluation(trainer: Trainer, clip: Clip) -> list[EvalCost]:
    """Views of videos beside all class names of each data set."""
    model = trainer.model.eval()
    count = EVALUATED.get(trainer.device.type, 1)
    frames = torch.randn(count, trainer.num_frames, clip.dim, device=trainer.device)
    found = []
    for name in NAMED:
        names = [readable for _, readable in class_names(name)]
        text = TextTower(clip.model, clip.tokenize(names)).to(trainer.device)

        def score(text: TextTower = text) -> None:
            with torch.no_grad():
                model(frames, text)

        def score_one(text: TextTower = text) -> None:
            model(frames[:1], text)  # with a graph, which the counter wants

        taken = seconds(score, trainer.device)
        found.append(
            EvalCost(
                data_set=name,
                names=len(names),
                seconds=taken / count,
                flops=flops_of(score_one),
            )
        )
    model.train()
    return found


def first_names(trainer: Trainer, clip: Clip, names: Sequence[str]) -> Tensor:
    """Tokens of the categories of the first batch."""
    draw, _ = trainer.batches.at(0)
    return clip.tokenize([names[label] for label in draw.labels.unique().tolist()])
