"""Exact frames of any file, in processes that may die.

container.py   what a file says of itself, and whether decord can be trusted with it
reader.py      frames by number, in this process
worker.py      the same in a process of its own: its commands, its shared memory
pool.py        many of those processes, each of which may die
"""

from bieff.extract.decode.reader import decode_video, read_frames

__all__ = ["decode_video", "read_frames"]
