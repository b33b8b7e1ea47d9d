"""`bieff report`: a run on one page, which needs no network and no other file.

Jinja2 writes the page and escapes whatever comes from users; a policy in the page's head
forbids every script but its own, and everything from elsewhere.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from markupsafe import Markup

from bieff.apps import keyframes
from bieff.apps.predictor import Predictor
from bieff.apps.progress import videos_bar
from bieff.apps.report import files, tables
from bieff.apps.report.charts import HEIGHT, WIDTH, charts
from bieff.apps.report.tables import Cell, ClassFigures, ClosedSet
from bieff.clip import ClipName, pick_device
from bieff.features.errors import BieffError, StoreMismatchError
from bieff.features.files import write_atomically
from bieff.features.store import FeatureStore
from bieff.train.runs.run import Run, clip_of, newest_run, open_run

TEMPLATES = Path(__file__).parents[1] / "templates"
RUNS = Path("runs")

SHOWN = 3
"""Videos of each kind, and the confusions named are four times as many."""

PICTURE_SIDE = 160
"""Pixels of a frame's picture, at most."""

HEADLINES = 4
"""Results that stand at the top in large figures."""

MODELS = {"bieff": "BiEfficient", "frozen": "frozen CLIP", "mix": "mix of both"}


@dataclass(frozen=True, slots=True)
class Videos:
    """What only the model and its store can tell."""

    classes: list[ClassFigures] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    confusions: list[Cell] = field(default_factory=list)
    surest: list[dict[str, Any]] = field(default_factory=list)
    furthest_off: list[dict[str, Any]] = field(default_factory=list)
    missing: str = ""
    """Why there is none of it."""


def report(
    *,
    run: Path | None,
    out: Path | None = None,
    features: Path | None = None,
    device: str | None = None,
    model: str | None = None,
    pretrained: str | None = None,
    with_videos: bool = True,
) -> Path:
    """Write the page of a run; returns where.

    Args:
        run: Its folder; None takes the newest finished one in runs/.
        out: The file; None: report.html in the run's folder.
        features: The store it was trained on, where that lies elsewhere by now.
        device: Evaluates the closed set; None takes the best there is.
        model: The CLIP, named; None takes the store's if it is here already.
        pretrained: Its weights.
        with_videos: Whether to evaluate the closed set, for classes, confusions and videos.

    Raises:
        BieffError: If there is no such run, or the file cannot be written.
    """
    opened = newest_run(RUNS) if run is None else open_run(run)
    file = out or opened.path / "report.html"
    store, missing = _store(opened, features)
    videos = Videos(missing=missing)
    if store is not None:
        videos = Videos(missing="left out with --without-videos")
        if with_videos:
            clip = ClipName.given(model, pretrained)
            videos = _videos(opened, store, pick_device(device), clip)
    page = render(opened, store, videos)
    try:
        write_atomically(file, page.encode())
    except OSError as error:
        raise BieffError(
            f"cannot write {file}: {error.strerror}; name another file with --out"
        ) from error
    return file


def _store(run: Run, features: Path | None) -> tuple[FeatureStore | None, str]:
    """The run's store, or why there is none; one that was named must be the right one."""
    try:
        store = FeatureStore.open(features or Path(run.record["store"]))
        if store.recipe_hash != run.record["store_recipe_hash"]:
            raise StoreMismatchError(
                f"{store.path} is another store than run {run.path} was trained on: expected "
                f"recipe {run.record['store_recipe_hash'][:12]}, got {store.recipe_hash[:12]}"
            )
    except BieffError as error:
        if features is not None:
            raise
        return None, f"{error}, or say with --features where it lies"
    return store, ""


