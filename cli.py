"""The command line: parse, call one function, print."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from bieff.features.errors import BieffError, InputError

WIDE = 160
"""Columns of a table that goes to a file."""

NOT_WHOLE = 3
"""Exit code of an extraction that finished, but not with every frame of every video."""


RESUMED = {"demo", "extract", "eval", "zeroshot", "base2novel", "ablate"}
"""Commands that go on where they were; `train` says itself how."""


class _Group(click.Group):
    """Turns a BieffError into `Error: ...` and exit code 1; a bug keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BieffError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            then = "go on" if ctx.invoked_subcommand in RESUMED else "begin anew"
            raise click.ClickException(
                f"interrupted; run the same command again to {then}"
            ) from None


_Decorator = Callable[[Any], Any]


class _Place(click.Path):
    """A path that is a folder, or a file, if it is there; otherwise it is bad input."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            raise InputError(f"{param.opts[-1]}: {error.message.rstrip('.')}") from None


_FOLDER = _Place(path_type=Path, file_okay=False)
_FILE = _Place(path_type=Path, dir_okay=False)


def _settings_of(config: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    """What prints the settings of a stage, named "module:class", and ends the command."""

    def show(ctx: click.Context, _: click.Parameter, is_asked: bool) -> None:
        if not is_asked:
            return
        from importlib import import_module

        from bieff.features.settings import settings_table

        module, name = config.split(":")
        _print_table(*settings_table(getattr(import_module(module), name)))
        ctx.exit()

    return show


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bieff")
def main() -> None:
    """BiEfficient on cached CLIP features: extract once, train many times."""


@main.command()
@click.option(
    "--out", type=_FOLDER, default=Path("demo"), show_default=True, help="Folder to write."
)
@click.option("--seed", default=0, show_default=True, help="Of the clips and of training.")
def demo(out: Path, seed: int) -> None:
    """Run both stages and the zero-shot evaluation on clips made here.

    Example: bieff demo --out demo
    """
    from bieff.apps.demo import demo as run_demo

    done = run_demo(out, seed=seed)
    _print_results(done.results)
    click.echo(f"results: {done.out / 'results.json'}")


@main.command()
def datasets() -> None:
    """List the data sets that `bieff extract` knows.

    Example: bieff datasets
    """
    from bieff.extract.catalogue import table

    _print_table(*table())


@main.command()
@click.option(
    "--dataset",
    "names",
    required=True,
    multiple=True,
    help="See `bieff datasets`; may be repeated.",
)
@click.option("--videos", type=_FOLDER, help="Folder of the videos.  [default: data/DATASET]")
@click.option(
    "--list",
    "lists",
    multiple=True,
    metavar="PART=FILE",
    help="Of --dataset list: train=FILE, val=FILE or all=FILE.",
)
@click.option("--labels", type=_FILE, help="Class names, of --dataset list and folder.")
@click.option(
    "--first-label",
    type=int,
    help="Of --dataset list: whether labels count from 0 or 1.  [default: found out]",
)
@click.option(
    "--trust-labels",
    is_flag=True,
    help="Of --dataset list: the labels are right where class folders say otherwise.",
)
@click.option("--out", type=_FOLDER, help="Folder of the store.  [default: features/DATASET]")
@click.option("--frames", type=int, help="Frames of a view.  [default: 32]")
@click.option(
    "--train-views",
    type=int,
    help="Random views of a training video, beside the centre grid.  [default: 1]",
)
@click.option("--clips", type=int, help="Temporal clips of an evaluation video.  [default: 3]")
@click.option("--crops", type=int, help="Spatial crops of a clip, 1 or 3.  [default: 1]")
@click.option(
    "--context",
    type=click.Choice(["none", "patches"]),
    help="Store the patch tokens' mean too.  [default: none]",
)
@click.option(
    "--limit",
    type=int,
    help="Only the first N videos of each partition, in a store of their own: "
    "features/DATASET-first-N.",
)
@click.option(
    "--model",
    help="An open_clip name, hf-hub:..., local-dir:..., or tinyclip.  "
    "[default: ViT-B-16-quickgelu; tinyclip for shapes]",
)
@click.option(
    "--pretrained", help="An open_clip tag, a weights file, or 'random'.  [default: openai]"
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting: batch_size, decoders, deadline, ...; may be repeated.",
)
@click.option(
    "--settings",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_settings_of("bieff.extract.config:ExtractConfig"),
    help="List what --set takes, with the defaults; no more.",
)
@click.option("--device", help="cpu, cuda, cuda:1.  [default: cuda if there is one]")
@click.option(
    "--scheduler",
    metavar="sync|local|tcp://HOST:PORT",
    help="Who does the work: this process, Dask workers started here (one for each GPU), or "
    "those of a Dask cluster that shares the store's and the videos' file system.  "
    "[default: local where there are several GPUs, otherwise sync]",
)
@click.option(
    "--retry-failed",
    is_flag=True,
    help="Try the videos again that could not be used whole, or whose file was replaced since.",
)
@click.option(
    "--max-bad",
    metavar="SHARE",
    help="Share of unusable videos, such as 1%, that is no failure; a run that must exceed it "
    "is stopped.",
)
@click.option("--status", is_flag=True, help="Say what is done, bad and pending; no more.")
@click.option(
    "--check",
    is_flag=True,
    help="Say what is listed, found, missing, unlisted and mislabelled; no more.",
)
@click.option(
    "--dry-run", is_flag=True, help="Say what would be written, its size and the hours."
)
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

    def pick(*names: str) -> dict[str, Any]:
        return {name: options[name] for name in names}

    data = command.DataOptions(
        **pick("names", "videos", "lists", "labels", "first_label", "trust_labels", "out"),
        limit=options["limit"],
    )
    if check:
        if not command.check_all(data, click.echo):
            raise click.exceptions.Exit(1)
        return
    if status:
        command.say_status(data, click.echo)
        return
    model = command.ModelOptions(**pick("model", "pretrained", "device", "scheduler"))
    settings = pick("frames", "train_views", "clips", "crops", "context", "limit")
    config = command.make_config(settings, overrides)
    if dry_run:
        command.dry_run(data, model, config, click.echo)
        return
    summaries = command.extract_all(
        data,
        model,
        config,
        retry_failed=retry_failed,
        max_bad=None if max_bad is None else command.parse_share(max_bad),
        say=lambda line: click.echo(line, err=True),
    )
    for summary in summaries:
        click.echo(summary.text())
    for summary in summaries:
        summary.require_usable()
    if not all(summary.is_whole for summary in summaries):
        raise click.exceptions.Exit(NOT_WHOLE)


@main.group()
def store() -> None:
    """Look at a store of features, check it, or move it as one file."""


@store.command()
@click.argument("path", type=_FOLDER)
@click.option(
    "--statistics",
    "with_statistics",
    is_flag=True,
    help="Read all features, and say whether they look broken.",
)
def info(path: Path, with_statistics: bool) -> None:
    """Say what the store at PATH holds and how much of it is done.

    Example: bieff store info features/k400
    """
    from bieff.apps.store import say_info

    say_info(path, click.echo, with_statistics=with_statistics)


@store.command()
@click.argument("path", type=_FOLDER)
@click.option(
    "--drop", is_flag=True, help="Forget the bad shards, so that extract writes them again."
)
def verify(path: Path, drop: bool) -> None:
    """Read every checksum of the store at PATH again, and name the bad shards.

    Exit code 1 if there are any.

    Example: bieff store verify features/k400 --drop
    """
    from bieff.apps.store import verify_store

    if not verify_store(path, click.echo, drop=drop):
        raise click.exceptions.Exit(1)


@store.command(name="export")
@click.argument("path", type=_FOLDER)
@click.option("--to", type=_FILE, help="The file.  [default: PATH.h5]")
def export_(path: Path, to: Path | None) -> None:
    """Write the store at PATH to one HDF5 file.

    Example: bieff store export features/k400 --to k400.h5
    """
    from bieff.apps.store import export_store

    export_store(path, to, click.echo)


@store.command(name="import")
@click.argument("file", type=_FILE)
@click.option("--to", type=_FOLDER, help="Folder of the store.  [default: features/FILE]")
def import_(file: Path, to: Path | None) -> None:
    """Make a store of FILE, which `bieff store export` wrote, byte for byte.

    Example: bieff store import k400.h5 --to features/k400
    """
    from bieff.apps.store import import_store

    import_store(file, to, click.echo)


@main.command()
@click.option(
    "--features",
    type=_FOLDER,
    help="A store with a training partition.  [required, or --resume]",
)
@click.option(
    "--out",
    type=_FOLDER,
    help="Folder of the run.  [default: runs/STORE, then runs/STORE-2, ...]",
)
@click.option(
    "--frames", type=int, help="Frames of a video; a divisor of the store's.  [default: all]"
)
@click.option("--preset", help="paper, baseline or released.  [default: paper]")
@click.option("--config", type=_FILE, help="A TOML file of settings.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="One setting; may be repeated.",
)
@click.option(
    "--settings",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_settings_of("bieff.train.config:TrainConfig"),
    help="List what --set takes, with the defaults; no more.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the run in --out, or the newest unfinished one in runs/.",
)
@click.option("--shots", type=int, help="Train on so few videos a class, drawn at random.")
@click.option("--split", help="Official split to draw from and to test on.  [default: 1]")
@click.option("--draw", type=int, help="Seed of the videos drawn.  [default: 0]")
@click.option("--same-shots", type=_FOLDER, help="A run whose few videos to train on again.")
@click.option("--device", help="cpu, cuda, cuda:1.  [default: cuda if there is one]")
@click.option(
    "--dry-run", is_flag=True, help="Say what would be trained, and count the parameters."
)
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
    from bieff.train.fit.few_shot import Few

    few = None
    if any(option is not None for option in (shots, split, draw, same_shots)):
        few = Few(shots=shots, split=split, seed=draw, same_as=same_shots)
    if said := train_run(**options, few=few, command=sys.argv):
        click.echo(said)


_PROTOCOLS = click.Choice(["closed", "splits3", "full", "half10", "k600"])

_LOOKING = (
    click.option("--per-class", is_flag=True, help="Print the accuracy of each class."),
    click.option(
        "--confusions",
        type=click.IntRange(min=1),
        metavar="N",
        help="Print the N most frequent mistakes.",
    ),
)

_EVALUATING = (
    click.option("--best", is_flag=True, help="The best checkpoint on `val`, not the last."),
    click.option(
        "--template",
        metavar="NAME|TEXT",
        help="How frozen CLIP is asked: bare, one, person, 16, 28, 48, or a text with {}.  "
        "[default: one]",
    ),
    click.option("--model-only", is_flag=True, help="Leave frozen CLIP out."),
    click.option(
        "--names",
        type=_FILE,
        help="One or several descriptions of each class (json, csv, txt) in place of its name.",
    ),
    click.option(
        "--mix", type=float, metavar="WEIGHT", help="Ours and frozen CLIP combined, too."
    ),
    click.option("--save-scores", type=_FILE, help="Write the scores of every video (HDF5)."),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        help="Videos at a time.  [default: 32, fewer for many classes]",
    ),
    click.option("--device", help="cpu, cuda, cuda:1.  [default: cuda if there is one]"),
    *_LOOKING,
)


def _options(options: Sequence[_Decorator]) -> _Decorator:
    """Options that several commands share, in this order."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@main.command(name="eval")
