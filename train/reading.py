"""Reading a loss off the device without making it wait."""

import torch
from torch import Tensor


class LossReading:
    """The loss of a step, on its way to the host while the next step is computed."""

    def __init__(self, step: int, loss: Tensor) -> None:
        """Start the copy."""
        self.step = step
        self._loss, self._copied = loss, None
        if loss.device.type == "cuda":
            self._loss = torch.empty((), dtype=loss.dtype, pin_memory=True)
            self._loss.copy_(loss, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def value(self) -> float:
        """The loss; waits for it if need be."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._loss.item()

    @staticmethod
    def late(device: torch.device) -> int:
        """How many readings may be left for later: none where nothing runs ahead."""
        return 2 if device.type == "cuda" else 0
