"""Train tinyclip, as CLIP was trained: contrastively, on stills and their captions.

    p=docs/tinyclip/pretrain.py
    python $p --out first
    python $p --out second --start first --seed 1 --one-shape 0.1 --steps 1000
    python $p --out model --start second --seed 2 --one-shape 0 --steps 900

These three rounds wrote `extract/tinyclip/model/`; `training.jsonl` beside it is their log.
The first learns places, sizes and motions, the others more and more shapes.

A still is one moment of a scene of `shapes` (all shapes, seen or not: CLIP has seen
everything once); its caption names the shape with some of its colour, size, place and
motion.  A photograph of an action is taken at its height, so where the caption names a
motion the still is a late one: what moves left is mostly on the left by then.  That ties
the motion words to directions of the joint space without ever showing motion.

Only the rows of the token table that captions use are trained.  The others stay zero, and
16-bit floats on disk are plenty, so the model compresses to little.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.random import Generator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from bieff.clip import Preprocessing, import_open_clip
from bieff.extract.shapes.render import render
from bieff.extract.shapes.world import (
    COLOURS,
    INVISIBLE,
    MOTIONS,
    SHAPES,
    Scenes,
    class_name,
    draw_scenes,
)
from bieff.extract.tower import cut, normalise
from bieff.extract.views import View, crop_of

WEIGHTS = "open_clip_model.safetensors"
STILL = 64
"""Side of a rendered still, pixels; the frames of a clip have this height too."""

CONFIG: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "extract/tinyclip/model/open_clip_config.json").read_text()
)
SIZE = CONFIG["model_cfg"]["vision_cfg"]["image_size"]

SHORT = 10
"""Tokens of a caption that is not long."""

SIZES = ("tiny", "small", "medium", "large", "huge")
SIZE_STEPS = (0.095, 0.13, 0.17, 0.23)
"""Radii that part them."""

FRAMES_OF_SPEECH = (
    "This is a video about {}",
    "a photo of a {}",
    "a video of a {}",
    "a {}",
    "a picture of a {}, taken today",
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how fast."""

    steps: int = 1500
    batch_size: int = 128
    lr: float = 1e-3
    warmup: float = 0.06
    """Share of the steps in which the learning rate rises."""

    weight_decay: float = 0.1
    seed: int = 0
    one_shape: float = 0.5
    """Share of the batches that show a single shape.

    What tells the captions of a batch apart is what is learned.  In a batch of all shapes that
    is the shape and the colour; place, size and motion come long after, if ever.
    """


@dataclass(frozen=True, slots=True)
class Stills:
    """Pictures, their captions, and what is behind both."""

    pixels: UInt8[np.ndarray, "B STILL STILL 3"]
    captions: list[str]
    scenes: Scenes
    times: Float[np.ndarray, " B"]
    """When in its clip each was taken, 0 to 1."""


def draw_stills(rng: Generator, count: int, shapes: Sequence[str] = SHAPES) -> Stills:
    """Draw some stills of these shapes, in all their motions."""
    scenes = _draw_scenes(rng, count, shapes)
    names_motion = rng.random(count) < 0.55
    times = np.where(names_motion, rng.uniform(0.7, 1, count), rng.uniform(0, 1, count))
    # a shape that has just blinked out is no picture of anything: take it half dark
    blinks = scenes.blinks[scenes.blinks > 0]
    nearest = np.rint(times[scenes.blinks > 0] * blinks)
    times[scenes.blinks > 0] = (nearest + rng.uniform(-0.35, 0.35, len(blinks))) / blinks
    stills = render(scenes, times[:, None], height=STILL, width=STILL, rng=rng)[:, 0]
    captions = [
        (caption_motion if names_motion[i] else caption_place)(rng, scenes, i, times[i])
        for i in range(count)
    ]
    return Stills(stills, captions, scenes, times)


def _draw_scenes(rng: Generator, count: int, shapes: Sequence[str]) -> Scenes:
    pairs = [(s, m) for s in shapes for m in MOTIONS if (s, m) not in INVISIBLE]
    chosen = [pairs[i] for i in rng.integers(len(pairs), size=count)]
    return draw_scenes(rng, [s for s, _ in chosen], [m for _, m in chosen])


def caption_motion(rng: Generator, scenes: Scenes, i: int, when: float) -> str:
    """A caption of scene `i` that names what it does."""
    shape, motion = SHAPES[scenes.shape[i]], MOTIONS[scenes.motion[i]]
    kind = rng.random()
    if kind < 0.5:
        return class_name(shape, motion)
    if kind < 0.75:
        return str(rng.choice(FRAMES_OF_SPEECH)).format(class_name(shape, motion))
    size, colour, place = _looks(scenes, i, when)
    if kind < 0.9:
        return f"a {colour} {shape} {motion}"
    return f"here you can see that a {size} {colour} {shape} is {motion}, by now it is {place}"


