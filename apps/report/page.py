"""`bieff report`: a run on one page, which needs no network and no other file.

Jinja2 writes the page and escapes whatever comes from users; a policy in the page's head
forbids every script but its own, and everything from elsewhere.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from bieff.apps.report.tables import Cell
from bieff.apps.train import RUNS
from bieff.clip import ClipName, pick_device
from bieff.features.errors import BieffError, StoreMismatchError
from bieff.features.files import write_atomically
from bieff.features.store import FeatureStore
from bieff.train.evaluate.results import protocol_name, results_of
from bieff.train.evaluate.scores import ScoreTable
from bieff.train.evaluate.scoring import evaluate_run
from bieff.train.runs.ancestor import after
from bieff.train.runs.run import Run, clip_of, newest_run, open_run

TEMPLATES = Path(__file__).parents[1] / "templates"

SHOWN = 3
"""Videos of each kind, and the confusions named are four times as many."""

PICTURE_SIDE = 160
"""Pixels of a frame's picture, at most."""

HEADLINES = 4
"""Results that stand at the top in large figures."""

MODELS = {"bieff": "BiEfficient", "frozen": "frozen CLIP", "mix": "mix of both"}


@dataclass(frozen=True, slots=True)
class Videos:
    """Figures and pictures that only the model and its store can give."""

    classes: Sequence[dict[str, Any]] = ()
    names: Sequence[str] = ()
    cells: Sequence[Cell] = ()
    confusions: Sequence[Cell] = ()
    surest: Sequence[dict[str, Any]] = ()
    furthest_off: Sequence[dict[str, Any]] = ()
    missing: str = ""
    """Reason why there is none of it."""


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
        write_atomically(file, page.encode(errors="backslashreplace"))
    except OSError as error:
        raise BieffError(
            f"cannot write {file}: {error.strerror}; name another file with --out"
        ) from error
    return file


def _store(run: Run, features: Path | None) -> tuple[FeatureStore | None, str]:
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
    try:
        clip = clip_of(store, device=device, named=named)
        with videos_bar("evaluating") as watch:
            found = evaluate_run(run, clip, store, "closed", watch=watch)
        ours, frozen = results_of(found)
        with Predictor(clip, run=run) as predictor:
            return Videos(
                classes=tables.class_rows(ours, frozen),
                names=found.class_names,
                cells=tables.cells(ours),
                confusions=tables.top_confusions(ours, 4 * SHOWN),
                surest=_cards(predictor, store, found, are_right=True),
                furthest_off=_cards(predictor, store, found, are_right=False),
            )
    except BieffError as error:
        return Videos(missing=str(error))


def _cards(
    predictor: Predictor, store: FeatureStore, found: ScoreTable, *, are_right: bool
) -> list[dict[str, Any]]:
    """Decode some videos again, where they still lie, and show what the model looked at."""
    (ours,), names = found.scores[0], found.class_names
    chosen = tables.examples(found, SHOWN, are_right=are_right).tolist()
    rows = found.rows[found.usable][chosen].tolist()
    listed = [store.partitions["val"].videos[row] for row in rows]
    paths = [Path(store.root, video.path).absolute() for video in listed]
    by_path = {p.video: p for p in predictor.predict(paths, names)}
    cards = []
    for i, video, path in zip(chosen, listed, paths, strict=True):
        prediction, label = by_path[path], int(found.labels[found.usable][i])
        best = np.argsort(-ours[i], kind="stable")[:3].tolist()
        caption, frames = keyframes.shown(prediction, side=PICTURE_SIDE)
        cards.append(
            {
                "path": video.path,
                "truth": names[label],
                "is_right": are_right,
                "ranking": [(names[k], float(ours[i, k])) for k in best],
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
        headlines=[row for row in rows if row["is_ours"] and not row["is_blend"]][:HEADLINES],
        charts=charts(files.read_curves(run.path)),
        width=WIDTH,
        height=HEIGHT,
        videos=videos,
        cost=tables.cost(run, store),
        after=after(run.ancestors),
        settings=settings,
        changed=[line for line in settings if line[1] != line[2]],
        commands=files.commands(run, store, results),
        everything=json.dumps(record, indent=2),
    )


def _result_rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    frozen: dict[tuple[str, str], float] = {}  # the best of several templates
    for record in results:
        if record["model"] == "frozen":
            asked = str(record.get("dataset")), str(record["protocol"])
            frozen[asked] = max(float(record["top1"]), frozen.get(asked, 0.0))
    rows = []
    for record in results:
        top1, kind = float(record["top1"]), str(record["model"])
        base = frozen.get((str(record.get("dataset")), str(record["protocol"])))
        model = MODELS.get(kind, kind)
        if record.get("mix") is not None:
            model += f", {record['mix']:g} ours"
        if record.get("blend") is not None:
            model += f", blend {record['blend']:g}"
        if record.get("weights") == "best":
            model += ", best weights"
        views = [record.get(name) for name in ("frames", "clips", "crops")]
        prompt = [record.get(name) for name in ("template", "names")]
        rows.append(
            {
                **{name: record.get(name) for name in ("top1_std", "top5", "top1_all")},
                "dataset": record.get("dataset", ""),
                "protocol": protocol_name(
                    str(record["protocol"]), record.get("shots"), record.get("after")
                ),
                "model": model,
                "is_ours": kind == "bieff",
                "is_blend": record.get("blend") is not None,
                "template": ", ".join(str(part) for part in prompt if part),
                "top1": top1,
                "gain": None if base is None or kind == "frozen" else top1 - base,
                "evaluated": record.get("n_evaluated"),
                "listed": record.get("n_listed"),
                "views": " x ".join(str(part) for part in views if part is not None),
            }
        )
    return rows
