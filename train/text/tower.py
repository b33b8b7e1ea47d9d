"""The frozen text tower of CLIP, run live over the tree that all prompts form (Eq. 3).

CLIP's text transformer is causal, so prompts that begin alike share their rows exactly.
`tree.py` says which rows there are: P for SOT and the context, then L for each video
with its names.  All of them go through one matrix product a layer, packed, without padding;
only attention looks at the tree, where a mask says which rows are a row's beginning.

What no result needs is not computed: the first layer's queries, keys and values of a name are
the same for all videos, and the last layer finishes EOT rows, and word rows when asked.

B videos, k categories, N words (tokens) of a name, padded, M context tokens, Q rows of a
video, W width of the tower, D joint width, P = 1 + M, L rows of a video with its names.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from bieff.features.errors import InputError
from bieff.train.text.block import (
    attend,
    attend_in_groups,
    divide,
    finish,
    freeze,
    in_projection,
    join,
    pack,
    run_whole,
    unpack,
)
from bieff.train.text.tree import Names, Tree, bring


class TextTower(nn.Module):
    """CLIP's text tower for one list of names, frozen (also in the CLIP that was given).

    Differentiable with respect to the context and the videos' rows.

    Args:
        clip: An open_clip model whose text tower is causal and pooled at EOT.
        tokens: The bare names with SOT and EOT, padded, as `Clip.tokenize` gives them.
        num_start: Tokens before a name's own: 1, or 0 where the tokenizer has no SOT.

    Raises:
        InputError: If the text tower is of another kind.
    """

    token_rows: Tensor  # the few of CLIP's table that occur
    position_rows: Tensor
    padded: Tensor  # (K, length - 1)
    start_rows: Tensor  # SOT's, or none

    products: torch.dtype
    """Type of the frozen matrices."""

    def __init__(
        self, clip: nn.Module, tokens: Int[Tensor, "K length"], *, num_start: int = 1
    ) -> None:
        super().__init__()
        if reason := not_a_tree(clip):
            raise InputError(
                f"text tower: expected a causal transformer pooled at its end token, {reason}; "
                "choose another CLIP, such as ViT-B-16-quickgelu"
            )
        tower: Any = getattr(clip, "text", clip)
        pool, eos = pool_of(tower)
        self.names = Names(
            tokens,
            end=eos if pool == "eos" else int(tokens.max()),
            context_length=tower.context_length,
            num_start=num_start,
        )
        self.num_names = len(tokens)
        self.blocks = freeze(tower.transformer.resblocks)
        self.ln_final = tower.ln_final.requires_grad_(False)
        weight = tower.token_embedding.weight.detach()
        self.dtype: torch.dtype = tower.transformer.get_cast_dtype()
        self.width: int = weight.shape[1]
        token_rows = weight[self.names.vocabulary.to(weight.device)].to(self.dtype)
        position_rows = tower.positional_embedding.detach().to(self.dtype)
        self.register_buffer("token_rows", token_rows, persistent=False)
        self.register_buffer("position_rows", position_rows, persistent=False)
        self.register_buffer("padded", self.names.padded, persistent=False)
        start_rows = token_rows[self.names.start.to(weight.device)]
        self.register_buffer("start_rows", start_rows, persistent=False)
        self.products = self.dtype
        self.projection = tower.text_projection
        if self.projection is not None:
            self.projection.requires_grad_(False)

    def multiply_in(self, dtype: torch.dtype) -> None:
        """Keep the frozen matrices in the type that autocast would cast them to at every step.

        Numbers under autocast stay the same; without it the tower no longer runs.  Norms keep
        their type, and the CLIP that was given its weights.
        """
        self.products = dtype
        self.blocks = copy.deepcopy(self.blocks)
        self.projection = copy.deepcopy(self.projection)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear | nn.MultiheadAttention):
                for kept in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                    kept.data = kept.data.to(dtype)
        if isinstance(self.projection, nn.Module):
            self.projection.to(dtype)
        elif self.projection is not None:
            self.projection.data = self.projection.data.to(dtype)

    @property
    def device(self) -> torch.device:
        """The device that the tower is on."""
        return self.token_rows.device

    @property
    def dim(self) -> int:
        """D, width of the joint space."""
        if isinstance(self.projection, nn.Linear):
            return self.projection.out_features
        return self.width if self.projection is None else int(self.projection.shape[1])

    def forward(
        self,
        context: Float[Tensor, "M W"] | None,
        video: Float[Tensor, "B Q W"] | None,
        *,
        categories: Int[Tensor, " k"] | None = None,
    ) -> "Prompted":
        """Encode the prompts `[SOT] context video_b name_k [EOT]` of all b and k.

        Args:
            context: The same for all videos; None: no context, M = 0.
            video: Each video's own rows; None: one result for all videos, B = 1, Q = 0.
            categories: Which of the names, in which order; all by default.  A tensor on the
                CPU saves a wait for the device.

        Raises:
            InputError: If the longest prompt does not fit the tower.
        """
        rows, positions = self.token_rows, self.position_rows
        if context is None:
            context = rows.new_empty(0, self.width)
        if video is None:
            video = rows.new_empty(1, 0, self.width)
        tree = self.prompt_tree(len(context), video.shape[1], categories=categories)
        prefix = torch.cat([self.start_rows, context.to(self.dtype)])
        prefix = prefix + positions[: tree.num_prefix]
        video = video.to(self.dtype) + positions[tree.num_prefix :][: video.shape[1]]
        names = rows[tree.tokens] + positions[tree.positions]

        parts = prefix, video, names
        own = torch.cat([video, names.expand(len(video), -1, -1)], dim=1)
        x = torch.cat([prefix, own.flatten(0, 1)])
        for index, block in enumerate(self.blocks[:-1]):
            if index == 0:  # before any attention, the names' rows are the same for all videos
                q, *kv = join(*(in_projection(block, part) for part in parts)).chunk(3, dim=2)
            else:
                q, *kv = unpack(in_projection(block, x), tree, 3)
            attended = attend_in_groups(block, divide(q, tree.sizes), kv, tree)
            x = finish(block, x, pack(attended, tree))
        return Prompted(self, tree, x, beginning=(prefix, video), categories=categories)

    def max_videos(
        self,
        free_bytes: float,
        *,
        num_context: int,
        num_video_rows: int,
    ) -> int:
        """Videos that fit in memory at once under `torch.no_grad` with all names, at least one.

        An estimate from above: a row takes up to 16 times its width in the feed-forward.
        """
        tree = self.prompt_tree(num_context, num_video_rows)
        numbers = 18 * self.width * (tree.num_rows + tree.num_prefix)
        return max(1, int(free_bytes / (numbers * self.token_rows.element_size())))

    def require_fit(self, num_context: int, num_video_rows: int) -> None:
        """Refuse prompts that are too long for the tower, with any of the names."""
        self.prompt_tree(num_context, num_video_rows)

    def num_rows(
        self,
        num_context: int,
        num_video_rows: int,
        num_videos: int,
        categories: Int[Tensor, " k"],
    ) -> int:
        """Rows of the tree of a batch."""
        tree = self.prompt_tree(num_context, num_video_rows, categories=categories)
        return tree.num_prefix + (num_videos if num_video_rows else 1) * tree.num_rows

    def prompt_tree(
        self,
        num_context: int,
        num_video_rows: int,
        *,
        categories: Int[Tensor, " k"] | None = None,
    ) -> Tree:
        """The tree that these prompts form; all names by default."""
        return self.names.tree(
            torch.arange(self.num_names) if categories is None else categories,
            num_context=num_context,
            num_video_rows=num_video_rows,
            device=self.token_rows.device,
            dtype=self.products,
        )


class Prompted:
    """Prompts as the text tower encodes them: one row a class, and words on demand.

    Keeps the input of the last block, which is run for the rows that are asked for only.
    """

    classes: Float[Tensor, "B k D"]
    """The EOT rows in the joint space, not normalised: c of Eq. 3."""

    def __init__(
        self,
        tower: TextTower,
        tree: Tree,
        x: Float[Tensor, "rows W"],
        *,
        beginning: tuple[Float[Tensor, "P W"], Float[Tensor, "B Q W"]],
        categories: Int[Tensor, " k"] | None,
    ) -> None:
        self._tower, self._tree, self._block = tower, tree, tower.blocks[-1]
        self._beginning, self._categories = beginning, categories
        self._x = x[tree.num_prefix :].view(-1, tree.num_rows, tower.width)
        kv = in_projection(self._block, x, slice(tower.width, None))
        (self._kv,) = unpack(kv, tree)
        self.classes = self._classes()

    def _classes(self) -> Tensor:
        tree = self._tree
        sizes = [(group.num_rows - group.num_names, group.num_names) for group in tree.groups]
        ends = self._x.split([size for pair in sizes for size in pair], dim=1)[1::2]
        x = ends[0] if len(ends) == 1 else torch.cat(ends, dim=1)
        queries = divide(self._queries(x), [num_names for _, num_names in sizes])
        attended = attend_in_groups(self._block, queries, self._kv.chunk(2, dim=2), tree)
        classes = self._project(x, attended)
        return classes if tree.order is None else classes[:, tree.order]

    def words(
        self, picked: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B N D"], Bool[Tensor, "B N"]]:
        """The words of one category for each video: w of Eq. 8.

        Args:
            picked: Index into the categories that the prompts were made of.

        Returns:
            The rows of the name's tokens, EOT excluded, in the joint space, not normalised,
            arbitrary at padding; and True where a word is real.
        """
        tree, count = self._tree, len(picked)
        rows = tree.words[picked][:, :, None]  # (B, N, 1)
        x, kv = (part.expand(count, -1, -1) for part in (self._x, self._kv))
        x = x.gather(1, rows.expand(-1, -1, x.shape[2]))
        own = kv.gather(1, (rows + tree.num_prefix).expand(-1, -1, kv.shape[2]))
        kv = torch.cat([kv[:, : tree.num_shared], own], dim=1)
        attended = attend(self._block, self._queries(x), kv.chunk(2, dim=2), tree.path_mask)
        return self._project(x, attended), tree.word_mask[picked]

    def positions(
        self, picked: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B length D"], Bool[Tensor, "B length"]]:
        """Every position of one prompt for each video: what the authors' release calls words.

        From SOT over context and name to the last of the padding, which CLIP's tower computes
        like any token.  The tree has no such rows: the prompts are encoded whole, once more.

        Args:
            picked: Index into the categories that the prompts were made of.

        Returns:
            The rows in the joint space, not normalised; and True everywhere.
        """
        tower, count = self._tower, len(picked)
        beginning = torch.cat([rows.expand(count, -1, -1) for rows in self._beginning], dim=1)
        if self._categories is not None:
            picked = bring(self._categories, picked.device)[picked]
        left = tower.names.context_length - beginning.shape[1]
        rows = tower.token_rows[tower.padded[picked, :left]]
        rows = rows + tower.position_rows[beginning.shape[1] :]
        x = run_whole(tower.blocks, torch.cat([beginning, rows], dim=1))
        return self._joint(x), x.new_ones(x.shape[:2], dtype=torch.bool)

    def word_similarity(self, pooled: Float[Tensor, "B D"]) -> Float[Tensor, "B k"]:
        """Sum over the words of each category of their cosine with a vector a video (Table 8).

        Finishes all rows of the last block, which `classes` and `words` avoid.
        """
        tree = self._tree
        queries = divide(self._queries(self._x), [group.num_rows for group in tree.groups])
        attended = attend_in_groups(self._block, queries, self._kv.chunk(2, dim=2), tree)
        rows = F.normalize(self._project(self._x, attended), dim=-1)
        cosine = (rows @ F.normalize(pooled, dim=-1)[:, :, None]).squeeze(2)  # (B, L)
        return (cosine[:, tree.words] * tree.word_mask).sum(dim=2)

    def _queries(self, x: Float[Tensor, "B n W"]) -> Float[Tensor, "B n W"]:
        return in_projection(self._block, x, slice(0, self._tower.width))

    def _project(
        self, x: Float[Tensor, "B n W"], attended: Float[Tensor, "B n W"]
    ) -> Float[Tensor, "B n D"]:
        return self._joint(finish(self._block, x, attended))

    def _joint(self, x: Float[Tensor, "B n W"]) -> Float[Tensor, "B n D"]:
        return project(self._tower.ln_final, self._tower.projection, x)


def project(
    norm: nn.Module, projection: Any, x: Float[Tensor, "*rows W"]
) -> Float[Tensor, "*rows D"]:
    """The last block's rows in the joint space."""
    x = norm(x)
    if isinstance(projection, nn.Module):
        return projection(x)  # type: ignore[no-any-return]
    return x if projection is None else x @ projection


def pool_of(tower: Any) -> tuple[str, int]:
    """Row that open_clip's tower is pooled at, by its word for it, and the id of its EOT."""
    if hasattr(tower, "text_pool_type"):
        return tower.text_pool_type, tower.text_eos_id
    return tower.pool_type, tower.eos_id


def not_a_tree(clip: nn.Module) -> str:
    """Why the prompts of a CLIP form no tree; empty where they do."""
    tower: Any = getattr(clip, "text", clip)
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
    if blocks is None or not hasattr(tower, "positional_embedding"):
        return f"got {type(tower).__name__}, which is not open_clip's own transformer"
    if len(tower.positional_embedding) != tower.context_length:
        return "got one that reads a class embedding at the end (CoCa)"
    if tower.attn_mask is None:
        return "got a bidirectional one"
    if pool_of(tower)[0] not in ("argmax", "eos"):
        return f"got one pooled at {pool_of(tower)[0]!r}"
    if not all(isinstance(block.attn, nn.MultiheadAttention) for block in blocks):
        return f"got blocks of type {type(blocks[0]).__name__}"
    return ""
