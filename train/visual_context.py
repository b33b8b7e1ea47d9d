"""Patch tokens as what the prompts see of a video, instead of its frames.

B videos, P patches, D joint width; `width` is the visual tower's.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class PatchContext(nn.Module):
    """The store's patch tokens, averaged over time, as visual context of width D.

    The store holds them normalised, without CLIP's affine: what is left of a LayerNorm is its
    learned scale and offset, which commute with the mean over time.  Then a projection.
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
