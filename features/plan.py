"""Planning a store: what its attributes say, writing it once, and planning the same again."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from bieff.features.errors import InputError, StoreError, StoreMismatchError, StoreMissingError
from bieff.features.files import (
    LOCK_NAME,
    PARTIAL,
    disk_errors,
    exclusive,
    parse_json,
    sync,
    write_atomically,
)
from bieff.features.schema import (
    SCHEMA_VERSION,
    UNLABELLED,
    Geometry,
    PartitionPlan,
    Video,
    columns_of,
    rows_per_shard,
)
from bieff.features.videos import (
    VideoTable,
    first_difference,
    identity,
    is_local,
    is_up_to_date,
    table_file,
    write_videos,
)

METADATA_NAME = "zarr.json"

FOLDERS = ("videos", "ledger", "errors")
"""Folders of a store beside its partitions."""

Plans = Mapping[str, PartitionPlan]

Subsets = Mapping[str, Sequence[int]]

_NAME = re.compile(r"[a-z0-9_]{1,64}")
_MOST = 2**28
"""Largest count that the attributes of a store may hold."""

_MOST_VALUES = 2**33
"""Numbers in the largest shard."""

_ABSENT = object()


def canonical(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as JSON gives them back: tuples are lists, keys are strings.

    Raises:
        ValueError: If they are not JSON, or hold a number that is not finite.
    """
    try:
        parsed: dict[str, Any] = json.loads(_text(values))
    except TypeError as error:
        raise ValueError(f"expected a recipe of plain JSON values: {error}") from None
    return parsed


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """SHA-256 of the recipe; the order of keys does not matter.  64 hexadecimal digits."""
    return hashlib.sha256(_text(recipe).encode()).hexdigest()


def differences(
    stored: Mapping[str, Any], asked: Mapping[str, Any], *, only_asked: bool = False
) -> list[str]:
    """One line for each key that differs, dotted where nested, sorted by key.

    Args:
        stored: Recipe of the store.
        asked: Recipe asked for.
        only_asked: Leave out the keys that `asked` does not mention.
    """
    old, new = dict(leaves(stored)), dict(leaves(asked))
    keys = sorted(new if only_asked else old | new)
    return [
        f"{key}: store has {_show(old, key)}, asked for {_show(new, key)}"
        for key in keys
        if old.get(key, _ABSENT) != new.get(key, _ABSENT)
    ]


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, allow_nan=False)


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a recipe, keys dotted where nested, in its order."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _show(leaves: Mapping[str, Any], key: str) -> str:
    if key not in leaves:
        return "nothing"
    text = json.dumps(leaves[key], ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def plan_attributes(
    *,
    recipe: Mapping[str, Any],
    class_names: Sequence[str],
    partitions: Plans,
    versions: Mapping[str, str],
    root: str,
    class_subsets: Subsets = MappingProxyType({}),
) -> dict[str, Any]:
    """The attributes of a new store.

    Raises:
        InputError: If a partition is empty, or a label or a subset has no class name.
    """
    recipe = canonical(recipe)
    for key in ("frames", "dim"):
        if not isinstance(recipe.get(key), int) or recipe[key] < 1:
            raise ValueError(f"recipe: expected a positive {key!r}, got {recipe.get(key)!r}")
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": recipe,
        "recipe_hash": recipe_hash(recipe),
        "class_names": list(class_names),
        "versions": dict(versions),
        "root": root,
        "partitions": {
            name: _sizes(name, plan, recipe, len(class_names))
            for name, plan in partitions.items()
        },
        "class_subsets": _subsets(class_subsets, len(class_names)),
    }


def _subsets(class_subsets: Subsets, num_classes: int) -> dict[str, list[int]]:
    for name, labels in class_subsets.items():
        wrong = [label for label in labels if not 0 <= label < num_classes]
        if wrong or len(set(labels)) != len(labels):
            raise InputError(
                f"class subset {name!r}: expected distinct labels from 0 to {num_classes - 1}, "
                f"got {wrong[0] if wrong else 'one twice'}"
            )
    return {name: list(labels) for name, labels in class_subsets.items()}


