"""Parts of a video, by the times at which a player shows its frames.

A segment holds the frames with start <= t < end, t in seconds from the first frame that is
shown, at any rate and behind any edit list.  All segments of a file come from one run through
it.  What lies between them is not decoded where decoding can begin again behind it: at a
picture from which on nothing refers to what is before (IDR, IRAP), never at a recovery point.
"""

from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, inf
from os import PathLike
from pathlib import Path
from typing import Any

import av.logging
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Int64, UInt8

from bieff.extract.decode import reader
from bieff.extract.decode.bitstream import can_begin_at, codec_of, nal_units
from bieff.extract.decode.container import (
    ENDS_EARLY,
    Contents,
    DecodeError,
    display_matrix,
    open_video,
    scan,
)
from bieff.extract.decode.reader import Choose, Decoded, Pass

_SETS = {"h264": (0, 31, (7, 8)), "hevc": (1, 63, (32, 33, 34))}
"""Shift and mask of a unit's kind, and the kinds that hold parameters of later pictures."""


_MOST_REORDERED = 17
"""Frames that may be shown before one that was decoded earlier."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A part of a video."""

    start: float
    """Seconds from the first frame."""

    end: float
    """The same; what is shown then is no part of it any more."""

    choose: Choose
    """From the number of frames in the segment to those wanted, counted from its first."""


def decode_segments(
    path: str | PathLike[str],
    segments: Sequence[Segment],
    *,
    told: Callable[[int], None] = lambda num_frames: None,
) -> Iterator[Decoded | DecodeError]:
    """Decode the frames that each segment chooses; yields what became of it, in their order.

    Frames are held until the last segment that wants them is through.  Damage costs the
    segments that it reaches.

    Args:
        path: The file.
        segments: By their ends.
        told: Called with the number of frames in the file, before any is decoded.

    Raises:
        MissingVideoError: If there is no such file.
        DecodeError: If it is not a video, or no frame of it decodes.
    """
    path = Path(path)
    contents = scan(path)
    told(contents.num_packets)
    index = _index(path, contents)
    parts = deque(_Part.of(segment, index, path) for segment in segments)
    uses = Counter(rank for part in parts for rank in part.wanted.tolist())
    run = _Run(path, contents, index)
    # where frames are counted a missing one is known only when none can come late any more
    lag = _MOST_REORDERED if index.order is None else 0
    for rank in run.frames(_joined(part.span for part in parts if part.span), uses):
        while parts and parts[0].last + lag <= rank:
            yield run.finish(parts[0])
            run.forget(parts.popleft(), uses)
        if not parts:
            return
    yield from map(run.finish, parts)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Index:
    """All frames of a file, in the order of showing, by its packets."""

    ticks: Int64[np.ndarray, " n"]
    """When each is shown, from the first."""

    unit: Fraction | None
    """Seconds of a tick; None: nobody can say."""

    order: Int64[np.ndarray, " n"] | None
    """Packet of each; None where packets do not say when they are shown: frames are counted."""

    packets: Sequence[Any]
    begins: Iterable[int]
    """Packets at which decoding can begin."""

    codec: str

    def bounds(self, start: float, end: float) -> tuple[int, int]:
        """The first frame of a segment, and the first behind it."""
        if self.unit is None:
            return 0, 0
        # as decimals: a frame at 10.01 s belongs to what begins at 10.01 s
        edges = [ceil(Fraction(str(second)) / self.unit) for second in (start, end)]
        first, last = np.searchsorted(self.ticks, edges).tolist()
        return first, max(first, last)

    def begin(self, first: int, last: int, begins: Iterable[int]) -> int:
        """The last of some packets from which on the frames from `first` to `last` decode."""
        if self.order is None:
            return 0
        members = self.order[first:last]
        lowest, shown = int(members.min()), self.packets[members[0]].stamp
        stamps = ((k, self.packets[k].stamp) for k in begins if k <= lowest)
        return max(
            (k for k, stamp in stamps if stamp is not None and stamp <= shown), default=0
        )


