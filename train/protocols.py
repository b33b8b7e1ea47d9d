"""Evaluation protocols by name: which list, which categories, what is averaged.

closed    the `val` partition, all of its classes
splits3   the official test lists, all classes, mean and standard deviation over the lists
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from bieff.clip import Clip
from bieff.features.errors import StoreError
from bieff.features.store import FeatureStore, Partition
from bieff.train.data import Features, load_features
from bieff.train.evaluate import Score, hits, probabilities
from bieff.train.frozen import class_embeddings, frozen_logits
from bieff.train.model import BiEfficient, Scores
from bieff.train.pre_prompt import HAND_CRAFTED
from bieff.train.results import Result
from bieff.train.run import Run, load_model
from bieff.train.text import TextTower

Watch = Callable[[int, int], None]
"""Called with (videos done, videos in all)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A model to be evaluated on one store."""

    score: Score
    num_frames: int
    template: str
    run: str | None
    """Id of the trained run; None for frozen CLIP."""


def trained(run: Run, clip: Clip, store: FeatureStore) -> Subject:
    """The run's model, asked about the store's classes."""
    model: BiEfficient = load_model(run, clip)
    device = next(clip.model.parameters()).device
    text = TextTower(clip.model, clip.tokenize(store.class_names)).to(device)

    def score(frames: Tensor, patches: Tensor | None) -> Tensor:
        scores: Scores = model(frames, text, patches=patches)
        return scores.logits

    return Subject(
        score=score,
        num_frames=int(run.record["frames"]),
        template=run.config.prompt,
        run=run.id,
    )


def frozen(
    clip: Clip, store: FeatureStore, *, num_frames: int, template: str = HAND_CRAFTED
) -> Subject:
    """CLIP as it is, asked about the store's classes in a template."""
    classes = class_embeddings(clip, store.class_names, template)
    model: Any = clip.model
    temperature = 1 / model.logit_scale.exp().item()
    return Subject(
        score=lambda frames, _: frozen_logits(frames, classes, temperature),
        num_frames=num_frames,
        template=template,
        run=None,
    )


def closed(store: FeatureStore, subjects: Sequence[Subject], *, watch: Watch) -> list[Result]:
    """Top-1 and top-5 over the `val` partition."""
    partition = _partition(store, "val")
    listed = np.ones(partition.num_videos, dtype=bool)
    return _evaluate(store, partition, subjects, {"val": listed}, "closed", watch)


def splits3(store: FeatureStore, subjects: Sequence[Subject], *, watch: Watch) -> list[Result]:
    """Top-1 and top-5 over each official test list, mean and standard deviation."""
    partition = _partition(store, "all")
    lists = test_lists(partition)
    if not lists:
        raise StoreError(
            f"{store.path} lists no test splits; `bieff eval` evaluates a closed set"
        )
    return _evaluate(store, partition, subjects, lists, "splits3", watch)


def test_lists(partition: Partition) -> dict[str, Bool[np.ndarray, " N"]]:
    """Name of each official split -> True where the video is in its test list."""
    videos = partition.videos
    names = sorted({name for video in videos for name in video.splits})
    lists = {
        name: np.array([video.splits.get(name) == "test" for video in videos]) for name in names
    }
    return {name: listed for name, listed in lists.items() if listed.any()}


def _evaluate(
    store: FeatureStore,
    partition: Partition,
    subjects: Sequence[Subject],
    lists: Mapping[str, Bool[np.ndarray, " N"]],
    protocol: str,
    watch: Watch,
) -> list[Result]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    features = load_features(
        partition, device=device, wants_patches=store.recipe.get("patches") is not None
    )
    clips, crops = _views(store, partition.name)
    total, done, results = len(features) * len(subjects), 0, []
    for subject in subjects:
        scores = []
        for part in probabilities(
            features, subject.score, num_frames=subject.num_frames, clips=clips
        ):
            scores.append(part)
            done += len(part)
            watch(done, total)
        top1, top5 = _accuracies(np.concatenate(scores), features, lists)
        listed = sum(int(chosen.sum()) for chosen in lists.values())
        evaluated = sum(int(chosen[features.rows].sum()) for chosen in lists.values())
        results.append(
            Result(
                protocol=protocol,
                dataset=str(store.recipe["data_set"]),
                model="bieff" if subject.run else "frozen",
                top1=float(np.mean(top1)),
                top1_std=float(np.std(top1)) if len(top1) > 1 else None,
                top5=float(np.mean(top5)),
                n_evaluated=evaluated,
                n_listed=listed,
                n_undecodable=listed - evaluated,
                frames=subject.num_frames,
                clips=clips,
                crops=crops,
                template=subject.template,
                store=store.recipe_hash,
                run=subject.run,
            )
        )
    return results


def _accuracies(
    scores: Float64[np.ndarray, "n K"],
    features: Features,
    lists: Mapping[str, Bool[np.ndarray, " N"]],
) -> tuple[list[float], list[float]]:
    """Percent right on each list, top-1 and top-5."""
    labels: Int[np.ndarray, " n"] = features.labels.numpy()
    first, fifth = (hits(scores, labels, top) for top in (1, 5))
    chosen = [listed[features.rows] for listed in lists.values()]
    return (
        [100 * float(first[part].mean()) for part in chosen],
        [100 * float(fifth[part].mean()) for part in chosen],
    )


def _views(store: FeatureStore, partition: str) -> tuple[int, int]:
    """Temporal clips and crops among the partition's views."""
    views = store.recipe["views"][partition]
    clips = max(view.get("clips", 1) for view in views)
    return clips, len(views) // clips


def _partition(store: FeatureStore, name: str) -> Partition:
    if name not in store.partitions:
        raise StoreError(
            f"{store.path} has no {name!r} partition, it has {', '.join(store.partitions)}"
        )
    return store.partitions[name]
