"""Scenes to pixels, vectorised over scenes and frames.

A shape is a function of the plane that is negative inside, positive outside, and grows by
about one per unit; coverage is a ramp one pixel wide around its zero, which antialiases.
"""

import numpy as np
from jaxtyping import Float, UInt8
from numpy.random import Generator

from bieff.extract.shapes.world import SHAPES, Scenes

_Plane = Float[np.ndarray, "..."]


def render(
    scenes: Scenes,
    times: Float[np.ndarray, "N F"],
    *,
    height: int,
    width: int,
    rng: Generator,
) -> UInt8[np.ndarray, "N F H W 3"]:
    """Draw every scene at its times, RGB."""
    rows = (np.arange(height, dtype=np.float32) + 0.5) / height - 0.5
    columns = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / height
    y, x = rows[:, None], columns[None, :]

    t = times.astype(np.float32)[..., None, None]  # (N, F, 1, 1)

    def per_scene(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32)[:, None, None, None]

    along = t - 0.5
    radius = per_scene(scenes.radius) * np.exp(per_scene(scenes.growth) * along)
    angle = per_scene(scenes.angle) + per_scene(scenes.turn) * t
    dx = (x - per_scene(scenes.centre[:, 0]) - per_scene(scenes.travel[:, 0]) * along) / radius
    dy = (y - per_scene(scenes.centre[:, 1]) - per_scene(scenes.travel[:, 1]) * along) / radius
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = cos * dx + sin * dy, cos * dy - sin * dx

    distance = np.empty(u.shape, dtype=np.float32)
    for index, name in enumerate(SHAPES):
        chosen = scenes.shape == index
        if chosen.any():
            distance[chosen] = OUTLINES[name](u[chosen], v[chosen])
    coverage = np.clip(0.5 - distance * radius * height, 0, 1)
    coverage *= 0.5 + 0.5 * np.cos(2 * np.pi * per_scene(scenes.blinks) * t)

    fade = x * np.cos(per_scene(scenes.slope)) + y * np.sin(per_scene(scenes.slope)) + 0.5
    first, second = scenes.background.astype(np.float32).transpose(1, 0, 2)[
        :, :, None, None, None
    ]
    picture = first + np.clip(fade, 0, 1)[..., None] * (second - first)  # (N, 1, H, W, 3)
    shade = scenes.shade.astype(np.float32)[:, None, None, None]
    picture = picture + coverage[..., None] * (shade - picture)
    picture += per_scene(scenes.noise)[..., None] * rng.standard_normal(
        picture.shape, dtype=np.float32
    )
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _polygon(u: _Plane, v: _Plane, corners: int, inner: float) -> _Plane:
    """Regular polygon of `corners` corners at radius 1, edges at distance `inner`."""
    sector = 2 * np.pi / corners
    # one corner points up: edges' normals lie half a sector away from it
    theta = np.arctan2(u, -v)
    folded = np.mod(theta, sector) - sector / 2
    return np.hypot(u, v) * np.cos(folded) - inner


def _circle(u: _Plane, v: _Plane) -> _Plane:
    return np.hypot(u, v) - 0.9


def _ring(u: _Plane, v: _Plane) -> _Plane:
    return np.abs(np.hypot(u, v) - 0.75) - 0.22


def _square(u: _Plane, v: _Plane) -> _Plane:
    return np.maximum(np.abs(u), np.abs(v)) - 0.8


def _triangle(u: _Plane, v: _Plane) -> _Plane:
    return _polygon(u, v, 3, 0.55)


def _star(u: _Plane, v: _Plane) -> _Plane:
    """Five points at radius 1.1, five notches at 0.42: a fold makes it one straight edge."""
    theta = np.arctan2(u, -v)
    folded = np.abs(np.mod(theta + np.pi / 5, 2 * np.pi / 5) - np.pi / 5)
    r = np.hypot(u, v)
    px, py = r * np.cos(folded), r * np.sin(folded)
    notch = 0.42 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    edge = np.array([1.1, 0.0]) - notch
    normal = np.array([-edge[1], edge[0]], dtype=np.float32) / np.float32(np.hypot(*edge))
    return (px - np.float32(1.1)) * normal[0] + py * normal[1]


def _cross(u: _Plane, v: _Plane) -> _Plane:
    a, b = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(a - 0.28, b - 1.0), np.maximum(a - 1.0, b - 0.28))


def _heart(u: _Plane, v: _Plane) -> _Plane:
    """Two discs side by side above a square standing on its corner."""
    a = np.abs(u)
    discs = np.hypot(a - 0.45, v + 0.3) - 0.5
    corner = np.maximum((a + v) / np.sqrt(np.float32(2)) - 0.62, -0.3 - v)
    return np.minimum(discs, corner)


def _crescent(u: _Plane, v: _Plane) -> _Plane:
    return np.maximum(np.hypot(u, v) - 1.0, 0.85 - np.hypot(u - 0.5, v))


def _flower(u: _Plane, v: _Plane) -> _Plane:
    return (np.hypot(u, v) - 0.72 - 0.3 * np.cos(5 * np.arctan2(u, -v))) * 0.6


OUTLINES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "heart": _heart,
    "crescent": _crescent,
    "flower": _flower,
}
"""Signed distance of each shape in its own coordinates, radius about 1."""
