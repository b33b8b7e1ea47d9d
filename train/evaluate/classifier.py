"""Models that say how well each class fits a video: a trained one, and frozen CLIP.

B videos, t frames of each, K classes that the model knows, k of them asked about, V views of
one video, D joint width.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from torch.nn import functional as F

from bieff.clip import Clip, fingerprint
from bieff.train.data import free_bytes
from bieff.train.evaluate.scores import About
from bieff.train.method.loss import cosine
from bieff.train.method.model import BiEfficient, Scores
from bieff.train.runs.ancestor import after
from bieff.train.runs.run import Run, fitting_tower, load_model, text_tower
from bieff.train.text.tower import TextTower
from bieff.train.text.whole import WholeTower
from bieff.train.text.wording import HAND_CRAFTED, Descriptions, Templates, find_templates

LARGEST_BATCH = 32
"""Videos scored at a time, where the text tower's rows allow it."""

TOWER_BYTES = 1 << 30
"""Memory for the text tower's rows while scoring, where so much is free twice over.  A
fixed figure, so that the same videos share a batch on every machine that has the room: which
ones do decides the last bits of a score."""

CHUNK = 256
"""Texts the text tower takes at a time."""

Weights = Literal["last", "best"]


@dataclass(frozen=True, slots=True, eq=False)
class Highlights:
    """Frames that speak for a class."""

    kind: Literal["weights", "cosine"]
    """S of Eq. 8, which sums to 1; or, of frozen CLIP, each frame's cosine with the class."""

    values: Float64[np.ndarray, " T"]

    category: int
    """Whose words weighted the frames (not always the best class); or the best class."""


class Trained:
    """A run's model.

    Args:
        run: A run that has been trained.
        clip: The CLIP that it was trained on.
        names: Names of the classes, or descriptions of them: every description is a prompt of
            its own, see `class_logits`.
        weights: After the last step, or at the best evaluation on `val`.
        blend: Share of these, between those that the run started with and them.
        model: The run's model, so blended, where it is loaded already.

    Raises:
        ConfigError: If the blend is not from 0 to 1.
        InputError: If the weights are missing or damaged.
        StoreMismatchError: If the run was trained on another CLIP.
    """

    def __init__(
        self,
        run: Run,
        clip: Clip,
        names: Sequence[str] | Descriptions,
        *,
        weights: Weights = "last",
        blend: float | None = None,
        model: BiEfficient | None = None,
    ) -> None:
        described = _described(names)
        shots = run.record.get("shots")
        self.about = About(
            model="bieff",
            frames=int(run.record["frames"]),
            template=run.config.prompt,
            names=described.source,
            names_hash=described.hash,
            run=run.id,
            weights=weights,
            blend=blend,
            shots=shots["shots"] if isinstance(shots, dict) else None,
            after=after(run.ancestors),
        )
        self.device = clip.device
        self.wants_patches = run.config.prompts_see == "patches"
        self._run, self._clip, self._described = run, clip, described
        self._model = model or load_model(run, clip, weights=weights, blend=blend)
        tokens = clip.tokenize(described.flat)
        self._text = fitting_tower(clip, described.flat, tokens, self._model.prompt_rows)

    @property
    def batch_size(self) -> int:
        """Videos to score at a time, fewer for many classes."""
        return batch_size_of(self._text, self._model)

    def fingerprint(self) -> str:
        """Everything its scores depend on but the features, as a hash."""
        marks = [self._clip.fingerprint, fingerprint(self._model), self._described.hash]
        return _digest([*marks, self.about.frames, self._run.config.to_dict()])

    def logits(
        self,
        frames: Float[Tensor, "B t D"],
        patches: Float[Tensor, "B P U"] | None,
        classes: Int[Tensor, " k"] | None = None,
    ) -> Float[Tensor, "B n"]:
        """Logits of some classes, as if there were no others; of all by default."""
        return self._ask(frames, patches, classes)[0]

    def explain(
        self, frames: Float[Tensor, "V t D"], patches: Float[Tensor, "V P U"] | None, view: int
    ) -> tuple[Float64[np.ndarray, " K"], Highlights | None]:
        """Scores of one video, and the Word-Guided weights of a view's frames, if any."""
        logits, scores = self._ask(frames, patches, None)
        mean = _array(mean_softmax(logits[:, None])[0])
        if scores.frame_weights is None or scores.picked is None:
            return mean, None
        weights = _array(scores.frame_weights[view])
        return mean, Highlights("weights", weights, int(scores.picked[view]))

    @torch.no_grad()
    def _ask(
        self, frames: Tensor, patches: Tensor | None, classes: Tensor | None
    ) -> tuple[Float[Tensor, "B k"], Scores]:
        texts = owners = None
        if classes is not None or not self._described.are_single:
            texts, owners = texts_of(self._described, classes)
        scores: Scores = self._model(frames, self._text, categories=texts, patches=patches)
        if owners is None or self._described.are_single:
            return scores.logits, scores
        return class_logits(self._model, scores, owners.to(self.device)), scores


