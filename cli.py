"""The command line: parse, call one function, print."""

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
    "--model",
    help="An open_clip name, hf-hub:..., local-dir:..., or tinyclip.  "
    "[default: ViT-B-16-quickgelu; tinyclip for shapes]",
)
@click.option(
    "--pretrained", help="An open_clip tag, a weights file, or 'random'.  [default: openai]"
)
@click.option("--device", help="cpu, cuda, cuda:1.  [default: cuda if there is one]")
@click.option(
    "--retry-failed", is_flag=True, help="Try the videos again that could not be used."
)
def extract(**options: Any) -> None:
    """Decode the videos of a data set once, and cache their frozen CLIP embeddings.

    A run that was stopped goes on where it was.  Exit code 3: finished, but some videos are
    damaged or missing; they are listed with their reasons.

    Example: bieff extract --dataset k400 --videos /data/k400 --frames 32
    """
    from bieff.extract.command import extract_all

    summaries = extract_all(**options)
    for summary in summaries:
        click.echo(summary.text())
    if not all(summary.is_whole for summary in summaries):
        raise click.exceptions.Exit(NOT_WHOLE)


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
