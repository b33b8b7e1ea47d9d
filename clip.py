"""CLIP by name: load an open_clip model, its tokenizer, its preprocessing and its fingerprint.

Both stages load through here, so that the text tower of stage two is the partner of the
visual tower of stage one; `fingerprint` is how they know.
"""

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import logging
import os
import pickle
import re
import shlex
import textwrap
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from bieff.features.errors import BieffError, InputError, StoreMismatchError

TINYCLIP = "tinyclip"
"""The model shipped with the package; see `extract/tinyclip/`."""

RANDOM = "random"
"""`pretrained` for seeded random weights ("random", "random:7"), to try a size as it is."""


_UNREADABLE = (
    *(OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError),
    *(ArithmeticError, AssertionError, ImportError),
    *(SafetensorError, pickle.UnpicklingError),
)
"""Errors of open_clip and torch at a name, a configuration or weights that are no good."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipName:
    """Choice of a CLIP as a user types it, and nothing else.

    `model` is an open_clip name ("ViT-B-16-quickgelu"), "hf-hub:org/name",
    "local-dir:/path", or "tinyclip".  `pretrained` is an open_clip tag ("openai"), the path
    of a weights file, a tag with the file of its weights ("openai=/path"), "random" or
    "random:SEED"; None where the model brings its weights.
    """

    model: str = "ViT-B-16-quickgelu"
    pretrained: str | None = "openai"

    def __str__(self) -> str:
        return self.model if self.pretrained is None else f"{self.model}/{self.pretrained}"

    @classmethod
    def of(cls, model: str, pretrained: str | None) -> "ClipName":
        """Complete what the user typed: a model that brings its weights takes no tag."""
        brings_weights = _is_elsewhere(model) or model == TINYCLIP
        if brings_weights and pretrained is not None:
            raise InputError(
                f"model {model!r} brings its own weights, got pretrained={pretrained!r}; "
                "leave --pretrained out"
            )
        if not brings_weights and pretrained is None:
            open_clip = import_open_clip()
            _require_known(open_clip, model)
            tags = open_clip.list_pretrained_tags_by_model(model)
            choice = f"one of {', '.join(tags)}, or " if tags else ""
            raise InputError(
                f"model {model!r} needs weights; add --pretrained with {choice}TAG=FILE, "
                "the path of a weights file, or 'random'"
            )
        return cls(model=model, pretrained=pretrained)

    @classmethod
    def given(cls, model: str | None, pretrained: str | None) -> "ClipName | None":
        """The CLIP that a user named with --model and --pretrained; None if with neither."""
        if model is None and pretrained is None:
            return None
        return cls.of(model or cls().model, pretrained)

    @property
    def words(self) -> list[str]:
        """The options of a command that name it."""
        weights = [] if self.pretrained is None else ["--pretrained", self.pretrained]
        return ["--model", self.model, *weights]

    @property
    def is_random(self) -> bool:
        """True if its weights are drawn, not read."""
        return self.pretrained is not None and self.pretrained.split(":")[0] == RANDOM

    @property
    def tag_and_file(self) -> tuple[str | None, Path | None]:
        """What `pretrained` names: a tag, a file, or a tag and the file of its weights."""
        if self.pretrained is None or self.is_random:
            return None, None
        if Path(self.pretrained).is_file():
            return None, Path(self.pretrained)
        tag, is_pair, file = self.pretrained.partition("=")
        return tag, Path(file) if is_pair else None

    @property
    def may_be_downloaded(self) -> bool:
        """True if its weights come from the network unless they were fetched before."""
        if self.pretrained is None:
            return self.model.startswith("hf-hub:")
        return not self.is_random and self.tag_and_file[1] is None


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """The way from a frame to the visual tower's input: open_clip's evaluation transform."""

    size: int
    """Side of the square input, pixels."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    """"bicubic" or "bilinear"."""

    resize_mode: str = "shortest"
    """"shortest": the shorter side is fitted, and a square cut out; "longest": the longer side
    is fitted, with bars beside the shorter; "squash": both sides are."""

    fill: int = 0
    """Level of the bars, 0 to 255."""

    resize: str = "pillow"
    """Whose arithmetic: "pillow", as open_clip's transform, or "torch", which rounds once."""

    def __str__(self) -> str:
        mean, std = (" ".join(f"{value:.3g}" for value in of) for of in (self.mean, self.std))
        return f"{self.interpolation}, {self.resize_mode}, mean {mean}, std {std}"

    def to_json(self) -> dict[str, Any]:
        """For a store's recipe; what is not said there is "shortest", without bars.

        So is "torch" of bicubic "shortest", and "pillow" of all else: older stores say neither.
        """
        held: dict[str, Any] = {
            "size": self.size,
            "mean": self.mean,
            "std": self.std,
            "interpolation": self.interpolation,
        }
        if self.resize_mode != "shortest":
            held["resize_mode"] = self.resize_mode
        if self._may_be_torchs and self.resize != "torch":
            held["resize"] = self.resize
        return held | ({"fill": self.fill} if self.resize_mode == "longest" else {})

    def going_on(self, held: object) -> "Preprocessing":
        """The same, resized as the store was begun whose recipe says `held`."""
        is_older = isinstance(held, dict) and "resize" not in held and self._may_be_torchs
        return replace(self, resize="torch") if is_older else self

    @property
    def _may_be_torchs(self) -> bool:
        return (self.interpolation, self.resize_mode) == ("bicubic", "shortest")


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

    _tokenizer: Callable[..., Tensor]

    read_as: str | None = None
    """What a file of weights was taken for: a tag, or a preprocessing and an activation."""

    @property
    def note(self) -> str | None:
        """What was taken for granted of a file of weights, which cannot say it itself."""
        tag, file = self.name.tag_and_file
        if file is None or tag is not None or self.read_as is None:
            return None
        if " " not in self.read_as:
            return f"{file}: known to open_clip as {self.read_as!r} by its checksum"
        return (
            f"{file}: not known to open_clip, read with {self.read_as}; if that is wrong, the "
            "embeddings are: give --pretrained TAG=FILE, and a --model of its activation"
        )

    @property
    def device(self) -> torch.device:
        """The device that its weights are on."""
        return next(self.model.parameters()).device

    @property
    def temperature(self) -> float:
        """The number that its cosines are divided by before a softmax."""
        model: Any = self.model
        return float(1 / model.logit_scale.exp().item())

    @property
    def form(self) -> "TokenForm":
        """How its tokenizer lays a text out."""
        return _form(self._tokenizer)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids with start, end and padding, int64 (len(texts), context length).

        Raises:
            InputError: If a text is empty or does not fit the context.
        """
        tokens = self._tokenizer(list(texts))
        padding, length = self.form.padding, tokens.shape[1]
        for text, row in zip(texts, tokens, strict=True):
            if not text.strip():
                raise InputError("a class name is empty; give every class a name")
            if bool((row[-2:] == padding).all()):
                continue
            # tokenizers cut a long text without a word
            (whole,) = self._tokenizer([text], context_length=2 * length)
            if not whole[:length].equal(row) or bool((whole[length:] != padding).any()):
                raise InputError(
                    f"text {text!r}: expected at most {length} tokens with start and end, got "
                    "more; use a shorter text"
                )
        return tokens

    def tokenize_names(self, names: Sequence[str]) -> Tensor:
        """Tokens of class names, no two of which are the same to this CLIP.

        Raises:
            InputError: If two are, or a name has no token, is empty or does not fit.
        """
        tokens = self.tokenize(names)
        seen: dict[tuple[int, ...], str] = {}
        for name, row in zip(names, tokens, strict=True):
            if not len(self.form.words(row)):
                raise InputError(
                    f"class name {name!r}: the tokenizer of CLIP {str(self.name)!r} leaves "
                    "nothing of it; give the class a name in words"
                )
            other = seen.setdefault(tuple(row.tolist()), name)
            if other is not name:
                raise InputError(
                    f"class names {other!r} and {name!r} are the same to CLIP "
                    f"{str(self.name)!r}, so that one of them could never be told from the "
                    "other; give each class its own words"
                )
        return tokens


@dataclass(frozen=True, slots=True)
class TokenForm:
    """How a tokenizer lays a text out: start, the text's own tokens, end, padding."""

    start: int | None
    """None where the text's own tokens come first (mT5, SigLIP)."""

    end: int
    """The padding where nothing else ends a text (SigLIP, CLIPA)."""

    padding: int

    def words(self, row: Tensor) -> Tensor:
        """The text's own tokens in a row of ids."""
        size = max((row != self.padding).nonzero().flatten().tolist(), default=-1) + 1
        return row[int(self.start is not None) : size - int(self.end != self.padding)]


