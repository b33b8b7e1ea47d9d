"""The command line: parse, call one function, print."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from bieff.apps.terminal import any_encoding, clean, echo
from bieff.apps.terminal import print_table as _print_table
from bieff.features.errors import BieffError, InputError

NOT_WHOLE = 3
"""Exit code of an extraction that finished, but not with every frame of every video."""

RESUMED = {"demo", "extract", "eval", "zeroshot", "base2novel", "ablate"}
"""Commands that go on where they were; `train` says itself how."""


class _Commands(click.Group):
    """Turns a BieffError into `Error: ...` and exit code 1; a bug keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        any_encoding()
        typed = list(ctx.args)
        try:
            return super().invoke(ctx)
        except BieffError as error:
            raise click.ClickException(clean(error, lines=True)) from error
        except (click.NoSuchOption, click.BadParameter) as error:
            said = clean(error.format_message(), lines=True)
            dashed = _dashed(typed) if isinstance(error, click.NoSuchOption) else ""
            raise click.UsageError(said + dashed, error.ctx) from error
        except KeyboardInterrupt:
            then = "go on" if ctx.invoked_subcommand in RESUMED else "begin anew"
            raise click.ClickException(
                f"interrupted; run the same command again to {then}"
            ) from None


def _dashed(arguments: Sequence[str]) -> str:
    """The argument to write for a file whose name begins as an option does."""
    for name in arguments:
        if name.startswith("-") and Path(name).suffix and "=" not in name:
            return f" If {clean(name)} is a file, write ./{clean(name)}"
    return ""


class _Place(click.Path):
    """A path that is a folder, or a file, if it is there; otherwise it is bad input.

    A run may also be named as `hf-hub:ORG/NAME`, which is no path of this machine.
    """

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            raise InputError(f"{param.opts[-1]}: {error.message.rstrip('.')}") from None


_ANY = _Place(path_type=Path)
_FOLDER = _Place(path_type=Path, file_okay=False)
_FILE = _Place(path_type=Path, dir_okay=False)

_Decorator = Callable[[Any], Any]


def _option(names: str, text: str, kind: Any = None, **more: Any) -> _Decorator:
    """An option, and the parameter's name behind it where that is another one."""
    return click.option(*names.split(), help=text, type=kind, **more)


def _given(names: str, text: str, default: Any, **more: Any) -> _Decorator:
    """An option whose default stands in its help."""
    return _option(names, text, default=default, show_default=True, **more)


_note = partial(echo, err=True)
_flag = partial(_option, is_flag=True)
_many = partial(_option, multiple=True)


def _group(*options: _Decorator) -> _Decorator:

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _settings(config: str) -> _Decorator:
    """--settings, which prints those of a stage, named "module:class", and ends the command."""

    def show(ctx: click.Context, _: click.Parameter, is_asked: bool) -> None:
        if not is_asked:
            return
        from bieff.features.settings import settings_table

        module, name = config.split(":")
        _print_table(*settings_table(getattr(import_module(module), name)))
        ctx.exit()

    text = "List what --set takes, with the defaults; no more."
    return _flag("--settings", text, is_eager=True, expose_value=False, callback=show)


# what several commands take; a help that is left open differs between them
_features = partial(_option, "--features", kind=_FOLDER)
_out = partial(_option, "--out", kind=_FOLDER)
_set = partial(_many, "--set overrides", metavar="NAME=VALUE")
_shorter = partial(_option, "--frames", kind=int)
_protocol = partial(
    _option, "--protocol", kind=click.Choice(["closed", "splits3", "full", "half10", "k600"])
)
_mix = partial(_option, "--mix", kind=float, metavar="WEIGHT")
_blend = _option(
    "--blend",
    "Share of the trained weights in a mean with those that the run started with.",
    float,
    metavar="WEIGHT",
)
_from = partial(_option, "--from start", kind=_FOLDER, metavar="RUN")
_preset = _option(
    "--preset", "words, paper, baseline or released.  [default: words, or that of --from]"
)


