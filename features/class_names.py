"""Class names: readable before CLIP sees them, comparable, and read from files of any form.

CLIP's tokenizer takes `ApplyEyeMakeup` apart as app|l|ye|ye|makeup, so a name is spaced out
first.  Folders, lists and label files spell one class in many ways (`riding_a_bike`,
`riding a bike`); `key` is what they have in common.
"""

import csv
import difflib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from bieff.features.errors import InputError
from bieff.features.files import parse_json

_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")

_SIDES = re.compile(r"left|right|clockwise|\bc?cw\b|\bacw\b")
_NO_SIDES = re.compile(
    r"\b[bf]right\w*|\b\w*wright\w*|\b(up|out|forth|copy|birth)right\w*|\brighteous\w*"
    r"|\bcleft\w*|\bleftovers?\b"
)


def readable(name: str) -> str:
    """The name in words: `ApplyEyeMakeup` -> `Apply Eye Makeup`, `brush_hair` -> `brush hair`.

    A name that has spaces or underscores, or starts small, is not taken apart at capitals.
    """
    name = re.sub(r"(?<=\w)\+(?=\w)", " ", unicodedata.normalize("NFC", name))
    if name[:1].isupper() and not re.search(r"[\s_]", name):
        name = _WORD_STARTS.sub(" ", name)
    return " ".join(name.replace("_", " ").split())


@lru_cache(maxsize=1 << 16)  # a scan asks for the same few folders 260,000 times
def key(name: str) -> str:
    """Letters and digits of a name, in small: what the spellings of a class have in common."""
    return "".join(c for c in folded(name) if c.isalnum()) or name


@lru_cache(maxsize=1 << 16)
def _signed_key(name: str) -> str:
    """The key with the signs that may tell two classes apart: "c++coding"."""
    return re.sub(r"[\s_-]+", "", folded(name)) or name


