"""A run's folder as a report reads it: curves, results, and the commands that made it.

Read tolerantly: fields that a record lacks are left out, fields that it has beyond are kept.
"""

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bieff.features.files import parse_json
from bieff.features.store import FeatureStore
from bieff.train.config import TrainConfig
from bieff.train.evaluate.lists import OF_FEW_VIDEOS
from bieff.train.evaluate.results import QUESTION
from bieff.train.runs.metrics import METRICS
from bieff.train.runs.run import RECORD, RESULTS, Run

Series = list[tuple[float, float]]
"""Step and value, by step."""


def read_curves(folder: Path) -> dict[str, Series]:
    """Every number that training wrote down, by name; what is not finite is left out."""
    curves: dict[str, Series] = {}
    try:
        lines = (folder / METRICS).read_text(errors="replace").splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            record = parse_json(line)
            step = record.pop("step")
        except (ValueError, LookupError, TypeError, AttributeError):
            continue  # the last line of a run that was killed
        for name, value in record.items():
            if isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(name, []).append((step, value))
    return curves


def read_results(run: Run) -> list[dict[str, Any]]:
    """All records of results in the run's folder, those of other runs left out.

    What results.json holds is the run's own, also where its folder was renamed since.
    """
    found: dict[str, dict[str, Any]] = {}
    files = [file for file in run.path.glob("*.json") if file.name != RECORD]
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns):
        for record in _records(file):
            if file.name == RESULTS or record.get("run") in (None, run.id):
                asked = {name: record.get(name) for name in QUESTION} | {"run": None}
                found[json.dumps(asked)] = record  # of the same question the later file's
    order = {"bieff": 0, "frozen": 2}  # a mix between them

    def place(record: Mapping[str, Any]) -> tuple[Any, ...]:
        names = ("dataset", "protocol", "model", "template")
        dataset, protocol, model, template = (str(record.get(name)) for name in names)
        rank = order.get(model, 1)
        return protocol != "closed", dataset, protocol, rank, model, template

    return sorted(found.values(), key=place)


def damage(run: Run) -> str:
    """Reason why results.json cannot be read; empty where it can, or is not there."""
    try:
        parse_json((run.path / RESULTS).read_text())
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        return f"{RESULTS} cannot be read ({error}); evaluate again"
    return ""


def _records(file: Path) -> Iterator[dict[str, Any]]:
    try:
        content = parse_json(file.read_text())
    except (OSError, ValueError):
        return
    if isinstance(content, dict):
        content = content.get("results", [])
    if isinstance(content, list):
        for record in content:
            if (
                isinstance(record, dict)
                and {"protocol", "model"} <= set(record)
                and isinstance(record.get("top1"), int | float)
            ):
                yield record


def commands(
    run: Run, store: FeatureStore | None, results: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Commands that give the same again, line by line, each with where it is known from."""
    lines: list[tuple[str, str]] = []
    if commit := run.record.get("commit"):
        changed = ", with changes that were not committed" if commit.endswith("+") else ""
        lines.append((f"git checkout {commit.removesuffix('+')}", f"the run's commit{changed}"))
    if store is not None:
        lines.append((_extract_line(store), "from the store's recipe"))
    if typed := run.record.get("command"):
        later = [one.get("command") for one in run.record.get("resumed") or []]
        typed_lines = [["bieff", *words[1:]] for words in (typed, *later) if words]
        lines += [(shlex.join(words), "as it was typed") for words in typed_lines]
    else:
        lines.append((_train_line(run), "from the run's settings"))
    lines += [(line, "results") for line in _evaluations(run, results)]
    lines.append((shlex.join(["bieff", "report", str(run.path)]), "this page"))
    return lines


def _evaluations(run: Run, results: Sequence[Mapping[str, Any]]) -> list[str]:
    lines: dict[str, None] = {}
    for record in results:
        if record["model"] == "frozen":
            continue
        dataset, protocol = str(record.get("dataset")), str(record["protocol"])
        words = ["bieff", "zeroshot", dataset, "--run", str(run.path)]
        if dataset == run.record["data_set"]:
            words = ["bieff", "eval", str(run.path)]
        if protocol not in OF_FEW_VIDEOS:
            words += ["--protocol", protocol]
        words += ["--best"] if record.get("weights") == "best" else []
        if record.get("names") is not None:
            words += ["--names", str(record["names"])]
        if record.get("mix") is not None:
            words += ["--mix", str(record["mix"])]
        if record.get("blend") is not None:
            words += ["--blend", str(record["blend"])]
        lines[shlex.join(words)] = None
    return list(lines)


def _extract_line(store: FeatureStore) -> str:
    recipe = store.recipe
    words = ["bieff", "extract", "--dataset", str(recipe["data_set"])]
    words += ["--videos", store.root, "--out", str(store.path.resolve())]
    words += ["--frames", str(recipe["frames"])]
    views = {name: store.views(name) for name in store.partitions}
    if "train" in views:
        words += ["--train-views", str(len(views["train"]) - 1)]
    if others := [chosen for name, chosen in views.items() if name != "train"]:
        clips = max(view.get("clips", 1) for view in others[0])
        words += ["--clips", str(clips), "--crops", str(len(others[0]) // clips)]
    if recipe.get("patches"):
        words += ["--context", "patches"]
    if recipe.get("limit"):
        words += ["--limit", str(recipe["limit"])]
    words += ["--model", recipe["clip"]["model"]]
    if recipe["clip"]["pretrained"] is not None:
        words += ["--pretrained", recipe["clip"]["pretrained"]]
    return shlex.join(words)


def _train_line(run: Run) -> str:
    words = ["bieff", "train", "--features", str(run.record["store"]), "--out", str(run.path)]
    if run.ancestors:
        parent = str(Path(run.ancestors[0].file).parent)
        words += ["--from", parent]
    words += ["--preset", "paper"]
    for name, value, paper in settings(run):
        if value != paper:
            words += ["--set", f"{name}={value}"]
    return shlex.join(words)


def settings(run: Run) -> list[tuple[str, str, str]]:
    """Every setting: name, value, and the paper's value, as `--set` takes them."""
    paper = TrainConfig().to_dict()
    return [
        (name, _toml(value), _toml(paper[name]) if name in paper else "")
        for name, value in run.record["config"].items()
    ]


def _toml(value: object) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