def load(
    name: ClipName, *, device: str | torch.device = "cpu", from_cache: bool = False
) -> Clip:
    """Load a CLIP by name, frozen, in evaluation mode, float32.

    Args:
        name: Which.
        device: Where its weights go.
        from_cache: Take only what has been downloaded before.

    Raises:
        InputError: If the name is unknown, the weights do not fit, or cannot be downloaded,
            or its configuration asks for more than open_clip's own towers.
    """
    open_clip = import_open_clip()
    schema_name = (
        f"local-dir:{Path(__file__).parent / 'extract' / 'tinyclip' / 'model'}"
        if name.model == TINYCLIP
        else name.model
    )
    tag, is_known = _check_name(open_clip, name)
    file = name.tag_and_file[1]
    seed = _random_seed(name.pretrained) if name.is_random else 0
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_quiet())
            if from_cache:
                stack.enter_context(_no_network())
            if _is_elsewhere(name.model):
                _check_config(open_clip, name)
            text = open_clip.get_model_config(schema_name)["text_cfg"]
            if text.get("hf_model_name"):
                _require_transformers(name)
            # open_clip initialises the weights before it loads them: keep the caller's
            # generator
            stack.enter_context(torch.random.fork_rng(devices=[]))
            torch.manual_seed(seed)
            if name.is_random:
                stack.enter_context(_marked_memory())
            model = open_clip.create_model(
                schema_name,
                pretrained=None if name.is_random else os.fspath(file) if file else tag,
                pretrained_text=False,
                require_pretrained=not name.is_random,
                # a file brings no preprocessing of its own
                force_preprocess_cfg=_published(open_clip, name.model, tag) if file else None,
                # OpenAI's are programs of TorchScript, run only if they are these very files
                weights_only=not is_known,
            )
            if name.is_random:
                _draw_marked(model)
            tokenizer = (
                _LateTokenizer(name, from_cache)
                if text.get("hf_tokenizer_name")
                else open_clip.get_tokenizer(schema_name)
            )
            config = open_clip.get_model_config(schema_name)
    except BieffError:
        raise
    except _UNREADABLE as error:
        reason = _reason(error, file)
        if from_cache and name.may_be_downloaded:
            raise _not_in_the_cache(name, reason) from error
        raise InputError(
            f"cannot load CLIP {str(name)!r}: {reason}; {_remedy(name)}"
        ) from error
    model.eval().requires_grad_(False)
    preprocessing = _preprocessing(name, open_clip.get_model_preprocess_cfg(model))
    if name.model == TINYCLIP:
        preprocessing = replace(preprocessing, resize="torch")  # as it was trained
    activation = "QuickGELU" if config.get("quick_gelu") else "GELU"
    return Clip(
        name=name,
        model=model.to(device),
        preprocessing=preprocessing,
        fingerprint=fingerprint(model),
        dim=int(config["embed_dim"]),
        _tokenizer=tokenizer,
        read_as=(tag or f"{preprocessing}, {activation}") if file else None,
    )


