"""Clips whose frames carry their number, and the reader of that number.

A frame is a grid of 3 x 4 cells.  A black or white block fills the middle of each cell; the
blocks spell the frame's number in binary and survive every codec used here.  The first block is
always white and the last always black, so a frame on its head does not read as another number.
Behind the blocks a coloured ramp moves, so that the encoder predicts across frames and the
colours have something to be compared on.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.stream import Disposition

from bieff.extract.decode.reader import decode_video

ROWS, COLUMNS = 3, 4
MAX_FRAMES = 2 ** (ROWS * COLUMNS - 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """How a stamped clip is encoded; the defaults are x264's, as Kinetics clips are."""

    num_frames: int = 61
    size: tuple[int, int] = (160, 120)
    """Width and height in pixels."""

    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    gop: int = 250
    b_frames: int = 0
    fps: int = 25
    times: Sequence[int] | None = None
    """Presentation time of each frame in 1 / (20 fps) s; None: evenly spaced."""

    options: dict[str, str] = field(default_factory=dict)
    container: dict[str, str] = field(default_factory=dict)
    sound: str | None = None
    """Codec of a track of noise beside the pictures, 64 kb/s."""


def picture(number: int, *, size: tuple[int, int]) -> np.ndarray:
    """Draw frame `number` of a clip, RGB uint8 (height, width, 3)."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    ramp = np.stack([x * 2 + 3 * number, y * 2 + number, x + y + 2 * number], axis=-1)
    frame = (64 + np.abs(ramp % 256 - 128)).astype(np.uint8)
    for cell, bit in enumerate(_bits(number)):
        frame[_block(cell, height, width)] = 255 * bit
    return frame


def read_number(frame: np.ndarray) -> int:
    """The number a frame carries; -1 if the frame is damaged, turned, or not of these clips."""
    height, width = frame.shape[:2]
    levels = [frame[_block(c, height, width)][2:-2, 2:-2].mean() for c in range(ROWS * COLUMNS)]
    if any(80 < level < 175 for level in levels):
        return -1
    bits = [bool(level > 128) for level in levels]
    if not bits[0] or bits[-1]:
        return -1
    return sum(bit << place for place, bit in enumerate(bits[1:-1]))


def read_numbers(frames: np.ndarray) -> list[int]:
    return [read_number(frame) for frame in frames]


def count_frames(path: Path) -> int:
    """Frames of a video that decode, found by decoding it."""
    return decode_video(path, lambda _: [0], decoder="pyav").num_frames


def write(path: Path, clip: Clip) -> Path:
    """Encode a stamped clip; the container follows from the name's ending."""
    if clip.num_frames > MAX_FRAMES:
        raise ValueError(f"expected at most {MAX_FRAMES} frames, got {clip.num_frames}")
    options = {"bf": str(clip.b_frames), "g": str(clip.gop), **clip.options}
    if clip.codec == "libx264":
        options = {"preset": "veryfast", **options}
    with av.open(str(path), "w", options=dict(clip.container)) as container:
        stream = container.add_stream(clip.codec, rate=clip.fps, options=options)
        stream.width, stream.height = clip.size
        stream.pix_fmt = clip.pix_fmt
        unit = 20 if clip.times is not None else 1
        stream.codec_context.time_base = Fraction(1, clip.fps * unit)
        stream.codec_context.thread_count = 1
        sound = clip.sound and container.add_stream(clip.sound, rate=_RATE, layout="mono")
        if sound:
            sound.bit_rate = 64_000
        for number in range(clip.num_frames):
            if sound:
                container.mux(sound.encode(_noise(number, _RATE // clip.fps)))
            frame = av.VideoFrame.from_ndarray(picture(number, size=clip.size), format="rgb24")
            frame.pts = number if clip.times is None else clip.times[number]
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound:
            container.mux(sound.encode(None))
    return path


_RATE = 48_000


def _noise(number: int, length: int) -> av.AudioFrame:
    drawn = np.random.default_rng(number).integers(-6000, 6000, (1, length), np.int16)
    frame = av.AudioFrame.from_ndarray(drawn, format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = _RATE, number * length, Fraction(1, _RATE)
    return frame


def trim(source: Path, path: Path, *, first: int) -> Path:
    """Cut the first frames off without encoding again, as `ffmpeg -ss -c copy` does.

    The packets from the keyframe before `first` stay, with negative times, and the mp4 gets an
    edit list which says to begin at `first`.
    """
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        packets = [packet for packet in old.demux(stream) if packet.size]
        shift = sorted(packet.pts for packet in packets)[first]
        keyframes = [i for i, packet in enumerate(packets) if packet.is_keyframe]
        begin = max(i for i in keyframes if packets[i].pts <= shift)
        copy = new.add_stream_from_template(stream)
        for packet in packets[begin:]:
            packet.pts -= shift
            packet.dts -= shift
            packet.stream = copy
            new.mux(packet)
    return path


def turn(source: Path, path: Path, matrix: Sequence[int]) -> Path:
    """Copy an mp4 with another display matrix (a, b, c, d) in its track header."""
    a, b, c, d = matrix
    data = bytearray(source.read_bytes())
    header = data.index(b"tkhd")
    if data[header + 4] != 0:
        raise ValueError("expected a track header of version 0")
    one = 1 << 16
    values = (a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, header + 4 + 40, *values)
    path.write_bytes(data)
    return path


def truncate(source: Path, path: Path, *, keep: float) -> Path:
    """Copy the first part of a file, as an interrupted download leaves it."""
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def remux(source: Path, path: Path, change, *, filtered: str = "") -> Path:
    """Copy a clip's packets without encoding again.

    Args:
        source: The clip.
        path: The copy; its ending decides the container.
        change: Called with the number and bytes of each packet; returns them or others, or None
            to leave the packet out.
        filtered: A bitstream filter with its options, run over what is left.
    """
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        copy.time_base = stream.time_base
        bsf = BitStreamFilterContext(filtered, stream, copy) if filtered else None
        for number, packet in enumerate(p for p in old.demux(stream) if p.size):
            data = change(number, bytes(packet))
            if data is None:
                continue
            changed = av.Packet(data)
            changed.pts, changed.dts, changed.duration = packet.pts, packet.dts, packet.duration
            changed.time_base, changed.is_keyframe = packet.time_base, packet.is_keyframe
            for result in bsf.filter(changed) if bsf else [changed]:
                result.stream = copy
                new.mux(result)
    return path


def with_noise(data: bytes, *, seed: int = 0) -> bytes:
    """A packet whose middle is noise."""
    begin, end = len(data) * 3 // 10, len(data) * 7 // 10
    return data[:begin] + np.random.default_rng(seed).bytes(end - begin) + data[end:]


def with_cover(path: Path, clip: Clip | None) -> Path:
    """Music with a cover picture, and a video stream too if there is a clip."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16_000, layout="mono")
        video = None
        if clip is not None:
            video = container.add_stream(clip.codec, rate=clip.fps)
            video.width, video.height = clip.size
            video.pix_fmt = clip.pix_fmt
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        drawn = av.VideoFrame.from_ndarray(picture(1, size=(64, 64)), format="rgb24")
        container.mux(cover.encode(drawn))
        container.mux(cover.encode(None))
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        silence.sample_rate = 16_000
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
        for number in range(clip.num_frames if clip and video else 0):
            frame = av.VideoFrame.from_ndarray(picture(number, size=clip.size), format="rgb24")
            container.mux(video.encode(frame))
        if video:
            container.mux(video.encode(None))
    return path


def with_two_streams(path: Path, *, default: int) -> Path:
    """Two video streams of one size; frames of the second carry numbers from 100 on."""
    clip = Clip(num_frames=24, gop=12)
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=clip.fps) for _ in range(2)]
        for i, stream in enumerate(streams):
            stream.width, stream.height = clip.size
            stream.pix_fmt = clip.pix_fmt
            stream.codec_context.options = {"g": "12", "bf": "0"}
            stream.disposition = Disposition.default if i == default else Disposition(0)
        for number in range(clip.num_frames):
            for i, stream in enumerate(streams):
                drawn = picture(100 * i + number, size=clip.size)
                frame = av.VideoFrame.from_ndarray(drawn, format="rgb24")
                frame.pts = number
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


def with_exif(data: bytes, *, orientation: int) -> bytes:
    """A JPEG picture with an Exif block that says how it is turned."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    block = b"Exif\0\0" + b"MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


def _bits(number: int) -> list[int]:
    places = ROWS * COLUMNS - 2
    return [1, *((number >> place) & 1 for place in range(places)), 0]


def _block(cell: int, height: int, width: int) -> tuple[slice, slice]:
    row, column = divmod(cell, COLUMNS)
    high, wide = height // ROWS, width // COLUMNS
    top, left = row * high + high // 8, column * wide + wide // 8
    return slice(top, top + high * 3 // 4), slice(left, left + wide * 3 // 4)
