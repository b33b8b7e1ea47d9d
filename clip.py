"""CLIP by name: load an open_clip model, its tokenizer, its preprocessing and its fingerprint.

Both stages load through here, so that the text tower of stage two is the partner of the
visual tower of stage one; `fingerprint` is how they know.
"""

import difflib
import hashlib
import importlib
import logging
import pickle
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from bieff.features.errors import InputError

TINYCLIP = "tinyclip"
"""The model shipped with the package; see `extract/tinyclip/`."""

RANDOM = "random"
"""As `pretrained`: seeded random weights ("random" or "random:7"), to try a size as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipName:
    """Choice of a CLIP as a user types it, and nothing else.

    `model` is an open_clip name ("ViT-B-16-quickgelu"), "hf-hub:org/name",
    "local-dir:/path", or "tinyclip".  `pretrained` is an open_clip tag ("openai"), the path
    of a weights file, "random" or "random:SEED"; None where the model brings its weights.
    """

    model: str = "ViT-B-16-quickgelu"
    pretrained: str | None = "openai"

    def __str__(self) -> str:
        return self.model if self.pretrained is None else f"{self.model}/{self.pretrained}"

    @classmethod
    def of(cls, model: str, pretrained: str | None) -> "ClipName":
        """Complete what the user typed: a model that brings its weights takes no tag."""
        brings_weights = model == TINYCLIP or model.startswith(("hf-hub:", "local-dir:"))
        if brings_weights and pretrained is not None:
            raise InputError(
                f"model {model!r} brings its own weights, got pretrained={pretrained!r}; "
                "leave --pretrained out"
            )
        if not brings_weights and pretrained is None:
            near = difflib.get_close_matches(model, [TINYCLIP], n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise InputError(
                f"model {model!r}{hint} needs weights; add --pretrained with an open_clip tag "
                "such as 'openai', the path of a weights file, or 'random'"
            )
        return cls(model=model, pretrained=pretrained)

    @property
    def may_be_downloaded(self) -> bool:
        """True if its weights come from the network unless they were fetched before."""
        if self.pretrained is None:
            return self.model.startswith("hf-hub:")
        return self.pretrained.split(":")[0] != RANDOM and not Path(self.pretrained).is_file()


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """The way from a frame to the visual tower's input (open_clip's evaluation transform)."""

    size: int
    """Side of the square input, pixels."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Clip:
    """A frozen CLIP in evaluation mode, float32."""

    name: ClipName
    model: nn.Module
    preprocessing: Preprocessing
    fingerprint: str
    """SHA-256 over the names, shapes and bytes of all weights; 64 hexadecimal digits."""

    dim: int
    """D, width of the joint space."""

    _tokenizer: Callable[[list[str]], Tensor]

    @property
    def device(self) -> torch.device:
        """The device that its weights are on."""
        return next(self.model.parameters()).device

    @property
    def temperature(self) -> float:
        """The number that its cosines are divided by before a softmax."""
        model: Any = self.model
        return float(1 / model.logit_scale.exp().item())

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids with SOT and EOT, zero-padded, int64 (len(texts), context length).

        Raises:
            InputError: If a text is empty or does not fit the context.
        """
        tokens = self._tokenizer(list(texts))
        end = int(tokens.max())
        for text, row in zip(texts, tokens, strict=True):
            if not text.strip():
                raise InputError("a class name is empty; give every class a name")
            # open_clip cuts a long text and puts EOT on the last place, without a word
            if int(row[-1]) == end:
                raise InputError(
                    f"text {text!r}: expected fewer than {len(row)} tokens, got {len(row)} or "
                    "more; use a shorter text"
                )
        return tokens


def load(name: ClipName, *, device: str | torch.device = "cpu") -> Clip:
    """Load a CLIP by name, frozen, in evaluation mode, float32.

    Raises:
        InputError: If the name is unknown, the weights do not fit, or cannot be downloaded.
    """
    open_clip = import_open_clip()
    schema_name = (
        f"local-dir:{Path(__file__).parent / 'extract' / 'tinyclip' / 'model'}"
        if name.model == TINYCLIP
        else name.model
    )
    is_random = name.pretrained is not None and name.pretrained.split(":")[0] == RANDOM
    _check_name(open_clip, name, is_random=is_random)
    seed = _random_seed(name.pretrained) if is_random else 0
    try:
        # open_clip initialises the weights before it loads them: keep the caller's generator
        with torch.random.fork_rng(devices=[]), _quiet():
            torch.manual_seed(seed)
            model = open_clip.create_model(
                schema_name,
                pretrained=None if is_random else name.pretrained,
                pretrained_text=False,
                require_pretrained=not is_random,
            )
            tokenizer = open_clip.get_tokenizer(schema_name)
    except (
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        SafetensorError,
        pickle.UnpicklingError,
    ) as error:
        reason = textwrap.shorten(str(error), 300, placeholder=" ...")
        raise InputError(
            f"cannot load CLIP {str(name)!r}: {reason}; check the name and the connection, or "
            "give --pretrained the path of a weights file already on this machine"
        ) from error
    model.eval().requires_grad_(False)
    config = open_clip.get_model_preprocess_cfg(model)
    return Clip(
        name=name,
        model=model.to(device),
        preprocessing=_preprocessing(name, config),
        fingerprint=fingerprint(model),
        dim=_joint_width(name, model),
        _tokenizer=tokenizer,
    )


def pick_device(name: str | None) -> torch.device:
    """The device a user named, or the best there is.

    Raises:
        InputError: If there is no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device: expected cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name!r}: torch finds no CUDA here; use --device cpu")
    return device


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all weights, in the order of names."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _check_name(open_clip: Any, name: ClipName, *, is_random: bool) -> None:
    """Refuse what open_clip would only warn of."""
    if name.model == TINYCLIP or name.model.startswith(("hf-hub:", "local-dir:")):
        return
    known = open_clip.list_models()
    if name.model not in known:
        close = _closest(name.model, known)
        raise InputError(
            f"unknown CLIP model {name.model!r}; did you mean {close!r}?  "
            "open_clip.list_models() names them all"
        )
    if is_random or name.pretrained is None or Path(name.pretrained).is_file():
        return
    tags = open_clip.list_pretrained_tags_by_model(name.model)
    if name.pretrained not in tags:
        raise InputError(
            f"no weights {name.pretrained!r} for {name.model!r}: expected the path of a file, "
            f"'random', or one of {', '.join(tags) or '(no tags)'}"
        )
    wants_quick_gelu = open_clip.get_pretrained_cfg(name.model, name.pretrained).get(
        "quick_gelu"
    )
    has_quick_gelu = open_clip.get_model_config(name.model).get("quick_gelu", False)
    if bool(wants_quick_gelu) != bool(has_quick_gelu):
        plain = name.model.removesuffix("-quickgelu")
        fitting = f"{plain}-quickgelu" if wants_quick_gelu else plain
        raise InputError(
            f"weights {name.pretrained!r} do not fit the activation of {name.model!r}; "
            f"use --model {fitting}"
        )


