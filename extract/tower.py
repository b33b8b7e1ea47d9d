"""The frozen visual tower: crops in, embeddings out (Eq. 1).

n crops of size x size pixels, D joint width, P patches of width U in the tower.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from bieff.clip import Clip, Preprocessing
from bieff.extract.views import Crop
from bieff.features.errors import InputError
from bieff.features.files import keep_freed_memory
from bieff.features.schema import ShardData


def cut(
    frames: UInt8[Tensor, "n H W 3"], crop: Crop, looks: Preprocessing
) -> UInt8[Tensor, "n 3 size size"]:
    """Cut the box, resize it (antialiased), cut the square or add the bars, mirror.

    Rounded to 8 bits between resizing and normalising, as images on disk and PIL are: resized
    as Pillow does it, bit for bit, or in torch's floats where `looks` says so.
    """
    top, left, height, width = crop.box
    pixels = frames[:, top : top + height, left : left + width].permute(0, 3, 1, 2)
    # what is seen of the resized box; all of a side that has bars
    rows, columns = (slice(max(first, 0), max(first, 0) + crop.size) for first in crop.corner)
    if looks.resize == "torch" and (height, width) != crop.resized:
        resized = F.interpolate(
            pixels.float(),
            size=crop.resized,
            mode="bicubic",
            align_corners=False,
            antialias=True,
        )
        pixels = resized.round_().clamp_(0, 255).byte()[:, :, rows, columns]
    else:
        fewer, thinner = height - crop.resized[0], width - crop.resized[1]
        sides = [(3, crop.resized[1], columns), (2, crop.resized[0], rows)]
        if fewer > 2 * max(thinner, 0):
            sides.reverse()  # so Pillow 13 does it
        for side, size, part in sides:
            pixels = _resize(pixels, side, size, part, looks.interpolation)
    above, before = (max(-first, 0) for first in crop.corner)
    below, behind = (
        crop.size - bars - side
        for bars, side in zip((above, before), pixels.shape[2:], strict=True)
    )
    pixels = F.pad(pixels, (before, behind, above, below), value=looks.fill)
    return pixels.flip(-1) if crop.mirrored else pixels.contiguous()


_BITS = 22
"""Binary places of Pillow's weights (`PRECISION_BITS` of its Resample.c)."""

_TILE = 32
"""Rows or columns that are made by one matrix product."""


def _resize(
    pixels: UInt8[Tensor, "n c h w"], side: int, size: int, part: slice, interpolation: str
) -> UInt8[Tensor, "n c H W"]:
    """Resize height (2) or width (3) to `size`, antialiased, and cut a part out of it.

    Pillow adds up whole numbers; all of them are exact in float64.
    """
    length = pixels.shape[side]
    start, stop, _ = part.indices(size)
    if length == size:
        return pixels.narrow(side, start, stop - start)
    made = []
    for first, weights in _tiles(length, size, start, stop, interpolation, pixels.device):
        some = pixels.narrow(side, first, len(weights))
        some = some.to(torch.float64, memory_format=torch.contiguous_format)
        total = some @ weights if side == 3 else weights.mT @ some
        made.append(total.add_(0.5).floor_().clamp_(0, 255).byte())
    return torch.cat(made, dim=side)


@lru_cache(maxsize=256)
def _tiles(
    length: int, size: int, start: int, stop: int, interpolation: str, device: torch.device
) -> list[tuple[int, Float[Tensor, "span tile"]]]:
    """What makes new pixels from `start` to `stop`: the first old one of some, and weights."""
    first, weights = _taps(length, size, interpolation)
    made = []
    for begin in range(start, stop, _TILE):
        chosen = slice(begin, min(begin + _TILE, stop))
        places = first[chosen] - first[begin] + torch.arange(len(weights))[:, None]
        full = torch.zeros(int(places.max()) + 1, places.shape[1], dtype=torch.float64)
        full.scatter_(0, places, weights[:, chosen])
        span = min(len(full), length - int(first[begin]))  # no weight lies behind the picture
        made.append((int(first[begin]), full[:span].to(device)))
    return made


