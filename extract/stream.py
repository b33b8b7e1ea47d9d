"""Squares of a shard on their way through the tower, in full batches.

V views, T frames a view, n squares, D joint width, P patches of width U in the tower.
"""

from collections import deque

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from bieff.extract.tower import VisualTower
from bieff.features.schema import ShardData

_QUEUED_BATCHES = 2
"""Batches that a GPU may have in front of it; more would only fill memory."""


class SquareStream:
    """Takes videos in the order of rows, gives the rows back when all are encoded.

    The order of the squares decides which of them share a batch, and so the last bits of
    their embeddings; that a shard always starts a batch makes them the same in every run.
    """

    def __init__(self, tower: VisualTower, num_frames: int) -> None:
        self._tower = tower
        self._rows: list[int] = []
        self._waiting: deque[Tensor] = deque()
        self._num_waiting = 0
        self._embeddings: list[Tensor] = []
        self._means = ViewMeans(num_frames)
        self._queued: deque[torch.cuda.Event] = deque()

    def add(self, row: int, squares: UInt8[Tensor, "VT 3 size size"]) -> None:
        """Take the squares of a video's views; encode as many as fill batches."""
        self._rows.append(row)
        self._waiting.append(squares)
        self._num_waiting += len(squares)
        while self._num_waiting >= self._tower.batch_size:
            self._encode(self._tower.batch_size)

    def close(self) -> None:
        """Encode what is left, the batch padded."""
        if self._num_waiting:
            self._encode(self._num_waiting)

    def fill(self, data: ShardData) -> None:
        """Put everything into the rows it belongs to; waits for the device."""
        if not self._rows:
            return
        shape = (len(self._rows), *data.embeddings.shape[1:])
        data.embeddings[self._rows] = torch.cat(self._embeddings).cpu().numpy().reshape(shape)
        if data.patches is not None:
            shape = (len(self._rows), *data.patches.shape[1:])
            means = torch.stack(self._means.finished).cpu().numpy()
            data.patches[self._rows] = means.reshape(shape)

    def _encode(self, count: int) -> None:
        parts, missing = [], count
        while missing:
            part = self._waiting.popleft()
            parts.append(part[:missing])
            if len(part) > missing:
                self._waiting.appendleft(part[missing:])
            missing -= len(parts[-1])
        self._num_waiting -= count
        encoded = self._tower.encode(torch.cat(parts))
        self._embeddings.append(encoded.embeddings.half())
        if encoded.patches is not None:
            self._means.add(encoded.patches)
        if self._tower.device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._tower.device))
            self._queued.append(event)
            if len(self._queued) > _QUEUED_BATCHES:
                self._queued.popleft().synchronize()


class ViewMeans:
    """The mean over time of every view's patch tokens, from batches that cut across views.

    Sums in float32 as the tokens pass by, so that no more than a batch of them is ever held.
    """

    def __init__(self, num_frames: int) -> None:
        self._num_frames = num_frames
        self._sum: Tensor | None = None
        self._count = 0
        self.finished: list[Float[Tensor, "P U"]] = []
        """float16, view by view."""

    def add(self, tokens: Float[Tensor, "n P U"]) -> None:
        """The tokens of the next n squares."""
        while len(tokens):
            part = tokens[: self._num_frames - self._count]
            tokens = tokens[len(part) :]
            summed = part.float().sum(dim=0)
            self._sum = summed if self._sum is None else self._sum + summed
            self._count += len(part)
            if self._count == self._num_frames:
                self.finished.append((self._sum / self._num_frames).half())
                self._sum, self._count = None, 0
