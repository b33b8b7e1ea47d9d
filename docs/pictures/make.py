"""Makes the pictures of README.md from a finished demo.

    bieff demo --out demo
    python docs/pictures/make.py demo

Needs Chromium, as the tests of pages do (tests/helpers/browser.py).  What is shown is what the
commands really print, write and serve; only fonts and compression are chosen here.
"""

import argparse
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1] / "tests"))

from helpers import browser  # noqa: E402  the one that the tests look at pages with

RUN = Path("runs/shapes")
CLIP = Path("data/shapes-unseen/heart moving right/000.mp4")
VIDEO = "clip.mp4"
"""What the clip is called in the pictures."""

LABELS = "heart moving right, heart moving left, flower moving right"
"""None was trained on; only the order of the frames tells the first two apart."""

REPORT_HEIGHT = 770
"""The first screen of a report: down to the end of its results."""

BIEFF = (sys.executable, "-P", "-m", "bieff.cli")
COLUMNS = 80
"""Of the terminal."""

COLOURS = 256
"""Of a PNG's palette: a third of the bytes, and hardly anybody sees the difference."""


def main() -> None:
    """Parse, make, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("demo", type=Path, help="folder of a finished `bieff demo`")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the pictures")
    arguments = parser.parse_args()
    for path in make(arguments.demo.resolve(), arguments.out.resolve()):
        print(f"{path} {path.stat().st_size:,} bytes")


def make(demo: Path, out: Path) -> list[Path]:
    """All pictures, from the folder of a demo into another; returns their files."""
    if not (demo / CLIP).is_file() or not (demo / RUN).is_dir():
        sys.exit(f"{demo} holds no finished demo; make one with `bieff demo --out {demo}`")
    if missing := [name for name in browser.PROGRAMS if shutil.which(name) is None]:
        sys.exit(f"no {' and no '.join(missing)} here; install chromium and chromium-driver")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser.chromium() as page:
        made = Path(folder)
        for name in ("features", "runs"):
            (made / name).symlink_to(demo / name)
        shutil.copy(demo / CLIP, made / VIDEO)
        strip, said = predicted(made)
        page.open(reported(made))
        report = page.screenshot(made / "report.png")
        with serving(made) as address:
            page.open(address)
            answered(page, made / VIDEO)
            served = page.screenshot(made / "serve.png")
        shutil.copy(said, out / said.name)
        compress(strip, out / strip.name)
        compress(report, out / report.name, height=REPORT_HEIGHT)
        compress(served, out / served.name)
    return [out / picture.name for picture in (said, strip, report, served)]


def predicted(folder: Path) -> tuple[Path, Path]:
    """The keyframes that `bieff predict` draws, and its terminal."""
    arguments = ["predict", VIDEO, "--run", str(RUN), "--keyframes", "keyframes.png"]
    shown = f'$ bieff {shlex.join(arguments)} \\\n    --labels "{LABELS}"'
    done = subprocess.run(
        [*BIEFF, *arguments, "--labels", LABELS],
        cwd=folder,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return folder / "keyframes.png", terminal(folder / "predict.svg", shown, done.stdout)


def terminal(path: Path, command: str, said: str) -> Path:
    """A terminal with a command and what it said, as SVG that loads nothing."""
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, color_system="truecolor")
        console.print(Text(command, style="bold"))
        console.print(Text(said))
        svg = console.export_svg(title="bieff", unique_id="bieff")
    path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))
    return path


def reported(folder: Path) -> Path:
    """The page that `bieff report` writes."""
    page = folder / "report.html"
    arguments = ["report", str(RUN), "--features", "features/shapes", "--out", str(page)]
    subprocess.run([*BIEFF, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return page


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a `bieff serve`, which ends behind the block."""
    arguments = ["serve", "--run", str(RUN), "--port", "0"]
    with subprocess.Popen(
        [*BIEFF, *arguments], cwd=folder, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            for line in server.stdout:
                if line.startswith("http://"):
                    yield line.split()[0]
                    return
            sys.exit("bieff serve ended before it said its address")
        finally:
            server.send_signal(signal.SIGINT)


def answered(page: Any, video: Path) -> None:
    """Drop the clip on the served page, type the words, wait for the answer."""
    page.find("#file").send_keys(str(video))
    page.find("#labels").send_keys(LABELS)
    page.find("#go").click()
    page.wait(lambda: page.find("#result").is_displayed(), 120)
    page.run("document.activeElement.blur()")
    page.wait(lambda: page.run("return document.querySelector('#preview').readyState > 1"))


def compress(picture: Path, to: Path, *, height: int | None = None) -> None:
    """Write a PNG with a palette, cut off below the height if there is one."""
    with Image.open(picture) as whole:
        shown = whole.convert("RGB").crop((0, 0, whole.width, height or whole.height))
        few = shown.quantize(COLOURS, dither=Image.Dither.NONE)
        few.save(to, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