@click.argument("run", type=_FOLDER, required=False)
@click.option(
    "--features", type=_FOLDER, help="Store to evaluate on.  [default: the run's own]"
)
@click.option("--protocol", type=_PROTOCOLS, default="closed", show_default=True)
@_options(_EVALUATING)
def evaluate(
    run: Path | None,
    features: Path | None,
    protocol: str,
    per_class: bool,
    confusions: int | None,
    **options: Any,
) -> None:
    """Evaluate RUN (default: the newest in runs/) on the closed set it was trained on.

    The figures go to results.json in the run too; one that was stopped goes on when it is
    asked the same again.  docs/protocols.md says what each protocol is.

    Example: bieff eval runs/k400 --per-class
    """
    from bieff.apps.evaluate import Evaluation, evaluate_closed

    evaluation = Evaluation(**options)
    results = evaluate_closed(evaluation, run=run, features=features, protocol=protocol)
    _print_results(results, per_class=per_class, confusions=confusions)


@main.command()
@click.argument("name", metavar="SET")
@click.option("--run", type=_FOLDER, help="The trained run.  [default: the newest in runs/]")
@click.option("--features", type=_FOLDER, help="The set's store.  [default: features/SET]")
@click.option(
    "--protocol",
    type=_PROTOCOLS,
    help="[default: splits3; k600 for its zero-shot classes; full without official splits]",
)
@_options(_EVALUATING)
def zeroshot(
    name: str,
    run: Path | None,
    features: Path | None,
    protocol: str | None,
    per_class: bool,
    confusions: int | None,
    **options: Any,
) -> None:
    """Evaluate a run on a data set whose classes it has never seen, beside frozen CLIP.

    The figures go to results.json in the run too; one that was stopped goes on when it is
    asked the same again.  docs/protocols.md says what each protocol is.

    Example: bieff zeroshot hmdb51 --run runs/k400 --protocol half10
    """
    from bieff.apps.evaluate import Evaluation, evaluate_zero_shot

    evaluation = Evaluation(**options)
    results = evaluate_zero_shot(
        evaluation, name=name, run=run, features=features, protocol=protocol
    )
    _print_results(results, per_class=per_class, confusions=confusions)