@dataclass(frozen=True, slots=True)
class Claim:
    """Words of a store, a run or a file of scores about the CLIP it was made with.

    Anybody may have written them: they are compared, and never obeyed.  A folder or a file
    of weights is read only if the user named it, and so is the network used.
    """

    name: ClipName
    fingerprint: str
    source: Path
    """The store, run or file."""

    @classmethod
    def of(cls, held: object, *, source: Path) -> "Claim":
        """The claim in a recipe or a record: model, pretrained, fingerprint.

        Raises:
            StoreMismatchError: If they are not there.
        """
        words = held if isinstance(held, dict) else {}
        model, pretrained, mark = map(words.get, ("model", "pretrained", "fingerprint"))
        texts = (model, mark, "" if pretrained is None else pretrained)
        if not all(isinstance(text, str) and text.isprintable() for text in texts):
            raise StoreMismatchError(f"{source} does not say which CLIP it was made with")
        return cls(ClipName(model=str(model), pretrained=pretrained), str(mark), source)

    def load(self, *, named: ClipName | None, device: str | torch.device = "cpu") -> Clip:
        """Load the CLIP that the user named, or the one claimed if it is here already.

        Raises:
            InputError: If the user must name it, or it cannot be loaded.
            StoreMismatchError: If it is another CLIP than the one claimed.
        """
        if named is None and not _is_public(self.name):
            raise InputError(
                f"{self.source} was made with CLIP {str(self.name)!r}, which is read only "
                f"where you name it; give {shlex.join(self.name.words)} if you trust it"
            )
        clip = load(named or self.name, device=device, from_cache=named is None)
        self.require(clip)
        return clip

    def require(self, clip: Clip) -> None:
        """Compare a CLIP with the one claimed.

        Its weights must be the same, and its network: ViT-B-16 and ViT-B-16-quickgelu share
        their weights, and are known apart by open_clip's names for them.

        Raises:
            StoreMismatchError: If it is another.
        """
        names = [name for name in (clip.name, self.name) if _is_of_open_clip(name)]
        configs = [import_open_clip().get_model_config(name.model) for name in names]
        if clip.fingerprint != self.fingerprint or configs[:1] != configs[-1:]:
            raise StoreMismatchError(
                f"{self.source} was made with CLIP {str(self.name)!r}, fingerprint "
                f"{self.fingerprint[:12]}, got {str(clip.name)!r}, {clip.fingerprint[:12]}; "
                "take features and a run of the same CLIP, or name its weights with --model"
            )


