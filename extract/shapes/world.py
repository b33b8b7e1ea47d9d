"""The world of `shapes`: its nouns, its verbs, and which of their combinations are seen.

A class is a shape and a motion ("star moving left").  A single frame shows the shape and
only hints at the motion, so a model that looks at frames one by one cannot know left from
right; that is what stage two has to learn.

Letters: N scenes, F frames of a clip.  Lengths are in units of the frame's height, with the
origin in the middle of the frame, x to the right and y downwards; time runs from 0 to 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.random import Generator

SEEN_SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
UNSEEN_SHAPES = ("heart", "crescent", "flower")
SHAPES = SEEN_SHAPES + UNSEEN_SHAPES

MOTIONS = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "growing",
    "shrinking",
    "spinning",
    "blinking",
)

COLOURS = {
    "red": (220, 40, 40),
    "green": (50, 180, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 215, 50),
    "purple": (150, 60, 190),
    "orange": (240, 140, 30),
    "white": (245, 245, 245),
    "cyan": (60, 210, 220),
}

INVISIBLE = {("circle", "spinning"), ("ring", "spinning")}
"""Combinations that look the same as standing still; they are no class."""


def _unseen_combination(shape: str, motion: str) -> bool:
    """About a third of the seen shapes' combinations, spread over all shapes and motions."""
    return (SEEN_SHAPES.index(shape) + 2 * MOTIONS.index(motion)) % 6 in (0, 3)


def _classes(shapes: Sequence[str]) -> list[tuple[str, str]]:
    return [(s, m) for s in shapes for m in MOTIONS if (s, m) not in INVISIBLE]


SEEN = [pair for pair in _classes(SEEN_SHAPES) if not _unseen_combination(*pair)]
UNSEEN_COMBINATIONS = [pair for pair in _classes(SEEN_SHAPES) if _unseen_combination(*pair)]
UNSEEN = _classes(UNSEEN_SHAPES)


def class_name(shape: str, motion: str) -> str:
    """The name of a class, as the text tower reads it: "star moving left"."""
    return f"{shape} {motion}"


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """N scenes: what is drawn, and how it moves.  One array a property."""

    shape: Int[np.ndarray, " N"]
    """Index into SHAPES."""

    motion: Int[np.ndarray, " N"]
    """Index into MOTIONS."""

    colour: Int[np.ndarray, " N"]
    """Index into COLOURS."""

    shade: Float[np.ndarray, "N 3"]
    """The colour really used, 0 to 255."""

    centre: Float[np.ndarray, "N 2"]
    """Place of the shape in the middle of the clip (x, y)."""

    travel: Float[np.ndarray, "N 2"]
    """Way that it goes during the clip (x, y); zero unless it moves."""

    radius: Float[np.ndarray, " N"]
    """Radius in the middle of the clip."""

    growth: Float[np.ndarray, " N"]
    """Natural logarithm of the last radius over the first; zero unless it grows or shrinks."""

    angle: Float[np.ndarray, " N"]
    turn: Float[np.ndarray, " N"]
    """Radians at the start, and during the clip."""

    blinks: Float[np.ndarray, " N"]
    """Times it goes dark during the clip; zero unless it blinks."""

    background: Float[np.ndarray, "N 2 3"]
    """Two colours; the background fades from one to the other."""

    slope: Float[np.ndarray, " N"]
    """Direction of that fade, radians."""

    noise: Float[np.ndarray, " N"]
    """Standard deviation of the pixel noise, 0 to 255."""


def draw_scenes(rng: Generator, shapes: Sequence[str], motions: Sequence[str]) -> Scenes:
    """Draw one scene for each pair of shape and motion; the generator decides all the rest."""
    n = len(shapes)
    shape = np.array([SHAPES.index(s) for s in shapes])
    motion = np.array([MOTIONS.index(m) for m in motions])

    def where(*names: str) -> np.ndarray:
        return np.isin(motion, [MOTIONS.index(name) for name in names]).astype(float)

    across = where("moving right") - where("moving left")
    downwards = where("moving down") - where("moving up")
    moves = np.abs(across) + np.abs(downwards)
    grows = where("growing") - where("shrinking")

    direction = np.stack([across, downwards], axis=1)
    along = np.abs(direction)
    wander = rng.uniform(-1, 1, (n, 2))
    # a mover passes near the middle; the others stand anywhere
    reach = np.where(moves[:, None] > 0, 0.04 * along + 0.2 * (1 - along), 0.2)

    colour = rng.integers(len(COLOURS), size=n)
    palette = np.array(list(COLOURS.values()), dtype=float)
    dark_or_light = rng.integers(2, size=(n, 1, 1))
    is_bright = palette[colour].mean(1)[:, None, None] > 170
    base = np.where(is_bright, 40, np.where(dark_or_light == 1, 200, 30))
    return Scenes(
        shape=shape,
        motion=motion,
        colour=colour,
        shade=np.clip(palette[colour] + rng.normal(0, 12, (n, 3)), 0, 255),
        centre=wander * reach,
        travel=direction * rng.uniform(0.4, 0.6, (n, 1)),
        radius=rng.uniform(0.12, 0.2, n),
        growth=grows * rng.uniform(0.7, 1.1, n),
        angle=rng.normal(0, 0.06, n) + where("spinning") * rng.uniform(0, 2 * np.pi, n),
        turn=where("spinning") * rng.uniform(1.5, 3.5, n) * rng.choice([-1, 1], n),
        blinks=where("blinking") * rng.uniform(1.6, 3.2, n),
        background=np.clip(base + rng.normal(0, 25, (n, 2, 3)), 0, 255),
        slope=rng.uniform(0, 2 * np.pi, n),
        noise=rng.uniform(1, 8, n),
    )
