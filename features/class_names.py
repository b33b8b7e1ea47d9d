"""Class names: readable before CLIP sees them, and comparable however they are spelled.

CLIP's tokenizer takes `ApplyEyeMakeup` apart as app|l|ye|ye|makeup, so a name is spaced out
first.  Folders, lists and label files spell one class in many ways (`riding_a_bike`,
`riding a bike`); `key` is what they have in common.
"""

import csv
import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from bieff.features.errors import InputError

_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

_SIDES = frozenset({"left", "right", "leftward", "rightward", "clockwise", "anticlockwise"})


def readable(name: str) -> str:
    """The name in words: `ApplyEyeMakeup` -> `Apply Eye Makeup`, `brush_hair` -> `brush hair`.

    A name that has spaces or underscores, or starts small, is not taken apart at capitals.
    """
    if name[:1].isupper() and not re.search(r"[\s_]", name):
        name = _WORD_STARTS.sub(" ", name)
    return " ".join(name.replace("_", " ").split())


@lru_cache(maxsize=1 << 16)  # a scan asks for the same few folders 260,000 times
def key(name: str) -> str:
    """Letters and digits of a name, in small: what the spellings of a class have in common."""
    return "".join(c for c in name.casefold() if c.isalnum()) or name


def label_of_key(names: Sequence[str], *, source: str) -> dict[str, int]:
    """Each class's key -> its label.

    Raises:
        InputError: If two classes have one key.
    """
    labels: dict[str, int] = {}
    for label, name in enumerate(names):
        other = labels.setdefault(key(name), label)
        if other != label:
            raise InputError(
                f"{source}: classes {other} and {label} are both called {name!r}; "
                "give every class its own name"
            )
    return labels


def has_sides(names: Sequence[str]) -> bool:
    """True if mirroring a video could change its class: some name tells left from right."""
    return any(not _SIDES.isdisjoint(name.casefold().split()) for name in names)


_ID_FIRST = re.compile(r"(\d+)\s*[,;\t ]\s*(.*\S)")
_ID_LAST = re.compile(r"(.*\S)\s*[,;\t ]\s*(\d+)")
_ID_COLUMNS = ("id", "label", "label_id", "class_id", "index", "idx")
_NAME_COLUMNS = ("name", "class", "class_name", "category", "label_name", "label")


@dataclass(frozen=True, slots=True)
class ClassNames:
    """The classes in the order of their labels."""

    names: tuple[str, ...]
    """As written, which is how folders and lists spell them."""

    readable: tuple[str, ...]

    first_id: int | None
    """The number the file gives to its first class, 0 or 1; None if it gives none."""


def read_class_names(path: Path) -> ClassNames:
    """Read a label file of any form.

    Raises:
        InputError: If the file cannot be read, its numbers are not 0..K-1 or 1..K, or two
            classes have the same name.
    """
    text = read_text(path)
    if path.suffix.lower() == ".json":
        pairs = _from_json(text, path)
    else:
        pairs = _from_lines([line.strip() for line in text.splitlines() if line.strip()], path)
    if not pairs:
        raise InputError(f"label file {path}: expected a class a line, got an empty file")
    first_id, entries = _in_order(pairs, path)
    names = tuple(name for name, _ in entries)
    label_of_key(names, source=f"label file {path}")
    return ClassNames(
        names, tuple(words or readable(name) for name, words in entries), first_id
    )


