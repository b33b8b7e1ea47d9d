"""The text tower as a tree against open_clip's encoder on every whole prompt.

    python tests/bench_text_tower.py

ViT-B/16's text tower with random weights, M = 16 context tokens and one row a video, names of
Kinetics-400, float32 on one core: what waits for another thread would measure whatever else
the machine does.  The whole encoder takes 256 prompts at once: all of them at K = 32, and at
K = 400 a part of the 1,600, whose time, being linear in them, is multiplied.  (Fewer at once
would partly reuse memory, which a real batch cannot; docs/LOG.md.)  Its memory is that of a few
prompts, multiplied.  The last line is one JSON object.
"""

import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bieff.apps.bench.timing import once, seconds
from bieff.apps.bench.train import encode_in_full
from bieff.clip import ClipName, load
from bieff.extract.datasets.official import DATA
from bieff.train.runs.run import commit
from bieff.train.text.tower import TextTower

CASES = ((8, 32, 256), (4, 400, 256))
"""Videos, names, and the prompts of them that the whole encoder takes at once."""

NUM_CONTEXT = 16
FEW = 16
"""Prompts of which its memory is measured."""


class Case:
    """B videos and K names: the same prompts both ways, or a part for the whole encoder."""

    def __init__(self, clip: nn.Module, tokens: Tensor, *, B: int, K: int, part: int) -> None:
        generator = torch.Generator().manual_seed(K)
        self.clip, self.B, self.K = clip, B, K
        self.tokens = tokens[torch.randperm(len(tokens), generator=generator)[:K]]
        self.tower = TextTower(clip, self.tokens)
        width = self.tower.width
        self.context = (
            0.02 * torch.randn(NUM_CONTEXT, width, generator=generator)
        ).requires_grad_()
        self.video = (0.02 * torch.randn(B, 1, width, generator=generator)).requires_grad_()
        self.weight = torch.randn(B, K, self.tower.dim, generator=generator)
        self.cut = int(self.tokens.argmax(dim=1).max()) + 1 + NUM_CONTEXT + 1
        self.part = self.part_of(part)
        self.scale = B * K / self.weight[self.part][..., 0].numel()

    def part_of(self, prompts: int) -> tuple[slice, slice]:
        """The first videos and names that make this many prompts."""
        return slice(0, max(1, prompts // self.K)), slice(0, min(self.K, prompts))

    def tree(self) -> Tensor:
        return self.tower(self.context, self.video).classes

    def full(self, part: tuple[slice, slice], cut: int | None = None) -> Tensor:
        videos, names = part
        prompts = self.tokens[names], self.context, self.video[videos]
        return encode_in_full(self.clip, *prompts, cut=cut, ends_only=True)[:, :, 0]

    def learn(self, encode: Callable[[], Tensor], weight: Tensor) -> list[Tensor]:
        """Classes, and the gradients of a random projection of them."""
        classes = encode()
        leaves = (self.context, self.video)
        return [classes.detach(), *torch.autograd.grad((classes * weight).sum(), leaves)]

    def learn_tree(self, weight: Tensor | None = None) -> list[Tensor]:
        return self.learn(self.tree, self.weight if weight is None else weight)

    def learn_full(self, part: tuple[slice, slice]) -> list[Tensor]:
        return self.learn(lambda: self.full(part), self.weight[part])

    def max_rel_error(self, want: list[Tensor]) -> float:
        """The largest error of classes and gradients, by the largest number of each."""
        weight = torch.zeros_like(self.weight)
        weight[self.part] = self.weight[self.part]
        classes, *gradients = self.learn_tree(weight)
        pairs = zip([classes[self.part], *gradients], want, strict=True)
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)

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


def measure(case: Case) -> tuple[dict[str, float], float]:
    """Median seconds by name, of all ways in turn, and the largest error.

    The tree, being quick, is timed before and after each run of the others, a small one twice.
    """
    width = case.tower.width
    x, weight = torch.randn(case.rows, width), torch.randn(4 * width, width)
    flops = 2 * case.rows * weight.numel()
    times: dict[str, list[float]] = {}
    want: list[Tensor] = []

    def add(name: str, action: Callable[[], Any], scale: float = 1) -> None:
        times.setdefault(name, []).append(once(action) * scale)

    def tree() -> None:
        for _ in range(2 if case.scale == 1 else 1):
            times.setdefault("rate", []).append(flops / seconds(lambda: x @ weight.T))
            with torch.no_grad():
                add("tree forward", case.tree)
            add("tree both", case.learn_tree)

    case.learn_tree()  # the first run is slower
    tree()
    with torch.no_grad():
        add("full forward", lambda: case.full(case.part), case.scale)
        add("cut forward", lambda: case.full(case.part, case.cut), case.scale)
    tree()
    add("full both", lambda: want.extend(case.learn_full(case.part)), case.scale)
    tree()
    return {name: statistics.median(of) for name, of in times.items()}, case.max_rel_error(want)


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


def run(case: Case) -> dict[str, float]:
    """Measure one case, print it, and give its part of the JSON object."""
    taken, error = measure(case)
    few = case.part_of(FEW)
    prompts = case.B * case.K
    share_of_few = case.weight[few][..., 0].numel() / prompts
    memory = peak_bytes(case.learn_tree)
    full_memory = peak_bytes(lambda: case.learn_full(few)) / share_of_few
    print(
        f"\nB={case.B} K={case.K}: {case.rows:,} rows, whole {prompts * 77:,}"
        f" ({prompts * 77 / case.rows:.1f} x)"
    )
    if case.scale > 1:
        print(f"  the whole encoder runs {1 / case.scale:.0%} of the prompts, multiplied")
    share = {}
    for name, passes in (("forward", 1), ("both", 2)):
        tree, whole = taken[f"tree {name}"], taken[f"full {name}"]
        rate = passes * case.matrix_flops / tree
        share[name] = rate / taken["rate"]
        print(
            f"  {name}: {tree * 1e3:,.0f} ms, whole {whole * 1e3:,.0f} ms"
            f" ({whole / tree:.1f} x); {rate / 1e9:.0f} GFLOP/s in matrix products,"
            f" {share[name]:.0%} of this machine's {seconds['rate'] / 1e9:.0f}"
        )
    print(f"  forward, cut to {case.cut} positions: {seconds['cut forward'] * 1e3:,.0f} ms")
    print(f"  memory to learn: {memory / 1e6:,.0f} MB, whole {full_memory / 1e6:,.0f} MB")
    return {
        "B": case.B,
        "K": case.K,
        "forward_x": round(taken["full forward"] / taken["tree forward"], 2),
        "forward_backward_x": round(taken["full both"] / taken["tree both"], 2),
        "forward_x_cut": round(taken["cut forward"] / taken["tree forward"], 2),
        "memory_ratio": round(full_memory / memory, 2),
        "max_rel_error": error,
        "rows": case.rows,
        "rows_full": prompts * 77,
        "share_of_matrix_rate": round(share["forward"], 3),
    }


def main() -> None:
    torch.set_num_threads(1)
    clip = load(ClipName(model="ViT-B-16-quickgelu", pretrained="random"))
    tokens = clip.tokenize((DATA / "k400_names.txt").read_text().splitlines())
    print(
        f"{commit() or '(no git)'} text_tower {clip.name} float32 | cpu,"
        f" {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    cases = [run(Case(clip.model, tokens, B=B, K=K, part=part)) for B, K, part in CASES]
    print(json.dumps({"bench": "text_tower", "cases": cases}))


if __name__ == "__main__":
    main()