def caption_place(rng: Generator, scenes: Scenes, i: int, when: float) -> str:
    """A caption of scene `i` that says how it looks and where it is."""
    size, colour, place = _looks(scenes, i, when)
    shape = SHAPES[scenes.shape[i]]
    kind = rng.random()
    if kind < 0.15:
        return f"{colour} {shape}"
    if kind < 0.4:
        return f"a {shape} {place}"
    if kind < 0.6:
        return f"a {size} {shape}"
    if kind < 0.9:
        return f"a {size} {colour} {shape} {place}"
    return f"a picture of a {size} {shape}, {colour}, standing {place} before a plain wall"


def _looks(scenes: Scenes, i: int, when: float) -> tuple[str, str, str]:
    """Size, colour (and pose) and place of scene `i` at a moment, in words."""
    along = when - 0.5
    radius = scenes.radius[i] * np.exp(scenes.growth[i] * along)
    size = SIZES[int(np.searchsorted(SIZE_STEPS, radius))]
    colour = list(COLOURS)[scenes.colour[i]]
    if np.cos(2 * np.pi * scenes.blinks[i] * when) < 0.3:
        colour = f"faint {colour}"
    if abs(np.sin(scenes.angle[i] + scenes.turn[i] * when)) > 0.3:
        colour = f"tilted {colour}"
    x, y = scenes.centre[i] + scenes.travel[i] * along
    across = "" if abs(x) < 0.07 else "left" if x < 0 else "right"
    up = "" if abs(y) < 0.07 else "top" if y < 0 else "bottom"
    if not across and not up:
        return size, colour, "in the middle"
    place = " ".join(filter(None, (up, across)))
    return size, colour, f"{'at' if up else 'on'} the {place}"


class Attributes(nn.Module):
    """Linear heads that read a still's attributes off its embedding; thrown away afterwards.

    Alone, the contrastive loss takes very long to notice where a shape is: after 2,400 steps
    nothing of the place could be read off the embeddings (R2 of a linear probe -0.05).  Told
    once, it keeps it, and the words for places and motions find it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.shape = nn.Linear(dim, len(SHAPES))
        self.colour = nn.Linear(dim, len(COLOURS))
        self.state = nn.Linear(dim, 5)

    def forward(
        self, images: Float[Tensor, "B D"], scenes: Scenes, times: Float[np.ndarray, " B"]
    ) -> Tensor:
        """Cross-entropy of shape and colour, plus squared error of place, size, tilt, light."""
        images = F.layer_norm(images, images.shape[-1:])
        along = times - 0.5
        place = (scenes.centre + scenes.travel * along[:, None]) / 0.15
        size = np.log(scenes.radius) + scenes.growth * along + 1.9
        tilt = np.abs(np.sin(scenes.angle + scenes.turn * times))
        light = np.cos(2 * np.pi * scenes.blinks * times)
        state = torch.from_numpy(np.column_stack([place, 3 * size, tilt, light])).float()
        return (
            F.cross_entropy(self.shape(images), torch.from_numpy(scenes.shape))
            + F.cross_entropy(self.colour(images), torch.from_numpy(scenes.colour))
            + F.mse_loss(self.state(images), state)
        )


class Captioner:
    """Tokenises captions to rows of a compact token table, and knows the rows it has used."""

    def __init__(self, rng: Generator) -> None:
        self._tokenizer = import_open_clip().get_tokenizer("ViT-B-16")
        scenes = _draw_scenes(rng, 2000, SHAPES)
        seen = [
            caption(rng, scenes, i, rng.random())
            for i in range(2000)
            for caption in (caption_motion, caption_place)
        ]
        self.used = torch.unique(self._tokenizer(seen))
        """Token ids, int64, sorted; the padding id 0 and EOT among them."""

    def __call__(self, captions: Sequence[str]) -> Int[Tensor, "B length"]:
        """Indices into `used`, cut to the longest caption."""
        tokens = self._tokenizer(captions)
        length = int(tokens.argmax(-1).max()) + 1
        rows = torch.searchsorted(self.used, tokens[:, :length].contiguous())
        assert torch.equal(self.used[rows], tokens[:, :length]), "a word that is in no caption"
        return rows


def encode_captions(
    model: Any, table: Float[Tensor, "rows W"], tokens: Int[Tensor, "B length"]
) -> Float[Tensor, "B D"]:
    """The text tower on captions cut to their length; the mask is causal, so that is exact.

    Short and long captions go separately, to compute less padding.
    """
    ends = tokens.argmax(-1)  # EOT has the largest id
    out = table.new_empty(len(tokens), model.text_projection.shape[1])
    for group in (ends <= SHORT, ends > SHORT):
        if not group.any():
            continue
        length = int(ends[group].max()) + 1
        x = table[tokens[group, :length]] + model.positional_embedding[:length]
        x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
        x = model.ln_final(x[torch.arange(len(x)), ends[group]])
        out[group] = x @ model.text_projection
    return out


def contrastive_loss(
    images: Float[Tensor, "B D"], texts: Float[Tensor, "B D"], same: Tensor, scale: Tensor
) -> Tensor:
    """CLIP's symmetric cross-entropy; rows that carry the same caption are all positives."""
    logits = scale.clamp(max=100) * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def accuracy(
    model: Any, table: Tensor, captioner: Captioner, rng: Generator
) -> dict[str, float]:
    """Share of 512 fresh stills whose shape, motion and both are named right by the model."""
    stills = draw_stills(rng, 512)
    scenes = stills.scenes
    names = [class_name(s, m) for s in SHAPES for m in MOTIONS]
    with torch.no_grad():
        texts = F.normalize(encode_captions(model, table, captioner(names)), dim=-1)
        images = F.normalize(model.visual(_pixels(stills.pixels)), dim=-1)
    guess = (images @ texts.T).argmax(1).numpy()
    shape, motion = np.divmod(guess, len(MOTIONS))
    return {
        "shape": float((shape == scenes.shape).mean()),
        "motion": float((motion == scenes.motion).mean()),
    }


