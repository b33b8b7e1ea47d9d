"""`bieff predict`, from options as a user types them."""

import contextlib
import itertools
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from bieff.apps import keyframes as strips
from bieff.apps import timeline
from bieff.apps.predictor import Prediction, Predictor  # docs/api.md names them here
from bieff.apps.progress import VideoLines
from bieff.apps.terminal import Console, clean
from bieff.clip import ClipName
from bieff.extract.datasets.files import VIDEO_SUFFIXES, is_tar, scan, suffix
from bieff.extract.lengths import Windows
from bieff.extract.sources.urls import require_open, url_of
from bieff.features.class_names import read_class_names, readable
from bieff.features.errors import BieffError, ConfigError, InputError

Say = Callable[[str], None]

MOST_IN_ONE = 50
"""Videos whose strips go into one picture; beyond it would be too tall to open."""

OTHER_PICTURES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pdf", ".svg", ".tiff", ".webp"})
"""Suffixes by which somebody means a picture, not a folder."""


def predict_videos(
    videos: Sequence[Path],
    *,
    labels: Sequence[str],
    keyframes: Path | None,
    windows: Windows | None = None,
    say: Say,
    **who: Any,
) -> Generator[Prediction, None, None]:
    """Score the labels in every video; draws the strips, or timelines, when all are done.

    Args:
        videos: Files and folders.
        labels: Names with commas between them, and files of names; none takes the run's.
        keyframes: A PNG file for all strips, or a folder for one file a video.
        windows: Score windows along each video, not the whole.
        say: Takes a sentence for people.
        who: Answers: as for `open_predictor`.

    Raises:
        BieffError: If an option, the run or the CLIP is not as it must be.
    """
    paths = find_videos(videos)
    names = parse_labels(labels) if labels else None
    if keyframes is not None:
        _require_room(keyframes, len(paths))
    strip_names = _strip_names(paths)
    drawn: dict[Path, list[Prediction]] = {}
    progress = VideoLines("predict", Console(stderr=True), "windows")
    with (
        open_predictor(**who) as predictor,
        contextlib.closing(predictor.predict(paths, names, windows=windows)) as found,
    ):
        say(f"{predictor.name}, {predictor.num_frames} frames")
        if predictor.clip.note:
            say(predictor.clip.note)
        for prediction in found:
            if prediction.message:
                say(sentence(prediction))
            yield prediction
            place, count = prediction.place
            if count > 1:
                progress(place + 1, count)
            if keyframes is None:
                continue
            group = drawn.setdefault(prediction.video, [])
            group.append(prediction if windows is None else timeline.light(prediction))
            if keyframes.suffix.lower() != ".png" and len(group) == count:
                del drawn[prediction.video]
                _draw(keyframes / strip_names[prediction.video], [group], windows)
    if drawn and keyframes is not None:
        _draw(keyframes, list(drawn.values()), windows)


def _draw(path: Path, videos: list[list[Prediction]], windows: Windows | None) -> None:
    """Draw what can be drawn of some videos."""
    usable = [group for group in videos if any(p.scores is not None for p in group)]
    if windows is not None and usable:
        timeline.save(path, usable)
    elif usable:
        strips.save(path, [prediction for group in usable for prediction in group])


def open_predictor(*, model: str | None, pretrained: str | None, **options: Any) -> Predictor:
    """Open a run or a CLIP, by the options that `predict` and `serve` share.

    Args:
        model: As for `bieff extract`; with a run, only where its weights lie by now.
        pretrained: The same.
        options: As for `Predictor.load`.
    """
    return Predictor.load(clip=ClipName.given(model, pretrained), **options)


def sentence(prediction: Prediction) -> str:
    """One line that says what is wrong with a video."""
    what = "not used" if prediction.scores is None else "damaged"
    video = str(prediction.video)
    of = "" if video in prediction.message else f"{video}: "
    if prediction.window is not None:
        of += f"{prediction.window[0]:g}-{prediction.window[1]:g} s "
    return clean(f"{of}{what}: {prediction.message}")


def find_videos(paths: Sequence[Path]) -> list[Path]:
    """The files, and the videos at any depth of the folders; each once, in order.

    A file that is not there is kept: it is told with the videos that cannot be used.

    Raises:
        InputError: If a folder holds no video.
    """
    found: dict[Path, None] = {}
    for path in paths:
        inside = [path]
        require_open(path)
        is_object = url_of(path) is not None and suffix(path.name) in VIDEO_SUFFIXES
        if path.is_dir() or is_tar(path) or (url_of(path) is not None and not is_object):
            layout = "videos at any depth"
            inside = [path / video for video in scan(path, layout=layout).videos]
        found |= dict.fromkeys(inside)
    return list(found)


def parse_labels(texts: Sequence[str]) -> list[str]:
    """Class names in words, of names with commas between them and of label files.

    Raises:
        InputError: If a file cannot be read, or there are fewer than two names.
    """
    names: list[str] = []
    for text in texts:
        if _is_file(text):
            names += read_class_names(Path(text)).readable
        else:
            names += [readable(name) for name in text.split(",") if name.strip()]
    if len(names) < 2:
        got = repr(", ".join(texts))
        raise InputError(
            f"labels: expected two or more with commas between them, or a file of them, got "
            f'{got}, which is no file either; try --labels "walking, running"'
        )
    return names


def _is_file(text: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # longer than a name may be
        return Path(text).is_file()
    return False


def _require_room(keyframes: Path, count: int) -> None:
    """Say before any work is done that the strips cannot be written."""
    is_picture = keyframes.suffix.lower() == ".png"
    if keyframes.suffix.lower() in OTHER_PICTURES and not keyframes.is_dir():
        raise ConfigError(
            f"--keyframes: expected a .png file or a folder, got {str(keyframes)!r}; try "
            f"--keyframes {keyframes.with_suffix('.png')}"
        )
    if is_picture and count > MOST_IN_ONE:
        raise ConfigError(
            f"--keyframes: expected at most {MOST_IN_ONE} videos in one picture, got {count}; "
            "name a folder instead, for one picture a video"
        )
    folder = keyframes.parent if is_picture else keyframes
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BieffError(
            f"cannot write {keyframes}: {error.strerror}; name another place with --keyframes"
        ) from error


def _strip_names(paths: Sequence[Path]) -> dict[Path, str]:
    names: dict[str, Path] = {}
    for path in paths:
        ends = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        names[next(n for end in ends if (n := f"{path.stem}{end}.png") not in names)] = path
    return {path: name for name, path in names.items()}
