"""Which video of a folder a line of a list means: one, or none, never one of several."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from bieff.extract.datasets.names import key
from bieff.extract.datasets.scan import Folder, partition_of, suffix
from bieff.features.errors import InputError


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
