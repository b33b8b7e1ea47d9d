"""BiEfficient: the tunable pieces put together around a frozen text tower (paper Sec. 3.1).

    frames (B, T, D)
      |
      +------------ v, Eq. 2 and 3 ------+-----------------------+
      |                                  |                       |
      v                                  v                       |
    temporal                         pre_prompt, Eq. 6           |
      |                                  | context and c_v       |
      |                                  v                       |
      |    names of k categories -> text tower, frozen           |
      |                              |          |                |
      |                              | c        | words          |
      |                              v          |                |
      |                          post_prompt, Eq. 7 <------------+
      |                              |          |
      |                              | c_hat    |
      +--> mean --> most like? <-----+          |
      |                 |            |          v
      |                 +------------|--> of one category
      v                              |          |
    word_guided, Eq. 8 and 9 <-------|----------+
      | v_hat (B, D)                 |
      v                              |
    cosine / tau <-------------------+
      |
      v
    logits (B, k) --> loss.py, Eq. 10

v is the frames as stored; by `prompts_see` also what temporal makes of them, or patch tokens.
Where no row before the name is a video's own, c is (1, k, D), the same for all videos.

B videos, T frames, k categories, M context tokens, P patches, D joint width, W text width.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from bieff.features.errors import ConfigError
from bieff.train.config import TrainConfig
from bieff.train.method.loss import cosine
from bieff.train.method.post_prompt import PostPrompt
from bieff.train.method.pre_prompt import make_prompt
from bieff.train.method.temporal import TemporalTransformer
from bieff.train.method.word_guided import WordGuidedPool, pick
from bieff.train.text.tower import TextTower
from bieff.train.text.whole import WholeTower


class PatchContext(nn.Module):
    """The store's patch tokens, averaged over time, as visual context of width D.

    The store holds them after CLIP's final norm, normalised once more: what is left of a
    LayerNorm is its learned scale and offset, which commute with the mean over time.  Then a
    projection.
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.offset = nn.Parameter(torch.zeros(width))
        self.projection = nn.Linear(width, dim, bias=False)

    def forward(self, patches: Float[Tensor, "B P width"]) -> Float[Tensor, "B P D"]:
        """Return one row a patch."""
        projected: Tensor = self.projection(patches * self.scale + self.offset)
        return projected


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Similarity of the videos of a batch with the categories, and how it came about."""

    cosine: Float[Tensor, "B k"]
    """s(v_hat, c_hat) of Eq. 10; with `normalise = "frames"`, v_hat's length is still in it."""

    logits: Float[Tensor, "B k"]
    """`cosine` divided by tau."""

    video: Float[Tensor, "B D"]
    """v_hat, as Eq. 9 leaves it."""

    classes: Float[Tensor, "#B k D"]
    """c_hat, not normalised; one leading row where no video entered it."""

    picked: Int[Tensor, " B"] | None = None
    """The category whose words weighted the frames, an index into the k."""

    frame_weights: Float[Tensor, "B T"] | None = None
    """S of Eq. 8."""


