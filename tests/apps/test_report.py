"""The report: right figures, nothing from elsewhere, nothing of a user's that runs."""

import itertools
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bieff.apps.report.charts import charts, nice_ticks
from bieff.apps.report.files import commands, read_curves, read_results
from bieff.apps.report.page import TEMPLATES
from bieff.apps.report.tables import (
    cells,
    class_rows,
    cost,
    examples,
    top_confusions,
)
from bieff.cli import main
from bieff.features.store import FeatureStore
from bieff.train.evaluate.lists import EvalList
from bieff.train.evaluate.results import results_of
from bieff.train.evaluate.scores import About, Head, ScoreTable
from bieff.train.runs.run import open_run

HOSTILE = "<script>alert(1)</script>"
ODD = "ring \"moving' left & on"


def run(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def told(world, tmp_path_factory):
    """A run that was evaluated, and its report."""
    folder = tmp_path_factory.mktemp("told") / "shapes"
    results = shutil.ignore_patterns("results.*")
    shutil.copytree(world / "runs" / "shapes", folder, ignore=results)
    run("eval", folder, "--device", "cpu")
    unseen = world / "features" / "shapes-unseen"
    run("zeroshot", "shapes-unseen", "--run", folder, "--features", unseen, "--device", "cpu")
    said = run("report", folder, "--device", "cpu")
    assert said.stdout == f"report: {folder / 'report.html'}\n"
    return folder


@pytest.fixture(scope="module")
def hostile(world, tmp_path_factory):
    """The report of a run whose every name is an attack, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("hostile")
    clips = sorted((world / "data" / "shapes").rglob("*.mp4"))[:8]
    videos = folder / "videos"
    videos.mkdir()
    lines = []
    for index, clip in enumerate(clips):
        name = f'x"><img_src=x_onerror=alert({index})>.mp4'
        shutil.copy(clip, videos / name)
        lines.append(f"{name} {index % 2}")
    for part, chosen in (("train", lines[:4]), ("val", lines[4:])):
        (folder / f"{part}.txt").write_text("\n".join(chosen))
    (folder / "labels.json").write_text(json.dumps([HOSTILE, ODD]))
    store = folder / "features"
    lists = [x for part in ("train", "val") for x in ("--list", f"{part}={folder / part}.txt")]
    run(
        *("extract", "--dataset", "list", *lists, "--labels", folder / "labels.json"),
        *("--videos", videos, "--out", store, "--frames", 2, "--model", "tinyclip"),
        *("--device", "cpu", "--set", "decoders=1"),
    )
    out = folder / "<img src=x onerror=alert(2)>"
    settings = ("epochs=2", "warmup_epochs=1", "temporal_layers=1", "eval_every=1")
    run(
        *("train", "--features", store, "--out", out, "--device", "cpu"),
        *(x for setting in settings for x in ("--set", setting)),
    )
    run("eval", out, "--device", "cpu")
    run("report", out, "--device", "cpu", "--out", folder / "report.html")
    return folder / "report.html"


class Page(HTMLParser):
    """Elements of a page, with their attributes, and that they are closed in order."""

    VOID = frozenset({"meta", "img", "line", "rect", "circle", "polyline"})

    def __init__(self, path):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


# --- figures


def brute_force(seed=3, n=97, k=5):
    """A closed set, and the scores of both models."""
    generator = np.random.default_rng(seed)
    ours, frozen = generator.dirichlet(np.ones(k), n), generator.dirichlet(np.ones(k), n)
    kind = {"frames": 1, "template": "", "names": None, "names_hash": None, "weights": None}
    table = ScoreTable(
        head=Head(protocol="closed", dataset="made", store="", clips=1, crops=1),
        class_names=tuple(f"class {i}" for i in range(k)),
        lists=(EvalList("val", np.arange(n), np.arange(k)),),
        rows=np.arange(n),
        ids=tuple(map(str, range(n))),
        labels=generator.integers(0, k - 1, n),  # the last class has no video
        usable=np.ones(n, bool),
        models=(About(model="bieff", run="r", **kind), About(model="frozen", run=None, **kind)),
        scores=([ours], [frozen]),
    )
    return table, ours, frozen


def test_class_rows_by_counting():
    found, ours, frozen = brute_force()
    rows = {row["name"]: row for row in class_rows(*results_of(found))}
    assert set(rows) == {f"class {i}" for i in range(4)}
    for label in range(4):
        videos = [i for i in range(97) if found.labels[i] == label]
        said, beside = (
            [max(range(5), key=lambda k, i=i: scores[i, k]) for i in videos]
            for scores in (ours, frozen)
        )
        counts = {k: said.count(k) for k in range(5) if k != label}
        row = rows[f"class {label}"]
        assert row["videos"] == len(videos)
        assert row["ours"] == pytest.approx(100 * said.count(label) / len(videos))
        assert row["frozen"] == pytest.approx(100 * beside.count(label) / len(videos))
        assert row["times"] == max(counts.values())
        assert counts[found.class_names.index(row["taken_for"])] == row["times"]
    accuracies = [row["ours"] for row in class_rows(*results_of(found))]
    assert accuracies == sorted(accuracies)


def test_the_matrix_and_its_largest_cells():
    found, ours, _ = brute_force()
    table = np.zeros((5, 5), int)
    np.add.at(table, (found.labels, ours.argmax(axis=1)), 1)
    result, _ = results_of(found)
    shown = cells(result)
    assert [(c.true, c.said, c.count) for c in shown] == [
        (i, j, table[i, j]) for i, j in np.argwhere(table).tolist()
    ]
    assert all(c.share == pytest.approx(c.count / table[c.true].sum()) for c in shown)
    top = top_confusions(result, 3)
    off = table - np.diag(np.diag(table))
    assert [cell.count for cell in top] == sorted(off.ravel(), reverse=True)[:3]


def test_surest_and_furthest_off():
    found, ours, _ = brute_force()
    truth = ours[np.arange(97), found.labels]
    right = ours.argmax(axis=1) == found.labels
    best, worst = (examples(found, 3, are_right=are_right) for are_right in (True, False))
    assert right[best].all()
    assert not right[worst].any()
    assert truth[best[0]] == truth[right].max()
    assert truth[worst[0]] == truth[~right].min()
    assert len(set(found.labels[best])) == 3
    assert len(examples(found, 200, are_right=False)) == (~right).sum()


def test_classes_add_up_to_what_eval_says(told):
    """Two ways to the same figure: the table of classes, and the protocol."""
    page = told.joinpath("report.html").read_text()
    page = page[page.index('<section id="classes"') : page.index('<section id="confusions"')]
    records = json.loads((told / "results.json").read_text())
    results = {r["model"]: r for r in records if r["protocol"] == "closed"}
    rows = re.findall(
        r'<td class="number" data-value="(\d+)">.*?data-value="([\d.]+)">.*?'
        r'<td class="number other" data-value="([\d.]+)">',
        page,
        re.S,
    )
    videos, ours, frozen = np.array(rows, dtype=float).T
    assert videos.sum() == results["bieff"]["n_evaluated"]
    assert (videos * ours).sum() / videos.sum() == pytest.approx(results["bieff"]["top1"])
    assert (videos * frozen).sum() / videos.sum() == pytest.approx(results["frozen"]["top1"])


def test_what_eval_scored_is_not_scored_again(told, tmp_path):
    file = told / "scores" / "closed-shapes.h5"
    before = file.stat().st_mtime_ns
    run("report", told, "--device", "cpu", "--out", tmp_path / "again.html")
    assert file.stat().st_mtime_ns == before


# --- curves


def test_curves_are_those_of_the_metrics(told):
    curves = read_curves(told)
    lines = [json.loads(line) for line in (told / "metrics.jsonl").read_text().splitlines()]
    assert curves["loss"] == [(r["step"], r["loss"]) for r in lines if "loss" in r]
    drawn = charts(curves)
    assert [chart.title.split()[0] for chart in drawn] == [
        "Training",
        "Accuracy",
        "Learning",
        "Learned",
    ]
    assert [line.name for line in drawn[3].lines] == ["alpha", "beta"]


def test_a_point_lies_where_its_value_says():
    (chart,) = charts({"loss": [(0, 10.0), (50, 5.0), (100, 0.0)]})
    points = [tuple(map(float, p.split(","))) for p in chart.lines[0].points.split()]
    at = {tick.text: tick.at for tick in (*chart.y_ticks, *chart.x_ticks) if tick.text != "0"}
    assert points[0][1] == pytest.approx(at["10"])
    assert points[2][0] == pytest.approx(at["100"])
    middle = [(points[0][i] + points[2][i]) / 2 for i in (0, 1)]
    assert points[1] == pytest.approx(middle, abs=0.06)


def test_long_curves_are_thinned_and_broken_ones_drawn(tmp_path):
    lines = [json.dumps({"step": step, "loss": float(step % 7)}) for step in range(10_000)]
    broken = ['{"step": 10000, "loss": NaN}', '{"step": 10001, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines + broken))
    curves = read_curves(tmp_path)
    assert len(curves["loss"]) == 10_000
    (chart,) = charts(curves)
    assert len(chart.lines[0].points.split()) == 400
    assert charts({"lr": [(0, 1.0)]})[0].lines[0].points
    assert charts({}) == []


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 14.7, [0, 5, 10, 15]),
        (0.1, 0.14, [0.1, 0.11, 0.12, 0.13, 0.14]),
        (3, 3, [3, 4, 5, 6]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert nice_ticks(low, high, 5)[: len(ticks)] == pytest.approx(ticks)


# --- results and commands


def test_results_are_read_tolerantly(told, tmp_path):
    folder = tmp_path / "shapes"
    shutil.copytree(told, folder)
    ours = {"protocol": "full", "model": "bieff", "top1": 50.0, "run": "shapes", "new": [1]}
    other = {**ours, "run": "another", "dataset": "other"}
    (folder / "older.json").write_text(json.dumps({"results": [ours, other, {"top1": 1}]}))
    (folder / "draft.json").write_text("[{")
    found = read_results(open_run(folder))
    assert [(r["protocol"], r["model"]) for r in found] == [
        ("closed", "bieff"),
        ("closed", "frozen"),
        ("full", "bieff"),
        ("splits3", "bieff"),
        ("splits3", "frozen"),
    ]
    run("report", folder, "--without-videos")
    Page(folder / "report.html")


def test_results_of_a_run_that_was_renamed_are_its_own(told, tmp_path):
    folder = tmp_path / "renamed"
    shutil.copytree(told, folder)
    models = [record["model"] for record in read_results(open_run(folder))]
    assert models == ["bieff", "frozen"] * 2


def test_damaged_results_are_told_and_not_taken_for_none(told, tmp_path):
    folder = tmp_path / "shapes"
    shutil.copytree(told, folder)
    (folder / "results.json").write_text('[{"protocol": ')
    run("report", folder, "--without-videos")
    page = (folder / "report.html").read_text()
    assert "results.json cannot be read (Expecting value" in page
    assert "Nothing was evaluated" not in page


def test_the_commands_run_the_same_again(told, world):
    opened = open_run(told)
    store = FeatureStore.open(world / "features" / "shapes")
    lines = [line for line, _ in commands(opened, store, read_results(opened))]
    assert f"bieff eval {told} --protocol closed" in lines
    assert f"bieff zeroshot shapes-unseen --run {told} --protocol splits3" in lines
    extract = next(line for line in lines if line.startswith("bieff extract"))
    assert "--frames 8 --train-views 1 --clips 3 --crops 1 --model tinyclip" in extract
    assert f"--videos {store.root}" in extract
    again = next(line for line in lines if line.startswith("bieff train")).split()[1:]
    folder = told.parent / "again"
    again[again.index("--out") + 1] = str(folder)
    run(*again)
    first, second = (open_run(path) for path in (told, folder))
    assert first.config == second.config
    same = [path.joinpath("last.safetensors").read_bytes() for path in (told, folder)]
    assert same[0] == same[1]


def test_a_protocol_that_the_run_brings_is_not_asked_for(told):
    opened = open_run(told)
    few = {"model": "bieff", "dataset": "shapes", "protocol": "fewshot", "shots": 4}
    lines = [line for line, _ in commands(opened, None, [few, {**few, "blend": 0.5}])]
    assert f"bieff eval {told}" in lines  # as `--protocol fewshot` is no choice
    assert f"bieff eval {told} --blend 0.5" in lines


def test_a_typed_command_is_shown_as_it_was_typed(told):
    record = {
        **open_run(told).record,
        "command": ["/opt/x/bin/bieff", "train", "--out", "my run"],
        "resumed": [{"command": ["bieff", "train", "--resume"]}],
    }
    opened = type(open_run(told))(told, record)
    lines = [line for line, _ in commands(opened, None, [])]
    assert "bieff train --out 'my run'" in lines
    assert "bieff train --resume" in lines


def test_cost_counts_both_stages(told, world):
    lines = dict(cost(open_run(told), FeatureStore.open(world / "features" / "shapes")))
    assert re.match(r"[\d.]+ s for \d+ videos: ", lines["Stage one, extraction"])
    assert "steps of 32 videos on cpu" in lines["Stage two, training"]
    assert lines["Arithmetic of a training video"].endswith(" GFLOPs")


# --- the page


def test_nothing_comes_from_elsewhere(told):
    page = Page(told / "report.html")
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action")
    ]
    assert addresses
    assert all(a.startswith(("#", "data:image/jpeg;base64,")) for a in addresses)
    text = told.joinpath("report.html").read_text()
    assert not re.search(r"https?:|url\(|@import", text)


@pytest.mark.slow
def test_names_of_users_are_text(hostile):
    page = Page(hostile)
    assert len(page.all("script")) == 1
    assert all(attributes["src"].startswith("data:") for attributes in page.all("img"))
    assert not [a for _, attrs in page.elements for a in attrs if a.startswith("on")]
    text = hostile.read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&gt;&lt;img_src=x_onerror=alert(" in text


def test_headings_and_pictures_for_those_who_cannot_see(told):
    page = Page(told / "report.html")
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert all(attributes["alt"] for attributes in page.all("img"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for svg in page.all("svg"):
        assert svg["role"] == "img"
        assert set(svg["aria-labelledby"].split()) <= set(ids)
    assert all("scope" in attributes for attributes in page.all("th"))


def test_contrast():
    """WCAG 2.2: 4.5 for text, on every ground that it stands on, light and dark."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    style = (TEMPLATES / "report.css").read_text()
    schemes = [
        dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in style.split("@media")[:2]
    ]
    assert all(len(scheme) == 8 for scheme in schemes)
    for scheme in schemes:
        for ink in ("ink", "quiet", "ours"):
            for paper in ("paper", "panel", "mark"):
                high, low = sorted((luminance(scheme[n]) for n in (ink, paper)), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, paper)


def test_a_run_without_results_store_or_videos_still_has_a_page(told, world, tmp_path):
    folder = tmp_path / "shapes"
    shutil.copytree(told, folder, ignore=shutil.ignore_patterns("*.html", "results.json"))
    record = json.loads((folder / "run.json").read_text())
    gone = {**record, "store": str(tmp_path / "gone"), "finished": None}
    (folder / "run.json").write_text(json.dumps(gone))
    run("report", folder)
    text = (folder / "report.html").read_text()
    assert "Nothing was evaluated yet" in text
    assert "no feature store at" in text
    assert "not finished" in text

    # the store without its videos
    copy = tmp_path / "store"
    shutil.copytree(world / "features" / "shapes", copy)
    attributes = (copy / "zarr.json").read_text().replace(str(world), str(tmp_path / "gone"))
    (copy / "zarr.json").write_text(attributes)
    run("report", folder, "--features", copy, "--device", "cpu")
    assert "No frames: no video at" in (folder / "report.html").read_text()


def test_another_store_is_refused(told, world):
    wrong = world / "features" / "shapes-unseen"
    arguments = ["report", str(told), "--features", str(wrong), "--out", "none.html"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "is another store than run" in result.output


def test_a_page_that_cannot_be_written(told):
    arguments = ["report", str(told), "--without-videos", "--out", "/proc/none/report.html"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.output.startswith("Error: cannot write /proc/none/report.html: ")


# --- in a browser


def test_the_page_in_a_browser(told, browser, tmp_path):
    page = told / "report.html"
    browser.open(page)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.find("h1").text == "shapes"
    pictures = "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
    assert browser.run(pictures)
    assert len(browser.find_all("img")) >= 8

    light = browser.run("return getComputedStyle(document.body).backgroundColor")
    browser.look(dark=True)
    assert browser.run("return getComputedStyle(document.body).backgroundColor") != light
    for size in ((1280, 900), (390, 844), (320, 640)):
        browser.look(size)
        assert browser.overflow() == 0, size
    with Image.open(browser.screenshot(tmp_path / "phone.png")) as shot:
        assert len(shot.convert("RGB").getcolors(1 << 24)) > 100  # not an empty page


def test_no_word_of_a_command_is_torn_on_a_phone(told, browser):
    browser.open(told / "report.html")
    browser.look((390, 844))
    words = [word for word in browser.find_all("#again .word") if word.text.startswith("-")]
    assert len(words) > 8
    # an option that is torn has the height of two lines
    assert {word.text for word in words if word.size["height"] > 30} == set()
    lines = [code.text for code in browser.find_all("#again > pre")]
    assert any("--train-views 1" in line.replace("\n", " ") for line in lines)


def test_a_click_sorts_a_table(told, browser):
    browser.open(told / "report.html")
    column = "#classes tbody tr td:nth-child(3)"

    def values():
        script = f"return [...document.querySelectorAll({column!r})].map(c => c.dataset.value)"
        return [float(value) for value in browser.run(script)]

    head = browser.find("#classes th:nth-child(3)")
    shown = values()
    for direction, reverse in (("ascending", False), ("descending", True)):
        browser.find("#classes th:nth-child(3) button").click()
        assert head.get_attribute("aria-sort") == direction
        assert values() == sorted(shown, reverse=reverse)
    assert len(set(shown)) > 1


@pytest.mark.slow
def test_hostile_names_do_nothing_in_a_browser(hostile, browser):
    browser.open(hostile)
    assert browser.complaints() == []  # an open alert would end this with an error
    assert browser.requests() == [hostile.as_uri()]
    names = {cell.text for cell in browser.find_all("#classes tbody th")}
    assert names == {HOSTILE, ODD}
    assert browser.find("h1").text == "<img src=x onerror=alert(2)>"


@pytest.mark.slow
def test_the_policy_stops_what_escaping_might_let_through(hostile, browser, tmp_path):
    page = tmp_path / "page.html"
    attack = (
        "<script>document.title = 'taken'</script><img alt='' src='https://127.0.0.1/x.png'>"
    )
    page.write_text(hostile.read_text().replace("<main>", f"{attack}<main>"))
    browser.open(page)
    assert browser.driver.title != "taken"
    complaints = browser.complaints()
    assert len(complaints) == 2
    assert all("Content Security Policy" in complaint for complaint in complaints)
