"""Text towers of every kind: small ones of them, ids of their tokenizers' forms, and prompts
encoded by open_clip's own modules, each by itself and as plainly as can be."""

import zlib
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bieff.clip import Clip, ClipName, Preprocessing, TokenForm, import_open_clip

VOCABULARY = 997
FORMS = {
    **{"bert": TokenForm(101, 0, 0), "SigLIP2": TokenForm(None, 1, 0)},
    **{"SigLIP": TokenForm(None, 1, 1), "nllb": TokenForm(7, 2, 1)},
    **{"mt5": TokenForm(None, 1, 0), "roberta": TokenForm(0, 2, 1), "xlm": TokenForm(0, 2, 1)},
}
"""Start, end and padding by a part of the tokenizer's name."""

CLIP_FORM = TokenForm(VOCABULARY - 2, VOCABULARY - 1, 0)


def form_of(tokenizer: str | None) -> TokenForm:
    """The form of a tokenizer by its name; CLIP's own has none."""
    if tokenizer is None:
        return CLIP_FORM
    return next(form for part, form in FORMS.items() if part in tokenizer)


@dataclass(frozen=True)
class IdsByWord:
    """A tokenizer of some form: a word is an id, cut and padded as tokenizers do."""

    form: TokenForm
    length: int

    def __call__(self, texts: list[str], context_length: int | None = None) -> Tensor:
        length = context_length or self.length
        rows = torch.full((len(texts), length), self.form.padding)
        for row, text in zip(rows, texts, strict=True):
            words = [200 + zlib.crc32(word.encode()) % 700 for word in text.lower().split()]
            start = [] if self.form.start is None else [self.form.start]
            ids = [*start, *words[: length - len(start) - 1], self.form.end]
            row[: len(ids)] = torch.tensor(ids)
        return rows


def clip_of(model: nn.Module, form: TokenForm, *, dim: int, length: int) -> Clip:
    """A model as `load` gives it, with ids of a form for its texts."""
    return Clip(
        name=ClipName(model="small", pretrained="random"),
        model=model.eval().requires_grad_(False),
        preprocessing=Preprocessing(size=32, mean=(0.0,) * 3, std=(1.0,) * 3),
        fingerprint="",
        dim=dim,
        _tokenizer=IdsByWord(form, length),
    )


def encode(clip: nn.Module, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Class and all rows of whole prompts in the joint space, from rows instead of tokens."""
    tower: Any = getattr(clip, "text", clip)
    if hasattr(tower, "pooler"):
        mask = (ids != tower.config.pad_token_id).long()
        out = tower.transformer(inputs_embeds=rows, attention_mask=mask)
        return tower.proj(tower.pooler(out, mask)), tower.proj(out.last_hidden_state)
    x, mask = rows, tower.attn_mask
    has_class = getattr(tower, "cls_emb", None) is not None
    if has_class:
        x = torch.cat([x, tower.cls_emb.expand(len(x), 1, -1)], dim=1)
    if has_class or getattr(tower, "use_pad_mask", False):
        padding = tower._build_additive_mask(ids, x.shape[1], x.dtype)
        mask = padding if mask is None else mask + padding
    x = tower.transformer(x + tower.positional_embedding, attn_mask=mask)
    x = tower.ln_final(x)
    pool = import_open_clip().transformer.text_global_pool
    is_flat = hasattr(tower, "text_pool_type")
    kind = tower.text_pool_type if is_flat else tower.pool_type
    end = tower.text_eos_id if is_flat else tower.eos_id
    pooled = pool(x, ids, "last" if has_class else kind, eos_token_id=end)
    projection = tower.text_projection
    if projection is None:
        return pooled, x
    if isinstance(projection, nn.Module):
        return projection(pooled), projection(x)
    return pooled @ projection, x @ projection


@dataclass(frozen=True)
class PlainTower:
    """What a text tower is for the model, prompt by prompt."""

    clip: Clip
    names: list[str]

    def __call__(self, context, video, *, categories=None):
        chosen = range(len(self.names)) if categories is None else categories.tolist()
        videos = [None] if video is None else list(video)
        tokens = self.clip.tokenize(self.names)
        form, embed = self.clip.form, embedding(self.clip.model)
        before = 0 if context is None else len(context)
        start, length = int(form.start is not None), tokens.shape[1]
        classes, words = {}, {}
        for b, own in enumerate(videos):
            for k, name in enumerate(chosen):
                row = tokens[name]
                count = before + (0 if own is None else len(own))
                filler = row[start].expand(count)
                ids = torch.cat([row[:start], filler, row[start:]])[:length]
                parts = [embed(row[:start])]
                parts += [] if context is None else [context]
                parts += [] if own is None else [own]
                rows = torch.cat([*parts, embed(row[start:])])[:length]
                (classes[b, k],), (every,) = encode(self.clip.model, ids[None], rows[None])
                first = start + count
                words[b, k] = every[first : first + len(form.words(row))]
        found = [[classes[b, k] for k in range(len(chosen))] for b in range(len(videos))]

        def words_of(picked):
            own = [words[b % len(videos), k] for b, k in enumerate(picked.tolist())]
            longest = max(map(len, own))
            rows = torch.stack([F.pad(x, (0, 0, 0, longest - len(x))) for x in own])
            sizes = torch.tensor(list(map(len, own)))
            return rows, torch.arange(longest) < sizes[:, None]

        def similarity(pooled):
            cosine = [
                [
                    F.cosine_similarity(words[b % len(videos), k], x, dim=-1).sum()
                    for k in range(len(chosen))
                ]
                for b, x in enumerate(pooled)
            ]
            return torch.stack([torch.stack(row) for row in cosine])

        return SimpleNamespace(
            classes=torch.stack([torch.stack(row) for row in found]),
            words=words_of,
            word_similarity=similarity,
        )


def embedding(clip: nn.Module) -> Any:
    tower: Any = getattr(clip, "text", clip)
    if hasattr(tower, "token_embedding"):
        return tower.token_embedding
    return tower.transformer.get_input_embeddings()
