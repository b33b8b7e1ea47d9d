"""Frames that views show, and which part of each: sampling grids, crops, training views.

T frames a view, n frames in the video, V views.  A view says *what* is wanted; the frame
numbers follow from n and the crop from the frame's height and width, both by integer
arithmetic, so that every machine decodes the same frames:

    grid     clip k of c: frame floor(n * i / T) + start_k, i = 0..T-1.  The starts are those of
             the TSN family and of the authors, whole frames from `linspace(0, n / T - 1, c)`.
    random   one random frame in each of the T segments, a random-resized-crop and a flip,
             drawn from the video's id and the view's index alone.

Grids nest: with the same start, the grid of T = 8 is every 4th frame of the grid of T = 32, for
every n.  So one store of 32 frames serves 8 and 16 as well; `bieff.train` takes the stride.
What does not nest is where later clips start: the last clip of 32 frames at n / 32 - 1, that of
8 frames at n / 8 - 1.  The stride makes up for it with another phase, the last of each group of
frames for the last clip, and so comes within two frames of the last clip of 8.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from bieff.features.errors import ConfigError

CROPS = ("left", "centre", "right", "middle")

MIN_AREA = 0.4
"""Least share of the frame that a random view keeps.  The crops of the TSN family keep at least
0.44 of a square; the 0.08 usual for images often cuts the action out of the picture."""

RATIO = (3 / 4, 4 / 3)
"""Width over height of a random view, least and most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One way to look at a video: T frames and one crop, the same crop in every frame.

    A "grid" view is clip `clip` of `clips` (from 0) at crop `crop`; "left" and "right" are the
    squares at the two ends of the longer side, so top and bottom of an upright video, and
    "middle" is that between them.  "centre" is what CLIP's own preprocessing shows: the same
    square, or the whole frame where that is squashed or has bars.  A "random" view is the
    `index`-th (from 0), keeping at least the share `min_area` of the frame and mirrored half of
    the time unless `mirror` is off, as it must be where left and right are part of the class.
    """

    kind: str = "grid"
    clip: int = 0
    clips: int = 1
    crop: str = "centre"
    index: int = 0
    min_area: float = MIN_AREA
    mirror: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("grid", "random"):
            raise ConfigError(f"view: expected kind 'grid' or 'random', got {self.kind!r}")
        if not 0 <= self.clip < self.clips:
            raise ConfigError(f"view: expected 0 <= clip < {self.clips}, got {self.clip}")
        if self.crop not in CROPS:
            raise ConfigError(f"view: expected a crop of {', '.join(CROPS)}, got {self.crop!r}")
        if self.index < 0:
            raise ConfigError(f"view: expected index >= 0, got {self.index}")
        if not 0 < self.min_area <= 1:
            raise ConfigError(f"view: expected min_area in (0, 1], got {self.min_area}")

    def __str__(self) -> str:
        if self.kind == "random":
            return f"random {self.index}"
        return f"clip {self.clip + 1} of {self.clips}, {self.crop}"

    def to_json(self) -> dict[str, Any]:
        """The fields that decide the numbers, and no others, for a store's recipe."""
        random, grid = ("index", "min_area", "mirror"), ("clip", "clips", "crop")
        names = random if self.kind == "random" else grid
        return {"kind": self.kind} | {name: getattr(self, name) for name in names}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "View":
        """The view that `to_json` wrote.

        Raises:
            ConfigError: If a field is unknown or out of range.
        """
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            raise ConfigError(f"view: unknown field {sorted(unknown)[0]!r}")
        try:
            return cls(**values)
        except TypeError:
            raise ConfigError(f"view: expected words and numbers, got {values}") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """Pure geometry, in this order: cut `box`, resize it to `resized`, cut a square, mirror.

    All in whole pixels, top-left corner first.  A grid view takes the whole frame as its box
    and cuts the square out of the resized frame, as CLIP's own preprocessing does; a random
    view resizes its box straight to the square.  Where the square is larger than what was
    resized, bars stand beside it.
    """

    box: tuple[int, int, int, int]
    """Top, left, height, width in the source frame."""

    resized: tuple[int, int]
    """Height and width after resizing."""

    corner: tuple[int, int]
    """Top and left of the square in the resized box; not positive where there are bars."""

    size: int
    """Side of the square."""

    mirrored: bool = False
    """Left and right are swapped, last."""


def views_for(
    train_views: int, clips: int, crops: int, *, mirror: bool = True, is_square: bool = True
) -> tuple[list[View], list[View]]:
    """The views of a training and of an evaluation partition.

    Training: the first centre grid, then `train_views` random views.  Evaluation: `clips`
    temporal clips, each at `crops` crops, clip by clip.

    Args:
        train_views: Number of random views, 0 or more.
        clips: Number of temporal clips, 1 or more; the paper's 3.
        crops: 1 (centre) or 3 (left, centre, right), which are squares.
        mirror: Whether random views may be mirrored.
        is_square: Whether the centre view of this CLIP is a square of the frame.
    """
    where = (
        ("centre",) if crops == 1 else ("left", "centre" if is_square else "middle", "right")
    )
    drawn = [View(kind="random", index=i, mirror=mirror) for i in range(train_views)]
    return [View(), *drawn], [
        View(clip=k, clips=clips, crop=crop) for k in range(clips) for crop in where
    ]


