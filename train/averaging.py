"""The mean of the weights after each of the last epochs (stochastic weight averaging)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Keeps the mean beside the weights that are trained, which never see it.

    Every process of a run keeps the same one, as they all have the same weights.
    """

    def __init__(
        self, model: nn.Module, *, epochs: int, averaged: int, epoch_steps: int
    ) -> None:
        """Average after each of the last `averaged` of the epochs; 0: never."""
        self._model, self._epoch_steps = model, epoch_steps
        self._before = epochs - averaged
        self.weights: dict[str, Tensor] = {}
        """Empty until the first of these epochs is over."""

    @torch.no_grad()
    def add(self, steps: int) -> None:
        """Take the weights in, if so many steps end an epoch that counts."""
        epoch, rest = divmod(steps, self._epoch_steps)
        count = epoch - self._before
        if rest or count < 1:
            return
        for name, value in self._model.state_dict().items():
            if count == 1:
                self.weights[name] = value.clone()
            else:
                mean = self.weights[name].to(value.device)
                self.weights[name] = mean + (value - mean) / count

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the mean, if there is one, and its own weights afterwards."""
        if not self.weights:
            yield
            return
        own = {name: value.clone() for name, value in self._model.state_dict().items()}
        self._model.load_state_dict(self.weights)
        try:
            yield
        finally:
            self._model.load_state_dict(own)
