"""Frozen CLIP on the same store: the column that every result of ours stands beside.

B videos, T frames, K categories, D joint width.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn import functional as F

from bieff.clip import Clip
from bieff.features.store import FeatureStore
from bieff.train.data import free_bytes
from bieff.train.method.loss import cosine
from bieff.train.method.model import BiEfficient, Scores
from bieff.train.runs.checkpoint import BEST, LAST
from bieff.train.runs.run import Run, load_model
from bieff.train.text.tower import TextTower
from bieff.train.text.wording import HAND_CRAFTED, Descriptions, Templates, find_templates

LARGEST_BATCH = 32
"""Videos scored at a time, where the text tower's rows allow it."""


TOWER_BYTES = 1 << 30
"""What the text tower's rows may take while scoring, where so much is free twice over.  A
fixed figure, so that the same videos share a batch on every machine that has the room: which
ones do decides the last bits of a score."""


Score = Callable[[Tensor, Tensor | None], Tensor]
"""(frames (B, t, D) float32, patches or None) -> logits (B, K)."""


def batch_size_of(
    text: TextTower, model: BiEfficient, *, num_frames: int, patches: Sequence[int] | None
) -> int:
    """Videos to score at a time among all classes; fewer where little memory is free.

    Args:
        text: With the class names.
        model: Which is asked.
        num_frames: t, frames it takes.
        patches: Number and width of the store's patch tokens, if it has them.
    """
    num_context, num_video_rows = model.prompt_rows
    fitting = text.max_videos(
        min(TOWER_BYTES, free_bytes(text.token_rows.device) / 2),
        num_context=num_context,
        num_video_rows=num_video_rows,
    )
    return min(LARGEST_BATCH, fitting)


CHUNK = 256
"""Texts the text tower takes at a time."""


def class_embeddings(
    clip: Clip, names: Sequence[str] | Descriptions, template: str | Templates
) -> Float[Tensor, "K D"]:
    """CLIP's embedding of each class, unit length.

    Of several templates or descriptions: the mean of the unit embeddings of every description
    in every template, brought to unit length again.

    Args:
        clip: Whose text tower is asked.
        names: Of the classes, or descriptions of them.
        template: By name, as a text with `{}` in it, or several.

    Raises:
        ConfigError: If there is no such template.
        InputError: If a text does not fit the tower.
    """
    described = names if isinstance(names, Descriptions) else Descriptions.of(names)
    templates = template if isinstance(template, Templates) else find_templates(template)
    prompts = [templates.fill(text) for text in described.flat]
    total: Tensor | None = None
    for filled in zip(*prompts, strict=True):  # one template after the other
        embedded = F.normalize(_embed(clip, filled), dim=-1)  # (texts, D)
        total = embedded if total is None else total + embedded
    assert total is not None
    classes = total.new_zeros(len(described.texts), total.shape[1])
    classes.index_add_(0, described.owners.to(total.device), total)
    return F.normalize(classes, dim=-1)


@torch.no_grad()
def _embed(clip: Clip, texts: Sequence[str]) -> Float[Tensor, "texts D"]:
    """CLIP's own embeddings; rows that texts share are computed once, and padding never."""
    device = next(clip.model.parameters()).device
    order = sorted(range(len(texts)), key=lambda index: texts[index])  # neighbours share rows
    parts = []
    for start in range(0, len(texts), CHUNK):
        chunk = [texts[index] for index in order[start : start + CHUNK]]
        tower = TextTower(clip.model, clip.tokenize(chunk)).to(device)
        parts.append(tower(None, None).classes[0].float())
    found = torch.cat(parts)
    return torch.empty_like(found).index_copy_(0, torch.tensor(order, device=device), found)


def frozen_logits(
    frames: Float[Tensor, "B T D"], classes: Float[Tensor, "K D"], temperature: float
) -> Float[Tensor, "B K"]:
    """Cosine of the mean of the unit frame embeddings with each class, over tau."""
    video = F.normalize(F.normalize(frames, dim=-1).mean(dim=1), dim=-1)
    return video @ classes.T / temperature


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


@dataclass(frozen=True, slots=True, eq=False)
class Highlights:
    """Which frames speak for a class."""

    kind: Literal["weights", "cosine"]
    """S of Eq. 8, which sums to 1; or, of frozen CLIP, each frame's cosine with the class."""

    values: Float64[np.ndarray, " T"]

    category: int
    """Whose words weighted the frames (not always the best class); or the best class."""


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """What a model says of the views of one video."""

    probabilities: Float64[np.ndarray, " K"]
    """Softmax scores, averaged over the views."""

    highlights: Highlights | None
    """Of the view that was asked for; None for a model that weights no frames."""


Scorer = Callable[[Tensor, Tensor | None, int], Said]
"""(frames (V, T, D) float32, patches (V, P, U) or None, view to explain) -> what it says."""


def trained_scorer(run: Run, clip: Clip) -> Callable[[Sequence[str]], Scorer]:
    """From class names to scores by the run's model; the weights are read once.

    Raises:
        InputError: If the weights are missing or damaged.
        StoreMismatchError: If the run was trained on another CLIP.
    """
    model: BiEfficient = load_model(run, clip)
    device = next(clip.model.parameters()).device

    def of(names: Sequence[str]) -> Scorer:
        text = TextTower(clip.model, clip.tokenize(names)).to(device)

        def score(frames: Tensor, patches: Tensor | None, view: int) -> Said:
            scores: Scores = model(frames, text, patches=patches)
            highlights = None
            if scores.frame_weights is not None and scores.picked is not None:
                weights = _array(scores.frame_weights[view])
                highlights = Highlights("weights", weights, int(scores.picked[view]))
            return Said(_mean_softmax(scores.logits), highlights)

        return torch.no_grad()(score)

    return of


def frozen_scorer(clip: Clip) -> Callable[[Sequence[str]], Scorer]:
    """From class names to scores by CLIP as it is, asked in the hand-crafted template."""
    model: Any = clip.model
    temperature = 1 / model.logit_scale.exp().item()

    def of(names: Sequence[str]) -> Scorer:
        classes = class_embeddings(clip, names, HAND_CRAFTED)

        def score(frames: Tensor, _: Tensor | None, view: int) -> Said:
            mean = _mean_softmax(frozen_logits(frames, classes, temperature))
            best = int(mean.argmax())
            cosines = F.normalize(frames[view], dim=-1) @ classes[best]
            return Said(mean, Highlights("cosine", _array(cosines), best))

        return torch.no_grad()(score)

    return of


def _mean_softmax(logits: Float[Tensor, "V K"]) -> Float64[np.ndarray, " K"]:
    return _array(logits.double().softmax(dim=-1).mean(dim=0))


def _array(values: Float[Tensor, " n"]) -> Float64[np.ndarray, " n"]:
    array: Float64[np.ndarray, " n"] = values.double().cpu().numpy()
    return array
