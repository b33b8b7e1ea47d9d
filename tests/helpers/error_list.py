"""The list of error sentences in docs/troubleshooting.md, read out of the code.

    python tests/helpers/error_list.py

writes it anew; a test compares.  A sentence is the first argument of a `BieffError` or of a
class under it; what the code fills in is written "…".
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
BEGIN = "<!-- error list: written by tests/helpers/error_list.py -->"
END = "<!-- end of error list -->"

FILLED_IN = "…"

TOPICS = (
    ("Models, weights and devices", ("clip.py", "train/text/tower.py")),
    ("Data sets, lists and labels", ("extract/datasets/", "extract/shapes/")),
    ("Extraction", ("extract/",)),
    ("Stores", ("features/",)),
    ("Training, runs and evaluation", ("train/",)),
    ("Predicting, reporting, serving", ("apps/",)),
)
"""Headings, and beginnings of the paths below each; the first that fits."""


def error_classes() -> set[str]:
    """Names of BieffError and of every class under it, wherever in the code."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for path in source_files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    found = {"BieffError"}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return found


def source_files() -> list[Path]:
    parts = ("apps", "extract", "features", "train")
    return [
        ROOT / "clip.py",
        *(p for part in parts for p in sorted((ROOT / part).rglob("*.py"))),
    ]


def sentences() -> dict[str, list[str]]:
    """The sentences below each heading, in alphabetical order."""
    names = error_classes()
    found: dict[str, set[str]] = {heading: set() for heading, _ in TOPICS}
    for path in source_files():
        place = path.relative_to(ROOT).as_posix()
        heading = next(h for h, starts in TOPICS if place.startswith(starts))
        for call in calls(path, names):
            found[heading].add(sentence(call.args[0]))
    return {
        heading: sorted(said - {FILLED_IN}, key=lambda s: s.lower().lstrip("…'\" "))
        for heading, said in found.items()
    }


def calls(path: Path, names: set[str]) -> Iterator[ast.Call]:
    """Every place where an error is made with a message."""
    for node in ast.walk(ast.parse(path.read_text())):
        is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if is_call and node.args and node.func.id in names:
            yield node


def sentence(node: ast.expr) -> str:
    """The text of an expression, as far as it stands in the code; on one line."""
    return " ".join(_text(node).split())


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return FILLED_IN


def markdown() -> str:
    """The list, as it stands between the two marks of the page."""
    lines = [BEGIN]
    for heading, said in sentences().items():
        if said:
            lines += ["", f"### {heading}", ""]
            lines += [f"- {_literal(text)}" for text in said]
    return "\n".join([*lines, "", END])


def _literal(text: str) -> str:
    """A code span; sentences hold commands in backticks themselves."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def split_page(page: str) -> tuple[str, str, str]:
    """What stands before the list, the list, and what stands after it."""
    before, _, rest = page.partition(BEGIN)
    listed, _, after = rest.partition(END)
    return before, BEGIN + listed + END, after


if __name__ == "__main__":
    before, _, after = split_page(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(before + markdown() + after, encoding="utf-8")