class BiEfficient(nn.Module):
    """Temporal transformer, Pre-Prompt, Post-Prompt and Word-Guided Visual-Prompt.

    The text tower is not a part: it is frozen, and belongs to a list of class names that
    changes from data set to data set.  A part that the config leaves out is None and owns no
    parameter.  The same seed gives the same weights, and a part's weights do not depend on
    which other parts there are; the caller's random state is kept.

    Untrained, a video is its frames' mean and a class its text embedding, up to the frame
    positions in the (small) weight of Eq. 9 and random context tokens: close to frozen CLIP.
    Started from words, it gives frozen CLIP's answers with these as the template.

    Args:
        config: Which parts, of which design.
        dim: D.
        text_width: W, width of the text transformer.
        num_frames: T.
        patches: Number and width of the store's patch tokens, if it has them.
        words: What the prompt starts from; see `pre_prompt.embedded_words`.

    Raises:
        ConfigError: If the config wants patches and there are none, words where the design
            cannot start from them, or CLIP's temperature, which is not known here.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        dim: int,
        text_width: int,
        num_frames: int,
        patches: Sequence[int] | None = None,
        words: Float[Tensor, "M W"] | None = None,
    ) -> None:
        super().__init__()
        if config.prompts_see == "patches" and patches is None:
            raise ConfigError(
                "prompts_see='patches' needs a store with patch tokens; extract with "
                "`--context patches`, or set prompts_see=frames"
            )
        self.config = config
        sees_patches = config.prompts_see == "patches"
        self.visual_shape = (patches[0] if patches and sees_patches else num_frames, dim)
        """C and D."""

        looks = config.prompt == "pre-prompt" or config.post_prompt
        self.temporal = self.patch_context = self.post_prompt = self.word_guided = None
        if config.temporal_layers:
            with _seeded(config, "temporal"):
                self.temporal = TemporalTransformer(
                    dim,
                    num_frames,
                    num_layers=config.temporal_layers,
                    residual=config.temporal_residual,
                )
        if patches and sees_patches and looks:
            with _seeded(config, "patches"):
                self.patch_context = PatchContext(patches[1], dim)
        with _seeded(config, "prompt"):
            self.prompt = make_prompt(config, dim, text_width, words)
        if config.post_prompt:
            with _seeded(config, "post_prompt"):
                self.post_prompt = PostPrompt(
                    dim,
                    alpha=config.alpha,
                    num_layers=config.post_layers,
                    vector=config.vector_gates,
                )
        if config.word_guided:
            self.word_guided = WordGuidedPool(
                dim,
                beta=config.beta,
                vector=config.vector_gates,
                mean_pool=config.mean_pool,
                temperature=config.word_temperature,
                norms=config.word_norms,
            )
        if config.temperature is None:
            raise ConfigError("temperature: none is CLIP's own; put its number in its place")
        log_scale = torch.tensor(-math.log(config.temperature))
        self.temperature = config.temperature
        self.log_scale = nn.Parameter(log_scale) if config.learn_temperature else None

    def forward(
        self,
        frames: Float[Tensor, "B T D"],
        text: TextTower | WholeTower,
        *,
        categories: Int[Tensor, " k"] | None = None,
        patches: Float[Tensor, "B P width"] | None = None,
    ) -> Scores:
        """Compare every video with every category.

        As in the authors' release, the prompts see the frames as stored, and pooling and
        Eq. 8-9 take the temporal transformer's output; `prompts_see` changes the former.
        The pick of the category whose words weight the frames is not differentiable.

        Args:
            frames: Frame embeddings as stored, not normalised.
            text: The frozen tower with the class names.
            categories: Which of the tower's names, in which order; all by default.
            patches: The store's patch tokens, where the prompts see them.
        """
        temporal = frames if self.temporal is None else self.temporal(frames)
        visual = self._visual_context(frames, temporal, patches)
        prompted = text(*self.prompt(visual), categories=categories)
        classes = prompted.classes  # (B or 1, k, D)
        if self.post_prompt is not None:
            classes = self.post_prompt(classes, visual)

        if self.config.normalise == "frames":
            temporal = F.normalize(temporal, dim=-1)
        video, picked, weights = temporal.mean(dim=1), None, None
        if self.word_guided is not None:
            with torch.no_grad():
                if self.config.word_source == "words":
                    picked = prompted.word_similarity(video).argmax(dim=-1)
                else:
                    picked = pick(video, classes, norms=self.config.word_norms)
            is_name = self.config.word_rows == "name"
            words = prompted.words(picked) if is_name else prompted.positions(picked)
            video, weights = self.word_guided(temporal, *words)

        similarity = cosine(video[:, None], classes).squeeze(1)  # (B, k)
        if self.config.normalise == "frames":
            similarity = similarity * video.norm(dim=-1, keepdim=True)
        return Scores(
            cosine=similarity,
            logits=similarity * self.scale(),
            video=video,
            classes=classes,
            picked=picked,
            frame_weights=weights,
        )

    @property
    def prompt_rows(self) -> tuple[int, int]:
        """Rows before the name: those that all videos share, and Q, each video's own."""
        like = next(self.prompt.parameters(), torch.empty(0))
        with torch.no_grad():
            context, video = self.prompt(like.new_zeros(1, *self.visual_shape))
        return 0 if context is None else len(context), 0 if video is None else video.shape[1]

    def scale(self) -> Tensor | float:
        """1 / tau of Eq. 10."""
        return 1 / self.temperature if self.log_scale is None else self.log_scale.exp()

    def _visual_context(
        self, frames: Tensor, temporal: Tensor, patches: Tensor | None
    ) -> Float[Tensor, "B C D"]:
        if self.patch_context is not None:
            if patches is None:
                raise ValueError("prompts_see='patches': expected patches, got none")
            context: Tensor = self.patch_context(patches)
            return context
        return temporal if self.config.prompts_see == "temporal" else frames

    def parameter_counts(self) -> dict[str, int]:
        """Tunable parameters of each part, in Table 4's order, and their total.

        Counted is what the optimiser changes.  Neither of CLIP's towers is in it.  Patch
        tokens' projection and the temperature count where the config trains them.
        """
        parts = {
            "temporal": self.temporal,
            "pre_prompt": self.prompt,
            "post_prompt": self.post_prompt,
            "word_guided": self.word_guided,
            "patch_context": self.patch_context,
        }
        counts = {
            name: sum(p.numel() for p in part.parameters()) if part else 0
            for name, part in parts.items()
        }
        counts["temperature"] = 0 if self.log_scale is None else 1
        counts["total"] = sum(counts.values())
        return counts


@contextmanager
def _seeded(config: TrainConfig, part: str) -> Iterator[None]:
    """Draw a part's first weights from its own stream, and give the caller's back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{config.seed} {part}".encode()))
        yield
