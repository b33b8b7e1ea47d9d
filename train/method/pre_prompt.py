"""What stands before the class name: learned context and the Pre-Prompt (paper Sec. 3.2).

B videos, C rows of visual context (T frames, or patches), M context tokens, Q rows that are
the video's own, D joint width, W text width.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bieff.clip import Clip
from bieff.train.config import TrainConfig
from bieff.train.method.attention import TOKEN_STD, AttentionBlock, linear, quick_gelu
from bieff.train.text.wording import HAND_CRAFTED


def prompt_rows(config: TrainConfig, context: int, *, hand_crafted: int) -> tuple[int, int]:
    """Rows before the name: those that all videos share, and Q, each video's own.

    Args:
        config: Settings.
        context: C, rows of the visual context.
        hand_crafted: Tokens of the template, where the prompt is one.
    """
    if config.prompt == "pre-prompt" and config.design == "a1":
        return config.num_context, context
    if config.prompt == "pre-prompt" and config.design == "a2":
        return 0, config.num_context
    if config.prompt in ("learnable", "pre-prompt"):
        return config.num_context, int(config.prompt == "pre-prompt")
    return hand_crafted, 0


class Prompt(NamedTuple):
    """Rows before the class name, in the order the text tower sees them."""

    context: Float[Tensor, "M W"] | None = None
    """Shared by all videos."""

    video: Float[Tensor, "B Q W"] | None = None
    """Each video's own."""


class LearnablePrompt(nn.Module):
    """M learned context tokens and no video token: Table 5's "learnable prompt"."""

    def __init__(self, text_width: int, *, num_context: int = 16) -> None:
        super().__init__()
        self.context = learned_tokens(num_context, text_width)

    def forward(self, visual: Float[Tensor, "B C D"]) -> Prompt:
        """Return the same context whatever the video."""
        return Prompt(context=self.context)


class PrePrompt(nn.Module):
    """M learned context tokens, then c_v, which the Meta-Net draws from the video (Eq. 6).

    A learned meta-token attends to the visual context; the Adapter takes the result to the
    text tower's width.  The paper's Adapter is Linear D -> D/4, GELU, Linear -> W.  The
    release's (`adapter="residual"`) keeps width D, adds its input, uses QuickGELU and starts
    as the identity.  `adapter=None` is design A3 of Table 6.  Where these two end in width D
    and W differs, a bias-free layer follows, which the paper's CLIP does not need.
    """

    def __init__(
        self,
        dim: int,
        text_width: int,
        *,
        num_context: int = 16,
        adapter: str | None = "bottleneck",
        bare_attention: bool = False,
    ) -> None:
        super().__init__()
        self.context = learned_tokens(num_context, text_width)
        self.meta_token = nn.Parameter(torch.randn(dim) * TOKEN_STD)
        self.attention = AttentionBlock(dim, cross=True, bare=bare_attention)
        self.adapter: nn.Module
        if adapter == "bottleneck":
            self.adapter = Adapter(dim, text_width)
        elif adapter == "residual":
            self.adapter = nn.Sequential(ResidualAdapter(dim), to_text(dim, text_width))
        else:
            self.adapter = to_text(dim, text_width)

    def forward(self, visual: Float[Tensor, "B C D"]) -> Prompt:
        """Return context and c_v, one row a video."""
        found = self.attention(self.meta_token[None, None], visual)  # (B, 1, D)
        return Prompt(context=self.context, video=self.adapter(found))


class ConcatenatedPrompt(nn.Module):
    """Design A1 of Table 6: the context tokens and the visual rows as they are, Q = C."""

    def __init__(self, dim: int, text_width: int, *, num_context: int = 16) -> None:
        super().__init__()
        self.context = learned_tokens(num_context, text_width)
        self.to_text = to_text(dim, text_width)

    def forward(self, visual: Float[Tensor, "B C D"]) -> Prompt:
        """Return context and one row a visual row."""
        return Prompt(context=self.context, video=self.to_text(visual))


class QueryingPrompt(nn.Module):
    """Design A2 of Table 6: the context tokens query the video; what they find is the prompt.

    All M rows are the video's own.  They start as the context tokens, a learnable prompt.
    """

    def __init__(self, dim: int, text_width: int, *, num_context: int = 16) -> None:
        super().__init__()
        self.context = learned_tokens(num_context, dim)
        self.attention = AttentionBlock(dim, cross=True)
        self.to_text = to_text(dim, text_width)

    def forward(self, visual: Float[Tensor, "B C D"]) -> Prompt:
        """Return M rows a video and no shared context."""
        return Prompt(video=self.to_text(self.attention(self.context[None], visual)))


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


def learned_prompt(config: TrainConfig, dim: int, text_width: int) -> nn.Module | None:
    """The module that makes what stands before the name; None where nothing is learned."""
    num_context = config.num_context
    if config.prompt == "learnable":
        return LearnablePrompt(text_width, num_context=num_context)
    if config.prompt != "pre-prompt":
        return None
    if config.design == "a1":
        return ConcatenatedPrompt(dim, text_width, num_context=num_context)
    if config.design == "a2":
        return QueryingPrompt(dim, text_width, num_context=num_context)
    return PrePrompt(
        dim,
        text_width,
        num_context=num_context,
        adapter=None if config.design == "a3" else config.adapter,
        bare_attention=config.meta_attention == "bare",
    )


def hand_crafted_context(clip: Clip) -> Float[Tensor, "M W"]:
    """Embedded words of "This is a video about", a context that is not learned (Table 5).

    CLIP's tokenizer never joins two words, so this context and a bare name are the tokens of
    the template filled in, and the words of the name stay apart from the template's.
    """
    tokens = clip.tokenize([HAND_CRAFTED.format("").strip()])[0]
    tokens = tokens[tokens != 0][1:-1]  # no padding, SOT and EOT
    tower: Any = getattr(clip.model, "text", clip.model)
    embedding = tower.token_embedding
    embedded: Tensor = embedding(tokens.to(embedding.weight.device)).detach()
    return embedded


def learned_tokens(count: int, width: int) -> nn.Parameter:
    """Tokens spread like CLIP's own."""
    return nn.Parameter(torch.randn(count, width) * TOKEN_STD)


def to_text(dim: int, text_width: int) -> nn.Module:
    """Nothing where joint and text width agree, as in the paper; else a bias-free layer."""
    return nn.Identity() if dim == text_width else linear(dim, text_width, bias=False)