def _taps(
    length: int, size: int, interpolation: str
) -> tuple[Int[Tensor, " size"], Float[Tensor, "k size"]]:
    """The first pixel that enters each new one, and the weights of k from there on."""
    scale = length / size
    reach = {"bilinear": 1.0, "bicubic": 2.0}[interpolation] * max(scale, 1.0)
    centre = (torch.arange(size, dtype=torch.float64) + 0.5) * scale
    first = (centre - reach + 0.5).clamp(min=0).long()
    last = (centre + reach + 0.5).clamp(max=length).long()
    place = first + torch.arange(int((last - first).max()))[:, None]
    x = ((place - centre + 0.5) / max(scale, 1.0)).abs()
    if interpolation == "bilinear":
        weights = (1 - x).clamp(min=0)
    else:  # Keys' kernel with a = -0.5
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = torch.where(x < 1, near, torch.where(x < 2, far, 0))
    weights = torch.where(place < last, weights, 0)
    return first, (weights / weights.sum(dim=0) * 2**_BITS).round() / 2**_BITS


def normalise(
    pixels: UInt8[Tensor, "n 3 size size"],
    *,
    mean: Sequence[float] | Tensor,
    std: Sequence[float] | Tensor,
) -> Float[Tensor, "n 3 size size"]:
    """Pixels from 0..255 to zero mean and unit deviation, channel by channel; float32."""
    scale = 255 * torch.as_tensor(std, device=pixels.device)
    shift = 255 * torch.as_tensor(mean, device=pixels.device)
    return (pixels.float() - shift[:, None, None]) / scale[:, None, None]


PATCH_NORM = "final"
"""What a recipe says of its patch tokens: the tower's final norm comes before the normalisation
that is stored.  Stores that say nothing of it are older, and left it out."""


