"""Name what happens in any video, in any words: a run's model, or CLIP as it is.

    with Predictor.load(run=Path("runs/k400")) as predictor:
        for found in predictor.predict([Path("clip.mp4")], ["running", "swimming"]):
            print(found.best, found.scores)

The videos take the very way of an extraction (decoding, views, preprocessing, tower), and
their embeddings are rounded as a store rounds them.

V views, T frames a view, K categories, D joint width.
"""

import contextlib
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from bieff import clip as clips
from bieff.clip import Clip, ClipName
from bieff.extract.decode.pool import DecodePool, Job, Outcome
from bieff.extract.decode.segments import Segment
from bieff.extract.lengths import Windows, lengths_of
from bieff.extract.shard import cut_views, in_order
from bieff.extract.tower import ViewMeans, VisualTower
from bieff.extract.views import ViewPlan, views_for
from bieff.features.class_names import LabelIndex
from bieff.features.errors import ConfigError, InputError
from bieff.features.schema import Status
from bieff.train.evaluate.classifier import Classifier, Frozen, Highlights, Trained
from bieff.train.runs.run import Run, load_model, open_run


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """Answer about one video or a window of it; without scores where it cannot be used."""

    video: Path
    labels: tuple[str, ...]
    status: Status
    window: tuple[float, float] | None = None
    """Where the window begins and ends, seconds, the last with the video; None: all of it."""

    place: tuple[int, int] = (0, 1)
    """Number of the window among the video's, from 0, and how many there are."""

    message: str = ""
    """Reason why the video cannot be used, or what of it is damaged."""

    scores: Float64[np.ndarray, " K"] | None = None
    """Softmax scores by label, averaged over the clips; they sum to 1."""

    frame_numbers: Int64[np.ndarray, " T"] | None = None
    """Frames of the middle clip, which can be shown."""

    seconds: Float64[np.ndarray, " T"] | None = None
    """When these frames are shown, from the first frame of the video."""

    highlights: Highlights | None = None
    """The frames among these that speak for a class."""

    pictures: UInt8[np.ndarray, "T size size 3"] | None = None
    """These frames as the tower saw them, RGB."""

    @property
    def best(self) -> str | None:
        """The label with the highest score."""
        return None if self.scores is None else self.labels[int(self.scores.argmax())]

    def ranking(self, count: int | None = None) -> list[tuple[str, float]]:
        """The best labels and their scores, best first; all of them by default."""
        if self.scores is None:
            return []
        order = np.argsort(-self.scores, kind="stable")[:count]
        return [(self.labels[i], float(self.scores[i])) for i in order.tolist()]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, ready for JSON."""
        frames: dict[str, Any] | None = None
        if self.frame_numbers is not None:
            seconds = None if self.seconds is None else self.seconds.round(3).tolist()
            frames = {"numbers": self.frame_numbers.tolist(), "seconds": seconds}
            if (found := self.highlights) is not None:
                frames[found.kind] = found.values.tolist()
                frames["of"] = self.labels[found.category]
        return {
            "video": os.fspath(self.video),
            **({} if self.window is None else {"start": self.window[0], "end": self.window[1]}),
            "status": self.status.name.lower(),
            "message": self.message,
            "best": self.best,
            "scores": dict(self.ranking()) or None,
            "frames": frames,
        }


FRAMES = 8
"""T without a run; a run brings its own."""

MOST_FRAMES = 1024
"""T that fits a memory: the crops of three clips are held at once."""

CLIPS = 3
"""Temporal clips that are averaged, the paper's."""

__all__ = ["Prediction", "Predictor"]

_HELD_BYTES = 512 * 2**20
"""Frames of later videos that may wait for an earlier one."""


