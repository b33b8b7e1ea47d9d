"""Frames to the visual tower's input, on whatever device the frames are on.

Equal to open_clip's evaluation transform (PIL bicubic resize of the shorter side, centre
crop, normalise) to within the rounding of 8 bits; resizing in the decoder is not.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from bieff.extract.views import Crop


def cut(frames: UInt8[Tensor, "n H W 3"], crop: Crop) -> UInt8[Tensor, "n 3 size size"]:
    """Cut the box, resize it (antialiased bicubic), cut the square, mirror.

    Rounded to 8 bits between resizing and normalising, as images on disk and PIL are.
    """
    top, left, height, width = crop.box
    pixels = frames[:, top : top + height, left : left + width].permute(0, 3, 1, 2)
    if (height, width) != crop.resized:
        resized = F.interpolate(
            pixels.float(),
            size=crop.resized,
            mode="bicubic",
            align_corners=False,
            antialias=True,
        )
        pixels = resized.round_().clamp_(0, 255).byte()
    top, left = crop.corner
    pixels = pixels[:, :, top : top + crop.size, left : left + crop.size]
    return pixels.flip(-1) if crop.mirrored else pixels.contiguous()


def normalise(
    pixels: UInt8[Tensor, "n 3 size size"],
    *,
    mean: Sequence[float] | Tensor,
    std: Sequence[float] | Tensor,
) -> Float[Tensor, "n 3 size size"]:
    """From 0..255 to zero mean and unit deviation, channel by channel; float32."""
    scale = 255 * torch.as_tensor(std, device=pixels.device)
    shift = 255 * torch.as_tensor(mean, device=pixels.device)
    return (pixels.float() - shift[:, None, None]) / scale[:, None, None]
