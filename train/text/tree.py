"""Rows of the text tower by token: the tree that prompts with a common start form.

    [SOT] c_1..c_M              once                     the prefix, P = 1 + M rows
        video_b                 once per video           Q rows
            name_k [EOT]        once per video and name  R rows

The names' rows are the distinct beginnings of the names, each once ("playing" serves "playing
guitar" and "playing drums"), and an EOT row for every name.  The rows of one video, L = Q + R,
look the same for every video, so that a tree depends on the categories, M and Q alone.

k categories, N words (tokens) of a name, padded, M context tokens, Q rows of a video.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bieff.features.errors import InputError

GROUP_ROWS = 128
"""Names' rows that attend to one another under one mask; more names are divided into groups."""

REMEMBERED = 16
"""Trees kept, the latest used."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Some names as the rows `start` to `stop` of L: distinct beginnings, then EOT rows.

    The Q rows of the video stand before the first group's and count as its own.
    """

    start: int
    stop: int
    num_names: int

    mask: Float[Tensor, "rows keys"]
    """0 where a row attends, else -inf.  Keys: prefix, the video's rows, the names' rows.

    The first group's begins with the rows of the prefix.
    """

    @property
    def num_rows(self) -> int:
        """Rows of the names, and of the video in the first group."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """The rows of one prefix and of one video with its names."""

    num_prefix: int
    """P = 1 + M, SOT and the context; M where the tokenizer has no SOT."""

    num_video_rows: int
    """Q."""

    tokens: Int[Tensor, " R"]
    """Token of each of the names' rows, as an index into `Names.vocabulary`."""

    positions: Int[Tensor, " R"]
    """Position of each of the names' rows in the prompt."""

    groups: tuple[Group, ...]

    order: Int[Tensor, " k"] | None
    """Place of the EOT row of a category among all EOT rows; None: in the given order."""

    words: Int[Tensor, "k N"]
    """Words of a category, as rows of L; 0 at padding."""

    word_mask: Bool[Tensor, "k N"]

    path_mask: Float[Tensor, "N keys"]
    """As a group's, of one category's words behind what all names share."""

    @property
    def num_rows(self) -> int:
        """L, rows of a video with its names."""
        return self.groups[-1].stop

    @property
    def num_shared(self) -> int:
        """P + Q, rows that all names follow."""
        return self.num_prefix + self.num_video_rows

    @property
    def sizes(self) -> list[int]:
        """Rows that attend together: each group's, with the first also the prefix's."""
        first, *others = (group.num_rows for group in self.groups)
        return [self.num_prefix + first, *others]