def patches_of(clip: Clip) -> tuple[int, int]:
    """P and U: patch tokens of a crop, and their width in the tower.

    Raises:
        InputError: If the tower has none, or no norm for each of them.
    """
    visual: Any = clip.model.visual
    trunk: Any = getattr(visual, "trunk", None)  # timm's towers stand in one of open_clip's
    if hasattr(trunk, "blocks"):
        # the grid is that of its own size; open_clip shows ViTamin-XL-384 256 pixels
        side, embed = clip.preprocessing.size, trunk.patch_embed
        sides = zip(embed.grid_size, embed.img_size, strict=True)
        return math.prod(grid * side // full for grid, full in sides), int(trunk.embed_dim)
    if getattr(visual, "attn_pool", visual) is None:
        return math.prod(visual.grid_size), int(visual.transformer.width)
    raise InputError(
        f"CLIP {str(clip.name)!r} has no patch tokens; choose a vision transformer without "
        "attentional pooling, or leave --context out"
    )


Forward = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""One batch of crops -> embeddings, and patch tokens or None."""

MIN_COSINE = 0.9995
"""Least likeness of a bfloat16 embedding to the float32 one, crop by crop."""

_NUM_PROBES = 16
"""Crops that the likeness is measured on."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Embeddings, and patch tokens if asked for, of n crops."""

    embeddings: Float[Tensor, "n D"]
    """Projected, not normalised; float32."""

    patches: Float[Tensor, "n P U"] | None
    """Patch tokens after the final norm, normalised once more, if asked for; float32."""


class VisualTower:
    """Encodes crops in batches of one fixed size, the last one padded.

    The fixed size keeps compiled kernels, and makes an embedding independent of how many
    crops came with it.  On CUDA the tower is compiled and runs in bfloat16, if it agrees
    with float32 there; `precision` says what came of it.

    Args:
        clip: Where the tower comes from; moved to `device`, otherwise not changed.
        device: Where it runs.
        batch_size: Crops a batch.
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
        if device.type == "cpu":
            keep_freed_memory()
        self.device = device
        self.batch_size = batch_size
        self.preprocessing = clip.preprocessing
        self.wants_patches = wants_patches
        model: Any = clip.model
        self._visual: Any = model.visual.to(device)
        # on the device once: making them there would wait for all that is queued, every batch
        self._mean = torch.tensor(clip.preprocessing.mean, device=device)
        self._std = torch.tensor(clip.preprocessing.std, device=device)
        self._uploads = torch.cuda.Stream(device) if device.type == "cuda" else None
        if wants_patches:
            patches_of(clip)
        self.precision = "float32"
        self._forward: Forward = self.forward_float32
        if device.type == "cuda" if reduced is None else reduced:
            self._forward = self._fastest()

    def upload(self, frames: UInt8[Tensor, "n H W 3"]) -> UInt8[Tensor, "n H W 3"]:
        """Bring frames to the device, while it works on those before."""
        if self._uploads is None:
            return frames.to(self.device)
        now = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._uploads):
            there = frames.pin_memory().to(self.device, non_blocking=True)
        now.wait_stream(self._uploads)
        there.record_stream(now)
        return there

    @torch.inference_mode()
    def encode(self, crops: UInt8[Tensor, "n 3 size size"]) -> Encoded:
        """Embed any number of crops; they may lie on another device."""
        embeddings, patches = [], []
        for batch in crops.split(self.batch_size):
            padding = self.batch_size - len(batch)
            full = F.pad(batch, (0, 0, 0, 0, 0, 0, 0, padding)) if padding else batch
            embedded, tokens = self._forward(full.to(self.device, non_blocking=True))
            embeddings.append(embedded[: len(batch)].float())
            if tokens is not None:
                patches.append(tokens[: len(batch)])
        return Encoded(torch.cat(embeddings), torch.cat(patches) if patches else None)

    def forward_float32(self, crops: Tensor) -> tuple[Tensor, Tensor | None]:
        """One batch, without autocast: what every faster way is held against."""
        pixels = normalise(crops, mean=self._mean, std=self._std)
        if not self.wants_patches:
            embedded = self._visual(pixels)
            # CoCa's gives the tokens for its captions too
            return embedded[0] if isinstance(embedded, tuple) else embedded, None
        result = self._visual.forward_intermediates(
            pixels, indices=1, normalize_intermediates=True, output_fmt="NLC"
        )
        tokens = result["image_intermediates"][0].float()
        return result["image_features"], F.layer_norm(tokens, tokens.shape[-1:])

    def forward_bfloat16(self, crops: Tensor) -> tuple[Tensor, Tensor | None]:
        """One batch, with bfloat16 matrix products."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            return self.forward_float32(crops)

    @torch.inference_mode()
    def likeness(self, forward: Forward, crops: UInt8[Tensor, "n 3 size size"]) -> float:
        """Least cosine between an embedding and the float32 one; at most a batch of crops."""
        full = F.pad(crops, (0, 0, 0, 0, 0, 0, 0, self.batch_size - len(crops)))
        exact, fast = (way(full)[0][: len(crops)] for way in (self.forward_float32, forward))
        cosine = F.cosine_similarity(exact.float(), fast.float()).min().item()
        return cosine if math.isfinite(cosine) else -1.0

    def _fastest(self) -> Forward:
        """The fastest way that agrees with float32, measured as it will run."""
        probes = _probes(min(_NUM_PROBES, self.batch_size), self.preprocessing.size)
        forward: Forward = self.forward_bfloat16
        how = ""
        try:
            if self.device.type == "cuda":
                forward = torch.compile(self.forward_bfloat16)
                how = ", compiled"
            cosine = self.likeness(forward, probes.to(self.device))
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{self.device} has no room for batches of {self.batch_size} crops; make "
                "them smaller with --set batch_size=N"
            ) from error
        except RuntimeError as error:  # no compiler on this machine, or not for this model
            forward, how = self.forward_bfloat16, f", not compiled ({_first_line(error)})"
            cosine = self.likeness(forward, probes.to(self.device))
        if cosine < MIN_COSINE:
            self.precision = f"float32 (bfloat16 refused: cosine {cosine:.5f} < {MIN_COSINE})"
            return self.forward_float32
        self.precision = f"bfloat16{how} (cosine {cosine:.5f} to float32)"
        return forward