def _sizes(
    name: str, plan: PartitionPlan, recipe: Mapping[str, Any], num_classes: int
) -> dict[str, Any]:
    if not is_partition_name(name):
        raise ValueError(
            f"partition name: expected lower-case letters and digits, got {name!r}"
        )
    if not plan.videos:
        raise InputError(f"partition {name!r} has no videos; check the list and the folder")
    for video in plan.videos:
        if not UNLABELLED <= video.label < num_classes:
            raise InputError(
                f"label of video {video.id!r}: expected 0 to {num_classes - 1}, as there are "
                f"{num_classes} class names, or {UNLABELLED} for none, got {video.label}"
            )
    row_bytes = 2 * plan.num_views * recipe["frames"] * recipe["dim"]
    if recipe.get("patches") is not None:
        row_bytes = max(row_bytes, 2 * plan.num_views * math.prod(recipe["patches"]))
    return {
        "num_videos": len(plan.videos),
        "num_views": plan.num_views,
        "rows_per_shard": plan.rows_per_shard or rows_per_shard(len(plan.videos), row_bytes),
        "videos": identity(plan.videos),
    }


def is_partition_name(name: str) -> bool:
    """True for a folder of the store itself that is not one of `FOLDERS`."""
    return _NAME.fullmatch(name) is not None and name not in FOLDERS


def geometry(attributes: Mapping[str, Any], partition: str) -> Geometry:
    """Sizes of one partition of a store with these attributes."""
    recipe, sizes = attributes["recipe"], attributes["partitions"][partition]
    patches = recipe.get("patches")
    return Geometry(
        num_videos=sizes["num_videos"],
        num_views=sizes["num_views"],
        num_frames=recipe["frames"],
        dim=recipe["dim"],
        patches=None if patches is None else (patches[0], patches[1]),
        rows_per_shard=sizes["rows_per_shard"],
    )


def is_planned(path: Path) -> bool:
    """True if a store, or another zarr group, lies at `path`."""
    return (path / METADATA_NAME).is_file()


def require_vacant(path: Path, partitions: Sequence[str]) -> None:
    """Refuse a folder that holds anything but the rest of a planning that was killed.

    Raises:
        StoreError: Naming what is there.
    """
    known = {*FOLDERS, *partitions, LOCK_NAME, METADATA_NAME + PARTIAL}
    strange = sorted(entry.name for entry in path.iterdir() if entry.name not in known)
    if strange or any((path / "ledger").glob("*")):
        found = strange[0] if strange else "a ledger without zarr.json"
        raise StoreError(
            f"{path} is not a feature store and not empty, it has {found}; choose another --out"
        )


def write_plan(path: Path, attributes: Mapping[str, Any], partitions: Plans) -> None:
    """Write everything but shards; the root's metadata last, so that it is all or nothing."""
    require_vacant(path, list(partitions))
    for folder in FOLDERS:
        (path / folder).mkdir(exist_ok=True)
    for name, plan in partitions.items():
        create_arrays(path / name, geometry(attributes, name), plan.videos)
        write_videos(table_file(path, name), plan.videos)
    write_root(path, attributes, partitions)


def read_attributes(path: Path) -> dict[str, Any]:
    """The attributes of the store at `path`.

    Raises:
        StoreMissingError: If there is none.
        StoreMismatchError: If it is something else, or of another schema version.
    """
    file = path / METADATA_NAME
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise StoreMissingError(
            f"no feature store at {path}; make one with `bieff extract`"
        ) from None
    return parse_attributes(file, content)


def parse_attributes(file: Path, content: bytes) -> dict[str, Any]:
    """The attributes in the root's metadata, which may come from anybody.

    Raises:
        StoreMismatchError: If a store cannot have them; names the first that cannot be.
    """
    try:
        metadata = parse_json(content)
    except ValueError as error:
        raise StoreMismatchError(f"{file} is not JSON: {error}") from None
    attributes = metadata.get("attributes") if isinstance(metadata, dict) else None
    if not isinstance(attributes, dict):
        attributes = {}
    version = attributes.get("schema_version")
    if version != SCHEMA_VERSION:
        got = "no feature store" if version is None else f"schema version {version}"
        raise StoreMismatchError(
            f"{file}: expected a feature store of schema version {SCHEMA_VERSION}, got {got}"
        )
    if wrong := next(_faults(attributes), ""):
        raise StoreMismatchError(
            f"{file}: expected {wrong}; the file is damaged, or was not written by bieff"
        )
    return attributes


