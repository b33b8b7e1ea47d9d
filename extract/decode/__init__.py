"""Exact frames of any file, in processes that may die.

bitstream.py   decoders, and what coded pictures say before they are decoded
container.py   what a file says of itself
twin.py        a second decoder beside the first, for damage that the first does not notice
second.py      decord, for files on which the first decoder crashed or hung
reader.py      frames by number, in this process
segments.py    parts of a video by time, all of a file in one run
worker.py      the same in a process of its own
pool.py        many of those processes, each of which may die
"""

from bieff.extract.decode.reader import decode_video, read_frames

__all__ = ["decode_video", "read_frames"]
