"""Files in a videos' folder: one walk, then dictionary look-ups."""

import contextlib
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from bieff.extract.sources.tars import SUFFIX as TAR
from bieff.extract.sources.tars import tar_at
from bieff.extract.sources.urls import objects_at, shown, url_of
from bieff.features.class_names import LabelIndex, folded, key
from bieff.features.errors import InputError

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"}
    | {".mts", ".ogv", ".ts", ".webm", ".wmv"}
)

_PARTITION = re.compile(
    r"(?:.*[_-])?(train|val|valid|validate|validation|test)(?:[_-].*)?", re.IGNORECASE
)
_PACKED = re.compile(r".*\.(tar\.\w+|t[gx]z|tbz2?|zip|rar|7z)", re.IGNORECASE)
_ROLE = re.compile(r"train|validation|validate|valid|val|test", re.IGNORECASE)


@dataclass(frozen=True)
class Folder:
    """The videos under a folder, and the tables (.csv) beside them."""

    root: Path
    videos: dict[str, int]
    """Path relative to `root`, with forward slashes, sorted -> bytes."""

    tables: tuple[str, ...] = ()
    """Relative paths of the csv files, sorted."""

    notes: tuple[str, ...] = ()
    """Things a user should know of it, a sentence each."""

    unreadable: frozenset[str] = frozenset()
    """Paths of videos whose names are not UTF-8, written with escapes."""

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in self.videos:
            found.setdefault(folded(stem(path)), []).append(path)
        return found

    def of_name(self, listed: str) -> list[str]:
        """The videos of the file name of a path, whatever its suffix, case and folder."""
        return self._by_stem.get(folded(stem(listed)), [])

    def fitting(self, listed: str) -> list[str]:
        """The videos that a list may mean by a path, sorted; none fits better than these.

        Lists come from other machines: the suffix may differ, folders may be missing in front
        or be too many.  File name and parent folder have to agree, as far as both have one;
        of several videos those that agree furthest up win, then those of the same case.  A
        YouTube id in another case is another video.
        """
        if listed in self.videos:
            return [listed]
        wanted = _parts(listed)
        best: list[str] = []
        best_agreement = 1
        for path in self.of_name(listed):
            agreement = _agreement(wanted, _parts(path))
            if agreement > best_agreement:
                best, best_agreement = [], agreement
            if agreement == best_agreement:
                best.append(path)
        same = [path for path in best if not is_recased(listed, path)]
        return same or [path for path in best if not _may_be_youtube(listed, path)]


YOUTUBE_FILE = re.compile(r"([\w-]{11})(?:_(\d{1,6})_(\d{1,6}))?")
"""A file name without suffix: YouTube id, and seconds where the clip begins and ends."""


def is_recased(listed: str, path: str) -> bool:
    """True if the file names differ, by large and small letters."""
    names = (unicodedata.normalize("NFC", stem(name)) for name in (listed, path))
    return len(set(names)) > 1


def _may_be_youtube(*paths: str) -> bool:
    names = [stem(path) for path in paths if YOUTUBE_FILE.fullmatch(stem(path))]
    return any(name[1:] != name[1:].casefold() and not name.isupper() for name in names)