def folded(name: str) -> str:
    """The name in small letters, accents in one character with their letter.

    A Mac unpacks files under names with two characters for each of these.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class LabelIndex:
    """Labels of classes by their names, however spelled.

    Signs count only where nothing else tells classes apart, as in "C coding", "C++ coding".

    Args:
        names: The classes by label.
        source: Who names them, for the message.
        other_names: A second name of each, such as the readable one.

    Raises:
        InputError: If two classes have one name.
    """

    def __init__(
        self, names: Sequence[str], *, source: str, other_names: Sequence[str] = ()
    ) -> None:
        self._signed: dict[str, int] = {}
        by_key: dict[str, set[int]] = {}
        for label, name in enumerate(names):
            other = self._signed.setdefault(_signed_key(name), label)
            if other != label:
                raise InputError(
                    f"{source}: classes {other} and {label} are both called {name!r}; "
                    "give every class its own name"
                )
            by_key.setdefault(key(name), set()).add(label)
        for label, name in enumerate(other_names):
            self._signed.setdefault(_signed_key(name), label)
            by_key.setdefault(key(name), {label})
        self._by_key = {k: labels.pop() for k, labels in by_key.items() if len(labels) == 1}

    def find(self, name: str) -> int | None:
        """The label of a class; None if there is none of that name."""
        return self._signed.get(_signed_key(name), self._by_key.get(key(name)))


def has_sides(names: Sequence[str]) -> bool:
    """True if mirroring a video could change its class: some name tells left from right."""
    words = (_WORD_STARTS.sub(" ", name).casefold().replace("_", " ") for name in names)
    return any(_SIDES.search(_NO_SIDES.sub("", name)) for name in words)


@dataclass(frozen=True, slots=True)
class ClassNames:
    """The classes in the order of their labels."""

    names: tuple[str, ...]
    """Names as written, which is how folders and lists spell them."""

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
    if path.suffix.lower() == ".json" or _is_json(text):
        pairs = _from_json(text, path)
    else:
        lines = [(k, line.strip()) for k, line in enumerate(text.splitlines(), start=1)]
        lines = [(k, line) for k, line in lines if line]
        ends = {line[-1] for _, line in lines}
        if len(ends) == 1 and ends <= {*DELIMITERS}:  # of a last column that is empty
            lines = [(k, line[:-1]) for k, line in lines if line[:-1].strip()]
        pairs = _from_lines(lines, path)
    if not pairs:
        raise InputError(f"label file {path}: expected a class a line, got an empty file")
    first_id, entries = _in_order(pairs, path)
    names = tuple(name for name, _ in entries)
    LabelIndex(names, source=f"label file {path}")
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


DELIMITERS = (",", ";", "\t", "|")

_ID_FIRST = re.compile(r"(\d{1,18})(?:\s*(?:[-=]>|-(?=\s)|[,;|:.)=])\s*|\s+)(.*\S)")
_ID_LAST = re.compile(r"(.*[^\s,;|:=])(?:\s*[,;|:=]\s*|\s+)(\d{1,18})")

_ID_COLUMNS = ("id", "label", "labelid", "classid", "classindex", "index", "idx", "number", "")
_NAME_COLUMNS = (
    "name", "class", "classname", "category", "labelname", "action", "actionname", "label",
)  # fmt: skip
"""Names of columns, by their key; the first of them that a header has is taken."""

_Pair = tuple[int | None, str, str | None]
"""Number if there is one, name, readable name if there is one."""

_Line = tuple[int, str]
"""Number from 1, and text."""


def _from_lines(lines: Sequence[_Line], path: Path) -> list[_Pair]:
    for delimiter in DELIMITERS if lines else ():
        header = split_line(lines[0][1], delimiter)
        rows = [(number, split_line(line, delimiter)) for number, line in lines[1:]]
        if _is_header(header, rows):
            return _from_table(lines[0][0], header, rows, delimiter, path)
    words = [column_key(word) for word in lines[0][1].split()] if lines else []
    if len(lines) > 1 and (words[0] in ("", *_ID_COLUMNS) or words[0] in _NAME_COLUMNS):
        numbered = all(_ID_FIRST.fullmatch(t) or _ID_LAST.fullmatch(t) for _, t in lines[1:])
        if len(words) == (2 if numbered else 1):
            lines = lines[1:]
    for pattern, name_group in ((_ID_FIRST, 2), (_ID_LAST, 1)):
        found = [m for _, line in lines if (m := pattern.fullmatch(line))]
        numbers = sorted(int(m[3 - name_group]) for m in found)
        is_spaced = all(re.match(r"\d+\s+\w", line) for _, line in lines)
        if len(found) == len(lines) and not (is_spaced and numbers[:1] > [1]):
            return [(int(m[3 - name_group]), _clean(m[name_group]), None) for m in found]
        is_counted = numbers in (list(range(len(numbers))), list(range(1, len(numbers) + 1)))
        if is_counted and len(found) > 1 and 2 * len(found) >= len(lines):
            number, line = next((k, t) for k, t in lines if not pattern.fullmatch(t))
            raise InputError(
                f"label file {path}, line {number}: expected a number and a name as in the "
                f"other lines, got {line!r}"
            )
    return [(None, _clean(line), None) for _, line in lines]


def split_line(line: str, delimiter: str) -> list[str]:
    """The fields of a line of a table, without quotes and spaces around them."""
    return [field.strip() for field in next(csv.reader([line], delimiter=delimiter), [])]


def join_unquoted(row: Sequence[str], width: int, name: int, delimiter: str) -> list[str]:
    """The row, put together where the name was cut at delimiters of its own, if sure.

    Empty fields behind the last column are none.
    """
    while len(row) > width and not row[-1]:
        row = row[:-1]
    more = len(row) - width
    if more < 1 or (name < width - 1 and width > 2):
        return list(row)
    words = f"{delimiter} ".join(row[name : name + more + 1])
    return [*row[:name], words, *row[name + more + 1 :]]


def column_key(name: str) -> str:
    """A column's name in small letters and digits alone; empty if it has none."""
    return "".join(c for c in name.casefold() if c.isalnum())


def _is_header(header: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]]) -> bool:
    """True of column names: well known, or words above a column of numbers."""
    if len(header) < 2 or any(field.isdecimal() for field in header):
        return False
    columns = {column_key(field) for field in header}
    is_known = columns & {*_ID_COLUMNS[:-1], "readable"} and columns & set(_NAME_COLUMNS)
    has_numbers = rows and _number_columns(rows, len(header))
    return bool((is_known and len(columns) > 1) or has_numbers)


def _number_columns(rows: Sequence[tuple[int, Sequence[str]]], width: int) -> list[int]:
    """The first and the last column, as far as they hold numbers alone."""
    first = all(row[0].isdecimal() for _, row in rows if row)
    last = all(len(row) >= width and row[-1].isdecimal() for _, row in rows)
    return [0] * first + [width - 1] * last


