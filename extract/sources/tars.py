"""Uncompressed tar files that stand for a folder of videos, which are read where they lie.

`train.tar` is the folder `train` beside it: its member `run/a.mp4` lies at `train/run/a.mp4`,
and so does `train/run/a.mp4` where all its members lie in one folder of that name.
"""

import contextlib
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SUFFIX = ".tar"


@dataclass(frozen=True, slots=True)
class Member:
    """The place of a file's bytes in a tar file."""

    tar: str
    """Absolute path."""

    offset: int
    size: int
    version: tuple[int, int]
    """Bytes and time of change, in ns, of the tar file that was indexed."""


@dataclass(frozen=True, slots=True)
class Tar:
    """What a tar file holds."""

    members: Mapping[str, Member]
    """By path in the folder that it stands for; of members of one name the last."""

    refused: tuple[str, ...] = ()
    """Names that are no plain paths, or of what is no plain file, such as a link."""

    fault: str = ""
    """What is wrong with the file as such."""


def plain(name: str) -> str | None:
    """A path below a folder, without detours; None if it leads elsewhere or has odd signs."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    is_plain = not name.startswith("/") and ".." not in parts and name.isprintable()
    return "/".join(parts) or None if is_plain else None


def tar_at(path: str | os.PathLike[str]) -> Tar:
    """The contents of a tar file, read once as long as it stays as it is.

    Raises:
        OSError: If it cannot be read.
    """
    path = Path(path).absolute()
    found = path.stat()
    return _read(path, (found.st_size, found.st_mtime_ns))


def member_at(path: str | os.PathLike[str]) -> Member | None:
    """The place of a video in a tar file; None if it is a file of its own, or nowhere."""
    path = Path(path).absolute()
    if os.path.lexists(path):
        return None
    for above in path.parents[:-1]:
        for tar in (above, above.with_name(above.name + SUFFIX)):
            with contextlib.suppress(OSError):  # it is gone, or no name can be so long
                if tar.suffix == SUFFIX and tar.is_file():
                    name = path.relative_to(above).as_posix()
                    if member := tar_at(tar).members.get(name):
                        return member
    return None


@cache
def _read(path: Path, version: tuple[int, int]) -> Tar:
    members: dict[str, Member] = {}
    refused, fault = [], ""
    try:
        with tarfile.open(path, "r:", errors="surrogateescape") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined] # it would keep all
                if info.isdir():
                    continue
                name = plain(info.name)
                if name is None or not info.isreg() or info.issparse():
                    refused.append(info.name)
                else:
                    members[name] = Member(str(path), info.offset_data, info.size, version)
            if tar.fileobj is not None:
                tar.fileobj.seek(tar.offset)
                if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                    fault = "its end is missing, or it is damaged"
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        fault = str(error)
    top = path.name.removesuffix(SUFFIX) + "/"
    if all(name.startswith(top) for name in members):
        members = {name.removeprefix(top): member for name, member in members.items()}
    return Tar(members, tuple(refused), fault)