def _closest(name: str, known: Sequence[str]) -> str:
    return (difflib.get_close_matches(name, known, n=1, cutoff=0.0) or [known[0]])[0]


def _random_seed(pretrained: str | None) -> int:
    _, _, seed = (pretrained or "").partition(":")
    if seed and not seed.isdecimal():
        raise InputError(f"pretrained={pretrained!r}: expected 'random' or 'random:SEED'")
    return int(seed or 0)


def _preprocessing(name: ClipName, config: dict[str, Any]) -> Preprocessing:
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise InputError(f"CLIP {str(name)!r}: expected a square input, got {height}x{width}")
    for key, expected in (
        ("mode", "RGB"),
        ("interpolation", "bicubic"),
        ("resize_mode", "shortest"),
    ):
        if config.get(key, expected) != expected:
            raise InputError(
                f"CLIP {str(name)!r}: expected {key} {expected!r}, got {config[key]!r}, "
                "which is not supported"
            )
    return Preprocessing(size=height, mean=tuple(config["mean"]), std=tuple(config["std"]))


def _joint_width(name: ClipName, model: nn.Module) -> int:
    width = getattr(model.visual, "output_dim", None)
    if not isinstance(width, int):
        raise InputError(f"CLIP {str(name)!r}: its visual tower has no joint width")
    return width


class _quiet(warnings.catch_warnings):
    """Silence open_clip's log and warnings while it loads; errors still come out."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        self._level = logging.root.manager.disable
        logging.disable(logging.CRITICAL)

    def __exit__(self, *exc_info: Any) -> None:
        logging.disable(self._level)
        super().__exit__(*exc_info)


def import_open_clip() -> Any:
    """Import open_clip, also beside a CPU-only torch.

    open_clip imports torchvision, whose registry build is linked against CUDA.  Beside a
    CPU-only torch its operators do not load, and registering their fake kernels then fails
    with "operator torchvision::nms does not exist".  bieff uses none of these operators, so
    declaring the two that torchvision registers at import is enough.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        raise InputError(
            "torchvision is not installed, and open_clip needs it; pip install torchvision"
        )
    try:
        torch.ops.load_library(str(Path(found.origin).parent / "_C.so"))
    except (OSError, RuntimeError):
        if not hasattr(torch.ops.torchvision, "nms"):
            torch.library.define(
                "torchvision::nms",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )
            torch.library.define(
                "torchvision::qnms",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )
    return importlib.import_module("open_clip")
