"""The three built-in data sets: clips made on first use, and lying as downloaded ones do.

data/shapes/{train,val}/<class>/<number>.mp4        seen combinations
data/shapes-combinations/<class>/<number>.mp4       seen shapes and motions, combined anew
data/shapes-unseen/<class>/<number>.mp4             shapes that training never shows
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

from bieff.extract.datasets.dataset import DataSet
from bieff.extract.shapes.render import render
from bieff.extract.shapes.world import (
    SEEN,
    UNSEEN,
    UNSEEN_COMBINATIONS,
    class_name,
    draw_scenes,
)
from bieff.features.errors import InputError
from bieff.features.files import keep_freed_memory, parse_json, write_atomically
from bieff.features.schema import Video

COMPANIONS = ("shapes-combinations", "shapes-unseen")
"""Zero-shot sets that belong to `shapes`, and are extracted with it."""

NUM_SPLITS = 3
"""Test lists of a zero-shot set: every third clip of a class in each."""

HEIGHT, WIDTH = 64, 80
FPS = 24
FRAMES = (24, 40)
"""Fewest and most frames of a clip."""

MARKER = "edition.json"

VERSION = 2
"""Raise when the pixels of a seed change, drawn or encoded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Edition:
    """Choice of the clips to make: everything that the pixels depend on."""

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
        """Its place in the folder of its data set."""
        folder = Path() if self.partition == "all" else Path(self.partition)
        return folder / self.name / f"{self.number:03d}.mp4"

    @property
    def splits(self) -> dict[str, str]:
        """Its role in each split."""
        if self.partition != "all":
            return {self.partition: self.partition}
        return {str(self.number % NUM_SPLITS + 1): "test"}


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
            return Edition(**parse_json(marker.read_text()))
        except (ValueError, TypeError) as error:
            raise InputError(f"cannot read {marker}: {error}; remove {folder}") from None
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"{folder} is not empty and holds no clips made by bieff; name another folder with "
            "--videos"
        )
    return None


def load_shapes(
    name: str,
    folder: Path,
    *,
    edition: Edition | None = None,
    make: bool = True,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> DataSet:
    """The data set `name`, its clips in `folder`; makes what is missing there.

    Goes on where an interrupted run stopped.

    Args:
        name: "shapes" or one of its companions.
        folder: Where the clips lie, or shall lie.
        edition: Which clips; None takes what lies there, or else the usual one.
        make: Make what is missing; otherwise `missing` and a note tell.
        watch: Called with clips made and clips to make, as it goes.

    Raises:
        InputError: If the folder holds another edition or version, or files that are not ours.
    """
    from bieff.clip import TINYCLIP  # torch, which the processes that draw need not load

    edition = edition or edition_of(folder) or Edition()
    _require_edition(folder, name, edition)
    clips = clips_of(edition)[name]
    if make:
        _make(folder, clips, edition, watch)
    class_names = tuple(dict.fromkeys(clip.name for clip in clips))
    partitions: dict[str, list[Video]] = {}
    for clip in clips:
        path = folder / clip.path
        video = Video(
            id=clip.path.with_suffix("").as_posix(),
            path=clip.path.as_posix(),
            label=class_names.index(clip.name),
            size=path.stat().st_size if path.is_file() else 0,
            splits=clip.splits,
        )
        partitions.setdefault(clip.partition, []).append(video)
    missing = frozenset(v.id for part in partitions.values() for v in part if not v.size)
    note = f"{len(missing):,} of {len(clips):,} clips are not made yet; extract makes them"
    return DataSet(
        name=name,
        class_names=class_names,
        partitions=partitions,
        root=folder,
        notes=(note,) if missing else (),
        missing=missing,
        made_as=asdict(edition),
        default_clip=TINYCLIP,
    )


def _require_edition(folder: Path, data_set: str, edition: Edition) -> None:
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


def _make(
    folder: Path, clips: Sequence[Clip], edition: Edition, watch: Callable[[int, int], None]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / MARKER, (json.dumps(asdict(edition)) + "\n").encode())
    jobs = [(folder / clip.path, clip, edition.seed) for clip in clips]
    missing = [job for job in jobs if not job[0].is_file()]
    if not missing:
        return
    spawn = get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn, initializer=keep_freed_memory) as pool:
        for done, _ in enumerate(pool.map(_write_one, missing, chunksize=4), start=1):
            watch(done, len(missing))


def _write_one(job: tuple[Path, Clip, int]) -> None:
    path, clip, seed = job
    write_mp4(path, draw_clip(clip, seed))