def _windows(text: str) -> _Decorator:
    seconds = click.FloatRange(0, min_open=True)
    every = "Seconds between the beginnings of two windows.  [default: no overlap]"
    return _group(
        _option("--windows", text, seconds, metavar="SECONDS"),
        _option("--every", every, seconds, metavar="SECONDS"),
    )


_flag_json = partial(_flag, "--json as_json")
_model = partial(_option, "--model")
_pretrained = partial(_option, "--pretrained")
_named = _group(
    _model(
        "The store's CLIP, to load it from a folder or the network.  [default: from the cache]"
    ),
    _pretrained("Its weights, as for `bieff extract`."),
)
"""The CLIP of a store or a run: what that says of it is compared, not obeyed."""

_split = _option("--split", "Official split to draw from and to test on.  [default: 1]")
_device = _option("--device", "cpu, cuda, cuda:1.  [default: cuda if there is one]")

_asking = _group(
    _option(
        "--run", "A trained run, or hf-hub:ORG/NAME.  [default: none, CLIP as it is]", _FOLDER
    ),
    _blend,
    _shorter("Frames of a video.  [default: the run's, or 8]"),
    _model("As for `bieff extract`.  [default: the run's, or ViT-B-16-quickgelu]"),
    _pretrained("As for `bieff extract`.  [default: the run's, or openai]"),
    _device,
)
"""The model that answers about a video: a run, or a CLIP."""


def _looking(command: Callable[..., Any]) -> Any:
    """Options of what is printed of the results that a command returns."""

    @wraps(command)
    def show(per_class: bool, confusions: int | None, **options: Any) -> None:
        _print_results(command(**options), per_class=per_class, confusions=confusions)

    text = "Print the N most frequent mistakes."
    return _group(
        _flag("--per-class", "Print the accuracy of each class."),
        _option("--confusions", text, click.IntRange(1), metavar="N"),
    )(show)


_evaluating = _group(
    _flag("--best", "The best checkpoint on `val`, not the last."),
    _option(
        "--template",
        "How frozen CLIP is asked: bare, one, person, 16, 28, 48, or a text with {}.  "
        "[default: one]",
        metavar="NAME|TEXT",
    ),
    _flag("--model-only", "Leave frozen CLIP out."),
    _option(
        "--names",
        "One or several descriptions of each class (json, csv, txt) in place of its name.",
        _FILE,
    ),
    _mix("Ours and frozen CLIP combined, too."),
    _blend,
    _option("--save-scores", "Write the scores of every video (HDF5).", _FILE),
    _option(
        "--batch-size",
        "Videos at a time.  [default: 32, fewer for many classes]",
        click.IntRange(1),
    ),
    _named,
    _device,
    _looking,
)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bieff")
def main() -> None:
    """BiEfficient on cached CLIP features: extract once, train many times."""


@main.command()
@_out("Folder to write.", default=Path("demo"), show_default=True)
@_given("--seed", "Of the clips and of training.", 0)
def demo(out: Path, seed: int) -> None:
    """Run both stages and the zero-shot evaluation on clips made here.

    Example: bieff demo --out demo
    """
    from bieff.apps.demo import demo as run_demo

    done = run_demo(out, seed=seed)
    _print_results(done.results)
    echo(f"results: {done.out / 'results.json'}")


@main.command()
def datasets() -> None:
    """List the data sets that `bieff extract` knows.

    Example: bieff datasets
    """
    from bieff.extract.catalogue import table

    _print_table(*table())


@main.command()
@_option("--filter part", "Only those with TEXT in name, towers or weights.", metavar="TEXT")
def models(part: str | None) -> None:
    """List the CLIPs that open_clip names, with width, input and kinds of tower.

    With --filter all tags of weights are shown.  Text towers with (hf), and those of
    transformers, read texts after `pip install "bieff[hf]"`.  docs/models.md says which are
    for what, and what each kind of text tower allows.

    Example: bieff models --filter siglip2
    """
    from bieff.apps.bench.models import table

    _print_table(*table(part or ""))


