"""The temporal transformer: frames of a video look at each other (paper Sec. 4.1, Baseline).

B videos, T frames, D width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bieff.train.method.attention import AttentionBlock

POSITION_STD = 0.3
"""Spread of the frame positions at the start.

CLIP's own 0.01 belongs to tokens of 0.02; projected frame embeddings are some 0.5 (ViT-B/16) to
1.5 (tinyclip), and positions drowned in them are found late: see docs/LOG.md.
"""


class TemporalTransformer(nn.Module):
    """Learned frame positions, then pre-norm self-attention blocks over time.

    With `residual` the frames as stored are added to the output.  The authors' release has no
    such skip; ActionCLIP's and BIKE's heads have it.  At the start the blocks pass their input
    on, and the positions have mean zero over time: the mean of the output is that of the
    frames, up to the residual's factor of two, so pooled videos start as frozen CLIP's.
    """

    def __init__(
        self,
        dim: int,
        num_frames: int,
        *,
        num_layers: int = 3,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.residual = residual
        positions = torch.randn(num_frames, dim) * POSITION_STD
        self.positions = nn.Parameter(positions - positions.mean(dim=0))
        self.blocks = nn.ModuleList(AttentionBlock(dim, cross=False) for _ in range(num_layers))

    def forward(self, frames: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Return one row a frame, not normalised.

        Raises:
            ValueError: If the videos have another number of frames than the module.
        """
        if frames.shape[1] != len(self.positions):
            raise ValueError(f"expected {len(self.positions)} frames, got {frames.shape[1]}")
        x = frames + self.positions
        for block in self.blocks:
            x = block(x)
        return frames + x if self.residual else x
