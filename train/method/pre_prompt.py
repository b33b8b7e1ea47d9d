"""The prompt before the class name: learned context and the Pre-Prompt (paper Sec. 3.2).

B videos, C rows of visual context (T frames, or patches), M context tokens, Q rows that are
the video's own, D joint width, W text width.

A design is a class here and a line of `PROMPTS`: it is made from the settings, D and W, and
makes the rows before the name from the visual context.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bieff.clip import Clip
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

    def __init__(self, config: TrainConfig, dim: int, text_width: int) -> None:
        super().__init__()
        if config.prompt == "learnable":
            self.context = learned_tokens(config.num_context, text_width)
        else:
            self.register_buffer("context", None, persistent=False)
            """Set to `hand_crafted_context` where the prompt is that."""

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
    """

    def __init__(self, config: TrainConfig, dim: int, text_width: int) -> None:
        super().__init__()
        self.context = learned_tokens(config.num_context, text_width)
        self.meta_token = nn.Parameter(torch.randn(dim) * TOKEN_STD)
        self.attention = AttentionBlock(dim, cross=True, bare=config.meta_attention == "bare")
        self.adapter: nn.Module
        if config.design == "a3":
            self.adapter = to_text(dim, text_width)
        elif config.adapter == "residual":
            self.adapter = nn.Sequential(ResidualAdapter(dim), to_text(dim, text_width))
        else:
            self.adapter = Adapter(dim, text_width)

    def forward(self, visual: Float[Tensor, "B C D"]) -> Prompt:
        """Return context and c_v, one row a video."""
        found = self.attention(self.meta_token[None, None], visual)  # (B, 1, D)
        return Prompt(context=self.context, video=self.adapter(found))


class ConcatenatedPrompt(nn.Module):
    """Design A1 of Table 6: the context tokens and the visual rows as they are, Q = C."""

    def __init__(self, config: TrainConfig, dim: int, text_width: int) -> None:
        super().__init__()
        self.context = learned_tokens(config.num_context, text_width)
        self.to_text = to_text(dim, text_width)

    def forward(self, visual: Float[Tensor, "B C D"]) -> Prompt:
        """Return context and one row a visual row."""
        return Prompt(context=self.context, video=self.to_text(visual))


class QueryingPrompt(nn.Module):
    """Design A2 of Table 6: the context tokens query the video; what they find is the prompt.

    All M rows are the video's own.  They start as the context tokens, a learnable prompt.
    """

    def __init__(self, config: TrainConfig, dim: int, text_width: int) -> None:
        super().__init__()
        self.context = learned_tokens(config.num_context, dim)
        self.attention = AttentionBlock(dim, cross=True)
        self.to_text = to_text(dim, text_width)

    def forward(self, visual: Float[Tensor, "B C D"]) -> Prompt:
        """Return M rows a video and no shared context."""
        return Prompt(video=self.to_text(self.attention(self.context[None], visual)))


PROMPTS: Mapping[str, Callable[[TrainConfig, int, int], nn.Module]] = {
    "none": SharedPrompt,
    "hand-crafted": SharedPrompt,
    "learnable": SharedPrompt,
    "paper": PrePrompt,
    "a1": ConcatenatedPrompt,
    "a2": QueryingPrompt,
    "a3": PrePrompt,
}
"""Prompts by the setting `prompt`, and the Pre-Prompt's by `design`."""


def make_prompt(config: TrainConfig, dim: int, text_width: int) -> nn.Module:
    """The module that makes what stands before the name."""
    name = config.design if config.prompt == "pre-prompt" else config.prompt
    return PROMPTS[name](config, dim, text_width)


class Adapter(nn.Module):
    """Linear D -> D/4, GELU, Linear D/4 -> W: from the visual to the textual (Eq. 6)."""

    def __init__(self, dim: int, text_width: int) -> None:
        super().__init__()
        self.narrow = linear(dim, max(1, dim // 4))
        self.widen = linear(max(1, dim // 4), text_width)

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


def hand_crafted_context(clip: Clip) -> Float[Tensor, "M W"]:
    """Embedded words of "This is a video about", a context that is not learned (Table 5).

    CLIP's tokenizer never joins two words, so this context and a bare name are the tokens of
    the template filled in, and the words of the name stay apart from the template's.
    """
    tokens = clip.form.words(clip.tokenize([HAND_CRAFTED.format("").strip()])[0])
    embedded: Tensor = token_embedding(clip.model)(tokens.to(clip.device)).detach()
    return embedded


def learned_tokens(count: int, width: int) -> nn.Parameter:
    """Tokens spread like CLIP's own."""
    return nn.Parameter(torch.randn(count, width) * TOKEN_STD)


def to_text(dim: int, text_width: int) -> nn.Module:
    """Nothing where joint and text width agree, as in the paper; else a bias-free layer."""
    return nn.Identity() if dim == text_width else linear(dim, text_width, bias=False)