def _videos(
    run: Run, store: FeatureStore, device: torch.device, named: ClipName | None
) -> Videos:
    """Evaluate the closed set; a run or store that cannot be says why on the page."""
    try:
        clip = clip_of(store, device=device, named=named)
        with videos_bar("evaluating") as watch:
            found = tables.closed_set(run, clip, store, watch=watch)
        table = tables.confusion(found)
        with Predictor(clip, run=run) as predictor:
            surest, furthest_off = (
                _cards(predictor, store, found, choose(found, SHOWN).tolist())
                for choose in (tables.surest, tables.furthest_off)
            )
        return Videos(
            classes=tables.class_figures(found),
            names=found.names,
            cells=tables.cells(table),
            confusions=tables.top_confusions(table, 4 * SHOWN),
            surest=surest,
            furthest_off=furthest_off,
        )
    except BieffError as error:
        return Videos(missing=str(error))


def _cards(
    predictor: Predictor, store: FeatureStore, found: ClosedSet, chosen: Sequence[int]
) -> list[dict[str, Any]]:
    """Decode some videos again, where they still lie, and show what the model looked at."""
    if not chosen:
        return []
    videos = store.partitions[tables.PARTITION].videos
    listed = [videos[int(found.rows[i])] for i in chosen]
    paths = [Path(store.root, video.path).absolute() for video in listed]
    by_path = {p.video: p for p in predictor.predict(paths, store.class_names)}
    cards = []
    for i, video, path in zip(chosen, listed, paths, strict=True):
        prediction, label = by_path[path], int(found.labels[i])
        best = np.argsort(-found.ours[i], kind="stable")[:3].tolist()
        caption, frames = keyframes.shown(prediction, side=PICTURE_SIDE)
        cards.append(
            {
                "path": video.path,
                "truth": found.names[label],
                "is_right": best[0] == label,
                "ranking": [(found.names[k], float(found.ours[i, k])) for k in best],
                "caption": caption,
                "frames": frames,
                "note": "" if frames else prediction.message,
            }
        )
    return cards


def render(run: Run, store: FeatureStore | None, videos: Videos) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    results = files.read_results(run)
    rows, settings = _result_rows(results), files.settings(run)
    record = run.record
    return environment.get_template("report.html").render(
        run=run,
        record=record,
        # the project's own files, the only text that is not escaped
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        results=rows,
        damage=files.damage(run),
        headlines=[row for row in rows if row["is_ours"]][:HEADLINES],
        charts=charts(files.read_curves(run.path)),
        width=WIDTH,
        height=HEIGHT,
        videos=videos,
        cost=tables.cost(run, store),
        settings=settings,
        changed=[line for line in settings if line[1] != line[2]],
        commands=files.commands(run, store, results),
        everything=json.dumps(record, indent=2),
    )


def _result_rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Results as the table shows them, each with its distance to frozen CLIP."""
    beside = {
        (record.get("dataset"), record["protocol"]): float(record["top1"])
        for record in sorted(results, key=lambda record: float(record["top1"]))
        if record["model"] == "frozen"  # the best of several templates comes last
    }
    rows = []
    for record in results:
        base = beside.get((record.get("dataset"), record["protocol"]))
        is_frozen = record["model"] == "frozen"
        rows.append(
            {
                **{name: record.get(name) for name in ("top1_std", "top5", "top1_all")},
                "dataset": record.get("dataset", ""),
                "protocol": record["protocol"],
                "model": _who(record),
                "is_ours": record["model"] == "bieff",
                "template": ", ".join(
                    str(record[name]) for name in ("template", "names") if record.get(name)
                ),
                "top1": float(record["top1"]),
                "gain": None if base is None or is_frozen else float(record["top1"]) - base,
                "evaluated": record.get("n_evaluated"),
                "listed": record.get("n_listed"),
                "views": " x ".join(
                    str(record[name])
                    for name in ("frames", "clips", "crops")
                    if record.get(name) is not None
                ),
            }
        )
    return rows


def _who(record: Mapping[str, Any]) -> str:
    """Which model, and what is not usual about it."""
    name = MODELS.get(str(record["model"]), str(record["model"]))
    if record.get("mix") is not None:
        name += f", {record['mix']:g} ours"
    return name + (", best weights" if record.get("weights") == "best" else "")