@main.command()
@_many("--dataset names", "See `bieff datasets`; may be repeated.", required=True)
@_option(
    "--videos",
    "Folder of the videos, a tar file, or an address as s3://BUCKET/FOLDER.  "
    "[default: data/DATASET]",
    _ANY,
)
@_many(
    "--list lists",
    "Of --dataset list and those with lists of yours: train=FILE, val=FILE or all=FILE.",
    metavar="PART=FILE",
)
@_option("--labels", "Class names, of --dataset folder and those with lists of yours.", _FILE)
@_option(
    "--first-label",
    "Of --dataset list: whether labels count from 0 or 1.  [default: found out]",
    int,
)
@_flag(
    "--trust-labels",
    "Of --dataset list: the labels are right where class folders say otherwise.",
)
@_flag(
    "--trim",
    "Of Kinetics: files without seconds in their names are whole videos, of which the listed "
    "part is meant.",
)
@_windows("A row for each window of every video, not one for all of it: its seconds.")
@_out("Folder of the store.  [default: features/DATASET]")
@_shorter("Frames of a view.  [default: 32]")
@_option(
    "--train-views",
    "Random views of a training video, beside the centre grid.  [default: 1]",
    int,
)
@_option("--clips", "Temporal clips of an evaluation video.  [default: 3]", int)
@_option("--crops", "Spatial crops of a clip, 1 or 3.  [default: 1]", int)
@_option(
    "--context",
    "Store the patch tokens' mean too.  [default: none]",
    click.Choice(["none", "patches"]),
)
@_option(
    "--limit",
    "Only the first N videos of each partition, in a store of their own: "
    "features/DATASET-first-N.",
    int,
)
@_model(
    "A name of `bieff models`, hf-hub:..., local-dir:..., or tinyclip.  "
    "[default: ViT-B-16-quickgelu; tinyclip for shapes]"
)
@_pretrained("An open_clip tag, TAG=FILE, a weights file, or 'random'.  [default: openai]")
@_set("A setting: batch_size, decoders, deadline, ...; may be repeated.")
@_settings("bieff.extract.config:ExtractConfig")
@_device
@_option(
    "--scheduler",
    "Who does the work: this process, Dask workers started here (one for each GPU), or those "
    "of a Dask cluster that shares the store's and the videos' file system.  [default: local "
    "where there are several GPUs, otherwise sync]",
    metavar="sync|local|tcp://HOST:PORT",
)
@_flag(
    "--retry-failed",
    "Try the videos again that could not be used whole, or whose file was replaced since.",
)
@_option(
    "--max-bad",
    "Share of unusable videos, such as 1%, that is no failure; a run that must exceed it is "
    "stopped.",
    metavar="SHARE",
)
@_flag("--status", "Say what is done, bad and pending; no more.")
@_flag("--check", "Say what is listed, found, missing, unlisted and mislabelled; no more.")
@_flag("--dry-run", "Say what would be written, its size and the hours.")
def extract(
    status: bool,
    check: bool,
    dry_run: bool,
    retry_failed: bool,
    max_bad: str | None,
    overrides: Sequence[str],
    **options: Any,
) -> None:
    """Decode the videos of a data set once, and cache their frozen CLIP embeddings.

    A run that was stopped goes on where it was.  Exit code 0: all is whole, or bad videos are
    within --max-bad; 3: finished, but some videos are damaged or missing, they are listed with
    their reasons; 1: an error, or --check found something.

    Example: bieff extract --dataset k400 --videos /data/k400 --frames 32
    """
    # threads that wait for work must not take the cores that decode, which doubled what an
    # extraction cost on a busy machine (tests/bench_extract.py); read when torch loads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from bieff.apps import extract as command
    from bieff.extract.lengths import Windows

    def pick(*names: str) -> dict[str, Any]:
        return {name: options[name] for name in names}

    data = command.DataOptions(
        **pick("names", "videos", "lists", "labels", "first_label", "trust_labels", "trim"),
        windows=Windows.of(options["windows"], options["every"]),
        **pick("out", "limit"),
    )
    settings = pick("frames", "train_views", "clips", "crops", "context", "limit")
    config = command.make_config(settings, overrides)
    if check:
        if not command.check_all(data, echo):
            raise click.exceptions.Exit(1)
        return
    if status:
        command.say_status(data, echo)
        return
    model = command.ModelOptions(**pick("model", "pretrained", "device", "scheduler"))
    if dry_run:
        command.dry_run(data, model, config, echo)
        return
    summaries = command.extract_all(
        data,
        model,
        config,
        retry_failed=retry_failed,
        max_bad=None if max_bad is None else command.parse_share(max_bad),
        say=_note,
    )
    for summary in summaries:
        echo(summary.text())
    for summary in summaries:
        summary.require_usable()
    if not all(summary.is_whole for summary in summaries):
        raise click.exceptions.Exit(NOT_WHOLE)