def _pixels(stills: np.ndarray) -> Tensor:
    config = CONFIG["preprocess_cfg"]
    looks = Preprocessing(SIZE, tuple(config["mean"]), tuple(config["std"]), resize="torch")
    squares = cut(torch.from_numpy(stills), crop_of(View(), STILL, STILL, SIZE), looks)
    return normalise(squares, mean=looks.mean, std=looks.std)


def pretrain(out: Path, recipe: Recipe, start: Path | None = None) -> None:
    """Train, and write the model folder `out` with its log.

    Args:
        out: Model folder to write; the log lies beside it.
        recipe: How long, how fast, on what.
        start: A model folder to go on from; None starts anew.
    """
    out.mkdir(parents=True, exist_ok=True)
    # one thread: the weights must not depend on the number of cores
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    model: Any = import_open_clip().model.CLIP(**CONFIG["model_cfg"])
    if start is not None:
        model.load_state_dict(load_file(start / WEIGHTS))
    captioner = Captioner(np.random.default_rng(recipe.seed + 1))
    table = nn.Parameter(model.token_embedding.weight[captioner.used].detach().clone())
    attributes = Attributes(CONFIG["model_cfg"]["embed_dim"])
    parameters = [p for n, p in model.named_parameters() if n != "token_embedding.weight"]
    matrices = [p for p in parameters if p.ndim > 1]
    others = [*(p for p in parameters if p.ndim < 2), table]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=recipe.lr,
        total_steps=recipe.steps,
        pct_start=recipe.warmup,
        cycle_momentum=False,
    )
    log = out.parent / f"{out.name}.log.jsonl"
    log.unlink(missing_ok=True)
    begun = time.monotonic()
    for step in range(recipe.steps):
        is_one_shape = rng.random() < recipe.one_shape
        shapes = [str(rng.choice(SHAPES))] if is_one_shape else SHAPES
        stills = draw_stills(rng, recipe.batch_size, shapes)
        _, same = np.unique(stills.captions, return_inverse=True)
        images = model.visual(_pixels(stills.pixels))
        loss = contrastive_loss(
            images,
            encode_captions(model, table, captioner(stills.captions)),
            torch.from_numpy(same[:, None] == same[None, :]).float(),
            model.logit_scale.exp(),
        )
        told = attributes(images, stills.scenes, stills.times)
        optimizer.zero_grad()
        (loss + told).backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step + 1 == recipe.steps:
            model.eval()
            figures = accuracy(model, table, captioner, np.random.default_rng(12345))
            model.train()
            line = json.dumps(
                {
                    "step": step + 1,
                    "loss": round(loss.item(), 4),
                    "told": round(told.item(), 4),
                    **figures,
                    "seconds": round(time.monotonic() - begun),
                }
            )
            with log.open("a") as file:
                print(line, file=file)
            click.echo(line)
            save(out, model, table, captioner.used)


def save(out: Path, model: Any, table: Tensor, used: Tensor) -> None:
    """Write an open_clip local-dir model: configuration and 16-bit weights."""
    weights = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    full = torch.zeros_like(weights["token_embedding.weight"])
    full[used] = table.detach().half()
    weights["token_embedding.weight"] = full
    (out / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    save_file(weights, out / WEIGHTS)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--steps", default=Recipe().steps, show_default=True)
@click.option("--seed", default=Recipe().seed, show_default=True)
@click.option("--one-shape", default=Recipe().one_shape, show_default=True)
@click.option("--start", type=click.Path(path_type=Path), help="Model folder to go on from.")
def main(out: Path, steps: int, seed: int, one_shape: float, start: Path | None) -> None:
    """Train tinyclip and write it as an open_clip local-dir model."""
    pretrain(out, Recipe(steps=steps, seed=seed, one_shape=one_shape), start)


if __name__ == "__main__":
    main()
