"""`bieff share`: a run in Hugging Face's layout, for a folder or the hub.

    README.md             the model card: figures, protocol, settings, data set, cost
    run.json              the record, without paths of this machine
    last.safetensors      the weights; best.safetensors where there are some
    results.json          the figures, as `bieff eval` wrote them

Such a folder is a run: `--run FOLDER` opens it, and so does `--run hf-hub:ORG/NAME`.
"""

import html
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bieff.apps.terminal import clean
from bieff.features.errors import InputError
from bieff.features.files import PARTIAL, disk_errors
from bieff.train.config import TrainConfig
from bieff.train.evaluate.results import Result, load_results
from bieff.train.evaluate.tables import paper_lines, result_table
from bieff.train.fit.few_shot import FewShotDraw
from bieff.train.runs.ancestor import after
from bieff.train.runs.checkpoint import BEST, LAST
from bieff.train.runs.hub import PREFIX, parse_name, upload
from bieff.train.runs.run import RESULTS, Run, open_run, write_record

CARD = "README.md"


def share_run(run: Path, to: str, *, private: bool = False) -> str:
    """Write a finished run for others; returns where it is.

    Args:
        run: Its folder.
        to: A folder that is not there yet, or `hf-hub:ORG/NAME`.
        private: Of a repository that is made: others do not see it.

    Raises:
        InputError: If the run is not finished, the folder is there, or the hub refuses.
    """
    opened = open_run(run)
    if not opened.record.get("finished"):
        raise InputError(f"run {run} is not finished; go on with `bieff train --resume`")
    if to.startswith(PREFIX):
        repository, _ = parse_name(to)
        with tempfile.TemporaryDirectory() as folder:
            write_shared(opened, Path(folder), name=repository)
            return upload(Path(folder), to, private=private)
    target = Path(to)
    if target.exists():
        raise InputError(f"{target} exists; remove it or choose another folder")
    partial = target.with_name(target.name + PARTIAL)
    with disk_errors(target):
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        write_shared(opened, partial, name=target.name)
        partial.replace(target)
    return str(target)


def write_shared(run: Run, folder: Path, *, name: str) -> None:
    """Write the files of a run for others into an empty folder."""
    results = load_results(run.path / RESULTS) if (run.path / RESULTS).exists() else []
    for file in (LAST, BEST, RESULTS):
        if (run.path / file).exists():
            shutil.copyfile(run.path / file, folder / file)
    if not (folder / LAST).exists():
        raise InputError(f"run {run.path} has no weights {LAST}; train again")
    shared = replace(run, record=without_paths(run.record))
    write_record(folder, shared.record)
    (folder / CARD).write_text(model_card(shared, results, name=name), encoding="utf-8")


def without_paths(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without what others cannot use and need not know: folders, typed commands."""
    clip = record["clip"]
    names = {key: _without_folder(value) for key, value in clip["name"].items()}
    return {
        **record,
        "store": str(Path("features") / Path(record["store"]).name),
        "clip": {**clip, "name": names},
        "ancestors": [
            {**one, "file": "/".join(Path(one["file"]).parts[-2:])}
            for one in record.get("ancestors", [])
        ],
        "command": [],
        "resumed": [],
    }


def _without_folder(name: str | None) -> str | None:
    """A name of open_clip or the hub as it is; of a path the last part alone."""
    kind, colon, path = (name or "").rpartition(":")
    if name is None or kind == "hf-hub" or "/" not in path:
        return name
    return f"{kind}{colon}{Path(path).name}"


def model_card(run: Run, results: Sequence[Result], *, name: str) -> str:
    """The model card: what Hugging Face reads above, what people read below."""
    record, config = run.record, run.config
    clip, data_set, shots = run.clip.name, str(record["data_set"]), FewShotDraw.of_run(run)
    head = {
        "library_name": "bieff",
        "pipeline_tag": "video-classification",
        "tags": ["bieff", "video-recognition", "clip", "prompt-tuning"],
        "model-index": [{"name": name, "results": [_indexed(r) for r in results]}],
    }
    if not results:
        del head["model-index"]  # Hugging Face refuses one without figures
    before = after(run.ancestors)
    drawn = "" if shots is None else f"; {shots.text()}"
    facts = [
        ("data set", f"{data_set}, {record['videos']:,} videos{drawn}"),
        *([("started after", before)] if before else []),
        ("classes", f"{len(record['class_names']):,}"),
        ("frames of a video", str(record["frames"])),
        ("frozen CLIP", f"{clip}, fingerprint {run.clip.fingerprint[:12]}"),
        ("tunable parameters", f"{record['parameters'].get('total', 0):,}"),
        ("steps", f"{record['steps']:,}"),
        ("finished", str(record["finished"])),
        ("recipe of the features", str(record["store_recipe_hash"])[:12]),
    ]
    changed = [
        (key, json.dumps(value))
        for key, value in config.to_dict().items()
        if value != TrainConfig().to_dict()[key]
    ]
    parts = [
        f"# {_text(name)}\n\nBiEfficient: prompts and a temporal transformer on top of frozen "
        f"CLIP, trained on {_text(data_set)} by bieff.",
        _table(("", ""), facts),
        "## Figures",
        *([_table(*result_table(results))] if results else ["None were measured yet."]),
        *(f"`{clean(line).replace('`', '')}`" for line in paper_lines(results)),
        "Protocols are those of bieff's docs/protocols.md; results.json says more.",
        "## Cost",
        _table(("", ""), _cost(record)),
        "## Settings",
        "Those that differ from the paper's; run.json has all.",
        _table(("setting", "value"), changed) if changed else "None.",
        "## Use",
        f"    bieff predict clip.mp4 --run {PREFIX}{name if '/' in name else 'ORG/' + name}",
    ]
    return f"---\n{_front(head)}---\n\n" + "\n\n".join(parts) + "\n"


def _cost(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    stage_one = (record.get("cost") or {}).get("stage_one", {})
    seconds = sum(part.get("seconds", {}).get("total", 0.0) for part in stage_one.values())
    return [
        ("extraction of the features", f"{seconds:,.0f} s"),
        ("training", f"{record['seconds']:,.0f} s"),
        ("device", f"{record.get('device')}, {record.get('processes', 1)} process(es)"),
        ("precision", str(record.get("precision"))),
        ("peak memory", f"{record.get('peak_memory_bytes', 0) / 2**20:,.0f} MiB"),
    ]


def _indexed(result: Result) -> dict[str, Any]:
    """A result as Hugging Face's model index has it."""
    model = result.model if result.model != "frozen" else "frozen CLIP, for comparison"
    metrics = [
        {"type": "accuracy", "name": f"{figure}, {model}", "value": round(value, 2)}
        for figure, value in (("top-1", result.top1), ("top-5", result.top5))
    ]
    return {
        "task": {"type": "video-classification"},
        "dataset": {
            "type": result.dataset,
            "name": f"{result.dataset}, protocol {result.protocol}",
        },
        "metrics": metrics,
    }


def _front(head: Mapping[str, Any]) -> str:
    """YAML; JSON is YAML, and quotes whatever a name holds."""
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in head.items())


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_text, line))} |" for line in lines)


def _text(words: str) -> str:
    """Words of a run, of which none acts as Markdown or HTML."""
    escaped = html.escape(clean(words), quote=False)
    for sign in "\\`*_[]|":
        escaped = escaped.replace(sign, f"\\{sign}")
    return escaped
