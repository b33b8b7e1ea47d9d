"""The batches of a run, each gathered while the step before it is computed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import torch

from bieff.train.data import Draw, Features
from bieff.train.residency import Picked

Gathered = tuple[Draw, Picked]
"""The whole batch's draw, and the rows that this process computes."""


class Batches(AbstractContextManager["Batches"]):
    """Batches by step.  Which they are does not depend on who gathers them, or when.

    Rows that lie where the model is are picked on the spot; others, in memory or on disk, by
    a thread that works one step ahead.

    Args:
        features: To pick from.
        draw: The draw of a step.
        part: Of each batch, what this process computes.
        last: The step after the last.
    """

    def __init__(
        self, features: Features, draw: Callable[[int], Draw], part: slice, *, last: int
    ) -> None:
        self.draw = draw
        self._features, self._part, self._last = features, part, last
        is_far = features.place == "disk" or features.device != _place(features)
        self._pool = ThreadPoolExecutor(1, "bieff-batches") if is_far else None
        self._next: tuple[int, Future[Gathered]] | None = None

    def at(self, step: int) -> Gathered:
        """The batch of a step, on the model's device, in float32."""
        if self._pool is None:
            draw, picked = self._gather(step)
            return draw, picked.to(self._features.device)
        if self._next is None or self._next[0] != step:
            self._next = (step, self._pool.submit(self._gather, step))
        draw, picked = self._next[1].result()
        self._next = None
        if step + 1 < self._last:
            self._next = (step + 1, self._pool.submit(self._gather, step + 1))
        return draw, picked.to(self._features.device)

    def __exit__(self, *exc_info: Any) -> None:
        """Leave no thread behind."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _gather(self, step: int) -> Gathered:
        draw = self.draw(step)
        return draw, draw.pick(self._features, self._part)


def _place(features: Features) -> torch.device:
    return features.device if features.place == "device" else torch.device("cpu")