@lru_cache(maxsize=8)
def _form(tokenizer: Callable[..., Tensor]) -> TokenForm:
    """Find the form by asking for two texts that have no token in common."""
    short, long = (row.tolist() for row in tokenizer(["video", "a dog runs"]))
    padding = short[-1]
    for row in (short, long):
        while len(row) > 1 and row[-1] == padding:
            row.pop()
    if len(short) >= len(long):
        raise InputError(
            f"tokenizer: expected a text between start, end and padding, got {short} for one "
            f"word and {long} for three; take another CLIP"
        )
    start = short[0] if short[0] == long[0] else None
    return TokenForm(start, short[-1] if short[-1] == long[-1] else padding, padding)


@contextlib.contextmanager
def _marked_memory() -> Iterator[None]:
    """Have torch fill memory that nobody sets with NaN."""
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was)


def _draw_marked(model: nn.Module) -> None:
    """Draw the weights that open_clip's models leave as the memory was, as CoCa's decoder."""
    for weight in model.parameters():
        if weight.isnan().any():
            nn.init.normal_(weight, std=0.02)


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
    """SHA-256 of all weights of a model; see `digest_of`."""
    return digest_of(model.state_dict())


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of weights, in the order of names."""
    digest = hashlib.sha256()
    for key, value in sorted(weights.items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_elsewhere(model: str) -> bool:
    """True if a folder or a hub describes the model, not open_clip."""
    return model.startswith(("hf-hub:", "local-dir:"))


def _is_of_open_clip(name: ClipName) -> bool:
    return name.model != TINYCLIP and not _is_elsewhere(name.model)


def _is_public(name: ClipName) -> bool:
    """True if everybody means the same by it, and no file of this machine."""
    if name.model.startswith("local-dir:"):
        return False
    if name.pretrained is None or name.is_random:
        return True
    return name.pretrained in import_open_clip().list_pretrained_tags_by_model(name.model)


def _check_config(open_clip: Any, name: ClipName) -> None:
    """Refuse a configuration that could run code, or read what the user did not name.

    Only the settings of open_clip's own towers pass: those for transformers and tokenizers
    can ask for a stranger's Python (`trust_remote_code`), and timm takes addresses for names.
    """
    config = open_clip.get_model_config(name.model)
    model = importlib.import_module("open_clip.model")
    towers = {"vision_cfg": model.CLIPVisionCfg, "text_cfg": model.CLIPTextCfg}
    for tower, kind in towers.items():
        known = {field.name for field in fields(kind)}
        for key, value in config[tower].items():
            is_plain = key in known and not key.startswith(("hf_", "tokenizer_"))
            if key == "timm_model_name":
                is_plain = re.fullmatch(r"[A-Za-z0-9_.]+", str(value)) is not None
            if value and not is_plain:
                raise InputError(
                    f"CLIP {str(name)!r}: its {tower} sets {key!r} to {value!r}, which is not "
                    "one of the settings of open_clip's own towers; take another model"
                )


def _check_name(open_clip: Any, name: ClipName) -> tuple[str | None, bool]:
    """Refuse what open_clip would only warn of.

    Returns:
        The tag that its weights have, if any, and whether a file holds exactly what open_clip
        publishes, by the whole of its checksum.
    """
    if not _is_of_open_clip(name):
        return None, False
    _require_known(open_clip, name.model)
    tag, file = name.tag_and_file
    is_known = False
    if file is not None:
        if not file.is_file():
            raise InputError(f"--pretrained {name.pretrained}: there is no file {str(file)!r}")
        found, is_known = _known_file(open_clip, file, name.model)
        if found and found[1] != (tag or found[1]):
            raise InputError(
                f"{file} holds the weights {found[1]!r} of {found[0]!r}, got tag {tag!r}; "
                "leave the tag out"
            )
        if found and not tag:
            tag = found[1]
    if tag is None:
        return None, False
    tags = open_clip.list_pretrained_tags_by_model(name.model)
    plain = name.model.removesuffix("-quickgelu")
    if tag not in tags:
        elsewhere = found[0] if file and found else plain
        is_there = tag in open_clip.list_pretrained_tags_by_model(elsewhere)
        hint = f"; use --model {elsewhere}" if is_there and elsewhere != name.model else ""
        raise InputError(
            f"no weights {tag!r} for {name.model!r}: expected the path of a file, "
            f"'random', or one of {', '.join(tags) or '(no tags)'}{hint}"
        )
    wants_quick_gelu = _published(open_clip, name.model, tag).get("quick_gelu")
    has_quick_gelu = open_clip.get_model_config(name.model).get("quick_gelu", False)
    if bool(wants_quick_gelu) != bool(has_quick_gelu):
        fitting = f"{plain}-quickgelu" if wants_quick_gelu else plain
        raise InputError(
            f"weights {tag!r} do not fit the activation of {name.model!r}; "
            f"use --model {fitting}"
        )
    return tag, is_known


class _LateTokenizer:
    """A tokenizer of transformers, fetched when a text is first read: stage one reads none."""

    def __init__(self, name: ClipName, from_cache: bool) -> None:
        self._name, self._from_cache = name, from_cache
        self._fetched: Callable[..., Tensor] | None = None

    def __call__(self, texts: Sequence[str], **options: Any) -> Tensor:
        self._fetched = self._fetched or self._fetch()
        return self._fetched(texts, **options)

    def _fetch(self) -> Callable[..., Tensor]:
        _require_transformers(self._name)
        offline = _no_network() if self._from_cache else contextlib.nullcontext()
        try:
            with _quiet(), offline:
                return import_open_clip().get_tokenizer(self._name.model)  # type: ignore[no-any-return]
        except _UNREADABLE as error:
            reason = textwrap.shorten(str(error), 300, placeholder=" ...")
            if self._from_cache:
                raise _not_in_the_cache(self._name, reason) from error
            raise InputError(
                f"cannot load the tokenizer of CLIP {str(self._name)!r}: {reason}; check the "
                "connection"
            ) from error


def _not_in_the_cache(name: ClipName, reason: str) -> InputError:
    return InputError(
        f"CLIP {str(name)!r} is not in the cache ({reason}); give {shlex.join(name.words)} to "
        "download it"
    )


def _require_transformers(name: ClipName) -> None:
    """Ask for the library that reads some models' texts, which open_clip does not bring."""
    if importlib.util.find_spec("transformers") is None:
        raise InputError(
            f"CLIP {name.model!r} reads its texts with transformers, which is not installed; "
            'pip install "bieff[hf]"'
        )


