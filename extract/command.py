"""What `bieff extract` does, from options as a user types them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bieff import clip as clips
from bieff.clip import Clip, ClipName
from bieff.extract import datasets
from bieff.extract.config import ExtractConfig
from bieff.extract.datasets import DataSet
from bieff.extract.run import Summary, extract, plan
from bieff.extract.shapes.sets import COMPANIONS
from bieff.features.errors import ConfigError, InputError

FEATURES = Path("features")


def extract_all(
    *,
    names: Sequence[str],
    videos: Path | None,
    lists: Sequence[str],
    labels: Path | None,
    out: Path | None,
    model: str | None,
    pretrained: str | None,
    device: str | None,
    retry_failed: bool,
    **settings: Any,
) -> list[Summary]:
    """Extract the data sets named, one after the other, `shapes` with its zero-shot sets.

    Raises:
        BieffError: If an option, a data set, the model or the store is not as it must be.
    """
    config = replace(
        ExtractConfig(),
        **{name: value for name, value in settings.items() if value is not None},
    )
    wanted = [
        part
        for name in names
        for part in ((name, *COMPANIONS) if name == "shapes" else (name,))
    ]
    if len(wanted) > 1 and len(names) > 1 and (videos or out):
        raise ConfigError(
            "--videos and --out name the folder of one data set, got several; extract them one "
            "by one, or keep videos in data/ and stores in features/"
        )
    if model is not None or pretrained is not None:
        ClipName.of(model or ClipName().model, pretrained)  # before any work is done
    where = clips.pick_device(device)
    loaded: dict[ClipName, Clip] = {}
    summaries = []
    for name in wanted:
        data = datasets.load(
            name,
            videos=_sibling(videos, name, names[0]),
            lists=_parse_lists(lists),
            labels=labels,
        )
        clip_name = _clip_name(data, model, pretrained)
        if clip_name not in loaded:
            loaded[clip_name] = clips.load(clip_name, device=where)
        clip = loaded[clip_name]
        store = plan(data, config, clip, _sibling(out, name, names[0]) or FEATURES / name)
        summaries.append(extract(store, clip, config, device=where, retry_failed=retry_failed))
    return summaries


def _sibling(folder: Path | None, name: str, first: str) -> Path | None:
    """The folder of a companion lies beside that of its data set: DIR-unseen beside DIR."""
    if folder is None or name == first:
        return folder
    return folder.with_name(folder.name + name.removeprefix(first))


def _clip_name(data: DataSet, model: str | None, pretrained: str | None) -> ClipName:
    if model is None and pretrained is None:
        return ClipName() if data.default_clip is None else ClipName.of(data.default_clip, None)
    return ClipName.of(model or ClipName().model, pretrained)


def _parse_lists(texts: Sequence[str]) -> dict[str, Path] | None:
    if not texts:
        return None
    lists = {}
    for text in texts:
        part, equals, file = text.partition("=")
        if not equals or not file:
            raise InputError(f"--list: expected train=FILE, val=FILE or all=FILE, got {text!r}")
        lists[part] = Path(file)
    return lists
