"""The text tower as a tree against open_clip's encoder on every whole prompt.

    python tests/bench_text_tower.py

ViT-B/16's text tower with random weights, M = 16 context tokens and one row a video, names of
Kinetics-400, float32 on the CPU with all its threads.  The whole encoder's time and memory are
linear in the prompts: at K = 32 all of them are timed, in pieces; at K = 400 one piece is timed
and multiplied.  The last line is one JSON object.
"""

import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bieff.clip import ClipName, load
from bieff.train.text import TextTower

CASES = ((8, 32), (4, 400))
NUM_CONTEXT = 16
PIECE = 64
"""Prompts that the whole encoder takes at a time; all 256 at once want 13 GB to learn."""

LABEL_MAPS = (
    Path(__file__).parents[1] / "extract/datasets/data/kinetics400/kinetics400_label_map.txt",
    Path("/work/shared/data/kinetics400/kinetics400_label_map.txt"),
)


def encode_in_full(
    clip: nn.Module,
    tokens: Int[Tensor, "k length"],
    context: Float[Tensor, "M W"] | None,
    video: Float[Tensor, "B Q W"] | None,
    *,
    cut: int | None = None,
    ends_only: bool = False,
) -> Float[Tensor, "B k rows D"]:
    """Encode B x k whole prompts as the authors do, in the joint space.

    Args:
        clip: Any open_clip model with a causal text tower.
        tokens: The bare names with SOT and EOT.
        context: The same for all prompts, after SOT.
        video: Rows of each video, after the context.
        cut: Encode this many positions only; all 77 by default.
        ends_only: Project EOT rows only, as open_clip does, and return these alone.
    """
    tower: Any = getattr(clip, "text", clip)
    embedded = tower.token_embedding(tokens)[None]  # (1, k, length, W)
    num_videos = 1 if video is None else len(video)
    parts = [embedded[:, :, :1]]
    if context is not None:
        parts.append(context.expand(1, len(tokens), -1, -1))
    if video is not None:
        parts.append(video[:, None].expand(-1, len(tokens), -1, -1))
    parts.append(embedded[:, :, 1:])
    prompts = torch.cat([part.expand(num_videos, -1, -1, -1) for part in parts], dim=2)
    length = cut or tokens.shape[1]
    x = prompts[:, :, :length].flatten(0, 1) + tower.positional_embedding[:length]
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    x = tower.ln_final(x).unflatten(0, (num_videos, len(tokens)))
    if ends_only:
        ends = tokens.argmax(dim=1) + prompts.shape[2] - tokens.shape[1]
        x = x[:, torch.arange(len(tokens)), ends, None]
    projection = tower.text_projection
    if isinstance(projection, nn.Linear):
        x = projection(x)
    elif projection is not None:
        x = x @ projection
    return x