def _require_known(open_clip: Any, model: str) -> None:
    """Refuse a name that open_clip does not know, with the closest that it does."""
    known = {name.lower(): name for name in [*open_clip.list_models(), TINYCLIP]}
    if model not in known.values():
        parts = [name for name in known if model.lower() in name]
        (close,) = difflib.get_close_matches(model.lower(), parts or known, n=1, cutoff=0.0)
        raise InputError(
            f"unknown CLIP model {model!r}; did you mean {known[close]!r}?  `bieff models` "
            "names them all"
        )


def _random_seed(pretrained: str | None) -> int:
    _, _, seed = (pretrained or "").partition(":")
    if seed and not seed.isdecimal():
        raise InputError(f"pretrained={pretrained!r}: expected 'random' or 'random:SEED'")
    return int(seed or 0)


def _published(open_clip: Any, model: str, tag: str | None) -> dict[str, Any]:
    """What open_clip publishes of a tag: preprocessing, activation, addresses."""
    held: dict[str, Any] = {} if tag is None else open_clip.get_pretrained_cfg(model, tag)
    return held


def _known_file(open_clip: Any, file: Path, model: str) -> tuple[tuple[str, str] | None, bool]:
    """Model and tag of a file whose checksum stands in open_clip's addresses.

    OpenAI's hold all of the SHA-256, those of open_clip's authors the first eight digits; the
    flag says whether it was all of it.  Files of a hub have none.
    """
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    found, is_whole = [], False
    for pair in open_clip.list_pretrained():
        address = _published(open_clip, *pair).get("url", "")
        marks = re.findall(r"[/-]([0-9a-f]{64}|[0-9a-f]{8})(?=/|\.pt$)", address)
        if marks and digest.startswith(marks[-1]):
            found.append(pair)
            is_whole |= len(marks[-1]) == len(digest)
    found.sort(key=lambda pair: pair[0] != model)
    return (found[0] if found else None), is_whole


