"""Curves as drawings: everything in the units of an SVG, for the template to write down."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bieff.apps.report.files import Series

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 38
"""Margins."""

MOST_POINTS = 400
"""Points of a line; more are averaged in groups."""


CHARTS: Sequence[tuple[str, Mapping[str, str], bool]] = (
    ("Training loss", {"loss": "loss"}, True),
    ("Accuracy on val, percent", {"val_top1": "top-1", "val_top5": "top-5"}, False),
    ("Learning rate", {"lr": "learning rate"}, True),
    ("Learned weights alpha and beta", {"alpha": "alpha", "beta": "beta"}, False),
)
"""Title, number in metrics.jsonl -> its name in the chart, and whether the axis begins at 0."""


@dataclass(frozen=True, slots=True)
class Line:
    """A curve."""

    name: str
    points: str
    """Points as `polyline` takes them."""

    last: tuple[float, float]
    """Last of the points."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One drawing: title, curves and axes."""

    title: str
    summary: str
    """Words for a reader who cannot see it."""

    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def charts(curves: Mapping[str, Series]) -> list[Chart]:
    """Loss, accuracy, learning rate, alpha and beta: those that were written down."""
    # alpha and beta stand under the name of their module
    by_name = {**{key.rpartition(".")[2]: line for key, line in curves.items()}, **curves}
    drawn = []
    for title, names, from_zero in CHARTS:
        lines = {shown: by_name[name] for name, shown in names.items() if by_name.get(name)}
        if lines:
            drawn.append(_chart(title, lines, from_zero=from_zero))
    return drawn


def _chart(title: str, series: Mapping[str, Series], *, from_zero: bool) -> Chart:
    thinned = {name: _thinned(line) for name, line in series.items()}
    points = np.concatenate(list(thinned.values()))
    last_step, y_max = map(float, points.max(axis=0))
    x_ticks = nice_ticks(0.0, last_step, 5)
    y_ticks = nice_ticks(0.0 if from_zero else float(points[:, 1].min()), y_max, 5)
    x_high, y_low, y_high = max(last_step, 1.0), y_ticks[0], max(y_ticks[-1], y_max)

    def x_of(step: float) -> float:
        return LEFT + step / x_high * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        share = (value - y_low) / ((y_high - y_low) or 1.0)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    lines, said = [], []
    for name, line in thinned.items():
        places = [(x_of(step), y_of(value)) for step, value in line.tolist()]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        lines.append(Line(name, drawn, places[-1]))
        (_, first), (step, last) = series[name][0], series[name][-1]
        said.append(f"{name} from {first:.4g} to {last:.4g} at step {step:,.0f}")
    return Chart(
        title=title,
        summary="; ".join(said),
        lines=tuple(lines),
        x_ticks=tuple(Tick(x_of(x), f"{x:,.0f}") for x in x_ticks if x <= x_high),
        y_ticks=tuple(Tick(y_of(y), _short(y, y_ticks)) for y in y_ticks),
    )


def _thinned(line: Series) -> np.ndarray:
    points = np.array(line, dtype=np.float64)
    if len(points) <= MOST_POINTS:
        return points
    return np.stack([part.mean(axis=0) for part in np.array_split(points, MOST_POINTS)])


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from below `low` to above `high`."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _short(value: float, ticks: Sequence[float]) -> str:
    if value == 0:
        return "0"
    if max(map(abs, ticks)) < 1e-2:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.4g}"
