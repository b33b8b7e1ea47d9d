"""Settings of stage one: one immutable value."""

import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from types import NoneType
from typing import Any, Literal, get_args

from bieff.features.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractConfig:
    """What is extracted, and how; evaluation views are the paper's (Sec. 4.1).

    Raises:
        ConfigError: If a setting is out of range.
    """

    frames: int = 32
    """T, frames a view; a store of 32 also serves 16 and 8."""

    train_views: int = 1
    """Random views (crop, mirror, jitter) of a training video, beside its centre grid."""

    clips: int = 3
    """Temporal clips of an evaluation video."""

    crops: int = 1
    """Spatial crops of each clip: 1 (centre) or 3 (left, centre, right)."""

    context: Literal["none", "patches"] = "none"
    """Whether to store the time-mean of the patch tokens too."""

    limit: int | None = None
    """Only the first videos of each partition, so many; none: all."""

    batch_size: int | None = None
    """Squares a batch of the visual tower; none: 512 on a GPU, 64 on a CPU."""

    decoders: int | None = None
    """Decoding processes; none: one a core."""

    deadline: float = 60.0
    """Seconds a video may take to decode, beside a twentieth of one for each of its frames."""

    def __post_init__(self) -> None:
        for name in ("frames", "clips", "limit", "batch_size", "decoders"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.train_views < 0:
            raise ConfigError(f"train_views must not be negative, got {self.train_views}")
        if self.crops not in (1, 3):
            raise ConfigError(f"crops must be 1 or 3, got {self.crops}")
        if self.context not in ("none", "patches"):
            raise ConfigError(f"context must be 'none' or 'patches', got {self.context!r}")
        if not self.deadline > 0:
            raise ConfigError(f"deadline must be positive, got {self.deadline}")

    def with_settings(self, settings: Sequence[str]) -> "ExtractConfig":
        """A copy with settings as a user types them, "name=value".

        Raises:
            ConfigError: If a setting is unknown, of another type or out of range.
        """
        return replace(self, **dict(map(_parse, settings)))


def _parse(text: str) -> tuple[str, Any]:
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise ConfigError(f"--set: expected NAME=VALUE, got {text!r}")
    types = {field.name: field.type for field in fields(ExtractConfig)}
    if name not in types:
        close = difflib.get_close_matches(name, types, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(types)}"
        raise ConfigError(f"unknown setting {name!r}; {hint}")
    wanted: Any = types[name]
    kinds = get_args(wanted) or (wanted,)
    if isinstance(kinds[0], str):
        choice = value.strip("\"'")
        if choice not in kinds:
            listed = " or ".join(map(repr, kinds))
            raise ConfigError(f"{name} must be {listed}, got {choice!r}")
        return name, choice
    if NoneType in kinds and value == "none":
        return name, None
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    if float in kinds and type(parsed) is int:
        parsed = float(parsed)
    if type(parsed) not in kinds:
        raise ConfigError(f"{name}: expected {_article(kinds)}, got {value!r}")
    return name, parsed


def _article(kinds: Sequence[Any]) -> str:
    number = "a whole number" if int in kinds else "a number"
    return f"{number} or none" if NoneType in kinds else number
