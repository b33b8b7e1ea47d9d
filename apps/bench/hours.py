"""Hours that the data sets would take on the machine that was measured, from its rates."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bieff.apps.bench.extract import DecodeCost, TowerRate
from bieff.apps.bench.train import EvalCost, StepCost
from bieff.extract.config import ExtractConfig
from bieff.train.config import TrainConfig

SIZES = {"k400": (19_906, 240_000), "ucf101": (13_320, 0), "hmdb51": (6_766, 0)}
"""Videos to be evaluated on, and to be trained on.

k400: the official validation list, and about what is left of the training list.
"""

EVALUATION_VIEWS = ExtractConfig().clips * ExtractConfig().crops
TRAINING_VIEWS = 1 + ExtractConfig().train_views


@dataclass(frozen=True, kw_only=True, slots=True)
class Hours:
    """Hours of one data set at one number of frames."""

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
        """Hours of all stages."""
        return self.extract + (self.train or 0.0) + self.evaluate


def hours(
    *,
    decode: Sequence[DecodeCost],
    tower: TowerRate,
    steps: Sequence[StepCost],
    evaluation: Sequence[EvalCost],
    overlaps: bool,
) -> list[Hours]:
    """Hours of every data set at every number of frames; decoders and tower may overlap."""
    config = TrainConfig()
    clips = {cost.kind: cost for cost in decode}
    views = {cost.data_set: cost.seconds for cost in evaluation}
    found = []
    for (name, (evaluated, trained)), step in itertools.product(SIZES.items(), steps):
        decoding = encoding = 0.0
        for num_views, videos in ((EVALUATION_VIEWS, evaluated), (TRAINING_VIEWS, trained)):
            images = num_views * step.frames
            decoding += videos * clips[name].seconds(images)
            encoding += videos * images * (1 / tower.tower + 1 / tower.cut)
        evaluating = evaluated * EVALUATION_VIEWS * views[name]
        stepping = config.epochs * (trained // step.videos) * step.seconds
        training = stepping + math.ceil(config.epochs / config.eval_every) * evaluating
        both = max(decoding, encoding) if overlaps else decoding + encoding
        found.append(
            Hours(
                data_set=name,
                frames=step.frames,
                decode=decoding / 3600,
                encode=encoding / 3600,
                extract=both / 3600,
                train=training / 3600 if trained else None,
                evaluate=evaluating / 3600,
            )
        )
    return found


def bottleneck(estimates: Sequence[Hours], shares: Mapping[str, float]) -> str:
    """The stage that takes most of Kinetics-400 at 32 frames, and the share of its ceiling."""
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
