"""Settings of stage one: one immutable value."""

from dataclasses import dataclass
from typing import Literal

from bieff.features.errors import ConfigError

LONGEST = 86_400
"""Seconds of the longest deadline: a hung decoder is killed within a day."""


MOST = {
    **{"frames": 1024, "clips": 100, "train_views": 100},
    **{"batch_size": 2**16, "decoders": 1024},
}
"""Largest values; what is larger is a slip, and would only fill the memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractConfig:
    """Settings of an extraction; evaluation views are the paper's (Sec. 4.1).

    Raises:
        ConfigError: If a setting is out of range.
    """

    frames: int = 32
    """T, frames a view; a store of 32 also serves 16 and 8."""

    train_views: int = 1
    """Random views (crop, mirror, jitter) of a training video, beside its centre grid."""

    clips: int = 3
    """Temporal clips of an evaluation video."""

    crops: int = 1
    """Spatial crops of each clip: 1 (centre) or 3 (left, centre, right)."""

    context: Literal["none", "patches"] = "none"
    """"patches": the time-mean of the patch tokens is stored too."""

    limit: int | None = None
    """Only the first videos of each partition, so many; none: all."""

    batch_size: int | None = None
    """Crops a batch of the visual tower; none: 512 on a GPU, 64 on a CPU."""

    decoders: int | None = None
    """Decoding processes; none: one a core."""

    deadline: float = 60.0
    """Seconds a video may take to decode, beside a twentieth of one for each of its frames."""

    mixed_decoders: bool = False
    """Go on with shards that other versions of av, decord or FFmpeg have decoded."""

    def __post_init__(self) -> None:
        for name in ("frames", "clips", "limit", "batch_size", "decoders"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        for name, most in MOST.items():
            if (getattr(self, name) or 0) > most:
                raise ConfigError(f"{name} must be at most {most}, got {getattr(self, name)}")
        if self.train_views < 0:
            raise ConfigError(f"train_views must not be negative, got {self.train_views}")
        if self.crops not in (1, 3):
            raise ConfigError(f"crops must be 1 or 3, got {self.crops}")
        if self.context not in ("none", "patches"):
            raise ConfigError(f"context must be 'none' or 'patches', got {self.context!r}")
        if not 0 < self.deadline <= LONGEST:
            raise ConfigError(
                f"deadline must be positive and at most {LONGEST} seconds, got {self.deadline}"
            )
