"""The learning rate over time, a pure function of the step (paper Sec. 4.1)."""

import math


def lr_factor(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Fraction of the learning rate to use at `step`, in (0, 1].

    Rises linearly over the warm-up, whose last step has the full rate, then falls along half
    a cosine to zero, which the step after the last would reach.

    Args:
        step: 0 to total_steps - 1.
        warmup_steps: Steps of the warm-up; may be 0.
        total_steps: Steps of the whole run.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step must be in [0, {total_steps}), got {step}")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return (1 + math.cos(math.pi * progress)) / 2