def _probes(count: int, size: int) -> UInt8[Tensor, "n 3 size size"]:
    """Noise at all scales, from single pixels to colours of the whole crop."""
    generator = torch.Generator().manual_seed(0)
    crops = []
    for i in range(count):
        side = max(1, min(size, 4 << i % 6))
        coarse = torch.rand(1, 3, side, side, generator=generator)
        crops.append(F.interpolate(coarse, size=(size, size), mode="bilinear"))
    return (255 * torch.cat(crops)).byte()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:100]


_QUEUED_BATCHES = 2
"""Batches that a GPU may have in front of it; more would only fill memory."""


class CropStream:
    """Takes videos in the order of rows, gives the rows back when all are encoded.

    The order of the crops decides which of them share a batch, and so the last bits of
    their embeddings; that a shard always starts a batch makes them the same in every run.
    """

    def __init__(self, tower: VisualTower, num_frames: int) -> None:
        self._tower = tower
        self._rows: list[int] = []
        self._waiting: deque[Tensor] = deque()
        self._num_waiting = 0
        self._embeddings: list[Tensor] = []
        self._means = ViewMeans(num_frames)
        self._queued: deque[torch.cuda.Event] = deque()

    def add(self, row: int, crops: UInt8[Tensor, "VT 3 size size"]) -> None:
        """Take the crops of a video's views; encode as many as fill batches."""
        self._rows.append(row)
        self._waiting.append(crops)
        self._num_waiting += len(crops)
        while self._num_waiting >= self._tower.batch_size:
            self._encode(self._tower.batch_size)

    def close(self) -> None:
        """Encode what is left, the batch padded."""
        if self._num_waiting:
            self._encode(self._num_waiting)

    def fill(self, data: ShardData) -> None:
        """Put everything into the rows it belongs to; waits for the device."""
        if not self._rows:
            return
        shape = (len(self._rows), *data.embeddings.shape[1:])
        data.embeddings[self._rows] = torch.cat(self._embeddings).cpu().numpy().reshape(shape)
        if data.patches is not None:
            shape = (len(self._rows), *data.patches.shape[1:])
            means = torch.stack(self._means.finished).cpu().numpy()
            data.patches[self._rows] = means.reshape(shape)

    def _encode(self, count: int) -> None:
        parts, missing = [], count
        while missing:
            part = self._waiting.popleft()
            parts.append(part[:missing])
            if len(part) > missing:
                self._waiting.appendleft(part[missing:])
            missing -= len(parts[-1])
        self._num_waiting -= count
        encoded = self._tower.encode(torch.cat(parts))
        self._embeddings.append(encoded.embeddings.half())
        if encoded.patches is not None:
            self._means.add(encoded.patches)
        if self._tower.device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self._tower.device))
            self._queued.append(event)
            if len(self._queued) > _QUEUED_BATCHES:
                self._queued.popleft().synchronize()


class ViewMeans:
    """The mean over time of every view's patch tokens, from batches that cut across views.

    Sums in float32 as the tokens pass by, so that no more than a batch of them is ever held.
    """

    def __init__(self, num_frames: int) -> None:
        self._num_frames = num_frames
        self._sum: Tensor | None = None
        self._count = 0
        self.finished: list[Float[Tensor, "P U"]] = []
        """float16, view by view."""

    def add(self, tokens: Float[Tensor, "n P U"]) -> None:
        """The tokens of the next n crops."""
        while len(tokens):
            part = tokens[: self._num_frames - self._count]
            tokens = tokens[len(part) :]
            summed = part.float().sum(dim=0)
            self._sum = summed if self._sum is None else self._sum + summed
            self._count += len(part)
            if self._count == self._num_frames:
                self.finished.append((self._sum / self._num_frames).half())
                self._sum, self._count = None, 0