class Predictor(contextlib.AbstractContextManager["Predictor"]):
    """A CLIP, and the trained parts of a run or none; loaded once, asked often.

    Use as a context manager; its decoding processes are killed at the end.  One call of
    `predict` at a time.

    Args:
        clip: The CLIP, on the device that is to compute.
        run: Trained on that CLIP; None asks frozen CLIP.
        blend: Share of the run's weights, between those that it started with and them; None
            takes them as they are.
        frames: T; None takes the run's, or 8 without one.
        deadline: Seconds that a video may take to decode.
        decoders: Decoding processes; None starts one a core.

    Raises:
        ConfigError: If the run takes another number of frames, or the blend is not from 0 to 1.
        InputError: If the run's weights are missing or damaged.
        StoreMismatchError: If the run was trained on another CLIP.
    """

    def __init__(
        self,
        clip: Clip,
        *,
        run: Run | None = None,
        blend: float | None = None,
        frames: int | None = None,
        deadline: float = 60.0,
        decoders: int | None = None,
    ) -> None:
        self.clip = clip
        self.run = run
        own = FRAMES if run is None else int(run.record["frames"])
        self.num_frames = own if frames is None else frames
        if frames is not None and not 1 <= frames <= MOST_FRAMES:
            raise ConfigError(f"frames: expected 1 to {MOST_FRAMES:,}, got {frames:,}")
        if run is not None and self.num_frames != own:
            raise ConfigError(
                f"run {run.path} takes {own} frames, got {frames}; leave --frames out, or "
                f"train a run with `bieff train --frames {frames}`"
            )
        self._views = tuple(views_for(0, CLIPS, 1)[1])
        self._shown = CLIPS // 2
        self._plan = ViewPlan(self._views, self.num_frames, "")
        if run is None and blend is not None:
            raise ConfigError("--blend is of a run's weights; name one with --run")
        self.blend = blend
        self._model = None if run is None else load_model(run, clip, blend=blend)
        self._tower = VisualTower(
            clip,
            device=clip.device,
            batch_size=CLIPS * self.num_frames,
            wants_patches=run is not None and run.config.prompts_see == "patches",
            reduced=False,  # a few videos do not pay for compiling
        )
        self._pool: DecodePool | None = None
        self._deadline = deadline
        self._decoders = decoders or len(os.sched_getaffinity(0))

    @classmethod
    def load(
        cls,
        *,
        run: Path | None = None,
        clip: ClipName | None = None,
        device: str | None = None,
        **options: Any,
    ) -> "Predictor":
        """Load a run by its folder, or a CLIP by its name.

        Args:
            run: Folder of a run; None asks frozen CLIP.
            clip: None takes the run's if it is here already, or OpenAI's ViT-B/16 without one.
            device: None takes the best there is.
            options: As for the class itself.

        Raises:
            InputError: If the run or the CLIP cannot be loaded.
        """
        where = clips.pick_device(device)
        if run is None:
            return cls(clips.load(clip or ClipName(), device=where), **options)
        opened = open_run(run)
        return cls(opened.clip.load(named=clip, device=where), run=opened, **options)

    @property
    def name(self) -> str:
        """Name of what answers, for people."""
        if self.run is None:
            return f"frozen CLIP {self.clip.name}"
        blended = "" if self.blend is None else f", blend {self.blend},"
        return f"run {self.run.id}{blended} on {self.clip.name}"

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the decoding processes; the next call of `predict` starts others."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def predict(
        self,
        videos: Iterable[Path],
        labels: Sequence[str] | None = None,
        *,
        windows: Windows | None = None,
    ) -> Generator[Prediction, None, None]:
        """Score the labels in each video; yields them as they come, nearly in order.

        The labels are looked at before anything is decoded.  A video that cannot be used yields
        a prediction without scores that says why.

        Args:
            videos: Files.
            labels: Class names, as words; None takes the run's own.
            windows: A prediction for each window along each video, which is decoded once.

        Raises:
            InputError: If there are no labels, or one is empty, double or too long.
        """
        names = self._names(labels)
        classifier: Classifier
        if self.run is None:
            classifier = Frozen(self.clip, names, num_frames=self.num_frames)
        else:
            run, blend = self.run, self.blend
            classifier = Trained(run, self.clip, names, blend=blend, model=self._model)
        return self._predict(list(videos), windows, names, classifier)

    def _predict(
        self,
        paths: list[Path],
        windows: Windows | None,
        names: tuple[str, ...],
        classifier: Classifier,
    ) -> Generator[Prediction, None, None]:
        if self._pool is None:
            number = max(1, min(self._decoders, len(paths)))
            self._pool = DecodePool(number, deadline=self._deadline)
        asked: dict[int, Prediction] = {}
        outcomes: Any = self._pool.decode(self._jobs(paths, windows, names, asked))
        with contextlib.closing(outcomes):
            for outcome in in_order(outcomes, most_bytes=_HELD_BYTES):
                yield self._found(asked.pop(outcome.row), outcome, classifier)

    def _jobs(
        self,
        paths: list[Path],
        windows: Windows | None,
        names: tuple[str, ...],
        asked: dict[int, Prediction],
    ) -> Iterator[Job]:
        """The videos to decode; what is asked of each is put into `asked`, by row."""
        lengths = [None] * len(paths) if windows is None else lengths_of(paths)
        row = 0
        for path, seconds in zip(paths, lengths, strict=True):
            whole = Prediction(video=path, labels=names, status=Status.PENDING)
            if windows is None or not seconds:
                asked[row] = whole
                yield Job(row=row, path=path, choose=self._plan)
                row += 1
                continue
            over = windows.over(seconds)
            for k, (start, end) in enumerate(over):
                window = (start, min(end, round(seconds, 6)))
                asked[row + k] = replace(whole, window=window, place=(k, len(over)))
            segments = [Segment(start=a, end=b, choose=self._plan) for a, b in over]
            yield Job(row=row, path=path, segments=tuple(segments))
            row += len(over)

    def _names(self, labels: Sequence[str] | None) -> tuple[str, ...]:
        if labels is None and self.run is not None:
            labels = self.run.record["class_names"]
        if not labels:
            raise InputError(
                'no classes to choose from; name them with --labels "one, another", or give '
                "a run with --run"
            )
        LabelIndex(labels, source="labels")  # no two may be the same
        return tuple(labels)

    def _found(self, asked: Prediction, outcome: Outcome, classifier: Classifier) -> Prediction:
        """Encode and score what was decoded, or say why it was not."""
        path, status, message = asked.video, outcome.status, outcome.message
        if not status.usable:
            return replace(asked, status=status, message=message)
        numbers, tower = self._plan(outcome.num_frames), self._tower
        try:
            looks = tower.preprocessing
            crops = cut_views(outcome, numbers, self._views, tower, looks, video_id="")
            frames, patches = self._encode(crops)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            message = f"video {str(path)!r} needs more memory than there is; make it smaller"
            return replace(asked, status=Status.CORRUPT, message=message)
        if not bool(frames.isfinite().all()):
            message = f"the embeddings of video {str(path)!r} are not finite in float16"
            return replace(asked, status=Status.CORRUPT, message=message)
        scores, highlights = classifier.explain(frames, patches, self._shown)
        shown = crops.unflatten(0, numbers.shape)[self._shown].permute(0, 2, 3, 1)
        return replace(
            asked,
            status=status,
            message=message,
            scores=scores,
            frame_numbers=outcome.first_frame + numbers[self._shown],
            seconds=None
            if outcome.times is None
            else outcome.times[outcome.places(numbers[self._shown])],
            highlights=highlights,
            pictures=shown.cpu().numpy(),
        )

    def _encode(
        self, crops: UInt8[Tensor, "VT 3 size size"]
    ) -> tuple[Float[Tensor, "V T D"], Float[Tensor, "V P U"] | None]:
        """Embeddings of all views, rounded to float16 as in a store."""
        encoded = self._tower.encode(crops)
        frames = encoded.embeddings.half().float().unflatten(0, (-1, self.num_frames))
        if encoded.patches is None:
            return frames, None
        means = ViewMeans(self.num_frames)
        means.add(encoded.patches)
        return frames, torch.stack(means.finished).float()


def _is_out_of_memory(error: BaseException) -> bool:
    """Torch has a class for it on a GPU alone."""
    classes = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, classes) or "can't allocate memory" in str(error)