class Names:
    """The names of a data set, tokenised; makes the tree of any choice of them.

    Args:
        tokens: SOT, the name's own tokens, EOT, padding.
        end: Id of EOT.
        context_length: Positions that the tower has.
        num_start: Tokens before the name's own: 1, or 0 where the tokenizer has no SOT.
    """

    def __init__(
        self,
        tokens: Int[Tensor, "K length"],
        *,
        end: int,
        context_length: int,
        num_start: int = 1,
    ) -> None:
        tokens = tokens.cpu()
        ends = tokens == end
        starts = tokens[:, :num_start]
        if not ends.any(dim=1).all() or not (starts == starts[0]).all():
            raise InputError(
                f"class names: expected every name tokenised between one start token and the "
                f"end token {end}, got another form; use the tokenizer of the same CLIP"
            )
        self.context_length, self.num_start = context_length, num_start
        self.lengths = ends.int().argmax(dim=1) - num_start
        """Tokens of each name, without SOT and EOT, (K,)."""

        words = tokens[:, num_start : num_start + int(self.lengths.max())]
        self.beginnings, beginning_tokens, self.depths = _distinct_beginnings(words)
        ids = torch.cat([torch.tensor([end]), beginning_tokens, tokens.flatten()])
        self.vocabulary, index = ids.unique(return_inverse=True)
        """Ids of all tokens that occur, sorted."""
        self.end = int(index[0])
        self.beginning_tokens, whole = index[1:].split([len(beginning_tokens), tokens.numel()])
        self.start = whole[:num_start]
        """SOT, or nothing, as an index into the vocabulary."""
        self.padded = whole.view_as(tokens)[:, num_start:]
        """Tokens of each name with EOT and padding, without SOT, as indices too."""
        self._remembered = lru_cache(REMEMBERED)(self._make)

    def tree(
        self,
        categories: Int[Tensor, " k"],
        *,
        num_context: int,
        num_video_rows: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> Tree:
        """Lay the prompts of some categories out; the latest trees are remembered.

        Raises:
            InputError: If the longest prompt does not fit the tower.
        """
        chosen = tuple(categories.tolist())
        return self._remembered(chosen, num_context, num_video_rows, device, dtype)

    def _make(
        self,
        chosen: tuple[int, ...],
        context: int,
        video: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Tree:
        categories = torch.tensor(chosen)
        lengths = self.lengths[categories]
        longest, num_prefix = int(lengths.max()), self.num_start + context
        require_fit(
            longest,
            num_start=self.num_start,
            num_context=context,
            num_video_rows=video,
            context_length=self.context_length,
        )

        def bring_mask(mask: Tensor, *, is_first: bool) -> Tensor:
            full = _with_shared(mask, num_prefix + video, is_first=is_first)
            return bring(full.to(dtype), device)

        order, sizes = self._divide(categories, lengths)
        groups, tokens, depths, words = [], [], [], []
        start = 0
        for part in order.split(sizes):
            inner, path, mask = _one_group(self.beginnings[categories[part]], lengths[part])
            own = video if start == 0 else 0  # the video's rows go with the first group
            rows = torch.cat(
                [self.beginning_tokens[inner], path.new_full(part.shape, self.end)]
            )
            groups.append(
                Group(
                    start=start,
                    stop=start + own + len(rows),
                    num_names=len(part),
                    mask=bring_mask(mask, is_first=start == 0),
                )
            )
            tokens.append(rows)
            depths += [self.depths[inner], lengths[part]]
            words.append(path[:, :longest] + start + own)
            start = groups[-1].stop
        place = order.argsort()
        column = torch.arange(longest)
        word_mask = column < lengths[:, None]
        return Tree(
            num_prefix=num_prefix,
            num_video_rows=video,
            tokens=bring(torch.cat(tokens), device),
            positions=bring(torch.cat(depths) + num_prefix + video, device),
            groups=tuple(groups),
            order=bring(place, device) if len(groups) > 1 else None,
            words=bring(torch.cat(words)[place].where(word_mask, 0), device),
            word_mask=bring(word_mask, device),
            path_mask=bring_mask(column[:, None] >= column, is_first=False),
        )

    def _divide(self, categories: Tensor, lengths: Tensor) -> tuple[Tensor, list[int]]:
        num_groups = math.ceil((int(lengths.sum()) + len(lengths)) / GROUP_ROWS)
        order = torch.arange(len(categories))
        if num_groups > 1:
            for column in self.beginnings[categories].T.flip(0):
                order = order[column[order].argsort(stable=True)]
        return order, [len(part) for part in order.tensor_split(num_groups) if len(part)]


def require_fit(
    longest: int, *, num_start: int, num_context: int, num_video_rows: int, context_length: int
) -> None:
    """Refuse prompts that the text tower has no positions for.

    Raises:
        InputError: If a prompt with a name of `longest` tokens does not fit.
    """
    needed = num_start + num_context + num_video_rows + longest + 1
    if needed > context_length:
        raise InputError(
            f"a prompt of {num_context} context tokens, {num_video_rows} of the video and a "
            f"name of {longest} tokens with start and end: expected at most {context_length} "
            f"tokens, got {needed}; use a smaller context (num_context), fewer frames in the "
            "prompt, or shorter names"
        )


def _distinct_beginnings(
    words: Int[Tensor, "K N"],
) -> tuple[Int[Tensor, "K N"], Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Number the distinct beginnings of the names; give the last token and depth of each."""
    numbers = torch.empty_like(words)
    tokens: list[Tensor] = []
    depths: list[Tensor] = []
    parent = torch.zeros_like(words[:, 0])
    count = 0
    base = int(words.max()) + 1
    for depth in range(words.shape[1]):
        distinct, parent = (parent * base + words[:, depth]).unique(return_inverse=True)
        numbers[:, depth] = count + parent
        tokens.append(distinct % base)
        depths.append(torch.full_like(distinct, depth))
        count += len(distinct)
    return numbers, torch.cat(tokens), torch.cat(depths)


def _one_group(
    beginnings: Int[Tensor, "k N"], lengths: Int[Tensor, " k"]
) -> tuple[Int[Tensor, " inner"], Int[Tensor, "k path"], Bool[Tensor, "rows rows"]]:
    """Rows of some names: distinct beginnings, each name's path with EOT, who sees whom."""
    column = torch.arange(beginnings.shape[1] + 1)
    is_word = column[:-1] < lengths[:, None]
    inner, inverse = beginnings[is_word].unique(return_inverse=True)
    path = torch.zeros(len(lengths), len(column), dtype=torch.int64)
    path[:, :-1][is_word] = inverse
    path[torch.arange(len(lengths)), lengths] = len(inner) + torch.arange(len(lengths))
    name, row, key = (
        (column <= lengths[:, None])[:, :, None] & (column <= column[:, None])
    ).nonzero(as_tuple=True)
    mask = torch.zeros(len(inner) + len(lengths), len(inner) + len(lengths), dtype=torch.bool)
    mask[path[name, row], path[name, key]] = True
    return inner, path, mask


def _with_shared(
    mask: Bool[Tensor, "rows rows"], shared: int, *, is_first: bool
) -> Float[Tensor, "own_and_rows keys"]:
    """Add the keys that all names share, and the first group their rows; as 0 and -inf."""
    own = shared if is_first else 0
    full = torch.ones(own + len(mask), shared + len(mask), dtype=torch.bool)
    full[own:, shared:] = mask
    full[:own] = full[:own].tril()
    return torch.zeros(full.shape).masked_fill(~full, float("-inf"))


def bring(tensor: Tensor, device: torch.device) -> Tensor:
    """As `train.data.bring`, which stands on the same floor."""
    held = tensor.pin_memory() if device.type == "cuda" else tensor
    return held.to(device, non_blocking=True)