def read_text(path: Path) -> str:
    """A text file in UTF-8, with a byte order mark or not.

    Raises:
        InputError: If it is missing or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot read {path}: {reason.lower()}; check the path") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"cannot read {path}: expected UTF-8, got byte {error.object[error.start]:#x} at "
            f"{error.start}; convert the file"
        ) from None


_Pair = tuple[int | None, str, str | None]
"""Number if there is one, name, readable name if there is one."""


def _from_lines(lines: Sequence[str], path: Path) -> list[_Pair]:
    header = (
        [field.strip().strip('"').casefold() for field in lines[0].split(",")] if lines else []
    )
    name_column = next((c for c in _NAME_COLUMNS if c in header and _other_id(header, c)), None)
    if name_column:
        return _from_table(lines[1:], header, name_column, path)
    for pattern, name_group in ((_ID_FIRST, 2), (_ID_LAST, 1)):
        matches = [pattern.fullmatch(line) for line in lines]
        if all(matches):
            found = [m for m in matches if m]
            return [(int(m[3 - name_group]), _clean(m[name_group]), None) for m in found]
    return [(None, _clean(line), None) for line in lines]


def _from_table(
    lines: Sequence[str], header: Sequence[str], name_column: str, path: Path
) -> list[_Pair]:
    id_column = _other_id(header, name_column)
    pairs: list[_Pair] = []
    for line, row in enumerate(csv.DictReader(lines, fieldnames=header), start=2):
        number, name = row[id_column], row[name_column]
        if not (number or "").strip().isdecimal() or not name:
            raise InputError(
                f"label file {path}, line {line}: expected a number and a name, got {number!r} "
                f"and {name!r}"
            )
        pairs.append((int(number), _clean(name), row.get("readable")))
    return pairs


def _other_id(header: Sequence[str], name_column: str) -> str | None:
    return next((c for c in _ID_COLUMNS if c in header and c != name_column), None)


def _from_json(text: str, path: Path) -> list[_Pair]:
    value = _parse_json(text, path)
    if isinstance(value, dict):
        return [_json_pair(one, other, path) for one, other in value.items()]
    if not isinstance(value, list):
        raise InputError(
            f"label file {path}: expected a list of names or an object of names and numbers, "
            f"got {type(value).__name__}"
        )
    if all(isinstance(entry, str) for entry in value):
        return [(None, _clean(entry), None) for entry in value]
    if not all(isinstance(entry, dict) and {"id", "name"} <= set(entry) for entry in value):
        raise InputError(
            f"label file {path}: expected a list of names, or of objects with id and name"
        )
    return [_json_pair(entry["name"], entry["id"], path) for entry in value]


def _parse_json(text: str, path: Path, **options: Any) -> Any:
    try:
        return json.loads(text, **options)
    except (ValueError, RecursionError) as error:
        raise InputError(f"label file {path}: not json: {error}") from None


def _json_pair(one: Any, other: Any, path: Path) -> _Pair:
    """Names to numbers, or numbers to names."""
    if isinstance(one, str) and isinstance(other, int):
        return other, _clean(one), None
    if isinstance(one, str) and one.isdecimal() and isinstance(other, str):
        return int(one), _clean(other), None
    raise InputError(f"label file {path}: expected a name and a number, got {one!r}: {other!r}")


def _in_order(
    pairs: Sequence[_Pair], path: Path
) -> tuple[int | None, list[tuple[str, str | None]]]:
    """First number, and (name, readable name) by number."""
    numbers = [number for number, _, _ in pairs]
    if None in numbers:
        return None, [(name, words) for _, name, words in pairs]
    ordered = sorted((number or 0, name, words) for number, name, words in pairs)
    first = ordered[0][0]
    for expected, (number, name, _) in enumerate(ordered, start=first):
        if number != expected or first > 1:
            raise InputError(
                f"label file {path}: expected numbers 0..{len(pairs) - 1} or 1..{len(pairs)}, "
                f"got {number} for {name!r}"
            )
    return first, [(name, words) for _, name, words in ordered]


def _clean(name: str) -> str:
    """Without the quotes that some files put around a name."""
    name = name.strip()
    if len(name) > 1 and name[0] == name[-1] == '"':
        name = name[1:-1].strip()
    return name


def read_texts(path: Path, class_names: Sequence[str]) -> list[tuple[str, ...]]:
    """The texts that describe each of these classes, by label; one or more for each.

    A text a line, csv with id,name, or json: a list in the classes' order, or an object by
    their names.

    Raises:
        InputError: If the file cannot be read, leaves a class out, names an unknown one, or
            describes a class by the name of another.
    """
    by_label = _texts_by_label(path, class_names)
    texts = []
    for label, name in enumerate(class_names):
        found = tuple(" ".join(text.split()) for text in by_label.get(label, ()))
        if not found or not all(found):
            raise InputError(
                f"{path}: expected a description of each of {len(class_names)} classes, got "
                f"none of class {label}, {name!r}"
            )
        texts.append(found)
    _require_own_names(path, texts, class_names)
    return texts


def _texts_by_label(path: Path, class_names: Sequence[str]) -> dict[int, list[str]]:
    text = read_text(path)
    kind = path.suffix.casefold()
    if kind == ".csv":
        return _texts_from_table(path, text, class_names)
    if kind != ".json":
        return _texts_in_order(path, [[line] for line in text.splitlines()], class_names)
    parsed = _parse_json(text, path, object_pairs_hook=_Pairs)
    if isinstance(parsed, _Pairs):
        return _texts_by_name(path, parsed, class_names)
    if isinstance(parsed, list):
        return _texts_in_order(path, [_texts(path, value) for value in parsed], class_names)
    raise InputError(f"{path}: expected a JSON object or list, got {parsed!r}")


class _Pairs(list[tuple[str, Any]]):
    """A JSON object, with every key that is written twice."""


def _texts_by_name(
    path: Path, pairs: _Pairs, class_names: Sequence[str]
) -> dict[int, list[str]]:
    labels = {key(known): label for label, known in enumerate(class_names)}
    by_label: dict[int, list[str]] = {}
    for name, value in pairs:
        label = labels.get(key(name))
        if label is None:
            close = difflib.get_close_matches(name, class_names, n=1, cutoff=0.0)
            raise InputError(
                f"{path}: the store has no class {name!r}; did you mean {close[0]!r}?"
            )
        if label in by_label:
            raise InputError(
                f"{path}: expected each class once, got {class_names[label]!r} twice; give it "
                "a list of texts"
            )
        by_label[label] = _texts(path, value)
    return by_label


def _texts_from_table(
    path: Path, text: str, class_names: Sequence[str]
) -> dict[int, list[str]]:
    rows = csv.DictReader(text.splitlines())
    if not {"id", "name"} <= set(rows.fieldnames or ()):
        raise InputError(f"{path}: expected a first line of id,name, got {rows.fieldnames}")
    by_label: dict[int, list[str]] = {}
    for row in rows:
        label = (row["id"] or "").strip()
        if not label.isdecimal() or int(label) >= len(class_names):
            raise InputError(
                f"{path}: expected ids from 0 to {len(class_names) - 1}, got {row['id']!r}"
            )
        by_label.setdefault(int(label), []).append(row["name"] or "")
    return by_label


def _texts_in_order(
    path: Path, values: Sequence[list[str]], class_names: Sequence[str]
) -> dict[int, list[str]]:
    if len(values) != len(class_names):
        raise InputError(
            f"{path}: expected {len(class_names)} classes, as the store has, got {len(values)}"
        )
    return dict(enumerate(values))


def _texts(path: Path, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{path}: expected a text or a list of texts, got {value!r}")
    return texts


def _require_own_names(
    path: Path, texts: Sequence[tuple[str, ...]], class_names: Sequence[str]
) -> None:
    """Refuse a file in another order than the labels, as some of HMDB-51 are."""
    labels = {key(name): label for label, name in enumerate(class_names)}
    for label, found in enumerate(texts):
        for text in found:
            other = labels.get(key(text), label)
            if other != label:
                raise InputError(
                    f"{path}: class {label} is {class_names[label]!r}, but is described as "
                    f"{text!r}, which is class {other}; bring the file into the store's order"
                )
