"""The prompt before the class name: learned context and the Pre-Prompt (paper Sec. 3.2).

B videos, C rows of visual context (T frames, or patches), M context tokens, Q rows that are
the video's own, D joint width, W text width.

A design is a class here and a line of `PROMPTS`: it is made from the settings, D, W and the
embedded words that it starts from, and makes the rows before the name from the visual context.

The paper does not say how its tokens start.  With `context_start = "random"` they are spread
like CLIP's own; with words, the first prompt of every video is those words and the name, which
frozen CLIP knows how to read.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bieff.clip import Clip
from bieff.features.errors import ConfigError, InputError
from bieff.train.config import TrainConfig
from bieff.train.method.attention import TOKEN_STD, AttentionBlock, linear, quick_gelu
from bieff.train.text.whole import token_embedding
from bieff.train.text.wording import HAND_CRAFTED


class Prompt(NamedTuple):
    """Rows before the class name, in the order the text tower sees them."""

    context: Float[Tensor, "M W"] | None = None
    """Shared by all videos."""

    video: Float[Tensor, "B Q W"] | None = None
    """Each video's own."""


class SharedPrompt(nn.Module):
    """A context that no video enters: nothing, a template's words or M learned tokens.

    The prompts "none", "hand-crafted" and "learnable" of Tables 4 and 5.
    """

    context: Tensor | None

    def __init__(
        self, config: TrainConfig, dim: int, text_width: int, words: Tensor | None = None
    ) -> None:
        super().__init__()
        if config.prompt == "learnable":
            self.context = learned_tokens(config.num_context, text_width, words)
        else:
            self.register_buffer("context", words, persistent=False)

    def forward(self, visual: Float[Tensor, "B C D"]) -> Prompt:
        """Return the same context whatever the video."""
        return Prompt(context=self.context)


class PrePrompt(nn.Module):
    """M learned context tokens, then c_v, which the Meta-Net draws from the video (Eq. 6).

    A learned meta-token attends to the visual context; the Adapter takes the result to the
    text tower's width.  The paper's Adapter is Linear D -> D/4, GELU, Linear -> W.  The
    release's (`adapter = "residual"`) keeps width D, adds its input, uses QuickGELU and starts
    as the identity; design A3 of Table 6 has none.  Where that ends in width D and W differs,
    a bias-free layer follows, which the paper's CLIP does not need.

    Started from words, c_v starts as the last of them whatever the video: the Adapter's last
    layer is zero but for its offset.  Without that layer the meta-token is the word, which
    takes D = W; what the release's `meta_attention = "bare"` finds is small then, not zero.
    """

    def __init__(
        self, config: TrainConfig, dim: int, text_width: int, words: Tensor | None = None
    ) -> None:
        super().__init__()
        shared, last = (None, None) if words is None else (words[:-1], words[-1])
        self.context = learned_tokens(config.num_context, text_width, shared)
        self.meta_token = nn.Parameter(torch.randn(dim) * TOKEN_STD)
        self.attention = AttentionBlock(dim, cross=True, bare=config.meta_attention == "bare")
        self.adapter: nn.Module
        if config.design == "a3":
            self.adapter = to_text(dim, text_width)
        elif config.adapter == "residual":
            self.adapter = nn.Sequential(ResidualAdapter(dim), to_text(dim, text_width))
        else:
            self.adapter = Adapter(dim, text_width, last)
        if last is not None and not isinstance(self.adapter, Adapter):
            require_one_width(dim, text_width)
            self.meta_token = nn.Parameter(last.clone())

    def forward(self, visual: Float[Tensor, "B C D"]) -> Prompt:
        """Return context and c_v, one row a video."""
        found = self.attention(self.meta_token[None, None], visual)  # (B, 1, D)
        return Prompt(context=self.context, video=self.adapter(found))


class ConcatenatedPrompt(nn.Module):
    """Design A1 of Table 6: the context tokens and the visual rows as they are, Q = C.

    Started from words, the visual rows still stand between them and the name: this design does
    not start at frozen CLIP.
    """

    def __init__(
        self, config: TrainConfig, dim: int, text_width: int, words: Tensor | None = None
    ) -> None:
        super().__init__()
        self.context = learned_tokens(config.num_context, text_width, words)
        self.to_text = to_text(dim, text_width)

    def forward(self, visual: Float[Tensor, "B C D"]) -> Prompt:
        """Return context and one row a visual row."""
        return Prompt(context=self.context, video=self.to_text(visual))


class QueryingPrompt(nn.Module):
    """Design A2 of Table 6: the context tokens query the video; what they find is the prompt.

    All M rows are the video's own.  They start as the context tokens, a learnable prompt; from
    words that takes D = W.
    """

    def __init__(
        self, config: TrainConfig, dim: int, text_width: int, words: Tensor | None = None
    ) -> None:
        super().__init__()
        if words is not None:
            require_one_width(dim, text_width)
        self.context = learned_tokens(config.num_context, dim, words)
        self.attention = AttentionBlock(dim, cross=True)
        self.to_text = to_text(dim, text_width)

    def forward(self, visual: Float[Tensor, "B C D"]) -> Prompt:
        """Return M rows a video and no shared context."""
        return Prompt(video=self.to_text(self.attention(self.context[None], visual)))