class Frozen:
    """CLIP as it is, asked in a template, or in several.

    Args:
        clip: The CLIP that the features come from.
        names: Names of the classes, or descriptions of them.
        num_frames: Frames of a video, as of the model it stands beside.
        template: By name, as a text with `{}` in it, or several; embeddings are averaged.
    """

    batch_size = LARGEST_BATCH
    wants_patches = False

    def __init__(
        self,
        clip: Clip,
        names: Sequence[str] | Descriptions,
        *,
        num_frames: int,
        template: str | Templates = HAND_CRAFTED,
    ) -> None:
        described = _described(names)
        templates = template if isinstance(template, Templates) else find_templates(template)
        self.about = About(
            model="frozen",
            frames=num_frames,
            template=templates.label,
            names=described.source,
            names_hash=described.hash,
            run=None,
            weights=None,
        )
        self.device = clip.device
        self._classes = class_embeddings(clip, described, templates)
        self._temperature = clip.temperature
        self._parts = [clip.fingerprint, templates.texts, described.hash, num_frames]

    def fingerprint(self) -> str:
        """Everything its scores depend on but the features, as a hash."""
        return _digest(self._parts)

    @torch.no_grad()
    def logits(
        self,
        frames: Float[Tensor, "B t D"],
        patches: Tensor | None,
        classes: Int[Tensor, " k"] | None = None,
    ) -> Float[Tensor, "B n"]:
        """Logits of some classes, columns of those of all."""
        every = frozen_logits(frames, self._classes, self._temperature)
        return every if classes is None else every[:, classes]

    def explain(
        self, frames: Float[Tensor, "V t D"], patches: Float[Tensor, "V P U"] | None, view: int
    ) -> tuple[Float64[np.ndarray, " K"], Highlights | None]:
        """Scores of one video, and each frame's cosine with the best class."""
        mean = _array(mean_softmax(self.logits(frames, patches)[:, None])[0])
        best = int(mean.argmax())
        cosines = F.normalize(frames[view], dim=-1) @ self._classes[best]
        return mean, Highlights("cosine", _array(cosines), best)


Classifier = Trained | Frozen
"""A model to evaluate: `about` says which, `logits` how well each class fits."""


def mean_softmax(views: Iterable[Float[Tensor, "B k"]]) -> Float64[Tensor, "B k"]:
    """Softmax scores averaged over the views of some videos, in float64."""
    softmax = [logits.double().softmax(dim=-1) for logits in views]
    return reduce(torch.add, softmax) / len(softmax)


def batch_size_of(text: TextTower | WholeTower, model: BiEfficient) -> int:
    """Videos to score at a time among all classes; fewer where little memory is free."""
    num_context, num_video_rows = model.prompt_rows
    fitting = text.max_videos(
        min(TOWER_BYTES, free_bytes(text.device) / 2),
        num_context=num_context,
        num_video_rows=num_video_rows,
    )
    return min(LARGEST_BATCH, fitting)