@main.group()
def store() -> None:
    """Look at a store of features, check it, or move it as one file."""


@store.command()
@click.argument("path", type=_FOLDER)
@_flag("--statistics with_statistics", "Read all features, and say whether they look broken.")
def info(path: Path, with_statistics: bool) -> None:
    """Say what the store at PATH holds and how much of it is done.

    Example: bieff store info features/k400
    """
    from bieff.apps.store import say_info

    say_info(path, echo, with_statistics=with_statistics)


@store.command()
@click.argument("path", type=_FOLDER)
@_flag("--drop", "Forget the bad shards, so that extract writes them again.")
def verify(path: Path, drop: bool) -> None:
    """Read every checksum of the store at PATH again, and name the bad shards.

    Exit code 1 if there are any.

    Example: bieff store verify features/k400 --drop
    """
    from bieff.apps.store import verify_store

    if not verify_store(path, echo, drop=drop):
        raise click.exceptions.Exit(1)


@store.command(name="export")
@click.argument("path", type=_FOLDER)
@_option(
    "--to",
    "The file, of npy the folder.  [default: PATH.h5, PATH-npy, PATH.parquet]",
    click.Path(path_type=Path),
)
@_given(
    "--format kind",
    "hdf5: one file, which `import` reads; npy: a file a video, in folders as the videos'; "
    "parquet: the table of the videos.",
    "hdf5",
    kind=click.Choice(["hdf5", "npy", "parquet"]),
)
def export_(path: Path, to: Path | None, kind: str) -> None:
    """Write the store at PATH in a form that others load.

    Example: bieff store export features/k400 --to k400.h5
    """
    from bieff.apps.store import export_store

    export_store(path, to, echo, kind=kind)


@store.command(name="import")
@click.argument("file", type=_FILE)
@_option("--to", "Folder of the store.  [default: features/FILE]", _FOLDER)
def import_(file: Path, to: Path | None) -> None:
    """Make a store of FILE, which `bieff store export` wrote, byte for byte.

    Example: bieff store import k400.h5 --to features/k400
    """
    from bieff.apps.store import import_store

    import_store(file, to, echo)


@main.command()
@_features("A store with a training partition.  [required, or --resume]")
@_out("Folder of the run.  [default: runs/STORE, then runs/STORE-2, ...]")
@_shorter("Frames of a video; a divisor of the store's.  [default: all]")
@_from("A finished run to start from, and to take the settings of.")
@_preset
@_option("--config", "A TOML file of settings.", _FILE)
@_set("One setting; may be repeated.")
@_settings("bieff.train.config:TrainConfig")
@_flag("--resume", "Go on with the run in --out, or the newest unfinished one in runs/.")
@_option("--shots", "Train on so few videos a class, drawn at random.", int)
@_split
@_option("--draw", "Seed of the videos drawn.  [default: 0]", int)
@_option("--same-shots", "A run whose few videos to train on again.", _FOLDER)
@_option("--shots-list", "Train on the videos of a list: a path and a label a line.", _FILE)
@_named
@_device
@_flag("--dry-run", "Say what would be trained, and count the parameters.")
def train(
    shots: int | None,
    split: str | None,
    draw: int | None,
    same_shots: Path | None,
    **options: Any,
) -> None:
    """Train the temporal transformer and the prompts on cached features.

    Ctrl-C saves; --resume goes on as if nothing had happened.  Several GPUs: torchrun
    --nproc-per-node 4 --no-python bieff train ...

    Example: bieff train --features features/k400 --frames 8 --set epochs=30
    """
    from bieff.apps.train import train_run
    from bieff.train.fit.few_shot import FewShotOptions

    few = None
    if any(option is not None for option in (shots, split, draw, same_shots)):
        few = FewShotOptions(shots=shots, split=split, seed=draw, same_as=same_shots)
    if said := train_run(**options, few=few, command=sys.argv):
        echo(said)


