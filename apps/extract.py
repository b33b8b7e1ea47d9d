"""`bieff extract`, from options as a user types them."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bieff import clip as clips
from bieff.apps.progress import RunProgress, clips_bar
from bieff.clip import Clip, ClipName
from bieff.extract import catalogue
from bieff.extract.config import ExtractConfig
from bieff.extract.datasets.dataset import DataSet
from bieff.extract.estimate import estimate_lines
from bieff.extract.lengths import Windows, note_whole_videos, windowed
from bieff.extract.plan import plan
from bieff.extract.run import InProcess, Runner, extract
from bieff.extract.shapes.clips import COMPANIONS
from bieff.extract.tasks import Summary, status_lines
from bieff.features.errors import ConfigError, InputError
from bieff.features.settings import with_settings
from bieff.features.store import FeatureStore
from bieff.train.config import TrainConfig
from bieff.train.runs.run import fitting_tower

FEATURES = Path("features")

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions:
    """Data sets to extract, and where their videos and stores lie."""

    names: Sequence[str]
    videos: Path | None = None
    lists: Sequence[str] = ()
    labels: Path | None = None
    first_label: int | None = None
    trust_labels: bool = False
    trim: bool = False
    windows: Windows | None = None
    out: Path | None = None
    limit: int | None = None
    wanted: tuple[str, ...] = field(init=False)
    """The names, `shapes` with its zero-shot sets."""

    def __post_init__(self) -> None:
        if len(self.names) > 1 and (self.videos or self.out):
            raise ConfigError(
                "--videos and --out name the folder of one data set, got several; extract them "
                "one by one, or keep videos in data/ and stores in features/"
            )
        wanted = [
            part
            for name in self.names
            for part in ((name, *COMPANIONS) if name == "shapes" else (name,))
        ]
        object.__setattr__(self, "wanted", tuple(dict.fromkeys(wanted)))

    def options(self, name: str) -> dict[str, Any]:
        """Options of `catalogue.load` and `catalogue.check` for one of the data sets."""
        # of several data sets an option is for those that know it; alone it must fit
        is_alone = len(self.names) == 1
        is_list = is_alone or name == "list"
        return {
            "videos": self._sibling(self.videos, name),
            "lists": _parse_lists(self.lists) if is_list else None,
            "labels": self.labels if is_list or name == "folder" else None,
            "first_label": self.first_label if is_list else None,
            "trim": self.trim and (is_alone or name in ("k400", "k600", "k700")),
        }

    def load(self, name: str, say: Say, *, make: bool = True) -> DataSet:
        """One of the data sets, made if need be; says what its lists have to say."""
        options = self.options(name) | {"trust_labels": self.trust_labels, "make": make}
        with clips_bar(f"making {name}") as watch:
            data = catalogue.load(name, **options, watch=watch)
        for note in (*data.notes, note_whole_videos(data)):
            if note is not None:
                say(f"{name}: {note}")
        return data if self.windows is None else windowed(data, self.windows)

    def store(self, name: str) -> Path:
        """Path of the store of one of the data sets."""
        # the first videos alone are another store, not the beginning of this one
        default = name if self.limit is None else f"{name}-first-{self.limit}"
        return self._sibling(self.out, name) or FEATURES / default

    def _sibling(self, folder: Path | None, name: str) -> Path | None:
        """The folder of a companion lies beside that of its data set: DIR-unseen."""
        if folder is None or name == self.names[0]:
            return folder
        return folder.with_name(folder.name + name.removeprefix(self.names[0]))


def check_all(data: DataOptions, say: Say) -> bool:
    """Say what is listed, found, missing, unlisted and mislabelled; true if all is well."""
    is_clean = True
    for name in data.wanted:
        report = catalogue.check(name, **data.options(name))
        for line in report.lines():
            say(line)
        whole_videos = note_whole_videos(report.data, most=None)
        if whole_videos is not None:
            say(whole_videos)
        is_clean &= report.is_clean and whole_videos is None
    return is_clean


def say_status(data: DataOptions, say: Say) -> None:
    """Say what is done, bad and pending; neither the videos nor the model are looked at.

    Raises:
        StoreMissingError: If there is no store yet.
    """
    for name in data.wanted:
        for line in status_lines(FeatureStore.open(data.store(name))):
            say(line)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """The CLIP, its device, and who runs it."""

    model: str | None = None
    pretrained: str | None = None
    device: str | None = None
    scheduler: str | None = None
    """"sync", "local", the address of one; None: local where there are several GPUs."""

    def __post_init__(self) -> None:
        known = self.scheduler in (None, "sync", "local")
        if not known and "://" not in (self.scheduler or ""):
            raise ConfigError(
                f"--scheduler: expected sync, local or tcp://HOST:PORT, got {self.scheduler!r}"
            )
        if self.model is not None or self.pretrained is not None:
            self._named()  # before any work is done

    @contextlib.contextmanager
    def runner(self) -> Iterator[Runner]:
        """The writer of the shards, for the length of the block."""
        scheduler = self.scheduler
        if scheduler is None:
            several = self.device is None and torch.cuda.device_count() > 1
            scheduler = "local" if several else "sync"
        if scheduler == "sync":
            with InProcess(device=clips.pick_device(self.device)) as runner:
                yield runner
            return
        from bieff.extract.cluster import connected

        device = None if self.device is None else torch.device(self.device)
        with connected(scheduler, device=device) as cluster:
            yield cluster

    @property
    def own_device(self) -> torch.device:
        """The device that this process itself needs the CLIP on."""
        if self.scheduler in (None, "sync"):
            return clips.pick_device(self.device)
        return torch.device("cpu")  # the workers load their own

    def clip_name(self, data: DataSet) -> ClipName:
        """The CLIP that was asked for, or the data set's own."""
        if self.model is None and self.pretrained is None:
            default = data.default_clip
            return ClipName() if default is None else ClipName.of(default, None)
        return self._named()

    def _named(self) -> ClipName:
        return ClipName.of(self.model or ClipName().model, self.pretrained)


