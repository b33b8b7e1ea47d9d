"""What `--check` says before any decoding: listed, found, missing, unlisted, mislabelled."""

from collections.abc import Sequence
from dataclasses import dataclass

from bieff.extract.datasets.dataset import DataSet
from bieff.features.schema import Video


@dataclass(frozen=True, slots=True)
class Count:
    """Of a partition, or of one role in one of its splits."""

    name: str
    """"all", "train", "val", or "split 1 test"."""

    listed: int
    found: int

    @property
    def missing(self) -> int:
        """Listed but not found."""
        return self.listed - self.found


@dataclass(frozen=True, slots=True)
class Report:
    """A data set held against what lies in its folder."""

    data: DataSet

    @property
    def is_clean(self) -> bool:
        """Whether every listed video is there, under the class that its label says.

        What the project makes itself, when it is needed, is not missing.
        """
        return not self.data.mislabelled and not (self.data.missing and not self.data.made_as)

    @property
    def missing(self) -> list[str]:
        """Paths where the videos that were not found were looked for."""
        return [
            video.path
            for videos in self.data.partitions.values()
            for video in videos
            if video.id in self.data.missing
        ]

    def counts(self) -> list[Count]:
        """Of every partition, and of every role of the splits within it."""
        counts = []
        for partition, videos in self.data.partitions.items():
            counts.append(self._count(partition, videos))
            roles = {(split, role) for video in videos for split, role in video.splits.items()}
            for split, role in sorted(roles - {(partition, partition)}):
                chosen = [video for video in videos if video.splits.get(split) == role]
                counts.append(self._count(f"split {split} {role}", chosen))
        return counts

    def lines(self, *, limit: int = 5) -> list[str]:
        """The report as text; of each kind of trouble the first `limit`, and how many more."""
        data = self.data
        text = [f"{data.name} in {data.root}: {len(data.class_names)} classes", *data.notes]
        text += [
            f"{count.name:<16}{count.listed:>9,} listed {count.found:>9,} found "
            f"{count.missing:>9,} missing"
            for count in self.counts()
        ]
        # a note says it of clips that are made when they are needed
        missing = [] if data.made_as else self.missing
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

    def _count(self, name: str, videos: Sequence[Video]) -> Count:
        found = sum(video.id not in self.data.missing for video in videos)
        return Count(name, listed=len(videos), found=found)