@main.command(name="eval")
@click.argument("run", type=_FOLDER, required=False)
@_features("Store to evaluate on.  [default: the run's own]")
@_protocol("", default="closed", show_default=True)
@_evaluating
def evaluate(run: Path | None, features: Path | None, protocol: str, **options: Any) -> Any:
    """Evaluate RUN (default: the newest in runs/) on the closed set it was trained on.

    The figures go to results.json in the run too; one that was stopped goes on when it is
    asked the same again.  docs/protocols.md says what each protocol is.

    Example: bieff eval runs/k400 --per-class
    """
    from bieff.apps.evaluate import Evaluation, evaluate_on

    return evaluate_on(Evaluation(**options), run=run, features=features, protocol=protocol)


@main.command()
@click.argument("name", metavar="SET")
@_option("--run", "The trained run.  [default: the newest in runs/]", _FOLDER)
@_features("The set's store.  [default: features/SET]")
@_protocol("[default: splits3; k600 for its zero-shot classes; full without official splits]")
@_evaluating
def zeroshot(
    name: str, run: Path | None, features: Path | None, protocol: str | None, **options: Any
) -> Any:
    """Evaluate a run on a data set whose classes it has never seen, beside frozen CLIP.

    The figures go to results.json in the run too; one that was stopped goes on when it is
    asked the same again.  docs/protocols.md says what each protocol is.

    Example: bieff zeroshot hmdb51 --run runs/k400 --protocol half10
    """
    from bieff.apps.evaluate import Evaluation, evaluate_on

    asked = Evaluation(**options)
    return evaluate_on(asked, name=name, run=run, features=features, protocol=protocol)


@main.command()
@click.argument("file", type=_FILE)
@_mix("Combine ours and frozen CLIP anew.")
@_option("--video", "Print what is said of one video.", metavar="ID")
@_option("--parquet", "Write the scores of every video to this file; no more.", _FILE)
@_looking
def scores(file: Path, mix: float | None, video: str | None, parquet: Path | None) -> Any:
    """Look at the scores in FILE again, which --save-scores wrote; needs no model.

    Example: bieff scores scores.h5 --confusions 20
    """
    from bieff.apps.evaluate import read_scores
    from bieff.train.evaluate.results import results_of
    from bieff.train.evaluate.tables import video_table

    table = read_scores(file, mix=mix)
    if parquet is not None:
        from bieff.apps.store import export_scores

        export_scores(table, parquet, echo)
        return []
    if video is None:
        return results_of(table)
    _print_table(*video_table(table, video))
    return []


