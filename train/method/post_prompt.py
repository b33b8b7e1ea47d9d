"""Post-Prompt: class embeddings look at the video after the text tower (paper Sec. 3.2).

B videos, C rows of visual context (T frames, or patches), k categories, D joint width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bieff.train.method.attention import AttentionBlock


class PostPrompt(nn.Module):
    """c_hat = c + alpha * FFN(MHSA(query c, key and value v)), Eq. 7.

    "MHSA" with such a query is multi-head cross-attention with an output projection.  The
    attention block has skips of its own, as any block of [47]; the outer sum is separate.
    At the start the block passes c on, so c_hat = (1 + alpha) c, in c's direction.
    """

    def __init__(
        self, dim: int, *, alpha: float = 0.1, num_layers: int = 1, vector: bool = False
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(AttentionBlock(dim, cross=True) for _ in range(num_layers))
        self.alpha = nn.Parameter(torch.full((dim,) if vector else (), float(alpha)))

    def forward(
        self, classes: Float[Tensor, "#B k D"], visual: Float[Tensor, "B C D"]
    ) -> Float[Tensor, "B k D"]:
        """Return the video-level class embeddings, not normalised.

        Args:
            classes: Text embeddings; a single leading row serves all videos.
            visual: v of Eq. 3.
        """
        seen = classes
        for block in self.blocks:
            seen = block(seen, visual)
        return classes + self.alpha * seen
