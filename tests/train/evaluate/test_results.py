"""Records of results: what they hold, how they are kept, and how they are shown."""

import dataclasses
import json

import pytest

from bieff.features.errors import InputError
from bieff.train.evaluate.results import (
    ClassFigures,
    ListFigures,
    Result,
    load_results,
    merge_results,
    save_results,
)
from bieff.train.evaluate.tables import class_table, confusion_table, paper_lines, result_table


def make(**changes):
    """A result over two draws of two of three classes."""
    whole = {
        "protocol": "half10",
        "dataset": "hmdb51",
        "model": "bieff",
        "top1": 62.5,
        "top1_std": 12.5,
        "top1_all": 50.0,
        "top1_all_std": 0.0,
        "top5": 100.0,
        "n_evaluated": 6,
        "n_listed": 8,
        "n_undecodable": 2,
        "frames": 8,
        "clips": 3,
        "crops": 1,
        "template": "pre-prompt",
        "store": "0123456789abcdef",
        "run": "k400",
        "weights": "last",
        "names_hash": "abc",
        "lists": tuple(
            ListFigures(
                name=f"draw {k}", n_classes=2, n_listed=4, n_evaluated=n, n_top1=2, n_top5=n
            )
            for k, n in ((0, 2), (1, 4))
        ),
        "classes": (
            ClassFigures(name="run", n_listed=4, n_evaluated=3, n_right=1),
            ClassFigures(name="hop", n_listed=4, n_evaluated=3, n_right=3),
            ClassFigures(name="sit", n_listed=0, n_evaluated=0, n_right=0),
        ),
        "confusions": ((0, 1, 2),),
    }
    return Result(**{**whole, **changes})


BESIDE = make(model="frozen", run=None, weights=None, template="48 templates", top1=60.0)


def test_they_come_back_as_they_were(tmp_path):
    results = [make(), BESIDE]
    save_results(tmp_path / "results.json", results)
    assert load_results(tmp_path / "results.json") == results
    text = (tmp_path / "results.json").read_text()
    assert '\n    "top1": 62.5,\n' in text  # a field a line
    assert json.loads(text)[0]["lists"][1]["n_top1"] == 2


def test_a_record_from_before_lists_and_classes_is_read(tmp_path):
    old = {
        name: value
        for name, value in make().to_dict().items()
        if name not in ("lists", "classes", "confusions", "weights", "mix", "top1_all")
    }
    (tmp_path / "results.json").write_text(json.dumps([old]))
    (result,) = load_results(tmp_path / "results.json")
    assert result.top1 == 62.5
    assert result.top1_all is None
    assert result_table([result])[1][0][5] == "-"


def test_what_is_no_result_is_named(tmp_path):
    with pytest.raises(InputError, match="no results at"):
        load_results(tmp_path / "none.json")
    (tmp_path / "results.json").write_text('[{"top2": 3}]')
    with pytest.raises(InputError, match="cannot read the results at"):
        load_results(tmp_path / "results.json")


def test_the_same_question_asked_again_takes_the_old_ones_place(tmp_path):
    path = tmp_path / "results.json"
    merge_results(path, [make(), BESIDE])
    merge_results(path, [make(top1=70.0)])
    merge_results(path, [make(protocol="full"), make(weights="best")])
    merge_results(path, [dataclasses.replace(BESIDE, template="{}")])
    found = [(r.protocol, r.model, r.weights, r.template, r.top1) for r in load_results(path)]
    assert found == [
        ("half10", "bieff", "last", "pre-prompt", 70.0),
        ("half10", "frozen", None, "48 templates", 60.0),
        ("full", "bieff", "last", "pre-prompt", 62.5),
        ("half10", "bieff", "best", "pre-prompt", 62.5),
        ("half10", "frozen", None, "{}", 60.0),
    ]


def test_the_table_shows_both_figures_only_where_they_differ():
    header, rows = result_table([make(), BESIDE])
    assert header[4:7] == ("top-1", "top-1 of all", "top-5")
    assert rows[0][4:] == ("62.50 ± 12.50", "50.00 ± 0.00", "100.00", "6 of 8", "8 x 3 x 1")
    whole = make(n_evaluated=8, n_undecodable=0)
    assert "top-1 of all" not in result_table([whole])[0]


def test_a_line_for_a_paper_says_everything():
    (line,) = paper_lines([make(), BESIDE])
    assert line == (
        "hmdb51, half10 (2 draws of half of the classes, 2 classes each, mean ± population "
        "std): bieff [run k400, last weights, pre-prompt] 62.50 ± 12.50 top-1 (50.00 ± 0.00 of "
        "all listed), 100.00 top-5; frozen CLIP [48 templates] 60.00 ± 12.50 top-1 (50.00 ± "
        "0.00 of all listed), 100.00 top-5; 6 of 8 videos, 2 undecodable; 8 frames x 3 clips x "
        "1 crops; class names: the data set's (abc); store 0123456789ab"
    )
    assert len(paper_lines([make(), make(protocol="full")])) == 2
    (few,) = paper_lines([make(protocol="fewshot", shots=4, after="k400")])
    assert few.startswith("hmdb51, fewshot 4 (")
    assert "[run k400, last weights, after k400, pre-prompt]" in few


def test_the_worst_class_comes_first():
    _, rows = class_table(make())
    assert rows == [
        ("run", "33.33", "1", "3", "4", "hop (2)"),
        ("hop", "100.00", "3", "3", "4", ""),
    ]
    assert confusion_table(make(), 5)[1] == [("run", "hop", "2", "66.7 %")]