def _faults(attributes: Mapping[str, Any]) -> Iterator[str]:
    """Sentences of what is expected of attributes that are something else."""
    recipe, partitions, subsets = (
        attributes.get(key, {}) for key in ("recipe", "partitions", "class_subsets")
    )
    if not all(isinstance(held, dict) for held in (recipe, partitions, subsets)):
        yield "a recipe, partitions and class_subsets by name"
    if not _is_own_hash(attributes.get("recipe_hash"), recipe):
        yield "a recipe that agrees with its hash"
    patches = recipe.get("patches")
    sizes: list[Any] = [recipe.get("frames"), recipe.get("dim")]
    sizes += patches if isinstance(patches, list) else []
    if not _are_counts(sizes) or len(sizes) != (2 if patches is None else 4):
        yield "counts of frames, dim and patches in the recipe"
    names: Any = attributes.get("class_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        yield "class_names that are a list of texts"
    if not isinstance(attributes.get("versions"), dict):
        yield "versions of libraries"
    if not is_local(attributes.get("root")):
        yield f"a root that is a path, got {attributes.get('root')!r}"
    row = max(math.prod(sizes[:2]), math.prod(sizes[2:]))
    for name, held in partitions.items():
        if not is_partition_name(name):
            yield f"partition names of small letters and digits, got {name!r}"
        keys = ("rows_per_shard", "num_views", "num_videos")
        counts: list[Any] = [held.get(key) for key in keys] if isinstance(held, dict) else []
        if not counts or not _are_counts(counts) or not isinstance(held.get("videos"), str):
            yield f"counts of videos, views and rows of partition {name!r}"
        if math.prod(counts[:2]) * row > _MOST_VALUES:
            yield f"shards of partition {name!r} that fit into memory"
    for name, labels in subsets.items():
        if not isinstance(labels, list) or not all(
            type(label) is int and 0 <= label < len(names) for label in labels
        ):
            yield f"labels in class subset {name!r}"


def _is_own_hash(text: object, recipe: Mapping[str, Any]) -> bool:
    try:
        return text == recipe_hash(recipe)
    except ValueError:  # NaN
        return False


def _are_counts(values: Sequence[object]) -> bool:
    return all(type(value) is int and 1 <= value <= _MOST for value in values)


def require_recipe(
    path: Path, stored: Mapping[str, Any], asked: Mapping[str, Any], *, only_asked: bool = False
) -> None:
    """Compare recipes, or only the keys that are asked for.

    Raises:
        StoreMismatchError: With a line for each key that differs.
    """
    lines = differences(stored, asked, only_asked=only_asked)
    if lines:
        raise StoreMismatchError(
            f"{path} was written with another recipe; choose another --out, or ask for the "
            "same:\n" + "\n".join(f"  {line}" for line in lines)
        )


def require_same_plan(
    path: Path, stored: Mapping[str, Any], asked: Mapping[str, Any], partitions: Plans
) -> None:
    """Compare what the attributes say of recipe, class names, views and videos.

    Raises:
        StoreMismatchError: Saying what differs.
    """
    require_recipe(path, stored["recipe"], asked["recipe"])
    if stored["class_names"] != asked["class_names"]:
        line = differences(_numbered(stored), _numbered(asked))[0]
        raise StoreMismatchError(
            f"{path} has other class names; choose another --out:\n  {line}"
        )
    if set(stored["partitions"]) != set(partitions):
        raise StoreMismatchError(
            f"{path} has partitions {sorted(stored['partitions'])}, asked for "
            f"{sorted(partitions)}; choose another --out"
        )
    for name, sizes in asked["partitions"].items():
        held = stored["partitions"][name]
        if held["num_views"] != sizes["num_views"]:
            raise StoreMismatchError(
                f"{path / name} has {held['num_views']} views a video, asked for "
                f"{sizes['num_views']}; choose another --out"
            )
        if held["videos"] != sizes["videos"]:
            table = VideoTable(table_file(path, name))
            where = first_difference(table, held["num_videos"], partitions[name].videos)
            raise StoreMismatchError(
                f"{path / name} was planned for other videos; choose another --out, or give "
                f"the list it was planned with:\n  {where}"
            )


def bring_up_to_date(
    path: Path, stored: Mapping[str, Any], asked: Mapping[str, Any], partitions: Plans
) -> None:
    """Write anew where the videos lie, which is no part of the plan: files may move or come.

    Nor are the named subsets of the classes: a store from before there were any gets them.
    """
    stale = [
        name
        for name, plan in partitions.items()
        if not is_up_to_date(table_file(path, name), plan.videos)
    ]
    fresh = {key: asked[key] for key in ("root", "class_subsets")}
    if not stale and all(stored.get(key, {}) == value for key, value in fresh.items()):
        return
    with exclusive(path), disk_errors(path):
        for name in stale:
            write_videos(table_file(path, name), partitions[name].videos)
        write_root(path, {**stored, **fresh}, stored["partitions"])


def _numbered(attributes: Mapping[str, Any]) -> dict[str, str]:
    return {f"class_names.{i:05d}": name for i, name in enumerate(attributes["class_names"])}


def create_arrays(partition: Path, geometry: Geometry, videos: Sequence[Video]) -> None:
    """Write the zarr group of a partition: metadata of its arrays, labels and times.

    Args:
        partition: Folder of the group; what lies there is replaced.
        geometry: Sizes.
        videos: By row.
    """
    group = zarr.create_group(
        partition,
        zarr_format=3,
        overwrite=True,
        attributes={"num_videos": geometry.num_videos},
    )
    for array in geometry.arrays.values():
        shard_shape = (geometry.rows_per_shard, *array.row_shape)
        group.create_array(
            array.name,
            shape=(geometry.num_rows, *array.row_shape),
            dtype=array.dtype,
            chunks=(1, *array.row_shape) if array.is_sharded else shard_shape,
            shards=shard_shape if array.is_sharded else None,
            filters=None,
            serializer=BytesCodec(),
            compressors=[Crc32cCodec()],
            fill_value=array.fill,
            attributes=dict(array.attributes),
            dimension_names=("video", *array.dims),
        )
    columns = columns_of(videos)
    for name, column in columns.items():
        padded = np.full(geometry.num_rows, column.fill, column.values.dtype)
        padded[: geometry.num_videos] = column.values
        group.create_array(
            name,
            data=padded,
            chunks=(geometry.num_rows,),
            filters=None,
            compressors=[Crc32cCodec()],
            fill_value=column.fill,
            attributes={"meaning": column.meaning},
            dimension_names=("video",),
            config={"write_empty_chunks": True},  # where nothing is labelled
        )
    names = [*geometry.arrays, *columns]
    files = [f"{name}/c/0" for name in columns] + [f"{name}/{METADATA_NAME}" for name in names]
    for file in files:
        sync(partition / file)
    write_group(partition, {"num_videos": geometry.num_videos}, names)


def write_root(store: Path, attributes: Mapping[str, Any], partitions: Iterable[str]) -> None:
    """Write the metadata of the store itself.  Before this, it does not exist."""
    members = []
    for partition in partitions:
        inlined = _read(store / partition)["consolidated_metadata"]["metadata"]
        members += [partition, *(f"{partition}/{name}" for name in inlined)]
    write_group(store, attributes, members)


def write_group(folder: Path, attributes: Mapping[str, Any], members: Iterable[str]) -> None:
    """Write a group's metadata and, inlined, that of its members."""
    inlined = {name: _read(folder / name) for name in members}
    metadata = {
        "attributes": attributes,
        "zarr_format": 3,
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": inlined,
        },
        "node_type": "group",
    }
    text = json.dumps(metadata, indent=1) + "\n"
    write_atomically(folder / METADATA_NAME, text.encode())


def _read(folder: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads((folder / METADATA_NAME).read_bytes())
    return metadata
