"""What lies in a videos' folder: one walk, then dictionary look-ups."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from bieff.features.class_names import key
from bieff.features.errors import InputError

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"}
    | {".mts", ".ogv", ".ts", ".webm", ".wmv"}
)

_PARTITION = re.compile(
    r"(?:.*[_-])?(train|val|valid|validate|validation|test)(?:[_-].*)?", re.IGNORECASE
)


@dataclass(frozen=True)
class Folder:
    """The videos under a folder, and the tables (.csv) beside them."""

    root: Path
    videos: dict[str, int]
    """Path relative to `root`, with forward slashes, sorted -> bytes."""

    tables: tuple[str, ...] = ()
    """Relative paths of the csv files, sorted."""

    @cached_property
    def by_stem(self) -> dict[str, list[str]]:
        """File name without suffix, in small letters -> the paths that have it."""
        found: dict[str, list[str]] = {}
        for path in self.videos:
            found.setdefault(stem(path).casefold(), []).append(path)
        return found

    def find(self, listed: str) -> str | None:
        """The video that a list means by a path, the first of those that fit; or None."""
        return next(iter(self.fitting(listed)), None)

    def fitting(self, listed: str) -> list[str]:
        """The videos that a list may mean by a path, sorted; none fits better than these.

        Lists come from other machines: the suffix may differ, folders may be missing in front
        or be too many.  File name and parent folder have to agree, as far as both have one;
        of several videos those that agree furthest up win.
        """
        if listed in self.videos:
            return [listed]
        wanted = _parts(listed)
        best: list[str] = []
        best_agreement = 1
        for path in self.by_stem.get(stem(listed).casefold(), ()):
            agreement = _agreement(wanted, _parts(path))
            if agreement > best_agreement:
                best, best_agreement = [], agreement
            if agreement == best_agreement:
                best.append(path)
        return best


def scan(root: Path, *, layout: str) -> Folder:
    """List the videos under `root`, at any depth.

    Args:
        root: The videos' folder.
        layout: One clause that says what is expected there, for the error message.

    Raises:
        InputError: If the folder is missing or holds no video.
    """
    if not root.is_dir():
        raise InputError(
            f"no videos' folder at {root}: expected {layout}; put the videos there or give "
            "their folder with --videos"
        )
    videos: dict[str, int] = {}
    tables: list[str] = []
    try:
        for path, entry in _walk(root):
            end = suffix(path)
            if end in VIDEO_SUFFIXES and entry.is_file():  # and no link that leads nowhere
                videos[path] = entry.stat().st_size
            elif end == ".csv":
                tables.append(path)
    except OSError as error:
        raise InputError(
            f"cannot read the videos' folder {root}: {error}; check its permissions"
        ) from None
    if not videos:
        raise InputError(
            f"no videos in {root}: expected {layout}; the suffixes looked for are "
            f"{' '.join(sorted(VIDEO_SUFFIXES))}"
        )
    return Folder(root, dict(sorted(videos.items())), tuple(sorted(tables)))


def _walk(root: Path) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Relative path and entry of every file; links are followed, hidden names left out."""
    seen: set[str] = set()
    pending = [(str(root), "")]
    while pending:
        folder, prefix = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith((".", "__MACOSX")):
                    continue
                path = prefix + entry.name
                if not entry.is_dir():
                    yield path, entry
                elif not entry.is_symlink() or _is_new(entry.path, seen):
                    pending.append((entry.path, path + "/"))


def suffix(path: str) -> str:
    """The file's suffix in small letters, with its dot; empty if there is none."""
    name = path.rpartition("/")[2]
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def stem(path: str) -> str:
    """The file's name without folders and without a video's suffix."""
    name = path.rpartition("/")[2]
    return name[: -len(end)] if (end := suffix(name)) in VIDEO_SUFFIXES else name


def without_suffix(path: str) -> str:
    """The path without a video's suffix."""
    return path[: -len(end)] if (end := suffix(path)) in VIDEO_SUFFIXES else path


def ids_of(paths: Iterable[str]) -> dict[str, str]:
    """Each path's id: the path without suffix, unless two videos differ in nothing else."""
    bare = {path: without_suffix(path) for path in paths}
    count = Counter(bare.values())
    return {path: short if count[short] == 1 else path for path, short in bare.items()}


def partition_of(folders: Iterable[str]) -> str | None:
    """Which of "train", "val", "test" a folder is called (`train`, `val_256`, `k400-test`)."""
    for folder in folders:
        match = _PARTITION.fullmatch(folder)
        if match:
            role = match[1].lower()
            return "val" if role.startswith("val") else role
    return None


def _parts(path: str) -> list[str]:
    """File name first, then the folders upwards, each by its key."""
    parents = PurePosixPath(path.replace("\\", "/")).parent.parts
    return [stem(path).casefold(), *(key(part) for part in reversed(parents))]


def _agreement(one: list[str], other: list[str]) -> int:
    """How many parts agree from the file name upwards; 0 unless two do, or all there are."""
    agreement = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        agreement += 1
    return agreement if agreement >= min(2, len(one), len(other)) else 0


def _is_new(path: str, seen: set[str]) -> bool:
    """Whether a linked folder is visited for the first time; a link may point upwards."""
    real = os.path.realpath(path)
    is_new = real not in seen
    seen.add(real)
    return is_new


class Finder:
    """Finds the videos that the list of one partition means.

    Args:
        folder: What lies there.
        by_key: Label of each class, by `names.key`.
        part: "train", "val" or "all".
    """

    def __init__(self, folder: Folder, by_key: Mapping[str, int], part: str) -> None:
        self._folder = folder
        self._by_key = by_key  # a class may be called "train"
        self._part = part
        self._has_both = {True, False} <= {self._is_train(path) for path in folder.videos}

    def locate(self, path: str, where: str) -> tuple[str | None, int]:
        """Where the video lies (relative to the folder, or absolute) and its bytes.

        A list of validation videos never means one below train/ where that is not all there
        is, nor the other way round: the two may hold files of the same names.

        Raises:
            InputError: If it may be one of several videos.
        """
        found = self._folder.fitting(path)
        if found != [path]:
            found = [other for other in found if not self._contradicts(path, other)]
            same = [other for other in found if suffix(other) == suffix(path)]
            found = same or found
        if len(found) > 1:
            raise InputError(
                f"{where}: {path!r} may be {found[0]!r} or {found[1]!r} in "
                f"{self._folder.root}; write paths that tell them apart, or give the folder "
                "that they start from with --videos"
            )
        if found:
            return found[0], self._folder.videos[found[0]]
        if PurePosixPath(path).is_absolute():
            try:
                return path, Path(path).stat().st_size
            except OSError:
                return None, 0
        return None, 0

    def _contradicts(self, listed: str, path: str) -> bool:
        if not self._has_both:
            return False
        own = None if self._part == "all" else self._part == "train"
        said, lies_in = self._is_train(listed), self._is_train(path)
        said = own if said is None else said
        return said is not None and lies_in is not None and said != lies_in

    def _is_train(self, path: str) -> bool | None:
        """Whether it lies below train/ or below val/ or test/; None for neither."""
        parts = folders_of(path)
        of_class = [i for i, part in enumerate(parts) if key(part) in self._by_key]
        role = partition_of(parts[: of_class[-1]] if of_class else parts)
        return None if role is None else role == "train"


def folders_of(path: str) -> list[str]:
    """The folders of a path, from the top."""
    return [part for part in path.replace("\\", "/").split("/")[:-1] if part not in ("", ".")]
