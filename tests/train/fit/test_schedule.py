import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from bieff.train.fit.step import lr_factor

WARMUP, TOTAL = 7, 53


def test_by_hand():
    factors = [lr_factor(s, warmup_steps=2, total_steps=6) for s in range(6)]
    half = 0.5**0.5
    want = [0.5, 1.0, 1.0, (1 + half) / 2, 0.5, (1 - half) / 2]
    assert factors == pytest.approx(want)


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch 2.6 warns of its own call
def test_it_is_torchs_linear_then_cosine():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    oracle = SequentialLR(
        optimizer,
        [
            LinearLR(optimizer, start_factor=1 / WARMUP, total_iters=WARMUP - 1),
            CosineAnnealingLR(optimizer, T_max=TOTAL - WARMUP),
        ],
        milestones=[WARMUP],
    )
    for step in range(TOTAL):
        want = optimizer.param_groups[0]["lr"]
        assert lr_factor(step, warmup_steps=WARMUP, total_steps=TOTAL) == pytest.approx(want)
        optimizer.step()
        oracle.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_it_rises_then_falls_and_never_reaches_zero():
    factors = [lr_factor(s, warmup_steps=WARMUP, total_steps=TOTAL) for s in range(TOTAL)]
    peak = factors.index(1.0)
    assert peak == WARMUP - 1
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert min(factors) > 0


def test_without_warmup_it_starts_at_the_full_rate():
    assert lr_factor(0, warmup_steps=0, total_steps=3) == 1.0


@pytest.mark.parametrize("step", [-1, 53])
def test_a_step_outside_the_run_is_refused(step):
    with pytest.raises(ValueError, match=rf"step must be in \[0, 53\), got {step}"):
        lr_factor(step, warmup_steps=WARMUP, total_steps=TOTAL)
