"""The videos that a run is surest of, and those it is furthest off, with their frames."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64, UInt8
from PIL import Image

from bieff.apps import keyframes
from bieff.apps.predictor import Prediction, Predictor
from bieff.apps.report.classes import PARTITION, ClosedSet
from bieff.features.store import FeatureStore

PICTURE_SIDE = 160
"""Pixels of a frame's picture, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """A frame as the page shows it."""

    picture: str
    """A data: address."""

    time: str
    bar: float | None
    """From -100 to 100; None where nothing weighs the frames."""

    weight: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoCard:
    """One video: where it lies, what it is, what was said of it."""

    path: str
    truth: str
    is_right: bool
    ranking: list[tuple[str, float]]
    caption: str
    note: str
    """Why there are no frames."""

    frames: list[Frame]


def surest(found: ClosedSet, count: int) -> Int64[np.ndarray, " c"]:
    """Videos named rightly, the highest scores first, one of each class."""
    truth = _truth(found)
    right = found.ours.argmax(axis=1) == found.labels
    order = np.argsort(-truth, kind="stable")
    return _one_a_class(order[right[order]], found.labels, count)


def furthest_off(found: ClosedSet, count: int) -> Int64[np.ndarray, " c"]:
    """Videos named wrongly, the lowest scores of their class first, one of each class."""
    truth = _truth(found)
    wrong = found.ours.argmax(axis=1) != found.labels
    order = np.argsort(truth, kind="stable")
    return _one_a_class(order[wrong[order]], found.labels, count)


def cards(
    predictor: Predictor, store: FeatureStore, found: ClosedSet, chosen: Sequence[int]
) -> list[VideoCard]:
    """Decode some videos again, where they still lie, and show what the model looked at."""
    videos = store.partitions[PARTITION].videos
    listed = [videos[int(found.rows[i])] for i in chosen]
    paths = [Path(store.root) / video.path for video in listed]
    by_path = {p.video: p for p in predictor.predict(paths, store.class_names)}
    made = []
    for i, video, path in zip(chosen, listed, paths, strict=True):
        prediction = by_path[path]
        label = int(found.labels[i])
        best = np.argsort(-found.ours[i], kind="stable")[:3]
        shown = keyframes.bars(prediction)
        made.append(
            VideoCard(
                path=video.path,
                truth=found.names[label],
                is_right=int(best[0]) == label,
                ranking=[(found.names[k], float(found.ours[i, k])) for k in best.tolist()],
                caption="" if shown is None else shown.caption,
                note=prediction.message if prediction.pictures is None else "",
                frames=frames_of(prediction),
            )
        )
    return made


def frames_of(prediction: Prediction) -> list[Frame]:
    """The frames of a prediction, ready for a page."""
    if prediction.pictures is None:
        return []
    shown = keyframes.bars(prediction)
    return [
        Frame(
            picture=data_address(picture),
            time=time,
            bar=None if shown is None else 100 * float(shown.heights[index]),
            weight="" if shown is None else shown.texts[index],
        )
        for index, (picture, time) in enumerate(
            zip(prediction.pictures, keyframes.times(prediction), strict=True)
        )
    ]


def data_address(picture: UInt8[np.ndarray, "size size 3"]) -> str:
    """A picture inside the page: JPEG, as a data: address."""
    image = Image.fromarray(picture)
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _truth(found: ClosedSet) -> Float64[np.ndarray, " n"]:
    """Score of each video's own class."""
    scores: Float64[np.ndarray, " n"] = found.ours[np.arange(len(found.labels)), found.labels]
    return scores


def _one_a_class(
    order: Int64[np.ndarray, " m"], labels: Int64[np.ndarray, " n"], count: int
) -> Int64[np.ndarray, " c"]:
    """The first `count` of an order; a class comes twice only when all have come once."""
    _, first = np.unique(labels[order], return_index=True)
    leaders = np.sort(first)
    others = np.setdiff1d(np.arange(len(order)), leaders)
    chosen: Int64[np.ndarray, " c"] = order[np.concatenate([leaders, others])[:count]]
    return chosen
