"""The frozen visual tower: squares in, embeddings out (Eq. 1).

n squares of size x size pixels, D joint width, P patches of width U in the tower.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from bieff.clip import Clip
from bieff.extract.preprocess import normalise
from bieff.features.errors import InputError

Forward = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""One batch of squares -> embeddings, and patch tokens or None."""

MIN_COSINE = 0.9995
"""Least likeness of a bfloat16 embedding to the float32 one, square by square."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the tower makes of n squares."""

    embeddings: Float[Tensor, "n D"]
    """Projected, not normalised; float32."""

    patches: Float[Tensor, "n P U"] | None
    """Patch tokens after the final norm without its affine map, if asked for; float32."""


class VisualTower:
    """Encodes squares in batches of one fixed size, the last one padded.

    The fixed size keeps compiled kernels, and makes an embedding independent of how many
    squares came with it.  On CUDA the tower is compiled and runs in bfloat16, if it agrees
    with float32 there; `precision` says what came of it.

    Args:
        clip: Where the tower comes from; moved to `device`, otherwise not changed.
        device: Where it runs.
        batch_size: Squares a batch.
        wants_patches: Whether patch tokens come back too.
        reduced: Whether to try bfloat16; None means on CUDA only.

    Raises:
        InputError: If patches are asked of a tower that has none.
    """

    def __init__(
        self,
        clip: Clip,
        *,
        device: torch.device,
        batch_size: int,
        wants_patches: bool = False,
        reduced: bool | None = None,
    ) -> None:
        self.device = device
        self.batch_size = batch_size
        self.preprocessing = clip.preprocessing
        self.wants_patches = wants_patches
        model: Any = clip.model
        self._visual: Any = model.visual.to(device)
        if wants_patches and not hasattr(self._visual, "patch_size"):
            raise InputError(
                f"CLIP {str(clip.name)!r} has no patch tokens; choose a vision transformer, or "
                "leave --context out"
            )
        self.precision = "float32"
        self._forward: Forward = self.forward_float32
        if device.type == "cuda" if reduced is None else reduced:
            self._forward = self._fastest()

    @torch.inference_mode()
    def encode(self, squares: UInt8[Tensor, "n 3 size size"]) -> Encoded:
        """Embed any number of squares; they may lie on another device."""
        embeddings, patches = [], []
        for batch in squares.split(self.batch_size):
            padding = self.batch_size - len(batch)
            full = F.pad(batch, (0, 0, 0, 0, 0, 0, 0, padding)) if padding else batch
            embedded, tokens = self._forward(full.to(self.device, non_blocking=True))
            embeddings.append(embedded[: len(batch)].float())
            if tokens is not None:
                patches.append(tokens[: len(batch)])
        return Encoded(torch.cat(embeddings), torch.cat(patches) if patches else None)

    def forward_float32(self, squares: Tensor) -> tuple[Tensor, Tensor | None]:
        """One batch, without autocast: what every faster way is held against."""
        mean, std = self.preprocessing.mean, self.preprocessing.std
        pixels = normalise(squares, mean=mean, std=std)
        if not self.wants_patches:
            return self._visual(pixels), None
        result = self._visual.forward_intermediates(pixels, indices=1, output_fmt="NLC")
        tokens = result["image_intermediates"][0].float()
        return result["image_features"], F.layer_norm(tokens, tokens.shape[-1:])

    def forward_bfloat16(self, squares: Tensor) -> tuple[Tensor, Tensor | None]:
        """One batch, with bfloat16 matrix products."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            return self.forward_float32(squares)

    @torch.inference_mode()
    def likeness(self, squares: UInt8[Tensor, "n 3 size size"]) -> float:
        """Least cosine between a bfloat16 embedding and the float32 one."""
        exact, _ = self.forward_float32(squares)
        fast, _ = self.forward_bfloat16(squares)
        return F.cosine_similarity(exact.float(), fast.float()).min().item()

    def _fastest(self) -> "Forward":
        size = self.preprocessing.size
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(0, 256, (16, 3, size, size), generator=generator).byte()
        cosine = self.likeness(noise.to(self.device))
        if cosine < MIN_COSINE:
            self.precision = f"float32 (bfloat16 refused: cosine {cosine:.5f} < {MIN_COSINE})"
            return self.forward_float32
        self.precision = f"bfloat16 (cosine {cosine:.5f} to float32)"
        if self.device.type == "cuda":
            compiled: Forward = torch.compile(self.forward_bfloat16)
            return compiled
        return self.forward_bfloat16