def frame_numbers(
    view: View, num_frames: int, T: int, *, video_id: str = ""
) -> Int64[np.ndarray, " T"]:
    """Numbers of the frames that the view shows, from 0, never decreasing.

    A video shorter than T repeats frames.

    Args:
        view: Which view.
        num_frames: n, frames in the video, 1 or more.
        T: Frames in the view, 1 or more.
        video_id: Seeds a random view; a grid does not look at it.
    """
    if num_frames < 1 or T < 1:
        raise ValueError(f"expected num_frames >= 1 and T >= 1, got {num_frames} and {T}")
    grid = np.arange(T + 1, dtype=np.int64) * num_frames // T
    if view.kind == "grid":
        return grid[:T] + clip_start(view.clip, view.clips, num_frames, T)
    length = np.maximum(grid[1:] - grid[:-1], 1)  # a short video has empty segments
    draws = _draws(view, video_id, T + NUM_CROP_DRAWS)[NUM_CROP_DRAWS:]
    chosen = [draw * int(count) >> 64 for draw, count in zip(draws, length, strict=True)]
    return grid[:T] + np.array(chosen, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """The frames of one video that its views show, once its length is known.

    Lies here, and not beside the tower, because it travels to decoding processes, which do
    without torch.
    """

    views: tuple[View, ...]
    T: int
    video_id: str

    def __call__(self, num_frames: int) -> Int64[np.ndarray, "V T"]:
        """Frame numbers of every view of a video of `num_frames` frames.

        `np.unique(numbers, return_inverse=True)` gives the frames to decode and where each
        goes.
        """
        shown = [
            frame_numbers(view, num_frames, self.T, video_id=self.video_id)
            for view in self.views
        ]
        return np.stack(shown)


def clip_start(clip: int, clips: int, num_frames: int, T: int) -> int:
    """First frame of a temporal clip: `int(linspace(0, n / T - 1, clips)[clip])`, exactly.

    0 for a single clip, and for every clip of a video shorter than 2 T frames.
    """
    if clips == 1:
        return 0
    return max(num_frames - T, 0) * clip // (T * (clips - 1))


def crop_of(
    view: View,
    height: int,
    width: int,
    size: int,
    resize_mode: str = "shortest",
    *,
    video_id: str = "",
) -> Crop:
    """Square that the view cuts of a frame of height x width pixels, for size x size inputs.

    Grid views follow torchvision's Resize(size) and CenterCrop(size): the shorter side becomes
    `size`, the longer `int(size * longer / shorter)`, and the square starts at
    `int(round(margin / 2))`, with Python's rounding of halves to even.  A centre view is the
    whole frame where `resize_mode` is "squash" or "longest", as open_clip's transform has it.
    """
    if min(height, width, size) < 1:
        raise ValueError(f"expected positive sizes, got {height} x {width} and {size}")
    if view.kind == "random":
        box, mirrored = _random_box(view, height, width, video_id)
        return Crop(box=box, resized=(size, size), corner=(0, 0), size=size, mirrored=mirrored)
    if view.crop == "centre" and resize_mode != "shortest":
        whole = (size, size)
        if resize_mode == "longest":
            ratio = max(height, width) / size
            whole = (max(1, round(height / ratio)), max(1, round(width / ratio)))
        top, left = (-((size - side) // 2) for side in whole)
        return Crop(box=(0, 0, height, width), resized=whole, corner=(top, left), size=size)
    shorter = min(height, width)
    resized = (size * height // shorter, size * width // shorter)
    top, left = (_corner(view.crop, side - size) for side in resized)
    return Crop(box=(0, 0, height, width), resized=resized, corner=(top, left), size=size)


NUM_CROP_DRAWS = 1 + 4 * 10
"""Flip, then area, shape, top and left of ten tries at a box."""


def _draws(view: View, video_id: str, count: int) -> list[int]:
    """Uniform integers in [0, 2**64), from the video's id and the view's index alone.

    Straight from SHAKE-256, whose output no library version can change.
    """
    stream = hashlib.shake_256(f"bieff view {view.index} of {video_id}".encode())
    return [int(draw) for draw in np.frombuffer(stream.digest(8 * count), dtype="<u8")]


def _random_box(
    view: View, height: int, width: int, video_id: str
) -> tuple[tuple[int, int, int, int], bool]:
    """A box of random area and shape inside the frame, and whether to mirror it."""
    flip, *tries = _draws(view, video_id, NUM_CROP_DRAWS)
    mirrored = view.mirror and flip >> 63 == 1
    for k in range(0, len(tries), 4):
        area, shape, top, left = tries[k : k + 4]
        pixels = height * width * (view.min_area + (1 - view.min_area) * area / 2**64)
        ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** (shape / 2**64)
        box_height, box_width = round((pixels / ratio) ** 0.5), round((pixels * ratio) ** 0.5)
        if 1 <= box_height <= height and 1 <= box_width <= width:
            corner = (
                top * (height - box_height + 1) >> 64,
                left * (width - box_width + 1) >> 64,
            )
            return (*corner, box_height, box_width), mirrored
    # a very long frame: the largest box of an allowed shape, in the middle
    box_height = max(1, min(height, round(width / RATIO[0])))
    box_width = max(1, min(width, round(height * RATIO[1])))
    corner = ((height - box_height) // 2, (width - box_width) // 2)
    return (*corner, box_height, box_width), mirrored


def _corner(crop: str, margin: int) -> int:
    """Start of a square along a side that is `margin` longer; halves round to even."""
    if crop in ("centre", "middle"):
        return round(margin / 2)
    return 0 if crop == "left" else margin