class Case:
    """B videos and K names: the same prompts both ways, in pieces for the whole encoder."""

    def __init__(self, clip: nn.Module, tokens: Tensor, *, B: int, K: int) -> None:
        generator = torch.Generator().manual_seed(K)
        self.clip, self.B, self.K = clip, B, K
        self.tokens = tokens[torch.randperm(len(tokens), generator=generator)[:K]]
        self.tower = TextTower(clip, self.tokens)
        width = self.tower.width
        self.context = 0.02 * torch.randn(NUM_CONTEXT, width, generator=generator)
        self.video = 0.02 * torch.randn(B, 1, width, generator=generator)
        self.weight = torch.randn(B, K, self.tower.dim, generator=generator)
        self.cut = int(self.tokens.argmax(dim=1).max()) + 1 + NUM_CONTEXT + 1
        videos, names = max(1, PIECE // K), min(K, PIECE)
        self.pieces = [(slice(b, b + videos), slice(0, names)) for b in range(0, B, videos)]
        if names < K:  # one piece stands for all
            self.pieces = self.pieces[:1]
        self.scale = B * K / (len(self.pieces) * videos * names)

    def tree(self) -> Tensor:
        return self.tower(self.context, self.video).classes

    def full(self, piece: tuple[slice, slice], cut: int | None = None) -> Tensor:
        videos, names = piece
        prompts = self.tokens[names], self.context, self.video[videos]
        return encode_in_full(self.clip, *prompts, cut=cut, ends_only=True)[:, :, 0]

    def learn(self, piece: tuple[slice, slice] | None) -> None:
        """Forward and backward of a random projection of the classes."""
        classes = self.tree() if piece is None else self.full(piece)
        weight = self.weight if piece is None else self.weight[piece]
        (classes * weight).sum().backward()

    def leaves(self) -> tuple[Tensor, Tensor]:
        """Make the context and the videos' rows ask for gradients, with none yet."""
        self.context = self.context.detach().requires_grad_()
        self.video = self.video.detach().requires_grad_()
        return self.context, self.video

    @property
    def rows(self) -> int:
        """Rows that the tree has; the whole encoder has B * K * 77."""
        tree = self.tower.prompt_tree(NUM_CONTEXT, 1)
        return tree.num_prefix + self.B * tree.num_rows

    @property
    def matrix_flops(self) -> float:
        """Forward, in the matrix products alone, of what is really computed of the rows."""
        tree = self.tower.prompt_tree(NUM_CONTEXT, 1)
        own = tree.num_prefix + self.B + len(tree.tokens)  # rows that the first layer projects
        num_middle = len(self.tower.blocks) - 2
        first, last = 3 * own + 9 * self.rows, 2 * self.rows + 10 * self.B * self.K
        return 2 * self.tower.width**2 * (first + 12 * num_middle * self.rows + last)

    def max_rel_error(self) -> float:
        """The largest error of classes and gradients, by the largest of each tensor."""
        leaves = self.leaves()
        weight = torch.zeros_like(self.weight)
        for piece in self.pieces:
            weight[piece] = self.weight[piece]
        classes = self.tree()
        got = [classes[piece] for piece in self.pieces]
        got += torch.autograd.grad((classes * weight).sum(), leaves)
        want = []
        for piece in self.pieces:
            want.append(self.full(piece).detach())
            self.learn(piece)
        want += [leaf.grad for leaf in leaves if leaf.grad is not None]
        pairs = zip(got, want, strict=True)
        return max(float((a - b).detach().abs().max() / b.abs().max()) for a, b in pairs)


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def matrix_rate(rows: int, width: int) -> float:
    """FLOP/s of the tower's largest matrix product on this machine, the median of nine."""
    x, weight = torch.randn(rows, width), torch.randn(4 * width, width)
    taken = statistics.median(seconds(lambda: x @ weight.T) for _ in range(9))
    return 2 * rows * width * 4 * width / taken


def measure(case: Case, repeats: int) -> dict[str, float]:
    """Time all ways in turn, `repeats` times, and take the median of each."""
    times: dict[str, list[float]] = {}

    def add(name: str, taken: float) -> None:
        times.setdefault(name, []).append(taken)

    for _ in range(repeats):
        add("rate", matrix_rate(case.rows, case.tower.width))
        with torch.no_grad():
            add("tree forward", seconds(case.tree))
            for name, cut in (("full forward", None), ("cut forward", case.cut)):
                taken = [
                    seconds(lambda p=piece, c=cut: case.full(p, c)) for piece in case.pieces
                ]
                add(name, sum(taken) * case.scale)
        case.leaves()
        add("tree both", seconds(lambda: case.learn(None)))
        taken = [seconds(lambda p=piece: case.learn(p)) for piece in case.pieces]
        add("full both", sum(taken) * case.scale)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_bytes(function: Callable[[], object]) -> int:
    """Peak of the tensor memory that is allocated while `function` runs."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        function()
    results: Any = profile.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def run(case: Case, repeats: int) -> dict[str, float]:
    error = case.max_rel_error()
    time_of = measure(case, repeats)
    case.leaves()
    memory = peak_bytes(lambda: case.learn(None))
    full_memory = peak_bytes(lambda: case.learn(case.pieces[0])) * len(case.pieces) * case.scale
    whole_rows = case.B * case.K * 77
    print(
        f"\nB={case.B} K={case.K}: {case.rows:,} rows, whole {whole_rows:,}"
        f" ({whole_rows / case.rows:.1f} x)"
    )
    if case.scale > 1:
        print(f"  the whole encoder runs {1 / case.scale:.0%} of the prompts, multiplied")
    share = {}
    for name, passes in (("forward", 1), ("both", 2)):
        taken, whole = time_of[f"tree {name}"], time_of[f"full {name}"]
        rate = passes * case.matrix_flops / taken
        share[name] = rate / time_of["rate"]
        print(
            f"  {name}: {taken * 1e3:,.0f} ms, whole {whole * 1e3:,.0f} ms"
            f" ({whole / taken:.1f} x); {rate / 1e9:.0f} GFLOP/s in matrix products,"
            f" {share[name]:.0%} of this machine's {time_of['rate'] / 1e9:.0f}"
        )
    print(f"  forward, cut to {case.cut} positions: {time_of['cut forward'] * 1e3:,.0f} ms")
    print(
        f"  memory to learn: {memory / 1e6:,.0f} MB,"
        f" whole {full_memory / 1e6:,.0f} MB (one piece of it, multiplied)"
    )
    return {
        "B": case.B,
        "K": case.K,
        "forward_x": round(time_of["full forward"] / time_of["tree forward"], 2),
        "forward_backward_x": round(time_of["full both"] / time_of["tree both"], 2),
        "forward_x_cut": round(time_of["cut forward"] / time_of["tree forward"], 2),
        "memory_ratio": round(full_memory / memory, 2),
        "max_rel_error": error,
        "rows": case.rows,
        "rows_full": whole_rows,
        "share_of_matrix_rate": round(share["forward"], 3),
    }


def main() -> None:
    clip = load(ClipName(model="ViT-B-16-quickgelu", pretrained="random"))
    path = next(path for path in LABEL_MAPS if path.is_file())
    tokens = clip.tokenize(path.read_text().split("\n")[:400])
    revision = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    print(
        f"{revision or '(no git)'} text_tower {clip.name} float32 | cpu,"
        f" {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    cases = [run(Case(clip.model, tokens, B=B, K=K), repeats=3) for B, K in CASES]
    print(json.dumps({"bench": "text_tower", "cases": cases}))


if __name__ == "__main__":
    main()
