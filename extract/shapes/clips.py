"""Write `shapes` to disk as H.264 mp4 files, the way downloaded data sets lie there.

data/shapes/{train,val}/<class>/<number>.mp4        seen combinations
data/shapes-combinations/<class>/<number>.mp4       seen shapes and motions, combined anew
data/shapes-unseen/<class>/<number>.mp4             shapes that training never shows
"""

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

from bieff.extract.shapes.render import render
from bieff.extract.shapes.world import (
    SEEN,
    UNSEEN,
    UNSEEN_COMBINATIONS,
    class_name,
    draw_scenes,
)
from bieff.features.errors import InputError
from bieff.features.files import write_atomically

HEIGHT, WIDTH = 64, 80
FPS = 24
FRAMES = (24, 40)
"""Fewest and most frames of a clip."""

MARKER = "edition.json"

VERSION = 2
"""Raise when the pixels of a seed change, drawn or encoded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Edition:
    """Which clips to make: everything that the pixels depend on."""

    seed: int = 0
    train_clips: int = 36
    """Clips of a class in the training partition."""

    val_clips: int = 8
    zero_shot_clips: int = 15
    """Clips of a class in each zero-shot set; a third of them in each of its three splits."""

    version: int = VERSION


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip to write.  `number` counts within its class and partition."""

    data_set: str
    partition: str
    shape: str
    motion: str
    number: int

    @property
    def name(self) -> str:
        """Its class: "star moving left"."""
        return class_name(self.shape, self.motion)

    @property
    def path(self) -> Path:
        """Where it lies in the folder of its data set."""
        folder = Path() if self.partition == "all" else Path(self.partition)
        return folder / self.name / f"{self.number:03d}.mp4"


def clips_of(edition: Edition) -> dict[str, list[Clip]]:
    """All clips of an edition, by data set, in a fixed order."""
    plan = (
        ("shapes", "train", SEEN, edition.train_clips),
        ("shapes", "val", SEEN, edition.val_clips),
        ("shapes-combinations", "all", UNSEEN_COMBINATIONS, edition.zero_shot_clips),
        ("shapes-unseen", "all", UNSEEN, edition.zero_shot_clips),
    )
    found: dict[str, list[Clip]] = {}
    for data_set, partition, classes, count in plan:
        found.setdefault(data_set, []).extend(
            Clip(data_set, partition, shape, motion, number)
            for shape, motion in classes
            for number in range(count)
        )
    return found


def draw_clip(clip: Clip, seed: int) -> UInt8[np.ndarray, "F H W 3"]:
    """The clip's pixels; the seed and the clip's name decide every byte."""
    key = [seed, VERSION, *clip.data_set.encode(), *clip.path.as_posix().encode()]
    rng = np.random.default_rng(key)
    num_frames = int(rng.integers(FRAMES[0], FRAMES[1] + 1))
    scenes = draw_scenes(rng, [clip.shape], [clip.motion])
    times = np.linspace(0, 1, num_frames)[None]
    return render(scenes, times, height=HEIGHT, width=WIDTH, rng=rng)[0]


def write_mp4(path: Path, frames: UInt8[np.ndarray, "F H W 3"]) -> None:
    """Encode frames as H.264 (CRF 18, 4:2:0); the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with av.open(str(unfinished), "w", format="mp4") as container:
        # The same pixels must give the same bytes.  One thread: on any number of cores; no
        # macroblock tree: with its assembly, x264 165 chooses other quantisers from call to
        # call at this small size (docs/LOG.md).
        options = {
            "crf": "18",
            "preset": "veryfast",
            "threads": "1",
            "x264-params": "mbtree=0",
        }
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    unfinished.rename(path)


def edition_of(folder: Path) -> Edition | None:
    """The edition that lies in a folder, whole or in part; None where there is none.

    Raises:
        InputError: If the folder holds something else.
    """
    marker = folder / MARKER
    if marker.is_file():
        try:
            return Edition(**json.loads(marker.read_text()))
        except (ValueError, TypeError) as error:
            raise InputError(f"cannot read {marker}: {error}; remove {folder}") from None
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"{folder} is not empty and holds no clips made by bieff; name another folder with "
            "--videos"
        )
    return None


def require_edition(folder: Path, data_set: str, edition: Edition) -> None:
    """Refuse a folder that holds other clips than the edition's.

    Raises:
        InputError: If it holds another edition or version, or files that are not ours.
    """
    found = edition_of(folder)
    if edition.version != VERSION:
        raise InputError(
            f"{folder} holds clips of version {edition.version} of {data_set}, this bieff "
            f"makes version {VERSION}; name another folder with --videos, or remove this one"
        )
    if found is not None and found != edition:
        raise InputError(
            f"{folder} holds another edition of {data_set}: expected {edition}, got {found}; "
            "name another folder with --videos, or remove this one"
        )


def make(
    folder: Path, data_set: str, edition: Edition, *, num_workers: int = 2
) -> Iterator[int]:
    """Write the clips of one data set into its folder; yields how many lie there, as it goes.

    Goes on where an interrupted run stopped.

    Raises:
        InputError: If the folder holds another edition or version, or files that are not ours.
    """
    require_edition(folder, data_set, edition)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / MARKER, (json.dumps(asdict(edition)) + "\n").encode())
    clips = clips_of(edition)[data_set]
    jobs = [(folder / clip.path, clip, edition.seed) for clip in clips]
    missing = [job for job in jobs if not job[0].is_file()]
    done = len(jobs) - len(missing)
    yield done
    if not missing:
        return
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(_write_one, missing, chunksize=4):
            done += 1
            yield done


def _write_one(job: tuple[Path, Clip, int]) -> None:
    path, clip, seed = job
    write_mp4(path, draw_clip(clip, seed))
