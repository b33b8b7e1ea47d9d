"""Evaluation while training: top-1 and top-5 on `val`, as `bieff eval` counts them.

In the run's own precision; several processes share the videos.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bieff.features.store import FeatureStore
from bieff.train.config import TrainConfig
from bieff.train.data import Features, load_features
from bieff.train.distributed import Group, sharers
from bieff.train.evaluate import batch_size_of, hits, probabilities
from bieff.train.record import patches_of
from bieff.train.residency import Picked
from bieff.train.step import Trainer

PARTITION = "val"


@dataclass(frozen=True, slots=True)
class Validation:
    """The videos to evaluate on."""

    features: Features
    clips: int
    """Temporal clips among the views."""

    patches: tuple[int, int] | None
    """Number and width of the store's patch tokens, if it has them."""

    @classmethod
    def load(
        cls, store: FeatureStore, config: TrainConfig, device: torch.device
    ) -> "Validation | None":
        """Read the partition; None if the store has none, or the config never evaluates."""
        if not config.eval_every or PARTITION not in store.partitions:
            return None
        features = load_features(
            store.partitions[PARTITION],
            device=device,
            wants_patches=config.prompts_see == "patches",
            gigabytes=config.feature_memory,
            sharers=sharers(),
        )
        views = store.recipe["views"][PARTITION]
        clips = max(view.get("clips", 1) for view in views)
        return cls(features, clips, patches_of(store))

    def accuracies(self, trainer: Trainer, group: Group) -> dict[str, float]:
        """Percent right, by name of the figure."""

        def score(frames: Tensor, patches: Tensor | None) -> Tensor:
            return trainer.score(Picked(frames, patches), None).logits

        count = len(self.features)
        share = group.part(count) if count >= group.size else slice(0, count)
        trainer.model.eval()
        scores = np.concatenate(
            list(
                probabilities(
                    self.features,
                    score,
                    num_frames=trainer.num_frames,
                    clips=self.clips,
                    batch_size=batch_size_of(
                        trainer.text,
                        trainer.model,
                        num_frames=trainer.num_frames,
                        patches=self.patches,
                    ),
                    videos=range(count)[share],
                )
            )
        )
        trainer.model.train()
        labels = self.features.labels[share].numpy()
        counts = [float(hits(scores, labels, top).sum()) for top in (1, 5)]
        right = torch.tensor([*counts, len(labels)], device=trainer.device, dtype=torch.float64)
        group.add_up([right])
        top1, top5, total = right.tolist()
        return {"val_top1": 100 * top1 / total, "val_top5": 100 * top5 / total}