@main.command()
@click.argument("file", type=_FILE)
@click.option("--mix", type=float, metavar="WEIGHT", help="Combine ours and frozen CLIP anew.")
@click.option("--video", metavar="ID", help="Print what is said of one video.")
@_options(_LOOKING)
def scores(
    file: Path, mix: float | None, video: str | None, per_class: bool, confusions: int | None
) -> None:
    """Look at the scores in FILE again, which --save-scores wrote; needs no model.

    Example: bieff scores scores.h5 --confusions 20
    """
    from bieff.apps.evaluate import read_scores
    from bieff.train.evaluate.results import results_of
    from bieff.train.evaluate.tables import video_table

    examination = read_scores(file, mix=mix)
    if video is not None:
        _print_table(*video_table(examination, video))
        return
    _print_results(results_of(examination), per_class=per_class, confusions=confusions)


@main.command()
@click.argument("videos", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--labels",
    multiple=True,
    metavar="NAMES|FILE",
    help="Class names with commas between them, or a file of them; may be repeated.  "
    "[default: the run's classes]",
)
@click.option("--run", type=_FOLDER, help="A trained run.  [default: none, CLIP as it is]")
@click.option("--frames", type=int, help="Frames of a video.  [default: the run's, or 8]")
@click.option(
    "--model",
    help="As for `bieff extract`.  [default: the run's, or ViT-B-16-quickgelu]",
)
@click.option("--pretrained", help="As for `bieff extract`.  [default: the run's, or openai]")
@click.option("--device", help="cpu, cuda, cuda:1.  [default: cuda if there is one]")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Classes to print of each video.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, all scores.")
@click.option(
    "--keyframes",
    type=click.Path(path_type=Path),
    metavar="PNG|FOLDER",
    help="Draw the frames with their times, and which of them counted.",
)
def predict(videos: Sequence[Path], top: int, as_json: bool, **options: Any) -> None:
    """Say what happens in VIDEOS, files or folders, in the words of --labels.

    With --run its model answers, otherwise frozen CLIP.  Exit code 3: some videos are damaged
    or cannot be used; each is named with the reason.

    Example: bieff predict clip.mp4 --labels "kicking a ball, running" --keyframes clip.png
    """
    from bieff.apps.predict import is_whole, predict_videos

    def say(line: str) -> None:
        click.echo(line, err=True)

    all_whole = True
    for found in predict_videos(videos, **options, say=say):
        all_whole &= is_whole(found)
        if as_json:
            click.echo(json.dumps(found.to_dict()))
        elif found.scores is not None:
            click.echo(found.video)
            for name, score in found.ranking(top):
                click.echo(f"  {score:6.1%}  {name}")
    if not all_whole:
        raise click.exceptions.Exit(NOT_WHOLE)