def _preprocessing(name: ClipName, config: dict[str, Any]) -> Preprocessing:
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise InputError(f"CLIP {str(name)!r}: expected a square input, got {height}x{width}")
    for key, expected in (
        ("mode", ("RGB",)),
        ("interpolation", ("bicubic", "bilinear")),
        ("resize_mode", ("shortest", "longest", "squash")),
    ):
        if config.get(key, expected[0]) not in expected:
            raise InputError(
                f"CLIP {str(name)!r}: expected {key} {' or '.join(map(repr, expected))}, got "
                f"{config[key]!r}, which is not supported"
            )
    mean, std = (
        (value,) * 3 if isinstance(value, int | float) else tuple(value)
        for value in (config["mean"], config["std"])
    )
    fill = config.get("fill_color", 0)
    numbers = [*mean, *std, fill]
    if not (
        len(mean) == len(std) == 3
        and all(isinstance(value, int | float) and abs(value) < 1e3 for value in numbers)
        and min(std) > 0
        and fill in range(256)
    ):
        raise InputError(
            f"CLIP {str(name)!r}: expected three numbers as mean and as std, and a fill_color "
            f"of 0 to 255, got {mean}, {std} and {fill!r}"
        )
    return Preprocessing(
        size=height,
        mean=mean,
        std=std,
        interpolation=config.get("interpolation", "bicubic"),
        resize_mode=config.get("resize_mode", "shortest"),
        fill=int(fill),
    )


def _reason(error: Exception, file: Path | None) -> str:
    """Why weights cannot be read, in one sentence."""
    said = str(error) or type(error).__name__
    if file and "TorchScript" in said:
        return f"{file} is a program of TorchScript and not one that OpenAI published"
    if file and "weights_only" in said:  # torch's advice would be to run the file's code
        return f"{file} holds something else than tensors"
    if file and '"vision_model.' in said:
        return f"the weights in {file} have transformers' names, expected open_clip's"
    return textwrap.shorten(said, 300, placeholder=" ...")


def _remedy(name: ClipName) -> str:
    """What to do where a CLIP cannot be loaded."""
    tag, file = name.tag_and_file
    if file:
        return "take the file that open_clip publishes, or save a state_dict of its model"
    if tag is not None:
        return (
            f"check the connection, or give --pretrained {tag}=FILE with the file of these "
            "weights"
        )
    return "check the name and the connection, or give --model local-dir:FOLDER"


class _NoNetwork(urllib.request.OpenerDirector):
    def open(self, *_: Any, **__: Any) -> Any:
        raise OSError("it would have to be downloaded")


@contextlib.contextmanager
def _no_network() -> Iterator[None]:
    """Keep the two libraries that open_clip downloads with to their caches."""
    hub: Any = importlib.import_module("huggingface_hub.constants")
    was_offline, opener = hub.HF_HUB_OFFLINE, urllib.request._opener  # type: ignore[attr-defined]
    hub.HF_HUB_OFFLINE = True
    urllib.request.install_opener(_NoNetwork())
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = was_offline
        urllib.request.install_opener(opener)


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