# --- frozen CLIP


def class_embeddings(
    clip: Clip, names: Sequence[str] | Descriptions, template: str | Templates
) -> Float[Tensor, "K D"]:
    """CLIP's embedding of each class, unit length.

    Of several templates or descriptions: the mean of the unit embeddings of every description
    in every template, brought to unit length again.

    Raises:
        ConfigError: If there is no such template.
        InputError: If a text does not fit the tower.
    """
    described = _described(names)
    templates = template if isinstance(template, Templates) else find_templates(template)
    prompts = [templates.fill(text) for text in described.flat]
    by_template = (
        F.normalize(_embed(clip, filled), dim=-1) for filled in zip(*prompts, strict=True)
    )
    total = reduce(torch.add, by_template)  # (texts, D)
    classes = total.new_zeros(len(described.texts), total.shape[1])
    classes.index_add_(0, described.owners.to(total.device), total)
    return F.normalize(classes, dim=-1)


@torch.no_grad()
def _embed(clip: Clip, texts: Sequence[str]) -> Float[Tensor, "texts D"]:
    order = sorted(range(len(texts)), key=lambda index: texts[index])  # neighbours share rows
    parts = []
    for start in range(0, len(texts), CHUNK):
        chunk = [texts[index] for index in order[start : start + CHUNK]]
        tower = text_tower(clip, clip.tokenize(chunk))
        parts.append(tower(None, None).classes[0].float())
    found = torch.cat(parts)
    places = torch.tensor(order, device=clip.device)
    return torch.empty_like(found).index_copy_(0, places, found)


def frozen_logits(
    frames: Float[Tensor, "B T D"], classes: Float[Tensor, "K D"], temperature: float
) -> Float[Tensor, "B K"]:
    """Cosine of the mean of the unit frame embeddings with each class, over tau."""
    video = F.normalize(F.normalize(frames, dim=-1).mean(dim=1), dim=-1)
    return video @ classes.T / temperature


# --- classes of several descriptions


def texts_of(
    described: Descriptions, classes: Int[Tensor, " k"] | None
) -> tuple[Int[Tensor, " texts"], Int[Tensor, " texts"]]:
    """The texts of some classes, and which of these classes each belongs to, from 0."""
    if classes is None:
        return torch.arange(len(described.flat)), described.owners
    chosen = [(described.owners == label).nonzero()[:, 0] for label in classes.tolist()]
    counts = torch.tensor([len(texts) for texts in chosen])
    return torch.cat(chosen), torch.arange(len(chosen)).repeat_interleave(counts)


def class_logits(
    model: BiEfficient, scores: Scores, owners: Int[Tensor, " texts"]
) -> Float[Tensor, "B k"]:
    """Logits of classes that have several descriptions.

    The model is asked about every description as about a category of its own, so that the
    words that weight the frames (Eq. 8) are those of the single description most like the
    video.  A class embedding is the mean of its descriptions' c_hat, each of unit length:
    averaged in embedding space, after the Post-Prompt, for each video.  `owners` are the
    class of each description, from 0; every class has one.
    """
    unit = F.normalize(scores.classes.float(), dim=-1)  # (B or 1, texts, D)
    classes = unit.new_zeros(len(unit), int(owners.max()) + 1, unit.shape[2])
    classes.index_add_(1, owners, unit)  # the cosine takes no notice of the number
    similarity = cosine(scores.video[:, None], classes)[:, 0]
    if model.config.normalise == "frames":  # as in `BiEfficient.forward`
        similarity = similarity * scores.video.norm(dim=-1, keepdim=True)
    return similarity * model.scale()


def _described(names: Sequence[str] | Descriptions) -> Descriptions:
    return names if isinstance(names, Descriptions) else Descriptions.of(names)


def _digest(parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _array(values: Float[Tensor, " n"]) -> Float64[np.ndarray, " n"]:
    array: Float64[np.ndarray, " n"] = values.double().cpu().numpy()
    return array