@main.command()
@click.argument("run", type=_FOLDER, required=False)
@click.option("--out", type=_FILE, help="The page.  [default: RUN/report.html]")
@click.option(
    "--features", type=_FOLDER, help="The run's store, where it lies elsewhere by now."
)
@click.option("--device", help="cpu, cuda, cuda:1.  [default: cuda if there is one]")
@click.option(
    "--without-videos",
    is_flag=True,
    help="Leave out what the closed set is evaluated for: classes, confusions and videos.",
)
def report(without_videos: bool, **options: Any) -> None:
    """Write all there is to say of RUN (default: the newest in runs/) on one HTML page.

    The page needs no network and no other file.  Results come from `bieff eval` and `bieff
    zeroshot`, which put them beside the run.

    Example: bieff report runs/k400 --out k400.html
    """
    from bieff.apps.report.page import report as write_report

    click.echo(f"report: {write_report(**options, with_videos=not without_videos)}")


@main.command()
@click.option("--run", type=_FOLDER, help="A trained run.  [default: none, CLIP as it is]")
@click.option("--frames", type=int, help="Frames of a video.  [default: the run's, or 8]")
@click.option("--model", help="As for predict.  [default: the run's, or ViT-B-16-quickgelu]")
@click.option("--pretrained", help="As for predict.  [default: the run's, or openai]")
@click.option("--device", help="cpu, cuda, cuda:1.  [default: cuda if there is one]")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at; any but the default lets others in.",
)
@click.option("--port", default=8000, show_default=True, help="0 takes a free one.")
@click.option("--max-upload", default=200, show_default=True, help="Megabytes of a video.")
@click.option(
    "--deadline",
    default=60.0,
    show_default=True,
    help="Seconds for the upload, and as many for the decoding.",
)
def serve(**options: Any) -> None:
    """Open a page on this machine: drop a video, type class names, see scores and keyframes.

    Example: bieff serve --run runs/k400
    """
    from bieff.apps.serve import serve as answer

    answer(**options, say=click.echo)


