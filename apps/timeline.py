"""A video along its time: the best class of each window and its score, with keyframes.

As a picture, drawn with Pillow, and for a page, ready for JSON.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bieff.apps.keyframes import GAP, INK, LINE, MARGIN, PAPER, QUIET, RULE, TILE, address, text
from bieff.apps.predictor import Prediction
from bieff.features.errors import BieffError

COLOURS = (
    "#1f6feb",
    "#d1570a",
    "#2b8a3e",
    "#8250df",
    "#b8860b",
    "#c2255c",
    "#0b7285",
    "#5f6b76",
)
"""Of the classes that lead most often; the last is for all others."""

NUM_TILES = 8
HEIGHT = 160
"""Of the bars' field, pixels."""

WIDTH = 2 * MARGIN + NUM_TILES * (TILE + GAP) - GAP


def light(found: Prediction) -> Prediction:
    """The prediction with one frame alone, the middle one: an hour has a thousand windows."""
    if found.pictures is None or found.frame_numbers is None:
        return found
    middle = slice(len(found.pictures) // 2, len(found.pictures) // 2 + 1)
    return replace(
        found,
        pictures=found.pictures[middle].copy(),
        frame_numbers=found.frame_numbers[middle],
        seconds=None if found.seconds is None else found.seconds[middle],
        highlights=None,
    )


def clock(seconds: float) -> str:
    """A time as h:mm:ss, with tenths where there are any."""
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    shown = f"{minutes // 60}:{minutes % 60:02d}:{rest // 10:02d}"
    return f"{shown}.{rest % 10}" if rest % 10 else shown


def leaders(windows: Sequence[Prediction]) -> list[str]:
    """The classes that are the best of some window, most often first."""
    return [name for name, _ in Counter(w.best for w in windows if w.best).most_common()]


def spread(windows: Sequence[Prediction], count: int) -> list[int]:
    """Places of so many windows with pictures, evenly spread."""
    usable = [k for k, window in enumerate(windows) if window.pictures is not None]
    chosen = np.linspace(0, len(usable) - 1, min(count, len(usable))).round().astype(int)
    return [usable[k] for k in chosen.tolist()]


def described(windows: Sequence[Prediction]) -> dict[str, Any]:
    """The mean scores and the windows of one video, ready for JSON.

    A window has its `start` and `end` in seconds and `when` in words, its best `label`, the
    `score` of that and its `colour`, and some have a `picture`.
    """
    pictures, order = set(spread(windows, NUM_TILES)), leaders(windows)
    usable = [window.scores for window in windows if window.scores is not None]
    mean = replace(windows[0], scores=np.mean(usable, axis=0) if usable else None)
    shown = []
    for place, window in enumerate(windows):
        start, end = _edges(window)
        entry: dict[str, Any] = {"start": start, "end": end, "when": clock(start)}
        if window.best is not None:
            ((label, score),) = window.ranking(1)
            entry |= {"label": label, "score": score, "colour": _colour(label, order)}
        if place in pictures and window.pictures is not None:
            entry["picture"] = address(window.pictures[0], TILE)
        shown.append(entry)
    return {"mean": mean.ranking(), "windows": shown}


def save(path: Path, videos: Sequence[Sequence[Prediction]]) -> None:
    """Draw the timelines of some videos, one under the other, into a PNG file.

    Raises:
        BieffError: If the file cannot be written.
    """
    images = [draw(windows) for windows in videos]
    whole = Image.new("RGB", (WIDTH, sum(image.height for image in images)), PAPER)
    top = 0
    for image in images:
        whole.paste(image, (0, top))
        top += image.height
    try:
        whole.save(path, format="PNG")
    except OSError as error:
        raise BieffError(
            f"cannot write {path}: {error.strerror or error}; name another file with "
            "--keyframes"
        ) from error


def draw(windows: Sequence[Prediction]) -> Image.Image:
    """The timeline of one video, of its windows by time; some have scores."""
    order = leaders(windows)
    named = order[: len(COLOURS)]
    room, axis = WIDTH - 2 * MARGIN, MARGIN + LINE + 8 + HEIGHT
    tiles = axis + LINE + len(named) * LINE + 12
    image = Image.new("RGB", (WIDTH, tiles + TILE + 2 * LINE + MARGIN), PAPER)
    pen = ImageDraw.Draw(image)
    text(pen, (MARGIN, MARGIN), "/".join(windows[0].video.parts[-2:]), size=20, room=room)
    total = max(_edges(window)[1] for window in windows)

    def place(seconds: float) -> int:
        return MARGIN + round(room * seconds / total)

    starts = [_edges(window)[0] for window in windows]
    for window, end in zip(windows, [*starts[1:], total], strict=True):
        if window.best is None:
            continue
        ((label, score),) = window.ranking(1)
        left, right = place(_edges(window)[0]), place(min(end, _edges(window)[1]))
        box = (left, axis - round(HEIGHT * score), max(left, right - 1), axis)
        pen.rectangle(box, fill=_colour(label, order))
    pen.line((MARGIN, axis, WIDTH - MARGIN, axis), fill=RULE, width=1)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        said, font = clock(round(share * total)), ImageFont.load_default(15)
        left = place(share * total) - round(share * pen.textlength(said, font))
        pen.text((left, axis + 4), said, fill=QUIET, font=font)
    for row, label in enumerate(named):
        y = axis + (row + 1) * LINE + 4
        pen.rectangle((MARGIN, y + 4, MARGIN + 14, y + 18), fill=_colour(label, order))
        led = sum(window.best == label for window in windows)
        is_rest = row == len(COLOURS) - 1 and len(order) > len(named)
        words = "other classes" if is_rest else f"{label}, best of {led} of {len(windows)}"
        text(pen, (MARGIN + 24, y), words, size=15, room=room - 24)
    for column, index in enumerate(spread(windows, NUM_TILES)):
        _tile(image, pen, MARGIN + column * (TILE + GAP), tiles, windows[index])
    return image


def _tile(
    image: Image.Image, pen: ImageDraw.ImageDraw, x: int, y: int, window: Prediction
) -> None:
    assert window.pictures is not None
    tile = Image.fromarray(window.pictures[0]).resize((TILE, TILE), Image.Resampling.LANCZOS)
    image.paste(tile, (x, y))
    ((label, score),) = window.ranking(1)
    text(pen, (x, y + TILE + 4), clock(_edges(window)[0]), size=15, room=TILE, colour=QUIET)
    said = f"{score:.0%} {label}"
    text(pen, (x, y + TILE + LINE), said, size=15, room=TILE, colour=INK)


def _edges(window: Prediction) -> tuple[float, float]:
    return window.window or (0.0, 1.0)


def _colour(label: str, order: Sequence[str]) -> str:
    return COLOURS[min(order.index(label), len(COLOURS) - 1)]
