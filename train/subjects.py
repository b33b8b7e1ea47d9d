"""What is evaluated: a trained run, or frozen CLIP, asked about the classes of a store.

B videos, T frames, k categories, D joint width.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from bieff.clip import Clip
from bieff.features.store import FeatureStore
from bieff.train.checkpoint import BEST, LAST
from bieff.train.descriptions import Descriptions
from bieff.train.evaluate import LARGEST_BATCH, Score, batch_size_of
from bieff.train.frozen import class_embeddings, frozen_logits
from bieff.train.loss import cosine
from bieff.train.model import BiEfficient, Scores
from bieff.train.pre_prompt import HAND_CRAFTED
from bieff.train.run import Run, load_model
from bieff.train.templates import Templates, find_templates
from bieff.train.text import TextTower

Weights = Literal["last", "best"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A model to be evaluated on one store."""

    score: Score
    """Logits for all classes of the store, in their order."""

    num_frames: int
    template: str
    run: str | None
    """Id of the trained run; None for frozen CLIP."""

    among: Callable[[Int[Tensor, " k"]], Score] | None = None
    """Logits for some of the classes, as if there were no others; None takes columns of
    `score`, which is right for models that look at each class by itself."""

    weights: str | None = None
    """Of the run: after the last step, or at the best evaluation."""

    names: str | None = None
    """File of the descriptions; None for the store's class names."""

    names_hash: str | None = None
    """Of what the classes are called."""

    batch_size: int = LARGEST_BATCH
    wants_patches: bool | None = None
    """None: if the store has them."""

    device: torch.device | None = None
    """Where features are brought; None: to CUDA if there is one."""

    fingerprint: str | None = None
    """Of everything its scores depend on but the features; partial scores are kept only with
    one."""

    @property
    def model(self) -> Literal["bieff", "frozen"]:
        """What results call it."""
        return "bieff" if self.run else "frozen"

    def on(self, categories: Int[Tensor, " k"] | None) -> Score:
        """Logits for some of the classes; None for all."""
        if categories is None:
            return self.score
        if self.among is not None:
            return self.among(categories)
        return lambda frames, patches: self.score(frames, patches)[:, categories]


def trained(
    run: Run,
    clip: Clip,
    store: FeatureStore,
    *,
    weights: Weights = "last",
    names: Descriptions | None = None,
) -> Subject:
    """The run's model, asked about the store's classes.

    Args:
        run: A run that has been trained.
        clip: The CLIP that both come from.
        store: Whose classes are asked.
        weights: After the last step, or at the best evaluation on `val`.
        names: Descriptions of the classes; None for their names.  Every description is a
            prompt of its own, see `class_logits`.
    """
    model: BiEfficient = load_model(run, clip, weights=weights)
    device = next(clip.model.parameters()).device
    described = names or Descriptions.of(store.class_names)
    text = TextTower(clip.model, clip.tokenize(described.flat)).to(device)

    def among(categories: Tensor | None) -> Score:
        texts = owners = None
        if categories is not None or not described.are_single:
            texts, owners = texts_of(described, categories)

        def score(frames: Tensor, patches: Tensor | None) -> Tensor:
            scores: Scores = model(frames, text, categories=texts, patches=patches)
            if described.are_single:
                return scores.logits
            assert owners is not None
            return class_logits(model, scores, owners.to(device))

        return score

    file = run.path / (LAST if weights == "last" else BEST)
    parts = [clip.fingerprint, _digest(file.read_bytes()), described.hash, run.record["frames"]]
    return Subject(
        score=among(None),
        among=among,
        num_frames=int(run.record["frames"]),
        template=run.config.prompt,
        run=run.id,
        weights=weights,
        names=described.source,
        names_hash=described.hash,
        batch_size=batch_size_of(
            text, model, num_frames=int(run.record["frames"]), patches=run.record["patches"]
        ),
        wants_patches=run.config.prompts_see == "patches",
        device=device,
        fingerprint=_digest(json.dumps([*parts, run.config.to_dict()]).encode()),
    )


def frozen(
    clip: Clip,
    store: FeatureStore,
    *,
    num_frames: int,
    template: str | Templates = HAND_CRAFTED,
    names: Descriptions | None = None,
) -> Subject:
    """CLIP as it is, asked about the store's classes in a template, or in several.

    Args:
        clip: The CLIP that the store comes from.
        store: Whose classes are asked.
        num_frames: Frames of a video, as of the model it stands beside.
        template: By name, as a text with `{}` in it, or several; embeddings are averaged.
        names: Descriptions of the classes; None for their names.
    """
    templates = template if isinstance(template, Templates) else find_templates(template)
    described = names or Descriptions.of(store.class_names)
    classes = class_embeddings(clip, described, templates)
    model: Any = clip.model
    temperature = 1 / model.logit_scale.exp().item()
    parts = [clip.fingerprint, templates.texts, described.hash, num_frames]
    return Subject(
        score=lambda frames, _: frozen_logits(frames, classes, temperature),
        num_frames=num_frames,
        template=templates.label,
        run=None,
        names=described.source,
        names_hash=described.hash,
        wants_patches=False,
        device=next(clip.model.parameters()).device,
        fingerprint=_digest(json.dumps(parts).encode()),
    )


def texts_of(
    described: Descriptions, categories: Int[Tensor, " k"] | None
) -> tuple[Int[Tensor, " texts"], Int[Tensor, " texts"]]:
    """The texts of some classes, and which of these classes each belongs to, from 0."""
    if categories is None:
        return torch.arange(len(described.flat)), described.owners
    chosen = [(described.owners == label).nonzero()[:, 0] for label in categories.tolist()]
    counts = torch.tensor([len(texts) for texts in chosen])
    return torch.cat(chosen), torch.arange(len(chosen)).repeat_interleave(counts)


def class_logits(
    model: BiEfficient, scores: Scores, owners: Int[Tensor, " texts"]
) -> Float[Tensor, "B k"]:
    """Logits of classes that have several descriptions.

    The model is asked about every description as about a category of its own, so that the
    words that weight the frames (Eq. 8) are those of the single description most like the
    video.  A class embedding is the mean of its descriptions' c_hat, each of unit length:
    averaged in embedding space, after the Post-Prompt, for each video.

    Args:
        model: Which gave the scores.
        scores: Over the descriptions.
        owners: The class of each description, from 0; every class has one.
    """
    unit = F.normalize(scores.classes.float(), dim=-1)  # (B or 1, texts, D)
    classes = unit.new_zeros(len(unit), int(owners.max()) + 1, unit.shape[2])
    classes.index_add_(1, owners, unit)  # the cosine takes no notice of the number
    similarity = cosine(scores.video[:, None], classes)[:, 0]
    if model.config.normalise == "frames":  # as in `BiEfficient.forward`
        similarity = similarity * scores.video.norm(dim=-1, keepdim=True)
    return similarity * model.scale()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
