"""The official class names and lists that are shipped in `data/`; SOURCES.md says whose."""

import csv
from functools import cache
from pathlib import Path

from bieff.extract.datasets.kinetics_files import Row, parse_row
from bieff.extract.datasets.names import key

DATA = Path(__file__).parent / "data"

ROLES = {"1": "train", "2": "test"}
"""How the split files code a role; 0 is a video the split does not use."""


@cache
def class_names(name: str) -> tuple[tuple[str, str], ...]:
    """Official and readable name of each class of "ucf101", "hmdb51", "k400" or "k600"."""
    if name in ("k400", "k600"):
        return tuple((line, line) for line in _lines(f"{name}_names.txt"))
    rows = csv.DictReader(_lines(f"{name}_names.csv"))
    return tuple((row["name"], row["readable"]) for row in rows)


@cache
def splits(name: str) -> tuple[tuple[str, dict[str, str]], ...]:
    """Of every video of "ucf101" or "hmdb51": `class/file name`, and its role in each split."""
    roles: dict[str, dict[str, str]] = {}
    videos = []
    for line in _lines(f"{name}_splits.txt"):
        path, codes = line.rsplit(" ", 1)
        if codes not in roles:  # one dictionary for all videos alike
            numbered = enumerate(codes, start=1)
            roles[codes] = {str(k): ROLES[code] for k, code in numbered if code in ROLES}
        videos.append((path, roles[codes]))
    return tuple(videos)


@cache
def kinetics_val() -> tuple[Row, ...]:
    """The official validation list of Kinetics-400."""
    labels = {key(name): label for label, (name, _) in enumerate(class_names("k400"))}
    rows = csv.DictReader(_lines("k400_val.csv"))
    return tuple(parse_row(row, labels, "k400_val.csv") for row in rows)


@cache
def zero_shot_splits() -> dict[str, tuple[int, ...]]:
    """Labels in k600 of the 160 classes of each zero-shot split, "1" to "3" (protocol k600)."""
    label = {name: k for k, (name, _) in enumerate(class_names("k600"))}
    splits = {}
    for split in ("1", "2", "3"):
        rows = csv.DictReader(_lines(f"k600_zero_shot_{split}.csv"))
        splits[split] = tuple(label[row["name"]] for row in rows)
    return splits


def _lines(file: str) -> list[str]:
    return (DATA / file).read_text(encoding="utf-8").splitlines()