@main.command()
@click.argument("videos", type=click.Path(path_type=Path), nargs=-1, required=True)
@_many(
    "--labels",
    "Class names with commas between them, or a file of them; may be repeated.  "
    "[default: the run's classes]",
    metavar="NAMES|FILE",
)
@_windows("Score windows along each video, not the whole: their seconds.")
@_asking
@_option(
    "--top",
    "Classes to print of each video, or window.  [default: 5, of a window 2]",
    click.IntRange(1),
)
@_flag_json("One JSON object a line, all scores.")
@_option(
    "--keyframes",
    "Draw the frames with their times, and which of them counted; with --windows a timeline.",
    click.Path(path_type=Path),
    metavar="PNG|FOLDER",
)
def predict(
    videos: Sequence[Path],
    top: int | None,
    as_json: bool,
    windows: float | None,
    every: float | None,
    **options: Any,
) -> None:
    """Say what happens in VIDEOS, files or folders, in the words of --labels.

    With --run its model answers, otherwise frozen CLIP.  Exit code 3: some videos are damaged
    or cannot be used; each is named with the reason.

    Example: bieff predict clip.mp4 --labels "kicking a ball, running" --keyframes clip.png
    """
    from bieff.apps.predict import predict_videos
    from bieff.apps.timeline import clock
    from bieff.extract.lengths import Windows
    from bieff.features.schema import Status

    all_whole = True
    along = Windows.of(windows, every)
    for found in predict_videos(videos, **options, windows=along, say=_note):
        all_whole &= found.status is Status.OK
        if as_json:
            click.echo(json.dumps(found.to_dict()))
        elif found.window is not None:
            if not found.place[0]:
                echo(clean(found.video))
            best = (f"{score:6.1%}  {clean(name)}" for name, score in found.ranking(top or 2))
            echo("  ".join(["", *map(clock, found.window), *best]))
        elif found.scores is not None:
            echo(clean(found.video))
            for name, score in found.ranking(top or 5):
                echo(f"  {score:6.1%}  {clean(name)}")
    if not all_whole:
        raise click.exceptions.Exit(NOT_WHOLE)


@main.command()
@click.argument("run", type=_FOLDER, required=False)
@_option("--out", "The page.  [default: RUN/report.html]", _FILE)
@_features("The run's store, where it lies elsewhere by now.")
@_named
@_device
@_flag(
    "--without-videos",
    "Leave out what the closed set is evaluated for: classes, confusions and videos.",
)
def report(without_videos: bool, **options: Any) -> None:
    """Write all there is to say of RUN (default: the newest in runs/) on one HTML page.

    The page needs no network and no other file.  Results come from `bieff eval` and `bieff
    zeroshot`, which put them beside the run.

    Example: bieff report runs/k400 --out k400.html
    """
    from bieff.apps.report.page import report as write_report

    echo(f"report: {write_report(**options, with_videos=not without_videos)}")


@main.command()
@click.argument("run", type=_FOLDER)
@_option("--to", "hf-hub:ORG/NAME, or a folder.", required=True)
@_flag("--private", "A repository that is made for it is private.")
def share(run: Path, to: str, private: bool) -> None:
    """Write RUN for others: a model card, the weights and the record, in Hugging Face's layout.

    Everybody then loads it by `--run hf-hub:ORG/NAME`.  Paths of this machine are left out.

    Example: bieff share runs/k400 --to shared/k400
    """
    from bieff.apps.report.share import share_run

    echo(f"shared: {share_run(run, to, private=private)}")


@main.command()
@_asking
@_given("--host", "Address to listen at; any but the default lets others in.", "127.0.0.1")
@_given("--port", "0 takes a free one.", 8000)
@_given("--max-upload", "Megabytes of a video.", 200)
@_given("--deadline", "Seconds for the upload, and as many for the decoding.", 60.0)
def serve(**options: Any) -> None:
    """Open a page on this machine: drop a video, type class names, see scores and keyframes.

    Example: bieff serve --run runs/k400
    """
    from bieff.apps.serve import serve as answer

    answer(**options, say=echo)


@main.command()
@_model("As for extract.  [default: ViT-B-16-quickgelu]")
@_pretrained("As for extract.  [default: random, which is as fast]")
@_device
@_flag_json("Print one JSON object.")
def bench(model: str | None, pretrained: str | None, device: str | None, as_json: bool) -> None:
    """Measure this machine in about a minute, and estimate the hours of k400, ucf101, hmdb51.

    Every rate stands beside the ceiling measured with it.

    Example: bieff bench --model ViT-B-32-quickgelu
    """
    # as an extraction has it; read when torch loads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from bieff.apps.bench.run import bench as measure

    done = measure(model, pretrained, device, say=_note)
    if as_json:
        click.echo(json.dumps(done.to_dict()))
        return
    echo(done.heading())
    for title, header, rows, lines in done.tables():
        echo(f"\n{title}")
        _print_table(header, rows)
        echo("\n".join(lines))


