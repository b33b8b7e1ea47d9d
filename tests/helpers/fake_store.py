"""Small CLIPs on disk, and feature stores with random features, made through the public API.

Features are the class's own direction with noise, so that training has something to find.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from bieff import clip as clips
from bieff.clip import Clip, ClipName, import_open_clip
from bieff.features.schema import PartitionPlan, ShardData, Status, Video, VideoError
from bieff.features.store import FeatureStore

NAMES = (
    "playing guitar",
    "archery",
    "playing squash or racquetball",
    "tai chi",
    "playing drums",
)


def write_clip(
    folder: Path, *, dim: int = 13, width: int = 11, seed: int = 0, **text: Any
) -> ClipName:
    """A tiny open_clip model as `local-dir:` takes it, with the standard tokenizer.

    `text` is of its text tower.
    """
    model_cfg: dict[str, Any] = {
        "embed_dim": dim,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 8,
            "patch_size": 8,
            "width": 8,
            "layers": 1,
            "head_width": 8,
        },
        "text_cfg": {"width": width, "heads": 1, "layers": 3, **text},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = import_open_clip().CLIP(**model_cfg)
        # at open_clip's start the blocks hardly change their input
        for name, parameter in model.transformer.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.5)
        torch.nn.init.normal_(model.positional_embedding, std=0.2)
        torch.nn.init.normal_(model.token_embedding.weight, std=0.2)
    folder.mkdir(parents=True)
    preprocess = {"size": 8, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return ClipName(model=f"local-dir:{folder}", pretrained=None)


def named(store: FeatureStore | Path) -> ClipName:
    """The CLIP of a store, as its user must name it."""
    opened = store if isinstance(store, FeatureStore) else FeatureStore.open(store)
    held = opened.recipe["clip"]
    return ClipName(model=held["model"], pretrained=held["pretrained"])


def load_clip(
    folder: Path, *, dim: int = 13, width: int = 11, seed: int = 0, **text: Any
) -> Clip:
    return clips.load(write_clip(folder, dim=dim, width=width, seed=seed, **text))


def write_store(
    path: Path,
    clip: Clip,
    *,
    counts: dict[str, int] | None = None,
    frames: int = 6,
    views: int = 2,
    names: tuple[str, ...] = NAMES,
    patches: tuple[int, int] | None = None,
    bad: dict[str, list[int]] | None = None,
    noise: float = 1.0,
    num_splits: int = 0,
    seed: int = 0,
    clips: int = 1,
    class_subsets: dict[str, tuple[int, ...]] | None = None,
    data_set: str = "fake",
) -> FeatureStore:
    """A finished store; `bad` names rows of a partition that could not be decoded.

    The views are `clips` temporal clips.  Each video has a role in three overlapping splits;
    with `num_splits` every third video is in the test list of split 1 instead, the next of
    split 2, and so on, and each in the training lists of the other splits.
    """
    counts = counts or {"train": 53, "val": 17}
    draw = np.random.default_rng(seed)
    directions = draw.normal(size=(len(names), clip.dim))
    labels = {part: draw.integers(len(names), size=count) for part, count in counts.items()}
    view = {"clips": clips}
    roles = np.random.default_rng(seed + 1)

    def roles_of(row: int) -> dict[str, str]:
        if not num_splits:
            return dict(zip("123", roles.choice(["train", "test"], 3), strict=True))
        return {
            str(split + 1): "test" if row % 3 == split else "train"
            for split in range(num_splits)
        }

    store = FeatureStore.create(
        path,
        recipe={
            "data_set": data_set,
            "clip": {
                "model": clip.name.model,
                "pretrained": clip.name.pretrained,
                "fingerprint": clip.fingerprint,
            },
            "frames": frames,
            "dim": clip.dim,
            "patches": patches,
            "views": {part: [view] * views for part in counts},
            "seed": seed,
        },
        class_names=names,
        partitions={
            part: PartitionPlan(
                videos=[
                    Video(
                        id=f"{part}-{row:03}",
                        path=f"{part}/{row}.mp4",
                        label=int(label),
                        splits=roles_of(row),
                    )
                    for row, label in enumerate(labels[part])
                ],
                num_views=views,
                rows_per_shard=16,
            )
            for part in counts
        },
        versions={},
        class_subsets=class_subsets or {},
    )
    for part, partition in store.partitions.items():
        for shard in range(partition.num_shards):
            rows = range(shard * 16, min(shard * 16 + 16, counts[part]))
            count = len(rows)
            shape = (count, views, frames, clip.dim)
            embeddings = directions[labels[part][rows.start : rows.stop], None, None]
            embeddings = embeddings + noise * draw.normal(size=shape)
            status = np.full(count, int(Status.OK), np.uint8)
            failed = [row for row in (bad or {}).get(part, []) if row in rows]
            for row in failed:
                status[row - rows.start] = int(Status.CORRUPT)
            data = ShardData(
                embeddings=embeddings.astype(np.float16),
                frames=np.tile(np.arange(frames, dtype=np.int32), (count, views, 1)),
                status=status,
                patches=None
                if patches is None
                else draw.normal(size=(count, views, *patches)).astype(np.float16),
            )
            errors = [
                VideoError(
                    row=row,
                    id=f"{part}-{row:03}",
                    path=f"{part}/{row}.mp4",
                    status=Status.CORRUPT,
                    stage="decode",
                    decoder="av",
                    message="no frames",
                    attempt=1,
                )
                for row in failed
            ]
            partition.write_shard(shard, data, errors=errors, seconds={})
    return store
