"""Settings of stage two: one immutable value, the paper's numbers as defaults.

`load` builds it from a preset, then a TOML file, then `name=value` overrides, each over the
one before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from bieff.features.errors import ConfigError
from bieff.features.settings import read_settings, with_settings

_POSITIVE = (
    *("num_context", "post_layers", "frames", "epochs", "batch_size"),
    *("word_temperature", "temperature", "lr", "accumulate", "feature_memory"),
)
_NOT_NEGATIVE = (
    *("temporal_layers", "weight_decay", "clip_grad", "seed", "eval_every", "save_seconds"),
    *("distill", "average_epochs"),
)

_AT_MOST = {"temporal_layers": 100, "post_layers": 100, "num_context": 1000}
"""Bounds of what is made before any weights are read: a record may be somebody else's."""

CHANGE_NOTHING = ("save_seconds", "feature_memory")
"""Settings that no number depends on; a run may go on with others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Settings of a training run; the defaults are the paper's (Sec. 3 and 4.1).

    Every row of Tables 4 to 10 is one or two settings away from the default, and so is
    every difference of the authors' release that `preset` lists.

    Raises:
        ConfigError: If a setting is out of range, or two settings contradict each other.
    """

    temporal_layers: int = 3
    """Layers of the temporal transformer; 0 leaves the frames as stored."""

    temporal_residual: bool = True
    """Add the stored frames to the temporal transformer's output."""

    prompt: Literal["none", "hand-crafted", "learnable", "pre-prompt"] = "pre-prompt"
    """Words or rows before the class name (Tables 4 and 5)."""

    design: Literal["paper", "a1", "a2", "a3"] = "paper"
    """Design of the Pre-Prompt (Table 6); needs prompt = "pre-prompt"."""

    num_context: int = 16
    """M, learned context tokens before the class name; started from words, as many as these."""

    context_start: str = "random"
    """What the learned tokens start as, c_v being the last of them: random, or words that the
    CLIP knows.  The paper is silent."""

    prompts_see: Literal["frames", "temporal", "patches"] = "frames"
    """v of Eq. 2 and 3: the frames as stored, the temporal transformer's output, or the
    store's patch tokens averaged over time."""

    meta_attention: Literal["standard", "bare"] = "standard"
    """Bare: no output projection, no 1/sqrt(d) in the Meta-Net (authors' release)."""

    adapter: Literal["bottleneck", "residual"] = "bottleneck"
    """Residual: a skip, a second layer that starts at zero, QuickGELU (authors' release)."""

    post_prompt: bool = True
    """Eq. 7 on the class embeddings (Table 4)."""

    post_layers: int = 1
    """Attention blocks of the Post-Prompt."""

    alpha: float = 0.1
    """Start of Eq. 7's learned weight (Table 9)."""

    word_guided: bool = True
    """Eq. 8 and 9 on the frames (Table 4); without it a video is the mean of its frames."""

    beta: float = 0.1
    """Start of Eq. 9's learned weight (Table 10)."""

    mean_pool: bool = True
    """Keep the mean of the frames in Eq. 9 (Table 7)."""

    word_source: Literal["classes", "words"] = "classes"
    """Decides the category whose words weight the frames (Table 8)."""

    word_rows: Literal["name", "prompt"] = "name"
    """The words of Eq. 8: the name's tokens, or all positions of the prompt with its padding
    (authors' release), which costs a whole prompt a video."""

    word_temperature: float = 1.0
    """Divides the similarities of Eq. 8; the paper has none."""

    word_norms: bool = False
    """LayerNorm on the words of Eq. 8 and on the classes of the pick (authors' release)."""

    vector_gates: bool = False
    """Let alpha and beta be D-vectors (authors' release) instead of numbers."""

    normalise: Literal["video", "frames"] = "video"
    """Vectors scaled to length 1: the video, as the cosine of Eq. 10 says, or each frame
    before pooling and the video not again (authors' release)."""

    temperature: float | None = 0.01
    """tau of Eq. 10; none takes CLIP's own, which is 0.01 for OpenAI's."""

    learn_temperature: bool = False
    """Train log(1 / tau), from `temperature` on (authors' release)."""

    targets: Literal["uniform", "multi-hot"] = "uniform"
    """Videos of one label share a weight of 1 in Eq. 10, or have 1 each (authors' release)."""

    frames: int | None = None
    """T, frames a video; none takes what the store holds."""

    epochs: int = 50
    """Times that every video is seen; an epoch draws each video once."""

    warmup_epochs: int = 5
    """Epochs in which the learning rate rises; it falls to zero as a cosine afterwards."""

    batch_size: int = 32
    """Videos a step, over all processes; the categories of Eq. 10 are those among them."""

    lr: float = 5e-4
    """Largest learning rate of AdamW."""

    weight_decay: float = 0.2
    """Weight decay of AdamW, on matrices only."""

    distill: float = 0.0
    """Weight of a term of the loss that draws videos and classes towards frozen CLIP's, see
    `loss.frozen_distance`; 0 is off."""

    average_epochs: int = 0
    """Last epochs whose weights, taken after each, are averaged; the mean is evaluated and
    kept.  0 is off, and 1 is the same as off."""

    clip_grad: float = 0.0
    """Largest norm of the gradient; 0 is off."""

    accumulate: int = 1
    """Parts that a batch is computed in, one after the other: 1/n of the memory for another
    forward pass.  The loss stays that of the whole batch."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of towers and prompts; cosines and losses are float32.  Auto: bfloat16 on CUDA."""

    eval_every: int = 10
    """Epochs between evaluations on the `val` partition, one at the end included; 0: never."""

    save_seconds: float = 60.0
    """Seconds between checkpoints, which `--resume` goes on from."""

    feature_memory: float | None = None
    """Gigabytes that features may take, on the device or in memory; those of a larger store
    stay on disk.  None: a share of what is free."""

    seed: int = 0
    """Decides the first weights and the order of the videos."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _POSITIVE and value is not None and not value > 0:
                raise ConfigError(f"{field.name} must be positive, got {value}")
            if field.name in _NOT_NEGATIVE and not value >= 0:
                raise ConfigError(f"{field.name} must not be negative, got {value}")
        for name, limit in _AT_MOST.items():
            if getattr(self, name) > limit:
                raise ConfigError(f"{name} must be at most {limit}, got {getattr(self, name)}")
        if self.context_start.strip() in ("", "none"):
            raise ConfigError(
                f"context_start must be words or random, got {self.context_start!r}"
            )
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ConfigError(
                f"warmup_epochs must be in [0, epochs), got {self.warmup_epochs} "
                f"with epochs={self.epochs}"
            )
        for name, most in (("accumulate", "batch_size"), ("average_epochs", "epochs")):
            value, limit = getattr(self, name), getattr(self, most)
            if value > limit:
                raise ConfigError(
                    f"{name} must be at most {most}, got {value} with {most}={limit}"
                )
        if self.design != "paper" and self.prompt != "pre-prompt":
            raise ConfigError(
                f"design {self.design!r} is one of the Pre-Prompt, got prompt={self.prompt!r}; "
                "set prompt=pre-prompt"
            )
        if not self.mean_pool and not self.word_guided:
            raise ConfigError(
                "mean_pool=false leaves no video embedding without the Word-Guided prompt; "
                "set word_guided=true"
            )

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], *, base: "TrainConfig | None" = None
    ) -> "TrainConfig":
        """Lay `values` over `base` (default: the paper's).

        Raises:
            ConfigError: If a name is unknown or a value does not fit.
        """
        return with_settings(base or cls(), values)

    def to_dict(self) -> dict[str, Any]:
        """All settings, ready for JSON; `from_dict` gives the same config back."""
        return asdict(self)


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "words": {
        "context_start": "This is a video about",
        "normalise": "frames",
        "temperature": None,
    },
    "paper": {},
    "baseline": {"prompt": "none", "post_prompt": False, "word_guided": False},
    "released": {
        "temporal_layers": 2,
        "temporal_residual": False,
        "num_context": 12,
        "meta_attention": "bare",
        "adapter": "residual",
        "post_layers": 2,
        "beta": 0.01,
        "word_rows": "prompt",
        "word_temperature": 0.01,
        "word_norms": True,
        "vector_gates": True,
        "normalise": "frames",
        "learn_temperature": True,
        "targets": "multi-hot",
        "weight_decay": 0.05,
    },
}

DEFAULT_PRESET = "words"
"""What the commands train with where the user names no preset; docs/LOG.md says why."""


def preset(name: str) -> TrainConfig:
    """One of the named starting points.

    `words` is what the commands take: the paper's method and settings, started at frozen CLIP.
    Its tokens start from the hand-crafted template (the paper is silent), and a score is the
    mean of unit frames' cosines over CLIP's own tau.  `paper` starts the tokens random.
    `baseline` is Table 4's first row: temporal transformer and nothing else.  `released` is
    what the authors' code does where it differs from the paper, on the stored frames; the
    release itself takes the patch tokens, which is `prompts_see = "patches"` on a store that
    has them and says `patch_norm`: CLIP's final norm, then that of the release's own
    LayerNorm, whose affine is learned here.  Not in it:

    - The release averages the patch tokens of the frames that the model takes; a store has
      averaged those of all its frames.
    - q, k and v of the Post-Prompt have no biases there; here they do, and start at zero.
    - Weights start otherwise.
    - Weight decay on everything; here on matrices alone.
    - A loss of each GPU by itself; here it is of the whole batch.
    - The number of heads at other widths than ViT-B/16's.
    - A shorter side of 256 pixels, of which 224 are cut out; here 224 are all of it.
    - A second softmax at test time, which changes no ranking of one view.

    Raises:
        ConfigError: If there is no such preset.
    """
    if name in PRESETS:
        return TrainConfig(**PRESETS[name])
    listed = ", ".join(map(repr, PRESETS))
    raise ConfigError(f"no preset {name!r}; expected one of {listed}")


def load(
    path: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    base: str | TrainConfig = "paper",
) -> TrainConfig:
    """Settings from `base`, a preset or others, then the TOML file, then `name=value` texts.

    Raises:
        ConfigError: If the file cannot be read or parsed, a name is unknown, or a value does
            not fit.
    """
    values = {} if path is None else read_settings(path)
    return with_settings(preset(base) if isinstance(base, str) else base, values, overrides)
