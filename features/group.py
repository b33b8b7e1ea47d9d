"""The store's zarr metadata, written once when it is planned.

Listing a zarr group looks at every name in its folder and warns of each that is not zarr, such
as our ledger.  With consolidated metadata in the group nothing is looked for, so a stranger's
`zarr.open_group(path).members()` and `xarray.open_zarr(path, group="train")` say nothing; the
latter also warns where a store has none.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from jaxtyping import Int64
from zarr.codecs import BytesCodec, Crc32cCodec

from bieff.features.durable import sync_file, write_atomically
from bieff.features.layout import Geometry

METADATA_NAME = "zarr.json"


def create_arrays(partition: Path, geometry: Geometry, labels: Int64[np.ndarray, " N"]) -> None:
    """Write the zarr group of a partition: metadata of its arrays, and the labels.

    Args:
        partition: Folder of the group; what lies there is replaced.
        geometry: Sizes.
        labels: Class index of each video; padding becomes -1.
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
    padded = np.full(geometry.num_rows, -1, np.int32)
    padded[: geometry.num_videos] = labels
    group.create_array(
        "labels",
        data=padded,
        chunks=(geometry.num_rows,),
        filters=None,
        compressors=[Crc32cCodec()],
        fill_value=-1,
        attributes={"meaning": "index into the class names, -1 for unlabelled and for padding"},
        dimension_names=("video",),
        config={"write_empty_chunks": True},  # where nothing is labelled
    )
    names = [*geometry.arrays, "labels"]
    for name in names:
        sync_file(partition / name / METADATA_NAME)
    sync_file(partition / "labels" / "c" / "0")
    write_group(partition, {"num_videos": geometry.num_videos}, names)


def write_group(folder: Path, attributes: Mapping[str, Any], members: Iterable[str]) -> None:
    """Write a group's metadata and, inlined, that of its members."""
    inlined = {name: _read(folder / name) for name in members}
    metadata = {
        "attributes": attributes,
        "zarr_format": 3,
        "consolidated_metadata": _consolidated(inlined),
        "node_type": "group",
    }
    text = json.dumps(metadata, indent=1) + "\n"
    write_atomically(folder / METADATA_NAME, text.encode())


def write_root(store: Path, attributes: Mapping[str, Any], partitions: Iterable[str]) -> None:
    """Write the metadata of the store itself.  Before this, it does not exist."""
    members = []
    for partition in partitions:
        inlined = _read(store / partition)["consolidated_metadata"]["metadata"]
        members += [partition, *(f"{partition}/{name}" for name in inlined)]
    write_group(store, attributes, members)


def _read(folder: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads((folder / METADATA_NAME).read_bytes())
    return metadata


def _consolidated(members: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": "inline", "must_understand": False, "metadata": members}