@main.command()
@_features("A store with train and val.", required=True)
@_given(
    "--tables",
    "Of the paper; 1 is frames, 3 the cost at 16 frames; 0 is of ours: ways to keep what "
    "frozen CLIP knows.",
    "4,5,6,7,8,9,10",
)
@_given("--seeds", "Runs a row.", 3)
@_option(
    "--zeroshot",
    "Stores beside the features, to evaluate every run on too.",
    metavar="SET,...",
    default="",
)
@_from("A finished run that every row starts from; rows of another model are left out.")
@_set("A setting of all rows that a table does not vary; may be repeated.")
@_out("Folder.  [default: runs/STORE-ablation]")
@_given("--jobs", "Runs at a time; several have a thread each.", 1)
@_named
@_device
def ablate(tables: str, zeroshot: str, **options: Any) -> None:
    """Train and evaluate every row of the paper's tables, several seeds each.

    Rows of the same settings share their runs.  Ctrl-C saves; the same command again goes on,
    and more tables, seeds or sets are added to what is there.  Exit code 1 if a run failed.

    Example: bieff ablate --features features/shapes --tables 4,5 --seeds 3 --jobs 2
    """
    from bieff.apps.progress import runs_bar
    from bieff.train.experiments.ablation import ablate as ablate_store
    from bieff.train.experiments.rows import parse_tables

    with runs_bar() as watch:
        report, failed = ablate_store(
            **options,
            tables=parse_tables(tables),
            zero_shot=[name for name in zeroshot.split(",") if name],
            watch=watch,
            command=sys.argv,
        )
    echo(report.read_text())
    echo(f"written to {report} and {report.with_suffix('.json')}")
    if failed:
        echo(f"{len(failed)} runs failed: {', '.join(failed)}", err=True)
        raise click.exceptions.Exit(1)


@main.command()
@_features("A store, such as features/hmdb51.", required=True)
@_given("--shots", "Training videos a base class.", 16)
@_given("--draws", "Choices of videos, a run each.", 3)
@_many(
    "--shots-list shots_lists",
    "A list of the videos of one draw, in place of --shots and --draws; may be repeated.  Its "
    "classes are the base.",
    kind=_FILE,
)
@_split
@_from("A finished run to start from, trained on another set.")
@_blend
@_preset
@_set("A setting of training; may be repeated.")
@_out("Folder.  [default: runs/STORE-base2novel]")
@_named
@_device
def base2novel(shots_lists: Sequence[Path], **options: Any) -> None:
    """Train on few videos of half the classes, evaluate on both halves, beside frozen CLIP.

    Ctrl-C saves; the same command again goes on.

    Example: bieff base2novel --features features/hmdb51 --shots 16 --draws 3
    """
    from bieff.apps.progress import steps_bar, videos_bar
    from bieff.apps.train import shots_of_list
    from bieff.train.experiments.base_to_novel import base2novel as run_all

    def listed(store: Any) -> list[Any]:
        return [shots_of_list(store, f, split=options["split"]) for f in shots_lists]

    bars: dict[str, Any] = {"steps_bar": steps_bar, "videos_bar": videos_bar}
    found = run_all(**options, **bars, command=sys.argv, listed=listed)
    rows = [
        (
            line.model,
            f"{line.base:.2f} ± {line.base_std:.2f}",
            f"{line.novel:.2f} ± {line.novel_std:.2f}",
            f"{line.harmonic:.2f}",
        )
        for line in found
    ]
    _print_table(("model", "base top-1", "novel top-1", "harmonic mean"), rows)


def _print_results(
    results: list[Any], *, per_class: bool = False, confusions: int | None = None
) -> None:
    from bieff.train.evaluate.tables import (
        class_table,
        confusion_table,
        paper_lines,
        result_table,
    )

    if not results:
        return  # another process of this evaluation prints
    _print_table(*result_table(results))
    for result in results:
        title = f"{result.dataset}, {result.protocol}, {result.model}"
        if per_class:
            echo(title)
            _print_table(*class_table(result))
        if confusions:
            echo(f"{title}: most frequent mistakes")
            _print_table(*confusion_table(result, confusions))
    for line in paper_lines(results):
        echo(line)


if __name__ == "__main__":
    main()
