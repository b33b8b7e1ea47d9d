"""Whole prompts of a bidirectional text tower against plain loops over open_clip's encoder.

    python tests/bench_whole_prompts.py

ViT-B/16's text tower without its causal mask (MobileCLIP's S sizes have such), random weights,
M = 16 context tokens and one row a video, B = 2 videos, K = 32 names, forward and backward,
float32 on one core.  The loops take a prompt, or a video's 32 prompts, at a time.  Seconds of
this process, in turns, the least of each.  The last line is one JSON object.
"""

import json
import runpy
import time
from collections.abc import Callable
from pathlib import Path

import torch
from helpers.whole_prompts import CLIP_FORM, VOCABULARY, clip_of, encode
from torch import Tensor

from bieff.clip import import_open_clip
from bieff.train.runs.run import commit, text_tower

B, K, M, LENGTH, WIDTH = 2, 32, 16, 77, 512
ROUNDS = 3
VISION = {"layers": 1, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32}
TEXT = {"vocab_size": VOCABULARY, "width": WIDTH, "heads": 8, "no_causal_mask": True}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clip = clip_of(
        import_open_clip().model.CLIP(512, VISION, TEXT), CLIP_FORM, dim=512, length=LENGTH
    )
    names = [f"word{k} other{k} third" for k in range(K)]
    tokens = clip.tokenize(names)
    tower = text_tower(clip, tokens)
    context = (0.02 * torch.randn(M, WIDTH)).requires_grad_()
    video = (0.02 * torch.randn(B, 1, WIDTH)).requires_grad_()
    weight = torch.randn(B, K, 512)
    ids = torch.cat([tokens[:, :1], tokens[:, 1:2].expand(-1, M + 1), tokens[:, 1:]], dim=1)
    ids, embed = ids[:, :LENGTH], clip.model.token_embedding

    def loop(at_once: int) -> Tensor:
        classes = []
        for own in video:
            for part in ids.split(at_once):
                start, rest = embed(part[:, :1]), embed(part[:, M + 2 :])
                shared = (row.expand(len(part), -1, -1) for row in (context, own))
                rows = torch.cat([start, *shared, rest], dim=1)
                classes.append(encode(clip.model, part, rows)[0])
        return torch.cat(classes).view(B, K, -1)

    def learn(forward: Callable[[], Tensor]) -> list[Tensor]:
        classes = forward()
        return [
            classes.detach(),
            *torch.autograd.grad((classes * weight).sum(), [context, video]),
        ]

    ways: dict[str, Callable[[], Tensor]] = {
        "whole": lambda: tower(context, video).classes,
        "loop over prompts": lambda: loop(1),
        "loop over videos": lambda: loop(K),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            begin = time.process_time()
            found[name] = learn(way)
            taken[name].append(time.process_time() - begin)
    peak_bytes = runpy.run_path(str(Path(__file__).parent / "bench_text_tower.py"))[
        "peak_bytes"
    ]
    memory = {name: peak_bytes(lambda way=way: learn(way)) for name, way in ways.items()}
    for name in ways:
        print(f"{name}: {min(taken[name]):.2f} s, {memory[name] / 1e6:,.0f} MB")
    pairs = zip(found["whole"], found["loop over videos"], strict=True)
    loops = list(ways)[1:]
    line = {
        "bench": "whole_prompts",
        "commit": commit(),
        "torch": torch.__version__,
        "seconds": round(min(taken["whole"]), 2),
        "of_loop": {n: round(min(taken["whole"]) / min(taken[n]), 2) for n in loops},
        "memory_of_loop": {n: round(memory["whole"] / memory[n], 3) for n in loops},
        "max_rel_error": max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
