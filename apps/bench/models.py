"""`bieff models`: the CLIPs that open_clip names, from their configurations; none is built."""

from collections.abc import Mapping
from typing import Any

from bieff.clip import import_open_clip
from bieff.features.errors import InputError

HEADER = ("model", "D", "pixels", "visual tower", "patches", "text tower", "tokens", "weights")

PLAIN = ("vit_", "eva", "vitamin")
"""Names of timm's vision transformers, as they begin."""


def table(part: str = "") -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of the models whose name, towers or tags contain `part`.

    D is the joint width; pixels, the side of the square input; patches, whether `--context
    patches` is possible; tokens, the rows of a prompt with start and end.  All tags are shown
    where `part` chooses, else two.

    Raises:
        InputError: If there is none.
    """
    open_clip = import_open_clip()
    rows = []
    for name in open_clip.list_models():
        tags = open_clip.list_pretrained_tags_by_model(name)
        row = _row(name, open_clip.get_model_config(name), tags, len(tags) if part else 2)
        if any(part.lower() in text.lower() for text in (*row, *tags)):
            rows.append(row)
    if not rows:
        raise InputError(
            f"--filter {part}: no model's name, towers or weights contain it; `bieff models` "
            "lists them all"
        )
    return HEADER, rows


def _row(name: str, config: Mapping[str, Any], tags: list[str], most: int) -> tuple[str, ...]:
    vision, text = config["vision_cfg"], config["text_cfg"]
    layers, timm = vision.get("layers", 0), vision.get("timm_model_name", "")
    has_patches = timm.startswith(PLAIN) if timm else isinstance(layers, int)
    more = [f"{len(tags) - most} more"] if len(tags) > most else []
    return (
        name,
        str(config["embed_dim"]),
        str(vision["image_size"]),
        timm or (f"ViT, {layers} layers" if isinstance(layers, int) else "ResNet"),
        "yes" if has_patches and not vision.get("attentional_pool") else "no",
        _text_tower(config, text),
        str(text.get("context_length", 77)),
        ", ".join(tags[:most] + more),
    )


def _text_tower(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    if "hf_model_name" in text:
        return f"transformers' {text['hf_model_name']}"
    if "multimodal_cfg" in config:
        return "CoCa"
    kind = "bidirectional" if text.get("no_causal_mask") else "causal"
    return kind + " (hf)" * ("hf_tokenizer_name" in text)
