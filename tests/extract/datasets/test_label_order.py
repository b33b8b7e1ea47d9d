"""The labels of HMDB-51 as several well-known repositories have them, and what becomes of it.

Their label file puts kick_ball before kick and sword_exercise before sword; their lists number
the classes alphabetically.  120 of the 1,530 test videos then carry another class's name.
"""

import pytest
from click.testing import CliRunner

from bieff.cli import main
from bieff.extract.catalogue import check, load
from bieff.extract.datasets import official
from bieff.features.errors import InputError

SWAPPED = {
    "kick": "kick_ball",
    "kick_ball": "kick",
    "sword": "sword_exercise",
    "sword_exercise": "sword",
}


@pytest.fixture
def wrong(tmp_path):
    """Videos in class folders, an alphabetical list, and a label file in another order."""
    names = [raw for raw, _ in official.class_names("hmdb51")]
    listed = [path for path, roles in official.splits("hmdb51") if roles.get("1") == "test"]
    assert len(listed) == 1530
    for name in names:
        (tmp_path / "videos" / name).mkdir(parents=True)
    lines = []
    for path in listed:
        (tmp_path / "videos" / f"{path}.avi").touch()
        lines.append(f"{path}.avi {names.index(path.split('/')[0])}\n")
    (tmp_path / "test1.txt").write_text("".join(lines))
    rows = [f"{label},{SWAPPED.get(name, name)}\n" for label, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("id,name\n" + "".join(rows))
    return {
        "videos": tmp_path / "videos",
        "lists": {"val": tmp_path / "test1.txt"},
        "labels": tmp_path / "labels.csv",
    }


def test_the_check_finds_all_120(wrong):
    report = check("list", **wrong)
    assert not report.is_clean
    assert len(report.data.mislabelled) == 120
    pairs = {(one.label, one.folder) for one in report.data.mislabelled}
    readable = dict(official.class_names("hmdb51"))
    assert pairs == {(readable[SWAPPED[raw]], readable[raw]) for raw in SWAPPED}
    with pytest.raises(InputError, match="120 of 1,530 videos lie in the folder of another cl"):
        load("list", **wrong)


def test_the_command_says_so_before_anything_is_decoded(wrong):
    options = ["--dataset", "list", "--videos", wrong["videos"], "--labels", wrong["labels"]]
    options += ["--list", f"val={wrong['lists']['val']}", "--model", "tinyclip"]
    refused = CliRunner().invoke(main, ["extract", *map(str, options)])
    assert refused.exit_code == 1
    assert "120 of 1,530 videos lie in the folder of another class" in refused.output
    checked = CliRunner().invoke(main, ["extract", *map(str, options), "--check"])
    assert checked.exit_code == 1
    assert "120 mislabelled" in checked.output


def test_the_right_order_is_clean(wrong):
    names = [raw for raw, _ in official.class_names("hmdb51")]
    rows = [f"{label},{name}\n" for label, name in enumerate(names)]
    wrong["labels"].write_text("id,name\n" + "".join(rows))
    assert check("list", **wrong).is_clean
    assert len(load("list", **wrong).partitions["val"]) == 1530