def _from_table(
    header_line: int,
    header: Sequence[str],
    rows: Sequence[tuple[int, list[str]]],
    delimiter: str,
    path: Path,
) -> list[_Pair]:
    columns = [column_key(field) for field in header]
    name, number = _columns(columns)
    if number is None:
        number = next((k for k in _number_columns(rows, len(columns)) if k != name), None)
    others = [k for k in range(len(columns)) if k != number]
    name = others[0] if name is None and len(others) == 1 else name
    if name is None or (number is None and "readable" not in columns):
        raise InputError(
            f"label file {path}, line {header_line}: expected a header such as id,name, got "
            f"{delimiter.join(header)!r}; name the columns so"
        )
    pairs: list[_Pair] = []
    for line, row in rows:
        row = join_unquoted(row, len(columns), name, delimiter)
        if len(row) > len(columns):
            raise InputError(
                f"label file {path}, line {line}: expected {len(columns)} columns as in the "
                f"header, got {len(row)}; put quotes around a name that holds {delimiter!r}"
            )
        row = [*row, *[""] * (len(columns) - len(row))]
        label = "" if number is None else row[number]
        if not row[name] or not (number is None or _is_number(label)):
            raise InputError(
                f"label file {path}, line {line}: expected a number and a name, got {label!r} "
                f"and {row[name]!r}"
            )
        words = row[columns.index("readable")] if "readable" in columns else ""
        pairs.append((None if number is None else int(label), row[name], words or None))
    return pairs


def _columns(columns: Sequence[str]) -> tuple[int | None, int | None]:
    """Places of the names and of the numbers, as far as the columns are well known."""
    for name in _NAME_COLUMNS:
        for number in (n for n in _ID_COLUMNS if n != name):
            if name in columns and number in columns:
                return columns.index(name), columns.index(number)
    return next((columns.index(n) for n in _NAME_COLUMNS if n in columns), None), None


def _is_number(text: str) -> bool:
    """True of whole numbers, not of those that Python refuses to read for their length."""
    return text.isdecimal() and len(text) <= 18


def _from_json(text: str, path: Path) -> list[_Pair]:
    value = _parse_json(text, path)
    if isinstance(value, dict):
        if all(key.isdecimal() and not str(name).isdecimal() for key, name in value.items()):
            value = {name: number for number, name in value.items()}
        return [_json_pair(name, number, path) for name, number in value.items()]
    if not isinstance(value, list):
        raise InputError(
            f"label file {path}: expected a list of names or an object of names and numbers, "
            f"got {type(value).__name__}"
        )
    if all(isinstance(entry, str) for entry in value):
        return [(None, _clean(entry), None) for entry in value]
    if all(isinstance(entry, list) for entry in value):  # Diving48's parts of a dive
        return [(None, " ".join(map(str, entry)), None) for entry in value]
    pairs = []
    for entry in value:
        known = entry if isinstance(entry, dict) else {}
        fields = list(known.values())
        name, number = _columns([column_key(field) for field in known])
        if name is None or number is None:
            raise InputError(
                f"label file {path}: expected a list of names, or of objects with id and name"
            )
        pairs.append(_json_pair(fields[name], fields[number], path))
    return pairs


def _is_json(text: str) -> bool:
    """True for what an ending such as .txt does not say; a class may begin with a bracket."""
    with suppress(ValueError):
        return text.lstrip()[:1] in ("{", "[") and isinstance(parse_json(text), (dict, list))
    return False


def _parse_json(text: str, path: Path, **options: Any) -> Any:
    try:
        return parse_json(text, **options)
    except ValueError as error:
        raise InputError(f"label file {path}: not json: {error}") from None


def _json_pair(one: Any, other: Any, path: Path) -> _Pair:
    number = int(other) if isinstance(other, str) and _is_number(other) else other
    if isinstance(one, str) and type(number) is int:
        return number, _clean(one), None
    raise InputError(f"label file {path}: expected a name and a number, got {one!r}: {other!r}")


def _in_order(
    pairs: Sequence[_Pair], path: Path
) -> tuple[int | None, list[tuple[str, str | None]]]:
    """First number, and (name, readable name) by number."""
    numbers = [number for number, _, _ in pairs]
    if None in numbers:
        return None, [(name, words) for _, name, words in pairs]
    ordered = sorted((number or 0, name, words or "") for number, name, words in pairs)
    first = ordered[0][0]
    for expected, (number, name, _) in enumerate(ordered, start=first):
        if number != expected or first > 1:
            raise InputError(
                f"label file {path}: expected numbers 0..{len(pairs) - 1} or 1..{len(pairs)}, "
                f"got {number} for {name!r}"
            )
    return first, [(name, words or None) for _, name, words in ordered]


