"""The three built-in data sets as stage one reads them; their clips are made on first use."""

from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import track

from bieff.clip import TINYCLIP
from bieff.extract.datasets.dataset import DataSet
from bieff.extract.shapes.clips import (
    Clip,
    Edition,
    clips_of,
    edition_of,
    make,
    require_edition,
)
from bieff.features.schema import Video

COMPANIONS = ("shapes-combinations", "shapes-unseen")
"""Zero-shot sets that belong to `shapes`, and are extracted with it."""

NUM_SPLITS = 3


def load_shapes(
    name: str, folder: Path, *, edition: Edition | None = None, make_clips: bool = True
) -> DataSet:
    """The data set `name`, its clips in `folder`; makes what is missing there.

    Args:
        name: "shapes" or one of its companions.
        folder: Where the clips lie, or shall lie.
        edition: Which clips; None takes what lies there, or else the usual one.
        make_clips: Whether to make what is missing; otherwise `missing` and a note tell.

    Raises:
        InputError: If the folder holds something else.
    """
    edition = edition or edition_of(folder) or Edition()
    clips = clips_of(edition)[name]
    if make_clips:
        _make(name, folder, edition, len(clips))
    else:
        require_edition(folder, name, edition)
    class_names = tuple(dict.fromkeys(clip.name for clip in clips))
    partitions: dict[str, list[Video]] = {}
    for clip in clips:
        video = Video(
            id=clip.path.with_suffix("").as_posix(),
            path=clip.path.as_posix(),
            label=class_names.index(clip.name),
            size=_size(folder / clip.path),
            splits=_splits(clip),
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


def _make(name: str, folder: Path, edition: Edition, total: int) -> None:
    counts = make(folder, name, edition)
    left = total - next(counts)
    if left:
        console = Console(stderr=True)
        for _ in track(counts, f"making {name}", left, console=console, transient=True):
            pass


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _splits(clip: Clip) -> dict[str, str]:
    """A zero-shot set has three test lists, every third clip of a class in each."""
    if clip.partition != "all":
        return {clip.partition: clip.partition}
    return {str(clip.number % NUM_SPLITS + 1): "test"}
