"""UCF-101 and HMDB-51: a fixed list of videos, and three official splits that overlap.

The splits overlap, so there is one partition "all"; a video's role in each split is in
`Video.splits`.  Videos are matched by their official file name, which is unique in both sets,
and the class is that of the official list: never of the file name, as UCF-101 keeps
`v_HandStandPushups_*` in `HandstandPushups/`.
"""

from pathlib import Path, PurePosixPath

from bieff.extract.datasets import official
from bieff.extract.datasets.dataset import (
    DataSet,
    Mislabelled,
    note_mislabelled,
    require_found,
)
from bieff.extract.datasets.names import key, label_of_key
from bieff.extract.datasets.scan import scan
from bieff.features.schema import Video

LAYOUT = {
    "ucf101": "the class folders of UCF-101 (ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi), "
    "at any depth, or all its videos in one folder",
    "hmdb51": "the class folders of HMDB-51 (brush_hair/*.avi, unpacked from the rar files), "
    "at any depth, or all its videos in one folder",
}


def load_three_splits(name: str, videos: Path) -> DataSet:
    """Load "ucf101" or "hmdb51" from the folder `videos`.

    Raises:
        InputError: If the folder is missing or holds none of the set's videos.
    """
    folder = scan(videos, layout=LAYOUT[name])
    classes = official.class_names(name)
    label_of = {folder_name: label for label, (folder_name, _) in enumerate(classes)}
    by_key = label_of_key([raw for raw, _ in classes], source=name)
    rows, missing, mislabelled = [], [], []
    left = set(folder.videos)
    for listed, roles in official.splits(name):
        label = label_of[listed.split("/")[0]]
        anywhere = folder.by_stem.get(listed.split("/")[1].casefold())
        path = (folder.find(listed) or anywhere[0]) if anywhere else None
        if path is None:
            missing.append(listed)
        else:
            left.discard(path)
            lies_in = by_key.get(key(PurePosixPath(path).parent.name), label)
            if lies_in != label:
                mislabelled.append(
                    Mislabelled(
                        partition="all",
                        path=path,
                        label=classes[label][1],
                        folder=classes[lies_in][1],
                    )
                )
        size = 0 if path is None else folder.videos[path]
        found_path = path or f"{listed}.avi"
        rows.append(Video(id=listed, path=found_path, label=label, size=size, splits=roles))
    data = DataSet(
        name=name,
        class_names=tuple(words for _, words in classes),
        partitions={"all": rows},
        root=videos,
        notes=note_mislabelled(mislabelled),
        missing=frozenset(missing),
        unlisted=tuple(sorted(left)),
        mislabelled=tuple(mislabelled),
    )
    return require_found(data, layout=LAYOUT[name])
