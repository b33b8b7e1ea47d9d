"""The command line: parse, call one function, print."""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bieff.features.errors import BieffError

WIDE = 160
"""Columns of a table that goes to a file."""

NOT_WHOLE = 3
"""Exit code of an extraction that finished, but not with every frame of every video."""


class _Group(click.Group):
    """Turns a BieffError into `Error: ...` and exit code 1; a bug keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BieffError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            raise click.ClickException(
                "interrupted; run the same command again to go on"
            ) from None


_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


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
    from bieff.extract.datasets import table

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
    "--train-views", type=int, help="Random views of a training video, beside the centre grid."
)
@click.option("--clips", type=int, help="Temporal clips of an evaluation video.")
@click.option("--crops", type=int, help="Spatial crops of a clip, 1 or 3.")
@click.option(
    "--context",
    type=click.Choice(["none", "patches"]),
    help="Store the patch tokens' mean too.",
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
@click.option("--device", help="cpu, cuda, cuda:1.  [default: cuda if there is one]")
@click.option(
    "--scheduler",
    metavar="sync|local|tcp://HOST:PORT",
    help="Who does the work: this process, Dask workers started here (one for each GPU), or "
    "those of a Dask cluster that shares the store's and the videos' file system.  "
    "[default: local where there are several GPUs, otherwise sync]",
)
@click.option(
    "--retry-failed", is_flag=True, help="Try the videos again that could not be used."
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
    from bieff.extract import command

    def pick(*names: str) -> dict[str, Any]:
        return {name: options[name] for name in names}

    sources = command.Sources(
        **pick("names", "videos", "lists", "labels", "first_label", "trust_labels", "out"),
        limit=options["limit"],
    )
    if check:
        if not command.check_all(sources, click.echo):
            raise click.exceptions.Exit(1)
        return
    if status:
        command.say_status(sources, click.echo)
        return
    machine = command.Machine(**pick("model", "pretrained", "device", "scheduler"))
    settings = pick("frames", "train_views", "clips", "crops", "context", "limit")
    config = command.make_config(settings, overrides)
    if dry_run:
        command.dry_run(sources, machine, config, click.echo)
        return
    summaries = command.extract_all(
        sources,
        machine,
        config,
        retry_failed=retry_failed,
        max_bad=None if max_bad is None else command.parse_share(max_bad),
        say=lambda line: click.echo(line, err=True),
    )
    for summary in summaries:
        click.echo(summary.text())
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
    from bieff.features.command import say_info

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
    from bieff.features.command import verify_store

    if not verify_store(path, click.echo, drop=drop):
        raise click.exceptions.Exit(1)


@store.command(name="export")
@click.argument("path", type=_FOLDER)
@click.option("--to", type=_FILE, help="The file.  [default: PATH.h5]")
def export_(path: Path, to: Path | None) -> None:
    """Write the store at PATH to one HDF5 file.

    Example: bieff store export features/k400 --to k400.h5
    """
    from bieff.features.command import export_store

    export_store(path, to, click.echo)


@store.command(name="import")
@click.argument("file", type=_FILE)
@click.option("--to", type=_FOLDER, help="Folder of the store.  [default: features/FILE]")
def import_(file: Path, to: Path | None) -> None:
    """Make a store of FILE, which `bieff store export` wrote, byte for byte.

    Example: bieff store import k400.h5 --to features/k400
    """
    from bieff.features.command import import_store

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
    "--resume",
    is_flag=True,
    help="Go on with the run in --out, or the newest unfinished one in runs/.",
)
@click.option("--device", help="cpu, cuda, cuda:1.  [default: cuda if there is one]")
@click.option(
    "--dry-run", is_flag=True, help="Say what would be trained, and count the parameters."
)
def train(**options: Any) -> None:
    """Train the temporal transformer and the prompts on cached features.

    Ctrl-C saves; --resume goes on as if nothing had happened.  Several GPUs: torchrun
    --nproc-per-node 4 --no-python bieff train ...

    Example: bieff train --features features/k400 --frames 8 --set epochs=30
    """
    from bieff.train.command import train_run

    if said := train_run(**options, command=sys.argv):
        click.echo(said)


@main.command(name="eval")
@click.argument("run", type=_FOLDER, required=False)
@click.option(
    "--features", type=_FOLDER, help="Store to evaluate on.  [default: the run's own]"
)
@click.option("--template", help="How frozen CLIP is asked.")
@click.option("--device", help="cpu, cuda, cuda:1.  [default: cuda if there is one]")
def evaluate(**options: Any) -> None:
    """Evaluate RUN (default: the newest in runs/) on the closed set it was trained on.

    Example: bieff eval runs/k400
    """
    from bieff.train.command import evaluate_closed

    _print_results(evaluate_closed(**options))


@main.command()
@click.argument("name", metavar="SET")
@click.option("--run", type=_FOLDER, help="The trained run.  [default: the newest in runs/]")
@click.option("--features", type=_FOLDER, help="The set's store.  [default: features/SET]")
@click.option("--template", help="How frozen CLIP is asked.")
@click.option("--device", help="cpu, cuda, cuda:1.  [default: cuda if there is one]")
def zeroshot(**options: Any) -> None:
    """Evaluate a run on a data set whose classes it has never seen, beside frozen CLIP.

    Example: bieff zeroshot hmdb51 --run runs/k400
    """
    from bieff.train.command import evaluate_zero_shot

    _print_results(evaluate_zero_shot(**options))


@main.command()
@click.option("--features", type=_FOLDER, required=True, help="A store with train and val.")
@click.option(
    "--tables",
    default="4,5,6,7,8,9,10",
    show_default=True,
    help="Of the paper; 1 is frames, 3 the cost at 16 frames.",
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
    from bieff.train.ablation_rows import parse_tables
    from bieff.train.ablations import ablate as ablate_store
    from bieff.train.progress import runs_bar

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


def _print_results(results: list[Any]) -> None:
    header = ("data set", "protocol", "model", "prompt", "top-1", "top-5", "videos", "views")
    rows = [
        (
            r.dataset,
            r.protocol,
            r.model,
            r.template,
            f"{r.top1:.2f}" + ("" if r.top1_std is None else f" ± {r.top1_std:.2f}"),
            f"{r.top5:.2f}",
            f"{r.n_evaluated:,} of {r.n_listed:,}",
            f"{r.frames} x {r.clips} x {r.crops}",
        )
        for r in results
    ]
    _print_table(header, rows)


def _print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(*header, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)  # a file or a pipe has no width to wrap at
    console.print(table)


if __name__ == "__main__":
    main()
