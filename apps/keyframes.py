"""Keyframes as a picture: the sampled frames with their times, and which of them counted.

Under each frame stands a bar: up where the frame weighs more than the others, down where it
weighs less, for S of Eq. 8 against equal weights 1/T.  Drawn with Pillow.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image, ImageDraw, ImageFont

from bieff.apps.predictor import Prediction
from bieff.apps.terminal import clean
from bieff.features.errors import BieffError

COLUMNS = 8
"""Frames in a row; a longer strip goes on in the next."""

TILE, GAP, MARGIN = 168, 10, 24
BAR, LINE, SPACE = 72, 26, 8
"""Height of the bars' field, of a line of text, and between two rows of frames; pixels."""

PAPER, INK, QUIET = "#ffffff", "#1a1a1a", "#5f6368"
MORE, LESS, RULE = "#1f6feb", "#b9bec5", "#9aa0a6"


@dataclass(frozen=True, slots=True, eq=False)
class Bars:
    """The bars' heights, and what they show."""

    heights: Float64[np.ndarray, " T"]
    """Heights from -1 to 1, the largest at one of the ends."""

    texts: tuple[str, ...]
    caption: str


def draw(predictions: Sequence[Prediction]) -> Image.Image:
    """The strips of one or several videos, one under the other; all with scores."""
    most = max((len(_numbers(p)) for p in predictions), default=1)
    width = 2 * MARGIN + min(COLUMNS, most) * (TILE + GAP) - GAP
    width = max(width, 2 * MARGIN + 4 * (TILE + GAP) - GAP)  # room for the words
    heights = [_height(p) for p in predictions]
    image = Image.new("RGB", (width, sum(heights)), PAPER)
    top = 0
    for prediction, height in zip(predictions, heights, strict=True):
        _draw_one(ImageDraw.Draw(image), image, prediction, top)
        top += height
    return image


def save(path: Path, predictions: Sequence[Prediction]) -> None:
    """Draw the strips into a PNG file.

    Raises:
        BieffError: If the file cannot be written.
    """
    try:
        draw(predictions).save(path, format="PNG")
    except OSError as error:
        raise BieffError(
            f"cannot write {path}: {error.strerror or error}; name another file with "
            "--keyframes"
        ) from error


def bars(prediction: Prediction) -> Bars | None:
    """The bars of a prediction's frames, and the sentence that explains them."""
    found = prediction.highlights
    if found is None:
        return None
    label = prediction.labels[found.category]
    if found.kind == "weights":
        middle = 1 / len(found.values)
        texts = tuple(f"{value:.2%}" for value in found.values)
        words = ", ".join(f"“{word}”" for word in label.split())
        caption = (
            f"Word-Guided weights S, picked words: {words}; the line is equal weight, "
            f"{middle:.2%}"
        )
    else:
        middle = float(found.values.mean())
        texts = tuple(f"{value:.3f}" for value in found.values)
        caption = f"Cosine of each frame with “{label}”; the line is their mean, {middle:.3f}"
    departures = found.values - middle
    largest = float(np.abs(departures).max())
    return Bars(departures / largest if largest else departures, texts, caption)


def times(prediction: Prediction) -> list[str]:
    """When each frame is shown, or its number where nobody can say."""
    if prediction.seconds is None:
        return [f"frame {number}" for number in _numbers(prediction)]
    return [f"{second:.2f} s" for second in prediction.seconds]


def shown(
    prediction: Prediction, *, side: int | None = None
) -> tuple[str, list[dict[str, Any]]]:
    """Caption and frames for a page, ready for JSON; none where nothing was decoded.

    A frame has its `picture` as a data: address, at most `side` pixels wide, `when` it is shown
    in words and in `seconds`, and, where there are bars, the `height` and `value` of its own.
    """
    if prediction.pictures is None:
        return "", []
    found, frames = bars(prediction), []
    for index, when in enumerate(times(prediction)):
        seconds = None if prediction.seconds is None else float(prediction.seconds[index])
        picture = address(prediction.pictures[index], side)
        frame = {"when": when, "seconds": seconds, "picture": picture}
        if found is not None:
            frame |= {"height": float(found.heights[index]), "value": found.texts[index]}
        frames.append(frame)
    return "" if found is None else found.caption, frames


def address(picture: UInt8[np.ndarray, "size size 3"], side: int | None) -> str:
    """An address that holds the picture itself, as JPEG."""
    image = Image.fromarray(picture)
    if side is not None:
        image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _numbers(prediction: Prediction) -> list[int]:
    assert prediction.frame_numbers is not None
    numbers: list[int] = prediction.frame_numbers.tolist()
    return numbers


def _num_rows(prediction: Prediction) -> int:
    return -(-len(_numbers(prediction)) // COLUMNS)


def _row_height(prediction: Prediction) -> int:
    return TILE + LINE + SPACE + (0 if prediction.highlights is None else BAR + LINE)


def _height(prediction: Prediction) -> int:
    words = 2 + (prediction.highlights is not None)
    return 2 * MARGIN + words * LINE + SPACE + _num_rows(prediction) * _row_height(prediction)


def _draw_one(
    pen: ImageDraw.ImageDraw, image: Image.Image, prediction: Prediction, top: int
) -> None:
    assert prediction.pictures is not None
    room = image.width - 2 * MARGIN
    y = top + MARGIN
    name = "/".join(prediction.video.parts[-2:])
    text(pen, (MARGIN, y), name, size=20, room=room)
    scores = " · ".join(f"{label} {score:.1%}" for label, score in prediction.ranking(3))
    text(pen, (MARGIN, y + LINE), scores, size=17, room=room)
    y += 2 * LINE + SPACE
    shown, said = bars(prediction), times(prediction)
    for index, picture in enumerate(prediction.pictures):
        row, column = divmod(index, COLUMNS)
        x, tile_y = MARGIN + column * (TILE + GAP), y + row * _row_height(prediction)
        tile = Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.LANCZOS)
        image.paste(tile, (x, tile_y))
        _centred(pen, x, tile_y + TILE + 4, said[index], QUIET)
        if shown is not None:
            _bar(pen, x, tile_y + TILE + LINE, float(shown.heights[index]))
            _centred(pen, x, tile_y + TILE + LINE + BAR, shown.texts[index], INK)
    if shown is not None:
        y += _num_rows(prediction) * _row_height(prediction)
        text(pen, (MARGIN, y), shown.caption, size=15, room=room, colour=QUIET)


def _bar(pen: ImageDraw.ImageDraw, x: int, top: int, height: float) -> None:
    middle, longest = top + BAR // 2, BAR // 2 - 4
    end = middle - round(longest * height)
    box = (x + TILE // 4, min(middle, end), x + 3 * TILE // 4, max(middle, end))
    pen.rectangle(box, fill=MORE if height > 0 else LESS)
    pen.line((x - GAP // 2, middle, x + TILE + GAP // 2, middle), fill=RULE, width=1)


def _centred(pen: ImageDraw.ImageDraw, x: int, y: int, text: str, colour: str) -> None:
    font = ImageFont.load_default(15)
    pen.text((x + (TILE - pen.textlength(text, font)) / 2, y), text, fill=colour, font=font)


def text(
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    words: str,
    *,
    size: int,
    room: int,
    colour: str = INK,
) -> None:
    """Write a line of words, cut where the room ends; pixels."""
    font = ImageFont.load_default(size)
    words = clean(" ".join(words.split()))
    if pen.textlength(words, font) > room:
        while words and pen.textlength(words + "…", font) > room:
            words = words[:-1]
        words += "…"
    pen.text(at, words, fill=colour, font=font)
