"""Word-Guided Visual-Prompt: the text decides which frames matter (paper Sec. 3.3).

B videos, T frames, k categories, N words of a category (padded), D joint width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bieff.train.method.loss import cosine


def frame_weights(
    frames: Float[Tensor, "B T D"],
    words: Float[Tensor, "B N D"],
    word_mask: Bool[Tensor, "B N"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "B T"]:
    """Weight each frame by its likeness to the words: S of Eq. 8.

    Cosine similarity, softmax over time for each word, mean over the real words; in float32
    under autocast.

    Args:
        frames: Need not be normalised.
        words: Need not be normalised; rows at padding may hold anything finite.
        word_mask: True where the word is real, false at padding; one true per row.
        temperature: Divides the similarities.  The paper has none; the authors' release
            takes 0.01.

    Returns:
        Non-negative, each row summing to 1.
    """
    similarity = cosine(frames, words)  # (B, T, N)
    if temperature != 1:
        similarity = similarity / temperature
    per_word = similarity.softmax(dim=1)
    real = word_mask[:, None, :].to(per_word.dtype)  # (B, 1, N)
    return (per_word * (real / real.sum(dim=2, keepdim=True))).sum(dim=2)


def pick(
    pooled: Float[Tensor, "B D"], classes: Float[Tensor, "#B k D"], *, norms: bool = False
) -> Int[Tensor, " B"]:
    """Index of the category most like the video, by class embeddings z (Sec. 3.3).

    Args:
        pooled: Mean of the frames.
        classes: z, the class embeddings after the Post-Prompt.
        norms: Standardise the class embeddings first, as the release's LayerNorm does, which
            the pick keeps from ever being trained.
    """
    if norms:
        classes = F.layer_norm(classes, classes.shape[-1:])
    return cosine(pooled[:, None], classes)[:, 0].argmax(dim=-1)


class WordGuidedPool(nn.Module):
    """v_hat = mean over time + beta * word-weighted mean (Eq. 9).

    `beta` starts at 0.1, the best of Table 10; at 0 the module is plain mean pooling.
    Without `mean_pool` (Table 7) v_hat is the weighted mean alone, and there is no beta.
    `norms` adds the release's LayerNorm on the words.
    """

    def __init__(
        self,
        dim: int,
        *,
        beta: float = 0.1,
        vector: bool = False,
        mean_pool: bool = True,
        temperature: float = 1.0,
        norms: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        start = torch.full((dim,) if vector else (), float(beta))
        self.beta = nn.Parameter(start) if mean_pool else None
        self.word_norm = nn.LayerNorm(dim) if norms else None

    def forward(
        self,
        frames: Float[Tensor, "B T D"],
        words: Float[Tensor, "B N D"],
        word_mask: Bool[Tensor, "B N"],
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B T"]]:
        """Return one embedding a video, not normalised, and the weights of its frames."""
        if self.word_norm is not None:
            words = self.word_norm(words)
        weights = frame_weights(frames, words, word_mask, temperature=self.temperature)
        highlighted = torch.einsum("bt,btd->bd", weights, frames.to(weights.dtype))
        if self.beta is None:
            return highlighted, weights
        return frames.mean(dim=1) + self.beta * highlighted, weights
