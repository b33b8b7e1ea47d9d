"""What `bieff datasets` says of each data set."""

from pathlib import Path

HEADER = ("name", "what", "classes", "videos", "partitions", "found")

_CLOSED = "train, val"
_SPLITS = "all, three splits"

_ROWS: tuple[tuple[str, ...], ...] = (
    ("shapes", "moving shapes, made here on first use", "31", "1,364", _CLOSED),
    (
        "shapes-combinations",
        "zero-shot: new combinations",
        "15",
        "225",
        _SPLITS,
    ),
    ("shapes-unseen", "zero-shot: new shapes", "24", "360", _SPLITS),
    (
        "k400",
        "Kinetics-400; train from your csv or folders",
        "400",
        "19,906 val",
        _CLOSED,
    ),
    ("k600", "Kinetics-600; lists from your csv or folders", "600", "as found", _CLOSED),
    ("ucf101", "UCF-101", "101", "13,320", _SPLITS),
    ("hmdb51", "HMDB-51", "51", "6,766", _SPLITS),
    ("folder", "class folders, or a flat folder of clips", "by folder", "as found", "any"),
    ("list", "your list files and label file", "by file", "as listed", "any"),
)


def table(data: Path = Path("data")) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows; the last column is the videos' folder under `data`, if it is there."""
    folders = [data / row[0] for row in _ROWS]
    found = [str(folder) if folder.is_dir() else "" for folder in folders]
    return HEADER, [(*row, folder) for row, folder in zip(_ROWS, found, strict=True)]
