"""From rates to hours: what the data sets would take on the machine that was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bieff.apps.bench.extract import DecodeCost, TowerRate
from bieff.apps.bench.train import EvalCost, StepCost
from bieff.extract.config import ExtractConfig
from bieff.train.config import TrainConfig

PAPER_GPU_HOURS = 152
"""Of RTX 3090, Kinetics-400, 16 frames, the whole training (Table 3)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SetSize:
    """Videos of a data set; those to be evaluated on, and those to be trained on."""

    name: str
    evaluated: int
    trained: int = 0


SETS = (
    SetSize(name="k400", evaluated=19_906, trained=240_000),
    SetSize(name="ucf101", evaluated=13_320),
    SetSize(name="hmdb51", evaluated=6_766),
)
"""k400: the official validation list, and about what is left of the training list."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hours:
    """Of one data set at one number of frames."""

    data_set: str
    frames: int
    decode: float
    encode: float
    """Cutting and the visual tower."""

    extract: float
    """Both: at the same time where the tower has a device of its own, else in turns."""

    train: float | None
    """The paper's epochs with the evaluations in between; None where nothing is trained."""

    evaluate: float

    @property
    def total(self) -> float:
        """Of all stages."""
        return self.extract + (self.train or 0.0) + self.evaluate


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What the hours are made of."""

    decode: Sequence[DecodeCost]
    tower: TowerRate
    steps: Sequence[StepCost]
    evaluation: Sequence[EvalCost]
    overlaps: bool
    """Whether decoders and tower work at the same time."""


def hours(measured: Measured) -> list[Hours]:
    """Of every data set at every number of frames."""
    steps = {step.frames: step for step in measured.steps}
    return [_hours(size, step, measured) for size in SETS for step in steps.values()]


def _hours(size: SetSize, step: StepCost, measured: Measured) -> Hours:
    extraction, training = ExtractConfig(), TrainConfig()
    views = extraction.clips * extraction.crops
    groups = {views: size.evaluated, 1 + extraction.train_views: size.trained}
    decode = _cost_of(size.name, measured.decode)
    decoding, encoding = 0.0, 0.0
    for num_views, videos in groups.items():
        images = num_views * step.frames
        decoding += videos * decode.seconds(images)
        encoding += videos * images * (1 / measured.tower.tower + 1 / measured.tower.cut)
    a_view = {cost.data_set: cost.seconds for cost in measured.evaluation}[size.name]
    evaluation = size.evaluated * views * a_view
    return Hours(
        data_set=size.name,
        frames=step.frames,
        decode=decoding / 3600,
        encode=encoding / 3600,
        extract=(max if measured.overlaps else _sum)(decoding, encoding) / 3600,
        train=_training(size, step, evaluation, training) / 3600 if size.trained else None,
        evaluate=evaluation / 3600,
    )


def _training(size: SetSize, step: StepCost, evaluation: float, config: TrainConfig) -> float:
    steps = config.epochs * (size.trained // step.videos)
    evaluations = -(-config.epochs // config.eval_every) if config.eval_every else 0
    return steps * step.seconds + evaluations * evaluation


def bottleneck(estimates: Sequence[Hours], shares: Mapping[str, float]) -> str:
    """What takes most of Kinetics-400 at 32 frames, and how near its ceiling it is.

    Args:
        estimates: Of all data sets.
        shares: By part of the work, what it reaches of its ceiling, 0 to 1.
    """
    largest = next(e for e in estimates if (e.data_set, e.frames) == ("k400", 32))
    parts = {
        "decoding": largest.decode,
        "visual tower": largest.encode,
        "training step": largest.train or 0.0,
        "evaluation": largest.evaluate,
    }
    name = max(parts, key=lambda part: parts[part])
    return (
        f"{name}: {parts[name]:,.1f} of the {largest.total:,.1f} hours of k400 at 32 frames; "
        f"it reaches {shares[name]:.0%} of its ceiling"
    )


def _cost_of(name: str, costs: Sequence[DecodeCost]) -> DecodeCost:
    return next(cost for cost in costs if cost.kind == name)


def _sum(*values: float) -> float:
    return sum(values)