def make_config(settings: Mapping[str, Any], overrides: Sequence[str]) -> ExtractConfig:
    """The settings that were given, over the defaults; `--set` over both."""
    given = {name: value for name, value in settings.items() if value is not None}
    return with_settings(ExtractConfig(), given, overrides)


def dry_run(data: DataOptions, model: ModelOptions, config: ExtractConfig, say: Say) -> None:
    """Say what would be written, how large it is, and how long it would take."""
    device = clips.pick_device(model.device)
    for name in data.wanted:
        videos = data.load(name, say, make=False)
        clip = clips.load(model.clip_name(videos), device=device)
        if clip.note:
            say(clip.note)
        out = data.store(name)
        for line in estimate_lines(videos, config, clip, out, device=device):
            say(line)
        try:
            tokens = clip.tokenize_names(videos.class_names)
            rows_before = TrainConfig().num_context, 1
            fitting_tower(clip, videos.class_names, tokens, rows_before)
        except InputError as error:
            say(f"features can be extracted, but not trained on as the paper does: {error}")


def extract_all(
    data: DataOptions,
    model: ModelOptions,
    config: ExtractConfig,
    *,
    retry_failed: bool = False,
    max_bad: float | None = None,
    say: Say,
) -> list[Summary]:
    """Plan the stores of all data sets named, then write them, one after the other.

    Raises:
        BieffError: If an option, a data set, the model or a store is not as it must be.
    """
    loaded: dict[ClipName, Clip] = {}
    planned: list[tuple[FeatureStore, Clip]] = []
    for name in data.wanted:
        videos = data.load(name, say)
        clip_name = model.clip_name(videos)
        if clip_name not in loaded:
            if clip_name.may_be_downloaded:
                say(f"loading CLIP {clip_name}, which takes a while if it is not here yet")
            clip = loaded[clip_name] = clips.load(clip_name, device=model.own_device)
            if clip.note:
                say(clip.note)
        clip = loaded[clip_name]
        store = plan(videos, config, clip, data.store(name), redo_replaced=retry_failed)
        planned.append((store, clip))
    summaries = []
    with model.runner() as runner:
        for store, clip in planned:
            with RunProgress() as watch:
                done = extract(
                    store,
                    clip,
                    config,
                    device=model.own_device,
                    retry_failed=retry_failed,
                    max_bad=max_bad,
                    runner=runner,
                    watch=watch,
                )
            summaries.append(done)
    return summaries


def parse_share(text: str) -> float:
    """A share from 0 to 1, of "1%" or "0.01".

    Raises:
        ConfigError: If it is neither.
    """
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"--max-bad: expected a share such as 1% or 0.01, got {text!r}")
    return share


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
