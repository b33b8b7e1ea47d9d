"""One step of training: the loss of a whole batch, its gradient, and AdamW (paper Sec. 4.1).

`prepare` puts a `Trainer` together, which takes the steps.

A batch may be computed in parts, by several processes and one after the other, and its loss is
still that of the whole: the text-to-video direction of Eq. 10 compares all its videos.  So the
loss is taken of the logits of all parts, and its gradient is handed back to each of them.
Parts that follow one another are computed twice, first without and then with a graph.

B videos of a batch, k categories.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from bieff.clip import Clip
from bieff.features.errors import ConfigError, StoreError
from bieff.features.schema import Video
from bieff.features.store import FeatureStore
from bieff.train.config import TrainConfig
from bieff.train.data import (
    Batch,
    Batches,
    BatchIndex,
    Features,
    bring,
    draw_batch,
    frame_groups,
    load_features,
    patches_of,
)
from bieff.train.distributed import Group, current
from bieff.train.evaluate.classifier import class_embeddings
from bieff.train.fit.few_shot import FewShotDraw
from bieff.train.method.loss import frozen_distance, positive_pairs, symmetric_loss
from bieff.train.method.model import BiEfficient, Scores
from bieff.train.runs.ancestor import Ancestor
from bieff.train.runs.checkpoint import RESUME
from bieff.train.runs.run import Run, build_model, fitting_tower
from bieff.train.text.tower import TextTower
from bieff.train.text.whole import WholeTower
from bieff.train.text.wording import HAND_CRAFTED


def lr_factor(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Fraction of the learning rate to use at `step`, counted from 0, in (0, 1].

    Rises linearly over the warm-up, whose last step has the full rate, then falls along half
    a cosine to zero, which the step after the last would reach.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step must be in [0, {total_steps}), got {step}")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True, slots=True)
class Trainer:
    """Everything a step needs."""

    config: TrainConfig
    model: BiEfficient
    text: TextTower | WholeTower
    class_names: Sequence[str]
    videos: Sequence[Video]
    """Videos of the partition that is trained on."""

    features: Features
    """Those of them that are drawn from."""

    optimizer: torch.optim.Optimizer
    num_frames: int
    batches: Batches
    group: Group
    device: torch.device
    precision: torch.dtype
    window: int | None = None
    """Videos shuffled with one another, or None for all."""

    frozen_classes: Float[Tensor, "K D"] | None = None
    """Frozen CLIP's class embeddings, where the loss draws towards them."""

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch."""
        return len(self.features) // min(self.config.batch_size, len(self.features))

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * self.epoch_steps

    def step(self, step: int) -> Tensor:
        """Take one step; returns its loss."""
        index, batch = self.batches.at(step)
        return self.update(step, batch, index.labels)

    def update(self, step: int, batch: Batch, labels: Int[Tensor, " B"]) -> Tensor:
        """Learn from this process's rows of a batch with such labels; returns its loss."""
        factor = lr_factor(
            step,
            warmup_steps=self.config.warmup_epochs * self.epoch_steps,
            total_steps=self.num_steps,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * factor
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.backward(batch, labels)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.group.add_up(gradients)
        if self.config.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad)
        self.optimizer.step()
        return loss

    def backward(self, batch: Batch, labels: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """Eq. 10 on a batch, and its gradient; the categories are the distinct labels in it.

        With `distill`, also the videos' mean distance from frozen CLIP.  The labels are those
        of the whole batch, of which this process has some rows.
        """
        categories = labels.unique()
        positives = bring(positive_pairs(labels, categories), self.device)
        num_names = len(categories)

        def figures_of(part: slice) -> Tensor:
            """Logits, and in a last column the distance from frozen CLIP where that counts."""
            own = batch.each(lambda rows: rows[part])
            scores = self.score(own, categories)
            if self.frozen_classes is None:
                return scores.logits
            frozen = self.frozen_classes[bring(categories, self.device)]
            distance = frozen_distance(scores.video, scores.classes, own.frames, frozen)
            return torch.cat([scores.logits, distance[:, None]], dim=1)

        def loss_of(figures: Tensor) -> Tensor:
            logits, distances = figures[:, :num_names], figures[:, num_names:]
            loss = symmetric_loss(logits, positives, targets=self.config.targets)
            if self.frozen_classes is None:
                return loss
            return loss + self.config.distill * distances.mean()

        return backward_whole(
            figures_of,
            cut(len(batch.frames), self.config.accumulate),
            loss_of,
            lambda own: self.group.gather(own, len(labels)),
            self.group.part(len(labels)),
        )

    def score(self, batch: Batch, categories: Tensor | None) -> Scores:
        """The model's scores, in the run's precision."""
        with torch.autocast(
            self.device.type, self.precision, enabled=self.precision != torch.float32
        ):
            scores: Scores = functional_call(
                self.model,
                {} if self.precision == torch.float32 else cast(self.model, self.precision),
                (batch.frames, self.text),
                {"categories": categories, "patches": batch.patches},
            )
        return scores


def cast(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of all linear layers, by name: those that autocast would cast one by one."""
    weights = {
        f"{path}.{name}": weight
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
        for name, weight in module.named_parameters(recurse=False)
    }
    if not weights:
        return {}
    together = torch.cat([weight.flatten() for weight in weights.values()]).to(dtype)
    parts = together.split([weight.numel() for weight in weights.values()])
    return {
        name: part.view_as(weight)
        for (name, weight), part in zip(weights.items(), parts, strict=True)
    }


def backward_whole(
    logits_of: Callable[[slice], Tensor],
    parts: Sequence[slice],
    loss_of: Callable[[Tensor], Tensor],
    gather: Callable[[Tensor], Tensor],
    mine: slice,
) -> Float[Tensor, ""]:
    """The loss of a whole batch, back-propagated through this process's parts of it.

    Args:
        logits_of: The logits of some of this process's rows.
        parts: Its rows; several are computed twice each, to keep one graph at a time.
        loss_of: Of the logits of the whole batch.
        gather: The logits of all processes, from those of this one.
        mine: Where this process's rows are among them.
    """
    with torch.set_grad_enabled(len(parts) == 1):
        own = [logits_of(part) for part in parts]
    found = [logits.detach() for logits in own]
    whole = gather(found[0] if len(found) == 1 else torch.cat(found)).requires_grad_()
    loss = loss_of(whole)
    (gradient,) = torch.autograd.grad(loss, whole)
    gradient = gradient[mine]
    for index, part in enumerate(parts):
        logits = own[0] if len(parts) == 1 else logits_of(part)
        own[index] = logits.detach()  # let go of its graph
        logits.backward(gradient[part])
        del logits
    return loss.detach()


def cut(count: int, parts: int) -> list[slice]:
    """Divide `count` rows; parts differ by one at most, and none is empty."""
    parts = min(parts, count)
    bounds = [count * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def prepare(
    store: FeatureStore,
    clip: Clip,
    config: TrainConfig,
    *,
    shots: FewShotDraw | None = None,
    run: Run | None = None,
    ancestors: Sequence[Ancestor] = (),
) -> Trainer:
    """Put together what a run on this store needs.

    With `run`, one that is to go on, the videos are shuffled as they were.  With ancestors the
    weights are those of the first, unless the run has a checkpoint of its own by now.

    Raises:
        InputError: If the weights to start from are not there, or do not fit.
        StoreError: If the store has no training partition, or it is not finished.
        ConfigError: If a setting does not fit the store.
    """
    rows = classes = None
    class_names = list(store.class_names)
    if shots is not None:
        partition, listed = shots.listed(store)
        rows, classes = listed.rows, listed.classes
        class_names = [class_names[label] for label in classes.tolist()]
    elif "train" in store.partitions:
        partition = store.partitions["train"]
    else:
        raise StoreError(
            f"{store.path} has no training partition, it has {', '.join(store.partitions)}; "
            "train on another store, or put the videos of a folder data set under train/ and "
            "val/ and extract them again"
        )
    device, group = clip.device, current()
    num_frames = config.frames or int(store.recipe["frames"])
    frame_groups(int(store.recipe["frames"]), num_frames)
    model = build_model(config, clip, num_frames=num_frames, patches=patches_of(store))
    rows_before = model.prompt_rows
    text = fitting_tower(clip, class_names, clip.tokenize_names(class_names), rows_before)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ConfigError(
            "these settings leave nothing to train; set temporal_layers=1 or more, or another "
            "part, or evaluate frozen CLIP with `bieff zeroshot`"
        )
    if ancestors and (run is None or not (run.path / RESUME).exists()):
        ancestors[0].load_into(model, num_frames)
    model = model.to(device)
    features = load_features(
        partition,
        rows,
        device=device,
        classes=classes,
        wants_patches=config.prompts_see == "patches",
        gigabytes=config.feature_memory,
    )
    window = features.window if run is None else run.record["features"]["window"]
    size = min(config.batch_size, len(features))
    draw = partial(
        draw_batch,
        features,
        batch_size=size,
        num_frames=num_frames,
        seed=config.seed,
        window=window,
    )
    last = config.epochs * (len(features) // size)
    frozen = class_embeddings(clip, class_names, HAND_CRAFTED) if config.distill else None
    wants_half = {"auto": device.type == "cuda", "bfloat16": True, "float32": False}
    precision = torch.bfloat16 if wants_half[config.precision] else torch.float32

    def lay_out(index: BatchIndex) -> None:
        """Have the tower remember the tree of these categories."""
        if isinstance(text, TextTower):
            text.prompt_tree(*rows_before, categories=index.labels.unique())

    if isinstance(text, TextTower) and precision == torch.bfloat16:
        text.multiply_in(precision)
    return Trainer(
        config=config,
        model=model,
        text=text,
        class_names=class_names,
        videos=partition.videos,
        features=features,
        optimizer=make_optimizer(model, config),
        num_frames=num_frames,
        batches=Batches(features, draw, group.part(size), last=last, lay_out=lay_out),
        group=group,
        device=device,
        precision=precision,
        window=window,
        frozen_classes=frozen,
    )


def make_optimizer(model: BiEfficient, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only, as usual for transformers (the paper is silent).

    Learned tokens, positions, norms, offsets, alpha and beta are not decayed: their zero has
    no meaning of its own.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_matrix = parameter.ndim == 2 and name.endswith("weight")
            (decayed if is_matrix else free).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)
