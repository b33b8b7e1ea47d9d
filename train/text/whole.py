"""Text towers whose prompts form no tree: every prompt whole, as open_clip encodes it.

SigLIP, CLIPA and MobileCLIP's S sizes are bidirectional: a row depends on all others, the
padding included, so that no prompts share rows.  Their blocks are run here, the last one for
the rows that are asked for.  Any other tower (CoCa's class embedding, transformers' models) is
asked by its own `encode_text`, with other rows in place of its token embedding's.

Prompts are taken in chunks.  What a chunk's backward pass needs is computed once more instead
of kept: block by block, or the chunk from its beginning where even the blocks' inputs are too
many.

B videos, k categories, N words (tokens) of a name, padded, M context tokens, Q rows of a
video, L positions, W width of the tower, D joint width.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bieff.features.errors import InputError
from bieff.train.text.block import attend, finish, freeze, in_projection, run_block
from bieff.train.text.tower import pool_of, project
from bieff.train.text.tree import require_fit

CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 512 << 20}
"""Largest tensor of a chunk, its feed-forward's.  The C library keeps blocks below 32 MiB."""

KEPT_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}
"""Blocks' inputs that are kept for a backward pass; of more prompts none are."""


class WholeTower(nn.Module):
    """CLIP's text tower for one list of names, frozen; a `TextTower` for any kind.

    Args:
        clip: An open_clip model.
        tokens: The bare names as `Clip.tokenize` gives them.
        num_start: Tokens before a name's own, 0 or 1.
        lengths: A name's own tokens.

    Raises:
        InputError: If the text tower is of no known kind.
    """

    def __init__(
        self,
        clip: nn.Module,
        tokens: Int[Tensor, "K length"],
        *,
        num_start: int,
        lengths: Int[Tensor, " K"],
    ) -> None:
        super().__init__()
        self.clip = clip.requires_grad_(False)
        self.embedding = token_embedding(clip)
        self.tower: Any = getattr(clip, "text", clip)
        self.num_start, self.lengths = num_start, lengths.cpu()
        self.num_names, self.context_length = tokens.shape
        self.is_plain = _is_plain(self.tower, tokens.cpu(), num_start + self.lengths)
        self.blocks: Any = freeze(self.tower.transformer.resblocks) if self.is_plain else ()
        weight = self.embedding.weight
        self.width: int = weight.shape[1]
        self.tokens: Tensor
        self.register_buffer("tokens", tokens.to(weight.device), persistent=False)
        self._remembered: tuple[Any, Tensor | None, tuple[Tensor, Tensor]] | None = None

    @property
    def device(self) -> torch.device:
        """The device that the tower is on."""
        return self.tokens.device

    def forward(
        self,
        context: Float[Tensor, "M W"] | None,
        video: Float[Tensor, "B Q W"] | None,
        *,
        categories: Int[Tensor, " k"] | None = None,
    ) -> "WholePrompted":
        """Encode the prompts as `TextTower` does.

        Where no row before the names learns or is a video's, all names are encoded once and
        remembered.

        Raises:
            InputError: If the longest prompt does not fit the tower.
        """
        every = torch.arange(self.num_names)
        chosen = every if categories is None else categories.cpu()
        num_context = 0 if context is None else len(context)
        num_video_rows = 0 if video is None else video.shape[1]
        self.require_fit(num_context, num_video_rows, categories=chosen)
        first = self.num_start + num_context + num_video_rows
        learns = torch.is_grad_enabled() and context is not None and context.requires_grad
        if video is None and not learns:
            with torch.no_grad():
                found = self._remember(context, every)
            return WholePrompted(self, *found, chosen=chosen, place=chosen, first=first)
        found = self._encode(context, video, chosen)
        place = torch.arange(len(chosen))
        return WholePrompted(self, *found, chosen=chosen, place=place, first=first)

    def require_fit(
        self,
        num_context: int,
        num_video_rows: int,
        *,
        categories: Int[Tensor, " k"] | None = None,
    ) -> None:
        """Refuse prompts that are too long; those of all names by default."""
        lengths = self.lengths if categories is None else self.lengths[categories]
        require_fit(
            int(lengths.max()),
            num_start=self.num_start,
            num_context=num_context,
            num_video_rows=num_video_rows,
            context_length=self.context_length,
        )

    def max_videos(self, free_bytes: float, *, num_context: int, num_video_rows: int) -> int:
        """Videos that fit in memory at once under `torch.no_grad` with all names, at least one.

        An estimate from above: the last block's inputs are there twice; without a row of the
        video there are classes alone, which the model widens.
        """
        self.require_fit(num_context, num_video_rows)
        rows = 2 * self.context_length if num_video_rows else 18
        numbers = rows * self.num_names * self.width
        free = free_bytes - 6 * self._limit(CHUNK_BYTES)
        return max(1, int(free / (numbers * self.embedding.weight.element_size())))

    def num_rows(
        self, num_context: int, num_video_rows: int, num_videos: int, categories: Tensor
    ) -> int:
        """Rows that a batch of prompts has."""
        return (num_videos if num_video_rows else 1) * len(categories) * self.context_length

    def _remember(self, context: Tensor | None, every: Tensor) -> tuple[Tensor, Tensor]:
        autocast = torch.is_autocast_enabled(self.device.type)
        if self._remembered is not None:
            kind, before, found = self._remembered
            is_same = before is context or (
                before is not None and context is not None and torch.equal(before, context)
            )
            if kind == autocast and is_same:
                return found
        found = self._encode(context, None, every)
        self._remembered = (autocast, None if context is None else context.clone(), found)
        return found

    def _encode(
        self, context: Tensor | None, video: Tensor | None, chosen: Int[Tensor, " k"]
    ) -> tuple[Float[Tensor, "B k D"], Float[Tensor, "B k L W"]]:
        """Classes, and what their rows and words are made of: see `_chunk`."""
        num_videos = 1 if video is None else len(video)
        videos = torch.arange(num_videos).repeat_interleave(len(chosen)).to(self.device)
        names = chosen.repeat(num_videos).to(self.device)
        prompt_bytes = self.context_length * self.width * self.embedding.weight.element_size()
        depth = len(self.blocks) or 12
        learns = torch.is_grad_enabled()
        keeps = len(names) * prompt_bytes * depth <= self._limit(KEPT_BYTES)
        by_block = learns and self.is_plain and keeps
        size = self._limit(CHUNK_BYTES) // (4 * prompt_bytes)
        if learns and not by_block:  # the whole chunk's graph is there at a time
            size = self._limit(CHUNK_BYTES) // (depth * prompt_bytes)
        run = partial(self._chunk, context, video, by_block)
        if learns and not by_block:
            run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
        size = max(1, size)
        parts = zip(videos.split(size), names.split(size), strict=True)
        classes, rows = zip(*(run(*part) for part in parts), strict=True)
        shape = (num_videos, len(chosen))
        return torch.cat(classes).unflatten(0, shape), torch.cat(rows).unflatten(0, shape)

    def _chunk(
        self,
        context: Tensor | None,
        video: Tensor | None,
        by_block: bool,
        videos: Int[Tensor, " n"],
        names: Int[Tensor, " n"],
    ) -> tuple[Float[Tensor, "n D"], Float[Tensor, "n L W"]]:
        """Classes of some prompts, and the last block's input; of other towers its output."""
        ids = self.tokens[names]
        start, own = ids.split([self.num_start, ids.shape[1] - self.num_start], dim=1)
        parts = [self.embedding(start)]
        if context is not None:
            parts.append(context.to(parts[0].dtype).expand(len(names), -1, -1))
        if video is not None:
            parts.append(video[videos].to(parts[0].dtype))
        first = sum(part.shape[1] for part in parts)
        own = own[:, : self.context_length - first]
        # what has no token of its own is taken for a word of the name, never for padding
        ids = torch.cat([start, own[:, :1].expand(-1, first - self.num_start), own], dim=1)
        rows = torch.cat([*parts, self.embedding(own)], dim=1)
        if not self.is_plain:
            return self._ask(ids, rows)
        x = rows + self.tower.positional_embedding.to(rows.dtype)
        run = partial(run_block, is_causal=False)
        if by_block:
            run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
        for block in self.blocks[:-1]:
            x = run(block, x)
        ends = first + self.lengths.to(names.device)[names]
        pool, length = pool_of(self.tower)[0], x.shape[1]
        at = {"first": ends * 0, "last": ends * 0 + length - 1}.get(pool, ends)
        return self.finished(x, at[:, None])[:, 0], x

    def _ask(self, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The model's own `encode_text`, its embedding's rows replaced; and its last rows."""
        seen: list[Any] = []
        hooks = (
            self.embedding.register_forward_hook(lambda *_: rows),
            self.tower.transformer.register_forward_hook(lambda _m, _i, out: seen.append(out)),
        )
        try:
            classes = self.clip.encode_text(ids, normalize=False)  # type: ignore[operator]
        finally:
            for hook in hooks:
                hook.remove()
        final = getattr(seen[0], "last_hidden_state", seen[0])
        return classes, final[:, : self.context_length]

    def finished(
        self, x: Float[Tensor, "n L W"], at: Int[Tensor, "n rows"]
    ) -> Float[Tensor, "n rows D"]:
        """Some rows of some prompts in the joint space, from what `_chunk` gives."""
        chosen = x.gather(1, at[:, :, None].expand(-1, -1, x.shape[2]))
        if self.is_plain:
            block, width = self.blocks[-1], x.shape[2]
            q = in_projection(block, chosen, slice(0, width))
            kv = in_projection(block, x, slice(width, None)).chunk(2, dim=2)
            chosen = finish(block, chosen, attend(block, q, kv, None, is_causal=False))
        if not hasattr(self.tower, "ln_final"):
            return self.tower.proj(chosen)  # type: ignore[no-any-return]
        return project(self.tower.ln_final, self.tower.text_projection, chosen)

    def _limit(self, by_device: dict[str, int]) -> int:
        return by_device.get(self.device.type, by_device["cpu"])


class WholePrompted:
    """Prompts that were encoded whole: what `Prompted` is for the tree."""

    classes: Float[Tensor, "B k D"]
    """The pooled rows in the joint space, not normalised: c of Eq. 3."""

    def __init__(
        self,
        tower: WholeTower,
        classes: Float[Tensor, "B n D"],
        x: Float[Tensor, "B n L W"],
        *,
        chosen: Int[Tensor, " k"],
        place: Int[Tensor, " k"],
        first: int,
    ) -> None:
        self._tower, self._x, self._first = tower, x, first
        self._place = place.to(x.device)
        self._lengths = tower.lengths[chosen].to(x.device)
        self.classes = classes[:, self._place]

    def words(
        self, picked: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:
        """The words of one category for each video, as `Prompted.words`."""
        columns = torch.arange(int(self._lengths.max()), device=picked.device)
        rows = self._tower.finished(self._of(picked), self._at(columns, len(picked)))
        return rows, columns < self._lengths[picked, None]

    def positions(
        self, picked: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B length D"], Bool[Tensor, "B length"]]:
        """Every position of one prompt for each video, as `Prompted.positions`."""
        x = self._of(picked)
        columns = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        return self._tower.finished(x, columns), torch.ones_like(columns, dtype=torch.bool)

    def word_similarity(self, pooled: Float[Tensor, "B D"]) -> Float[Tensor, "B k"]:
        """Sum over the words of each category of their cosine, as in `Prompted`."""
        columns = torch.arange(int(self._lengths.max()), device=pooled.device)
        at, mask = self._at(columns, len(self._place)), columns < self._lengths[:, None]
        found, rows = [], None
        for index, video in enumerate(F.normalize(pooled, dim=-1)):
            if rows is None or len(self._x) > 1:
                x = self._x[index][self._place]
                rows = F.normalize(self._tower.finished(x, at), dim=-1)
            found.append(((rows @ video) * mask).sum(dim=1))
        return torch.stack(found)

    def _of(self, picked: Int[Tensor, " B"]) -> Float[Tensor, "B L W"]:
        videos = torch.arange(len(picked), device=picked.device)
        return self._x[videos if len(self._x) > 1 else videos * 0, self._place[picked]]

    def _at(self, columns: Int[Tensor, " N"], count: int) -> Int[Tensor, "count N"]:
        """Where the words are: from `first` on, at padding the last position."""
        at = (columns + self._first).clamp(max=self._x.shape[2] - 1)
        return at.expand(count, -1)


def token_embedding(clip: nn.Module) -> Any:
    """The module that embeds tokens: open_clip's, or that of a model of transformers.

    Raises:
        InputError: If there is none.
    """
    tower: Any = getattr(clip, "text", clip)
    inner: Any = getattr(tower, "transformer", None)
    if hasattr(tower, "token_embedding"):
        return tower.token_embedding
    if hasattr(inner, "get_input_embeddings"):
        return inner.get_input_embeddings()
    raise InputError(
        f"text tower: expected one of open_clip or of transformers, got "
        f"{type(tower).__name__}; choose another CLIP, such as ViT-B-16-quickgelu"
    )


def _is_plain(tower: Any, tokens: Int[Tensor, "K length"], ends: Int[Tensor, " K"]) -> bool:
    """True for open_clip's blocks without any mask, pooled at one row that is known."""
    if (
        not hasattr(tower, "positional_embedding")
        or len(tower.positional_embedding) != tower.context_length
        or tower.attn_mask is not None
        or getattr(tower, "use_pad_mask", False)
    ):
        return False
    pool, eos = pool_of(tower)
    pooled = {"first": ends, "last": ends, "argmax": tokens.argmax(dim=1)}
    at = {**pooled, "eos": (tokens == eos).int().argmax(dim=1)}.get(pool)
    is_known = at is not None and at.equal(ends)
    blocks = tower.transformer.resblocks
    return is_known and all(isinstance(block.attn, nn.MultiheadAttention) for block in blocks)