PROMPTS: Mapping[str, Callable[[TrainConfig, int, int, Tensor | None], nn.Module]] = {
    "none": SharedPrompt,
    "hand-crafted": SharedPrompt,
    "learnable": SharedPrompt,
    "paper": PrePrompt,
    "a1": ConcatenatedPrompt,
    "a2": QueryingPrompt,
    "a3": PrePrompt,
}
"""Prompts by the setting `prompt`, and the Pre-Prompt's by `design`."""


def make_prompt(
    config: TrainConfig,
    dim: int,
    text_width: int,
    words: Float[Tensor, "M W"] | None = None,
) -> nn.Module:
    """The module that makes what stands before the name.

    Args:
        config: Which design.
        dim: D.
        text_width: W.
        words: What it starts from; see `first_words`.

    Raises:
        ConfigError: If the design cannot start from words.
    """
    if (first_words(config) is None) != (words is None):
        raise ValueError(
            f"prompt={config.prompt!r}, context_start={config.context_start!r} and embedded "
            "words do not go together"
        )
    name = config.design if config.prompt == "pre-prompt" else config.prompt
    return PROMPTS[name](config, dim, text_width, words)


class Adapter(nn.Module):
    """Linear D -> D/4, GELU, Linear D/4 -> W: from the visual to the textual (Eq. 6).

    With `start`, all its output is that row at first.
    """

    def __init__(
        self, dim: int, text_width: int, start: Float[Tensor, " W"] | None = None
    ) -> None:
        super().__init__()
        self.narrow = linear(dim, max(1, dim // 4))
        self.widen = linear(max(1, dim // 4), text_width, gain=1.0 if start is None else 0.0)
        if start is not None:
            self.widen.bias = nn.Parameter(start.clone())

    def forward(self, rows: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q W"]:
        """Return the rows in the text tower's width."""
        widened: Tensor = self.widen(F.gelu(self.narrow(rows)))
        return widened


class ResidualAdapter(nn.Module):
    """The release's Adapter: x + Linear(QuickGELU(Linear(x))), the identity at the start."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.narrow = linear(dim, max(1, dim // 4))
        self.widen = linear(max(1, dim // 4), dim, gain=0.0)

    def forward(self, rows: Float[Tensor, "B Q D"]) -> Float[Tensor, "B Q D"]:
        """Return the rows, adapted, in their own width."""
        widened: Tensor = self.widen(quick_gelu(self.narrow(rows)))
        return rows + widened


def first_words(config: TrainConfig) -> str | None:
    """The words before the name at the first step; None if there are none, or they are drawn.

    "This is a video about" where they are not learned (Table 5), else `context_start`.
    """
    if config.prompt == "hand-crafted":
        return HAND_CRAFTED.format("").strip()
    is_learned = config.prompt != "none" and config.context_start != "random"
    return config.context_start if is_learned else None


def embedded_words(config: TrainConfig, clip: Clip) -> Float[Tensor, "M W"] | None:
    """`first_words` as rows of CLIP's token table.

    CLIP's tokenizer never joins two words, so these rows and a bare name are the tokens of
    the sentence, and the words of the name stay apart from those before it.

    Raises:
        ConfigError: If there are no words, they do not fit CLIP's context, or CLIP has never
            learned one of them: its row is zero.
    """
    words = first_words(config)
    if words is None:
        return None
    embed = token_embedding(clip.model)

    def rows(text: str) -> Tensor:
        tokens = clip.form.words(clip.tokenize([text])[0])
        found: Tensor = embed(tokens.to(clip.device)).detach()
        return found

    for word in words.split():
        if not rows(word).any(dim=1).all():
            raise ConfigError(
                f"context_start: {clip.name!s} never learned the word {word!r}, its row in "
                "the token table is zero; use other words, or context_start=random"
            )
    try:
        return rows(words)
    except InputError:
        raise ConfigError(
            f"context_start: {len(words.split())} words are more than the text tower has "
            "positions for; use fewer"
        ) from None


def learned_tokens(
    count: int, width: int, start: Float[Tensor, "M width"] | None = None
) -> nn.Parameter:
    """Tokens spread like CLIP's own; or those to start from, however many they are."""
    return nn.Parameter(
        torch.randn(count, width) * TOKEN_STD if start is None else start.clone()
    )


def require_one_width(dim: int, text_width: int) -> None:
    """Refuse words where the row that starts as one of them has the visual width."""
    if dim != text_width:
        raise ConfigError(
            f"context_start: this design starts from words only where joint and text width are "
            f"the same, got {dim} and {text_width}; set context_start=random"
        )


def to_text(dim: int, text_width: int) -> nn.Module:
    """Nothing where joint and text width agree, as in the paper; else a bias-free layer."""
    return nn.Identity() if dim == text_width else linear(dim, text_width, bias=False)