def _index(path: Path, contents: Contents) -> _Index:
    read, begins, seen = Pass(), [], set()
    with av.logging.Capture(), open_video(path) as (container, stream):
        codec, header = codec_of(stream), stream.codec_context.extradata
        rate, unit = stream.average_rate or stream.guessed_rate, stream.time_base
        shift, mask, kinds = _SETS.get(codec, (0, 0, ()))
        for packet in reader._packets(container, stream, read):
            if packet is None:
                break
            units = nal_units(packet, codec, header) if kinds else ()
            sets = {unit for unit in units if unit[0] >> shift & mask in kinds}
            seen |= sets
            # what earlier packets say of later pictures has to be said again
            if seen == sets and can_begin_at(packet, codec, header):
                begins.append(packet.opaque.number)
        is_avi = container.format.name == "avi"
    shown = [packet for packet in read.packets if packet.is_shown]
    stamps = np.array([packet.stamp for packet in shown if packet.stamp is not None])
    if unit is None or len(stamps) < len(shown):
        ticks, unit, order = np.arange(contents.num_packets), 1 / rate if rate else None, None
    else:
        places = np.argsort(stamps, kind="stable")
        ticks, order = (
            stamps[places] - stamps.min(),
            np.array([p.number for p in shown])[places],
        )
    if is_avi:  # it knows when packets are decoded: right times, if not of the same frames
        order = None
    return _Index(
        ticks=ticks, unit=unit, order=order, packets=read.packets, begins=begins, codec=codec
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Part:
    """A segment, in a file."""

    segment: Segment
    first: int
    last: int
    """Numbers in the file of its first frame, and of the first behind it."""

    numbers: Int64[np.ndarray, " m"]
    """Frames that it chooses if all decode, counted from its first."""

    span: tuple[int, int] | None
    """First packet to decode for it, and last; None where no frame is in it."""

    @classmethod
    def of(cls, segment: Segment, index: _Index, path: Path) -> "_Part":
        first, last = index.bounds(segment.start, segment.end)
        if first == last:
            empty = np.empty(0, np.int64)
            return cls(segment=segment, first=first, last=last, numbers=empty, span=None)
        # one packet more: some decoders complain late
        end = len(index.packets) if index.order is None else index.order[first:last].max() + 1
        return cls(
            segment=segment,
            first=first,
            last=last,
            numbers=reader._chosen(segment.choose, last - first, path),
            span=(index.begin(first, last, index.begins), int(end)),
        )

    @property
    def wanted(self) -> Int64[np.ndarray, " m"]:
        return self.first + self.numbers


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            begin, end = joined[-1][0], max(joined.pop()[1], end)
        joined.append((begin, end))
    return joined


@dataclass(slots=True, eq=False)
class _Run:
    """A run through a file, as far as it has come."""

    path: Path
    contents: Contents
    index: _Index
    found: Pass = field(default_factory=Pass)
    ranks: list[int] = field(default_factory=list)
    """Numbers in the file of the frames shown; -1 for one that no packet announced."""

    places: dict[int, int] = field(default_factory=dict)
    """Packet -> place of its frame in `ranks`."""

    kept: dict[int, UInt8[np.ndarray, "H W 3"]] = field(default_factory=dict)
    """By number in the file."""

    def frames(self, spans: Sequence[tuple[int, int]], wanted: Container[int]) -> Iterator[int]:
        """Decode spans of packets, keep the frames wanted; yields the number of each shown."""
        if not spans:
            return
        size = reader._bounded(self.contents.height, self.contents.width)
        matrix = self.contents.matrix
        order, found, reformatter = self.index.order, self.found, VideoReformatter()
        rank_of = {} if order is None else {k: rank for rank, k in enumerate(order.tolist())}
        with av.logging.Capture(), open_video(self.path) as (container, stream):
            shown = reader._frames(container, stream, found, only=_only(spans))
            for frame, packet in shown:
                rank = len(self.ranks) if order is None else rank_of.get(packet, -1)
                if -1 < rank < max(self.ranks[-1:], default=-1):
                    found.note_damage(packet, "frames are shown in another order than stamped")
                self.places[packet] = len(self.ranks)
                self.ranks.append(rank)
                found.origins.append(packet)
                found.is_interlaced = found.is_interlaced or frame.interlaced_frame
                matrix = display_matrix(frame, matrix)
                if rank in wanted:
                    self.kept[rank] = reader._to_rgb(
                        frame, size, self.path, reformatter, matrix
                    )
                yield rank

    def forget(self, part: _Part, uses: Counter[int]) -> None:
        """Let go of the frames that no later segment uses."""
        for rank in part.wanted.tolist():
            uses[rank] -= 1
            if not uses[rank]:
                self.kept.pop(rank, None)

    def finish(self, part: _Part) -> Decoded | DecodeError:
        """The frames of a segment, once all of it was shown."""
        start, end, choose = part.segment.start, part.segment.end, part.segment.choose
        what = f"{start:g}-{end:g} s of video {str(self.path)!r}"
        unit, ticks = self.index.unit, self.index.ticks
        if unit is None:
            return DecodeError(f"{what}: nobody can say when its frames are shown")
        if part.span is None:
            latest = float(max(ticks[-1:].tolist(), default=0) * unit)
            return DecodeError(f"no frame in {what}, the last of which is at {latest:.2f} s")
        sound, is_damaged = self._sound(part)
        why = self.found.why or "a frame is missing"
        if not len(sound):
            return DecodeError(f"no frame in {what} decodes: {why}")
        numbers, count = part.numbers, part.last - part.first
        if len(sound) != count:
            numbers = reader._chosen(choose, len(sound), self.path)
        wanted, kept = sound[numbers].tolist(), self.kept
        if missing := set(wanted) - kept.keys():
            again = _Run(self.path, self.contents, self.index)
            for _ in again.frames([part.span], missing):
                if missing <= again.kept.keys():
                    break
            kept = kept | again.kept
        fault = self.contents.fault
        if fault == ENDS_EARLY and part.last < len(ticks):
            fault = None  # all of this part is there
        is_salvaged = (is_damaged and len(sound) < count) or fault is not None
        return Decoded(
            frames=np.stack([kept[rank] for rank in wanted]),
            frame_numbers=numbers,
            num_frames=len(sound),
            is_salvaged=is_salvaged,
            decoder="pyav",
            damage=f"{len(sound)} of {count} frames decode: {fault or why}"
            if is_salvaged
            else None,
            times=ticks[wanted] * float(unit),
            first_frame=part.first,
        )

    def _sound(self, part: _Part) -> tuple[Int64[np.ndarray, " m"], bool]:
        """Numbers in the file of a segment's sound frames; whether damage is near."""
        found, index, codec = self.found, self.index, self.index.codec
        begin = index.begin(part.first, part.last, found.keyframes)
        place = self.places.get(begin, 0) if begin else 0
        origins, ranks = found.origins[place:], np.array(self.ranks[place:], np.int64)
        keyframes = set(found.keyframes)
        damaged = {packet for packet in found.damaged if packet >= begin}
        # see `reader._judge`, which looks at the whole file
        damaged |= {packet for packet in found.garbled if packet >= begin}
        for low, high in self.contents.bad_bytes:
            inside = reader._inside(found, low, high)
            damaged |= set() if inside & found.damaged else inside
        if codec != "h264" and 0 not in keyframes and not begin:
            damaged.add(0)
        if (
            codec == "h264"
            and not place
            and min(damaged, default=inf) > min(origins, default=0)
        ):
            keyframes.add(origins[0])
        if origins and codec in reader._SHOW_EACH and not found.is_interlaced:
            damaged |= self._missing(part, origins, ranks)
        judged = Pass(origins=origins, keyframes=keyframes, damaged=damaged)
        sound = np.unique(ranks[judged.sound()])
        return sound[(sound >= part.first) & (sound < part.last)], bool(damaged)

    def _missing(
        self, part: _Part, origins: list[int], ranks: Int64[np.ndarray, " m"]
    ) -> set[int]:
        """Packets up to the end of a segment that should have shown a frame, and have not."""
        packets, order = self.index.packets, self.index.order
        first = packets[origins[0]]
        if order is None:
            last = max(
                (o for o, r in zip(origins, ranks, strict=True) if r < part.last), default=0
            )
            expected = range(origins[0], last + 1)
        else:
            begin = min(part.first, *ranks[ranks >= 0][:1].tolist())
            expected = order[begin : part.last].tolist()
        missing = (packets[k] for k in expected if k not in self.places)
        return {
            packet.number
            for packet in missing
            if packet.is_shown
            and packet.size > reader._SKIPPED_BYTES
            # what refers to frames before the file is not missing
            and not (packet.number > first.number and (packet.stamp or 0) < (first.stamp or 0))
        }


def _only(spans: Sequence[tuple[int, int]]) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """Of packets, those in the spans, with None behind each span."""

    def chosen(packets: Iterable[Any]) -> Iterator[Any]:
        left = deque(spans)
        for packet in packets:
            number = inf if packet is None else packet.opaque.number
            while left and number > left[0][1]:
                left.popleft()
                yield None
            if not left:
                return
            if number >= left[0][0]:
                yield packet

    return chosen