def _clean(name: str) -> str:
    """The name without the quotes that some files put around it."""
    name = name.strip()
    if len(name) > 1 and name[0] == name[-1] == '"':
        name = name[1:-1].replace('""', '"').strip()
    return name


def read_texts(path: Path, class_names: Sequence[str]) -> list[tuple[str, ...]]:
    """The texts that describe each of these classes, by label; one or more for each.

    A text a line, csv with id,name, or json: a list in the classes' order, or an object by
    their names.

    Raises:
        InputError: If the file cannot be read, leaves a class out, names an unknown one, or
            describes a class by the name of another.
    """
    by_label: dict[int, list[str]] = {}
    for label, found in _described(path, class_names):
        by_label.setdefault(label, []).extend(" ".join(text.split()) for text in found)
    for label, name in enumerate(class_names):
        if not all(by_label.get(label, [""])) or not by_label[label]:
            raise InputError(
                f"{path}: expected a description of each of {len(class_names)} classes, got "
                f"none of class {label}, {name!r}"
            )
    texts = [tuple(by_label[label]) for label in range(len(class_names))]
    _require_own_names(path, texts, class_names)
    return texts


def _described(path: Path, class_names: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Label and texts, as the file has them; a label may come several times from csv."""
    text, kind = read_text(path), path.suffix.casefold()
    if kind == ".csv":
        yield from _described_in_table(path, csv.DictReader(text.splitlines()), class_names)
        return
    parsed: Any = text.splitlines()
    if kind == ".json":
        parsed = _parse_json(text, path, object_pairs_hook=_Pairs)
    if not isinstance(parsed, list):
        raise InputError(f"{path}: expected a JSON object or list, got {parsed!r}")
    labels, values = list(range(len(class_names))), parsed
    if isinstance(parsed, _Pairs):
        labels = _labels_of(path, [name for name, _ in parsed], class_names)
        values = [value for _, value in parsed]
    if len(values) != len(labels):
        raise InputError(
            f"{path}: expected {len(class_names)} classes, as the store has, got {len(values)}"
        )
    for label, value in zip(labels, values, strict=True):
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise InputError(f"{path}: expected a text or a list of texts, got {value!r}")
        yield label, found


class _Pairs(list[tuple[str, Any]]):
    """A JSON object, with every key that is written twice."""


def _described_in_table(
    path: Path, rows: "csv.DictReader[str]", class_names: Sequence[str]
) -> Iterator[tuple[int, list[str]]]:
    if not {"id", "name"} <= set(rows.fieldnames or ()):
        raise InputError(f"{path}: expected a first line of id,name, got {rows.fieldnames}")
    for row in rows:
        label = (row["id"] or "").strip()
        if not _is_number(label) or int(label) >= len(class_names):
            raise InputError(
                f"{path}: expected ids from 0 to {len(class_names) - 1}, got {row['id']!r}"
            )
        yield int(label), [row["name"] or ""]


def _labels_of(path: Path, names: Sequence[str], class_names: Sequence[str]) -> list[int]:
    labels = LabelIndex(class_names, source="the store")
    found: list[int] = []
    for name in names:
        label = labels.find(name)
        if label is None:
            close = difflib.get_close_matches(name, class_names, n=1, cutoff=0.0)
            raise InputError(
                f"{path}: the store has no class {name!r}; did you mean {close[0]!r}?"
            )
        if label in found:
            raise InputError(
                f"{path}: expected each class once, got {class_names[label]!r} twice; give it "
                "a list of texts"
            )
        found.append(label)
    return found


def _require_own_names(
    path: Path, texts: Sequence[tuple[str, ...]], class_names: Sequence[str]
) -> None:
    """Refuse a file in another order than the labels, as some of HMDB-51 are."""
    labels = LabelIndex(class_names, source="the store")
    for label, found in enumerate(texts):
        for text in found:
            other = labels.find(text)
            if other is not None and other != label:
                raise InputError(
                    f"{path}: class {label} is {class_names[label]!r}, but is described as "
                    f"{text!r}, which is class {other}; bring the file into the store's order"
                )
