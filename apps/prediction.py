"""What was found in one video.

T frames of the middle clip, K categories.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from bieff.apps.scorer import Highlights
from bieff.features.schema import Status


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """What was found in one video; without scores where it cannot be used."""

    video: Path
    labels: tuple[str, ...]
    status: Status
    message: str = ""
    """Why the video cannot be used, or what of it is damaged."""

    scores: Float64[np.ndarray, " K"] | None = None
    """Softmax scores by label, averaged over the clips; they sum to 1."""

    frame_numbers: Int64[np.ndarray, " T"] | None = None
    """Of the middle clip, whose frames can be shown."""

    seconds: Float64[np.ndarray, " T"] | None = None
    """When these frames are shown, from the first frame of the video."""

    highlights: Highlights | None = None
    """Which of these frames speak for which class."""

    pictures: UInt8[np.ndarray, "T size size 3"] | None = None
    """These frames as the tower saw them, RGB."""

    @property
    def best(self) -> str | None:
        """The label with the highest score."""
        return None if self.scores is None else self.labels[int(self.scores.argmax())]

    def ranking(self, count: int | None = None) -> list[tuple[str, float]]:
        """The best labels and their scores, best first; all of them by default."""
        if self.scores is None:
            return []
        order = np.argsort(-self.scores, kind="stable")[:count]
        return [(self.labels[i], float(self.scores[i])) for i in order.tolist()]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, ready for JSON."""
        frames: dict[str, Any] | None = None
        if self.frame_numbers is not None:
            frames = {"numbers": self.frame_numbers.tolist(), "seconds": None}
            if self.seconds is not None:
                frames["seconds"] = [round(second, 3) for second in self.seconds.tolist()]
            if (found := self.highlights) is not None:
                frames[found.kind] = found.values.tolist()
                frames["of"] = self.labels[found.category]
        return {
            "video": os.fspath(self.video),
            "status": self.status.name.lower(),
            "message": self.message,
            "best": self.best,
            "scores": dict(self.ranking()) or None,
            "frames": frames,
        }