@main.command()
@click.option("--model", help="As for extract.  [default: ViT-B-16-quickgelu]")
@click.option("--pretrained", help="As for extract.  [default: random, which is as fast]")
@click.option("--device", help="cpu, cuda, cuda:1.  [default: cuda if there is one]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(model: str | None, pretrained: str | None, device: str | None, as_json: bool) -> None:
    """Measure this machine in about a minute, and estimate the hours of k400, ucf101, hmdb51.

    Every rate stands beside the ceiling measured with it.

    Example: bieff bench --model ViT-B-32-quickgelu
    """
    # as an extraction has it; read when torch loads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from bieff.apps.bench.run import bench as measure
    from bieff.apps.bench.table import ceiling_lines, closing_lines, estimates, heading, rates

    done = measure(model, pretrained, device, say=lambda line: click.echo(line, err=True))
    if as_json:
        click.echo(json.dumps(done.to_dict()))
        return
    click.echo(heading(done))
    for table, lines in (
        (rates(done), ceiling_lines(done)),
        (estimates(done), closing_lines(done)),
    ):
        click.echo(f"\n{table.title}")
        _print_table(table.header, table.rows)
        for line in lines:
            click.echo(line)


@main.command()
@click.option("--features", type=_FOLDER, required=True, help="A store with train and val.")
@click.option(
    "--tables",
    default="4,5,6,7,8,9,10",
    show_default=True,
    help="Of the paper; 1 is frames, 3 the cost at 16 frames; 0 is of ours: ways to keep what "
    "frozen CLIP knows.",
)
@click.option("--seeds", default=3, show_default=True, help="Runs a row.")
@click.option(
    "--zeroshot",
    metavar="SET,...",
    default="",
    help="Stores beside the features, to evaluate every run on too.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of all rows that a table does not vary; may be repeated.",
)
@click.option("--out", type=_FOLDER, help="Folder.  [default: runs/STORE-ablation]")
@click.option(
    "--jobs", default=1, show_default=True, help="Runs at a time; several have a thread each."
)
@click.option("--device", help="cpu, cuda, cuda:1.  [default: cuda if there is one]")
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
    click.echo(report.read_text())
    click.echo(f"written to {report} and {report.with_suffix('.json')}")
    if failed:
        click.echo(f"{len(failed)} runs failed: {', '.join(failed)}", err=True)
        raise click.exceptions.Exit(1)


@main.command()
@click.option(
    "--features", type=_FOLDER, required=True, help="A store, such as features/hmdb51."
)
@click.option("--shots", default=16, show_default=True, help="Training videos a base class.")
@click.option("--draws", default=3, show_default=True, help="Choices of videos, a run each.")
@click.option("--split", help="Official split to draw from and to test on.  [default: 1]")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of training; may be repeated.",
)
@click.option("--out", type=_FOLDER, help="Folder.  [default: runs/STORE-base2novel]")
@click.option("--device", help="cpu, cuda, cuda:1.  [default: cuda if there is one]")
def base2novel(**options: Any) -> None:
    """Train on few videos of half the classes, evaluate on both halves, beside frozen CLIP.

    Ctrl-C saves; the same command again goes on.

    Example: bieff base2novel --features features/hmdb51 --shots 16 --draws 3
    """
    from bieff.train.experiments.base_to_novel import base2novel as run_all

    rows = [
        (
            line.model,
            f"{line.base:.2f} ± {line.base_std:.2f}",
            f"{line.novel:.2f} ± {line.novel_std:.2f}",
            f"{line.harmonic:.2f}",
        )
        for line in run_all(**options, command=sys.argv)
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
            click.echo(title)
            _print_table(*class_table(result))
        if confusions:
            click.echo(f"{title}: most frequent mistakes")
            _print_table(*confusion_table(result, confusions))
    for line in paper_lines(results):
        click.echo(line)


def _print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    # folded where the terminal is narrow: nothing is cut off
    columns = [Column(name, overflow="fold") for name in header]
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)  # a file or a pipe has no width to wrap at
    console.print(table)


if __name__ == "__main__":
    main()