def scan(root: Path, *, layout: str) -> Folder:
    """List the videos under `root`, at any depth, also in tar files.

    Args:
        root: The videos' folder, a tar file, or an address.
        layout: One clause that says what is expected there, for the error message.

    Raises:
        InputError: If the folder is missing, cannot be listed, or holds no video.
    """
    if (url := url_of(root)) is not None:
        sizes, odd = objects_at(url)
        return _folder_of(root, sizes, layout, notes=_left_out(url, odd))
    if root.is_file() and _PACKED.fullmatch(root.name):
        raise InputError(
            f"cannot read {root}: it is compressed, so members cannot be read where they lie; "
            "unpack it, or make an uncompressed .tar of it"
        )
    if not root.is_dir() and not is_tar(root):
        raise InputError(
            f"no videos' folder at {root}: expected {layout}; put the videos there or give "
            "their folder with --videos"
        )
    videos: dict[str, int] = {}
    tables: list[str] = []
    unreadable: list[str] = []
    packed: list[str] = []
    tars: list[str] = [""] if is_tar(root) else []
    try:
        for path, entry in () if tars else _walk(root):
            end = suffix(path)
            if not path.isprintable() and _is_undecoded(path):
                unreadable += [path] if end in VIDEO_SUFFIXES else []
            elif end in VIDEO_SUFFIXES and entry.is_file():  # and no link that leads nowhere
                videos[path] = entry.stat().st_size
            elif end == ".csv":
                tables.append(path)
            elif path.endswith(TAR) and entry.is_file():
                tars.append(path)
            elif _PACKED.fullmatch(path):
                packed.append(path)
        inside, notes = _in_tars(root, sorted(tars))
    except OSError as error:
        raise InputError(
            f"cannot read the videos' folder {root}: {error}; check its permissions"
        ) from None
    escaped = [os.fsencode(path).decode("utf-8", "backslashreplace") for path in unreadable]
    notes += _require_utf8(root, escaped) if escaped else ()
    if packed:
        notes += (
            f"compressed archives are not looked into: {len(packed):,}, the first is "
            f"{min(packed)!r}; unpack them, or make uncompressed .tar files of them",
        )
    videos = inside | videos | dict.fromkeys(escaped, 0)  # files of their own before members
    return _folder_of(root, videos, layout, tables, notes, frozenset(escaped))


def is_tar(path: Path) -> bool:
    """True of a tar file, by its name."""
    return path.suffix == TAR and path.is_file()


