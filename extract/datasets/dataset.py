"""A data set: which videos there are, what each shows, and which split uses it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bieff.extract.sources.urls import shown
from bieff.features.class_names import has_sides
from bieff.features.errors import InputError
from bieff.features.schema import Video


@dataclass(frozen=True, slots=True)
class Mislabelled:
    """A video that lies in the folder of another class than its label says."""

    partition: str
    path: str
    label: str
    """Readable name of the class that the label says."""

    folder: str
    """Readable name of the class whose folder it lies in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """Videos for stage one.  A row of a partition is a video, in this order for ever."""

    name: str
    class_names: tuple[str, ...]
    """Readable, by label; empty where nothing is labelled."""

    partitions: Mapping[str, Sequence[Video]]
    """"train" and "val" where they are fixed, otherwise "all".  Videos that were listed but
    not found are there too, with size 0."""

    root: Path
    """The videos' paths are relative to it."""

    notes: tuple[str, ...] = ()
    """Things a user should know of how the lists came about, a sentence each."""

    class_subsets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Official subsets of the classes by name, such as the zero-shot splits of k600."""

    made_as: Mapping[str, int] = field(default_factory=dict)
    """All that decides the pixels of videos that the project makes; part of the recipe."""

    default_clip: str | None = None
    """The CLIP to take if the user names none; None for the usual one."""

    missing: frozenset[str] = frozenset()
    """Ids of the videos that were not found."""

    unlisted: tuple[str, ...] = ()
    """Paths of videos that are there but in no list."""

    mislabelled: tuple[Mislabelled, ...] = ()

    uncut: tuple[str, ...] = ()
    """Paths of videos that stand for a clip, and whose names do not say that they are it."""

    clip_seconds: int = 0
    """Length of these clips."""

    @property
    def mirror(self) -> bool:
        """A mirrored video keeps its class: no class name tells left from right."""
        return not has_sides(self.class_names)

    @property
    def num_videos(self) -> int:
        """Videos listed, found or not."""
        return sum(len(videos) for videos in self.partitions.values())


def note_mislabelled(mislabelled: Sequence[Mislabelled]) -> tuple[str, ...]:
    """The note on videos whose official label differs from their folder, if there are any."""
    if not mislabelled:
        return ()
    return (
        "videos in the folder of another class than the official list says: "
        f"{len(mislabelled):,}, the first is {mislabelled[0].path!r}; the list's label is kept",
    )


def refuse_mislabelled(data: DataSet) -> DataSet:
    """Return the data set if its labels agree with its class folders.

    Raises:
        InputError: If a video lies in the folder of another class.
    """
    if not data.mislabelled:
        return data
    first = data.mislabelled[0]
    raise InputError(
        f"{data.name}: {len(data.mislabelled):,} of {data.num_videos:,} videos lie in the "
        f"folder of another class than their label says, the first is {first.path!r} labelled "
        f"{first.label!r}; often the label file is in another order than the list: look with "
        "--check, or say --trust-labels if the labels are right"
    )


def require_found(data: DataSet, *, layout: str) -> DataSet:
    """Return the data set if at least one of its videos was found.

    Raises:
        InputError: If none was.
    """
    if data.num_videos > len(data.missing):
        return data
    raise InputError(
        f"{data.name}: none of the {len(data.unlisted):,} videos in {data.root} is one of the "
        f"{data.num_videos:,} listed; expected {layout}"
    )


class Count(NamedTuple):
    """Videos of a partition, or of one role in one of its splits."""

    name: str
    """"all", "train", "val", or "split 1 test"."""

    listed: int
    found: int
    missing: int


@dataclass(frozen=True, slots=True)
class Report:
    """A data set held against what lies in its folder."""

    data: DataSet

    @property
    def is_clean(self) -> bool:
        """Every listed video is there, under the class that its label says.

        What the project makes itself, when it is needed, is not missing.
        """
        return not self.data.mislabelled and not (self.data.missing and not self.data.made_as)

    def counts(self) -> list[Count]:
        """Every partition, and every role of the splits within it."""

        def count(name: str, videos: Sequence[Video]) -> Count:
            missing = sum(video.id in self.data.missing for video in videos)
            return Count(name, len(videos), len(videos) - missing, missing)

        counts = []
        for partition, videos in self.data.partitions.items():
            counts.append(count(partition, videos))
            roles = {(split, role) for video in videos for split, role in video.splits.items()}
            for split, role in sorted(roles - {(partition, partition)}):
                chosen = [video for video in videos if video.splits.get(split) == role]
                counts.append(count(f"split {split} {role}", chosen))
        return counts

    def lines(self, *, limit: int = 5) -> list[str]:
        """The report as text; of each kind of trouble the first `limit`, and how many more."""
        data = self.data
        text = [
            f"{data.name} in {shown(data.root)}: {len(data.class_names)} classes",
            *data.notes,
        ]
        text += [
            f"{name:<16}{listed:>9,} listed {found:>9,} found {missing:>9,} missing"
            for name, listed, found, missing in self.counts()
        ]
        # a note says it of clips that are made when they are needed
        gone = frozenset() if data.made_as else data.missing
        videos = [video for part in data.partitions.values() for video in part]
        missing = [video.path for video in videos if video.id in gone]
        wrong = [f"{m.path}: labelled {m.label}, lies in {m.folder}" for m in data.mislabelled]
        for what, items in (
            ("missing", missing),
            ("unlisted", data.unlisted),
            ("mislabelled", wrong),
        ):
            text.append(f"{len(items):,} {what}")
            text += [f"    {item}" for item in items[:limit]]
            if len(items) > limit:
                text.append(f"    and {len(items) - limit:,} more")
        return text