def _in_tars(root: Path, tars: Iterable[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Path and bytes of the files in tar files, where these are unpacked; and notes."""
    sizes: dict[str, int] = {}
    notes: list[str] = []
    for path in tars:
        tar = tar_at(root / path)
        folder = f"{path.removesuffix(TAR)}/" if path else ""
        sizes |= {folder + name: member.size for name, member in tar.members.items()}
        notes += _left_out(path or root.name, tar.refused)
        if tar.fault:
            count = f"{len(tar.members):,} files before that"
            notes.append(f"tar file {path or root.name!r}: {tar.fault}; {count} are read")
    return sizes, tuple(notes)


def _left_out(source: str, names: Iterable[str]) -> tuple[str, ...]:
    """The note on videos that no path leads to."""
    odd = sorted(name for name in names if suffix(name) in VIDEO_SUFFIXES)
    if not odd:
        return ()
    return (
        f"{source}: {len(odd):,} videos left out, which are links or have names that lead "
        f"elsewhere or cannot be printed, the first is {odd[0]!r}",
    )


def _folder_of(
    root: Path,
    files: dict[str, int],
    layout: str,
    tables: Iterable[str] = (),
    notes: tuple[str, ...] = (),
    unreadable: frozenset[str] = frozenset(),
) -> Folder:
    """The videos among files, by path.

    Raises:
        InputError: If there is none.
    """
    hidden = (".", "__MACOSX")
    videos = {
        path: size
        for path, size in sorted(files.items())
        if suffix(path) in VIDEO_SUFFIXES
        and not any(part.startswith(hidden) for part in path.split("/"))
    }
    if not videos:
        raise InputError(
            f"no videos in {shown(root)}: expected {layout}; "
            + "".join(f"{note}; " for note in notes)
            + f"the suffixes looked for are {' '.join(sorted(VIDEO_SUFFIXES))}"
        )
    return Folder(root, videos, tuple(sorted(tables)), notes, unreadable)


def _is_undecoded(path: str) -> bool:
    return any("\udc80" <= c <= "\udcff" for c in path)


def _require_utf8(root: Path, paths: list[str]) -> tuple[str, ...]:
    """The note on files whose names are not UTF-8; an error if it is the locale's fault."""
    encoding = sys.getfilesystemencoding()
    if encoding.lower().replace("-", "") != "utf8":
        raise InputError(
            f"cannot read the name '{paths[0]}' in {root} in this locale, whose file names are "
            f"{encoding}; set PYTHONUTF8=1"
        )
    return (
        f"videos missing, as their names are not UTF-8: {len(paths):,}, the first is "
        f"'{paths[0]}'; rename them",
    )


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
    name = path.replace("\\", "/").rpartition("/")[2]
    return name[: -len(end)] if (end := suffix(name)) in VIDEO_SUFFIXES else name


def without_suffix(path: str) -> str:
    """The path without a video's suffix."""
    return path[: -len(end)] if (end := suffix(path)) in VIDEO_SUFFIXES else path


def ids_of(paths: Iterable[str]) -> dict[str, str]:
    """Each path's id: the path without suffix, unless two videos differ in nothing else.

    The same whether accents are characters of their own, as on a Mac, or not.
    """
    bare = {path: unicodedata.normalize("NFC", without_suffix(path)) for path in paths}
    count = Counter(bare.values())
    return {path: short if count[short] == 1 else path for path, short in bare.items()}


def roles_of(folders: Iterable[str], *, hold_classes: bool) -> dict[str, str]:
    """Roles of folders that lie side by side, if they are partitions and no classes.

    They are `train` and `val`, or `k400_train` and `k400_val`; `crash_test` and `drop_test`
    are classes.

    Args:
        folders: Their names.
        hold_classes: They have folders in them.
    """
    roles = {folder: role for folder in folders if (role := partition_of([folder]))}
    rests = {_ROLE.sub("", folder).casefold() for folder in roles}
    are_alike = (
        len(rests - {""}) < 2 if hold_classes else rests == {""} or len(roles) > len(rests)
    )
    return roles if are_alike and len(set(roles.values())) == len(roles) else {}


def partition_of(folders: Iterable[str]) -> str | None:
    """The partition that a folder is named after (`train`, `val_256`, `k400-test`), if any."""
    for folder in folders:
        if match := _PARTITION.fullmatch(folder):
            role = match[1].lower()
            return "val" if role.startswith("val") else role
    return None


def _parts(path: str) -> list[str]:
    """File name first, then the folders upwards, each by its key."""
    parents = PurePosixPath(path.replace("\\", "/")).parent.parts
    return [folded(stem(path)), *(key(part) for part in reversed(parents))]


def _agreement(one: list[str], other: list[str]) -> int:
    """Number of parts that agree from the file name up; 0 unless two do, or all there are."""
    agreement = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        agreement += 1
    return agreement if agreement >= min(2, len(one), len(other)) else 0


def _is_new(path: str, seen: set[str]) -> bool:
    # a link may point upwards
    real = os.path.realpath(path)
    is_new = real not in seen
    seen.add(real)
    return is_new


class FileIndex:
    """The videos that the list of one partition means by its paths.

    Args:
        folder: What lies there.
        labels: The classes; one may be called "train".
        part: "train", "val" or "all".
    """

    def __init__(self, folder: Folder, labels: LabelIndex, part: str) -> None:
        self._folder = folder
        self._labels = labels
        self._part = part
        self.recased: list[str] = []
        """Listed paths that were found in another case, or might be."""
        self._has_both = {True, False} <= {self._is_train(path) for path in folder.videos}

    def locate(self, path: str, where: str) -> tuple[str | None, int]:
        """Path of the video (relative to the folder, or absolute) and its bytes.

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
            if any(is_recased(path, other) for other in found or self._folder.of_name(path)):
                self.recased.append(path)
        if len(found) > 1:
            raise InputError(
                f"{where}: {path!r} may be {found[0]!r} or {found[1]!r} in "
                f"{self._folder.root}; write paths that tell them apart, or give the folder "
                "that they start from with --videos"
            )
        if found:
            return found[0], self._folder.videos[found[0]]
        if PurePosixPath(path).is_absolute():
            with contextlib.suppress(OSError):
                return path, Path(path).stat().st_size
        return None, 0

    def _contradicts(self, listed: str, path: str) -> bool:
        if not self._has_both:
            return False
        own = None if self._part == "all" else self._part == "train"
        said, lies_in = self._is_train(listed), self._is_train(path)
        said = own if said is None else said
        return said is not None and lies_in is not None and said != lies_in

    def _is_train(self, path: str) -> bool | None:
        """True below train/, False below val/ or test/, None for neither."""
        parts = folders_of(path)
        of_class = [i for i, part in enumerate(parts) if self._labels.find(part) is not None]
        role = partition_of(parts[: of_class[-1]] if of_class else parts)
        return None if role is None else role == "train"


def folders_of(path: str) -> list[str]:
    """The folders of a path, from the top."""
    return [part for part in path.replace("\\", "/").split("/")[:-1] if part not in ("", ".")]
