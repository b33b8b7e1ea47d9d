"""Stage one in this process: what is in the store is what the videos show."""

import contextlib
import io
import json
import re
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import extracting, stamped
from PIL import Image
from rich.console import Console

from bieff.apps.progress import RunProgress
from bieff.clip import import_open_clip
from bieff.extract.decode.pool import Outcome
from bieff.extract.decode.reader import read_frames
from bieff.extract.estimate import estimate_lines
from bieff.extract.plan import StorePlan, plan, versions_here
from bieff.extract.run import extract
from bieff.extract.shapes.clips import load_shapes
from bieff.extract.shard import cut_views, in_order
from bieff.extract.tasks import PartProgress
from bieff.extract.tower import VisualTower, cut
from bieff.extract.views import View, ViewPlan, crop_of
from bieff.features.errors import InputError, StoreMismatchError
from bieff.features.files import ShardLocks
from bieff.features.schema import Status
from bieff.features.store import FeatureStore

CONFIG = extracting.CONFIG


@pytest.fixture(scope="module")
def whole(clips, tmp_path_factory):
    """The store as one uninterrupted run writes it."""
    store = extracting.plan_small(clips, tmp_path_factory.mktemp("whole") / "store")
    # elsewhere there is one decoder: the order in which they end must not matter
    summary = extracting.extract_small(store, config=replace(CONFIG, decoders=3))
    assert summary.is_whole
    assert summary.counts == {"ok": 24}
    assert summary.shards_written == 6
    return store


def by_hand(path, views, video_id, *, frames=CONFIG.frames, looks=None):
    """Crops and frame numbers of a video, without pools, streams or batches."""
    numbers = ViewPlan(tuple(views), frames, video_id)(stamped.count_frames(path))
    looks = looks or extracting.tinyclip().preprocessing
    crops = []
    for view, shown in zip(views, numbers, strict=True):
        pictures = torch.from_numpy(read_frames(path, shown))
        crop = crop_of(view, *pictures.shape[1:3], looks.size, video_id=video_id)
        crops.append(cut(pictures, crop, looks))
    return torch.cat(crops), numbers


def check_rows(store, name, rows):
    part = store.partitions[name]
    views = [View.from_json(view) for view in store.recipe["views"][name]]
    patches = store.recipe["patches"] is not None
    tower = VisualTower(
        extracting.tinyclip(), device=extracting.CPU, batch_size=7, wants_patches=patches
    )
    for row in rows:
        video = part.videos[row]
        crops, numbers = by_hand(Path(store.root) / video.path, views, video.id)
        encoded = tower.encode(crops)
        np.testing.assert_array_equal(part.frames([row])[0], numbers)
        want = encoded.embeddings.unflatten(0, numbers.shape)
        # float16 keeps 11 bits
        torch.testing.assert_close(
            torch.from_numpy(part.read([row])[0]).float(), want, rtol=2**-10, atol=1e-2
        )
        if patches:
            means = encoded.patches.unflatten(0, numbers.shape).mean(dim=1)
            got = torch.from_numpy(part.read_patches([row])[0]).float()
            torch.testing.assert_close(got, means, rtol=2**-10, atol=1e-3)


def test_rows_hold_what_their_videos_show(whole):
    check_rows(whole, "all", [0, 3, 4, 13, 23])


def test_training_views_and_patches_too(tmp_path):
    folder = extracting.write_clips(tmp_path / "clips", "shapes", most=5)
    data = load_shapes("shapes", folder, make=False)
    parts = {name: videos[:5] for name, videos in data.partitions.items()}
    config = replace(CONFIG, context="patches", train_views=2, crops=3)
    store = extracting.plan_data(replace(data, partitions=parts), tmp_path / "s", config=config)
    assert store.partitions["train"].num_views == 3
    assert store.partitions["val"].num_views == 6
    assert extracting.extract_small(store, config=config).counts == {"ok": 10}
    check_rows(store, "train", range(5))
    check_rows(store, "val", [0, 4])


def test_rows_of_a_model_that_squashes_are_open_clips(clips, tmp_path):
    looks = replace(
        extracting.tinyclip().preprocessing,
        interpolation="bilinear",
        resize_mode="squash",
        resize="pillow",
    )
    clip = replace(extracting.tinyclip(), preprocessing=looks)
    data, config = load_shapes(extracting.SET, clips), replace(CONFIG, limit=1, clips=1)
    store = StorePlan.of(data, config, clip).write(tmp_path / "s")
    assert store.recipe["preprocessing"]["resize_mode"] == "squash"
    assert extract(store, clip, config, device=extracting.CPU).counts == {"ok": 1}
    part = store.partitions["all"]
    pictures = read_frames(Path(store.root) / part.videos[0].path, part.frames([0])[0, 0])
    transform = import_open_clip().image_transform(
        looks.size,
        is_train=False,
        mean=looks.mean,
        std=looks.std,
        resize_mode="squash",
        interpolation="bilinear",
    )
    with torch.no_grad():
        shown = torch.stack([transform(Image.fromarray(picture)) for picture in pictures])
        want = clip.model.visual(shown)
    got = torch.from_numpy(part.read([0])[0, 0]).float()
    torch.testing.assert_close(got, want, rtol=2**-10, atol=1e-2)
    three = StorePlan.of(data, replace(config, crops=3), clip).recipe["views"]["all"]
    assert [view["crop"] for view in three] == ["left", "middle", "right"]


def test_a_finished_store_is_left_alone(whole, clips):
    before = {file: file.stat().st_mtime_ns for file in whole.path.rglob("*.json")}
    again = extracting.plan_small(clips, whole.path)
    assert extracting.extract_small(again).shards_written == 0
    assert before == {file: file.stat().st_mtime_ns for file in whole.path.rglob("*.json")}


def test_what_is_missing_is_written_again_and_is_the_same(whole, clips, tmp_path):
    store = extracting.plan_small(clips, tmp_path / "store")
    extracting.extract_small(store)
    for shard in (0, 3):
        store.partitions["all"].drop(shard)
    assert extracting.extract_small(store).shards_written == 2
    extracting.assert_same(store, whole)


def test_missing_videos_are_counted_named_and_retried(whole, clips, tmp_path):
    data = load_shapes(extracting.SET, clips)
    moved = tmp_path / "clips"
    moved.mkdir()
    for video in data.partitions["all"]:
        (moved / video.path).parent.mkdir(exist_ok=True)
        (moved / video.path).hardlink_to(clips / video.path)
    gone = [data.partitions["all"][i].path for i in (2, 9)]
    for path in gone:
        (moved / path).rename(moved / f"{Path(path).parent} away.mp4")
    store = extracting.plan_data(replace(data, root=moved), tmp_path / "store")
    summary = extracting.extract_small(store)
    assert summary.counts == {"ok": 22, "missing": 2}
    assert not summary.is_whole
    assert [error.path for error in summary.bad] == gone
    assert "missing" in summary.text()
    assert np.isnan(store.partitions["all"].read([2, 9])).all()

    assert extracting.extract_small(store).shards_written == 0  # not asked to
    (moved / f"{Path(gone[0]).parent} away.mp4").rename(moved / gone[0])
    summary = extracting.extract_small(store, retry_failed=True)
    assert summary.shards_written == 2
    assert summary.counts == {"ok": 23, "missing": 1}
    (moved / f"{Path(gone[1]).parent} away.mp4").rename(moved / gone[1])
    assert extracting.extract_small(store, retry_failed=True).is_whole
    part, want = store.partitions["all"], whole.partitions["all"]
    np.testing.assert_array_equal(part.frames(slice(None)), want.frames(slice(None)))
    others = [row for row in range(24) if row not in (2, 9)]
    # rows that were fine are kept as they were
    np.testing.assert_allclose(part.read(others), want.read(others), rtol=2**-9, atol=1e-2)


def broken_set(clips, folder, broken):
    """The clips, some of them cut down to a few bytes."""
    data = load_shapes(extracting.SET, clips)
    for i, video in enumerate(data.partitions["all"]):
        (folder / video.path).parent.mkdir(parents=True, exist_ok=True)
        content = (clips / video.path).read_bytes()
        (folder / video.path).write_bytes(content[:99] if i in broken else content)
    return replace(data, root=folder)


def test_bad_videos_within_max_bad_are_no_failure(clips, tmp_path):
    data = broken_set(clips, tmp_path / "clips", {5, 17})
    store = extracting.plan_data(data, tmp_path / "store")
    summary = extracting.extract_small(store, max_bad=2 / 24)
    assert summary.counts == {"ok": 22, "corrupt": 2}
    assert summary.is_whole
    assert not extracting.extract_small(store, max_bad=None).is_whole
    with pytest.raises(InputError, match="2 of 24 videos are unusable already, more th"):
        extracting.extract_small(store, max_bad=0.05)


def test_a_run_that_must_exceed_max_bad_is_stopped(clips, tmp_path):
    data = broken_set(clips, tmp_path / "clips", {0, 1, 2, 3, 4})
    store = extracting.plan_data(data, tmp_path / "store")
    with pytest.raises(InputError, match=r"3 of 24 videos are unusable already"):
        extracting.extract_small(store, max_bad=0.1)
    assert not store.partitions["all"].done().any()
    with store.exclusive():  # given back
        pass


HALF_DONE = PartProgress(
    data_set="shapes-unseen",
    partition="all",
    videos=12,
    num_videos=24,
    shards=3,
    num_shards=6,
    bad=1,
    speed="200 images/s",
)


@pytest.mark.parametrize("ending", ["well", "ill"])
def test_bars_do_not_stay_above_an_error(ending):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with contextlib.suppress(InputError), RunProgress(console) as progress:
        progress(HALF_DONE)
        if ending == "ill":
            raise InputError("more than --max-bad allows")
    assert screen.getvalue().endswith("\x1b[2K") == (ending == "ill"), repr(screen.getvalue())


def test_a_log_file_gets_a_line_a_minute(monkeypatch):
    monkeypatch.setattr("bieff.apps.progress.LINE_SECONDS", 0.0)
    said = io.StringIO()
    with RunProgress(Console(file=said, width=40)) as progress:
        progress("cpu: float32")
        progress(HALF_DONE)
    assert said.getvalue().splitlines() == [
        "cpu: float32",
        "shapes-unseen all: 12 of 24 videos, 3/6 shards, 1 bad, 200 images/s",
    ]


def test_a_watcher_is_told_of_every_video(clips, tmp_path):
    store = extracting.plan_small(clips, tmp_path / "store")
    told = []
    extracting.extract_small(store, watch=told.append)
    assert (told[0].videos, told[0].num_videos, told[0].speed) == (0, 24, "starting")
    assert (told[-1].videos, told[-1].shards, told[-1].num_shards) == (24, 6, 6)
    assert {news.videos for news in told} == set(range(25))
    assert {news.bad for news in told} == {0}


def test_embeddings_beyond_float16_make_a_video_corrupt(clips, tmp_path, monkeypatch):
    store = extracting.plan_small(clips, tmp_path / "store", rows=32)
    before = VisualTower.forward_float32

    def huge(self, crops):
        embeddings, patches = before(self, crops)
        embeddings[8] = 1e6  # in the first batch, the second video's third crop
        return embeddings, patches

    monkeypatch.setattr(VisualTower, "forward_float32", huge)
    config = replace(CONFIG, batch_size=24 * 6)
    summary = extracting.extract_small(store, config=config)
    assert summary.counts == {"ok": 23, "corrupt": 1}
    (error,) = summary.bad
    assert (error.row, error.stage) == (1, "encode")
    assert error.message == "its embeddings are not finite in float16"


def test_the_first_videos_are_a_store_of_their_own(clips, tmp_path):
    data = load_shapes(extracting.SET, clips)
    store = plan(data, replace(CONFIG, limit=5), extracting.tinyclip(), tmp_path / "store")
    assert store.partitions["all"].num_videos == 5
    assert store.recipe["limit"] == 5
    with pytest.raises(StoreMismatchError, match="limit: store has 5, asked for nothing"):
        plan(data, CONFIG, extracting.tinyclip(), tmp_path / "store")


def test_extract_without_a_runner(clips, tmp_path):
    """As the demo calls it."""
    store = extracting.plan_small(clips, tmp_path / "store")
    done = extract(store, extracting.tinyclip(), CONFIG, device=extracting.CPU)
    assert done.is_whole
    assert FeatureStore.open(store.path).partitions["all"].done().all()


def outcome(row, num_bytes=0):
    frames = np.zeros((1, 1, num_bytes // 3, 3), np.uint8) if num_bytes else None
    return Outcome(row=row, path="", status=Status.OK, frames=frames)


def order(rows, *, most_bytes, num_bytes=30):
    coming = (outcome(row, num_bytes) for row in rows)
    return [o.row for o in in_order(coming, most_bytes=most_bytes)]


def test_videos_are_taken_in_the_order_of_rows():
    assert order([3, 0, 2, 1, 5, 4], most_bytes=1000) == [0, 1, 2, 3, 4, 5]
    assert order([], most_bytes=1000) == []


def test_a_video_that_hangs_does_not_pile_up_the_others():
    assert order([1, 2, 3, 4, 0, 5], most_bytes=75) == [1, 2, 3, 4, 0, 5]
    held = 0
    for taken, _ in enumerate(in_order((outcome(r, 30) for r in range(1, 99)), most_bytes=90)):
        held = max(held, taken)
    assert held == 97
    # without frames there is nothing to hold
    assert order([2, 1, 0], most_bytes=0, num_bytes=0) == [0, 1, 2]


def test_a_shard_that_another_process_writes_is_waited_for(tmp_path):
    import subprocess

    code = (
        "import sys; from pathlib import Path\n"
        "from bieff.features.files import ShardLocks\n"
        "locks = ShardLocks(Path(sys.argv[1]), ('train', 'val')); locks.acquire('val', 7)\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with other:
        assert other.stdout.readline() == b"held\n"
        locks = ShardLocks(tmp_path, ("train", "val"))
        locks.acquire("train", 7)
        locks.acquire("val", 6)
        got = threading.Event()
        waiting = threading.Thread(target=lambda: (locks.acquire("val", 7), got.set()))
        waiting.start()
        assert not got.wait(0.3)
        other.kill()
        assert got.wait(5)
        waiting.join()
        locks.close()


def salvageable(clips, folder):
    """A set of three videos, the second of them cut short; and what its file should hold."""
    data = broken_set(clips, folder, set())
    videos = list(data.partitions["all"][:3])
    source = stamped.write(folder / "whole.mkv", stamped.Clip(num_frames=31))
    cut = folder / videos[1].path
    stamped.truncate(source, cut, keep=0.6)
    whole = source.read_bytes()
    # as a download that was resumed: of the whole size from the beginning
    cut.write_bytes(cut.read_bytes().ljust(len(whole), b"\0"))
    videos[1] = replace(videos[1], size=len(whole))
    return replace(data, partitions={"all": videos}), cut, whole


def test_a_salvaged_video_is_tried_again(clips, tmp_path):
    data, cut, whole = salvageable(clips, tmp_path / "clips")
    store = extracting.plan_data(data, tmp_path / "store")
    assert extracting.extract_small(store).counts == {"ok": 2, "salvaged": 1}
    part = store.partitions["all"]
    before = part.read([0, 2]).tobytes()
    (error,) = part.errors()

    gone = cut.rename(cut.with_suffix(".away"))
    summary = extracting.extract_small(store, retry_failed=True)
    assert summary.counts == {"ok": 2, "salvaged": 1}  # what it gave is kept
    assert part.errors() == [error]

    gone.unlink()
    cut.write_bytes(whole)
    assert cut.stat().st_size == data.partitions["all"][1].size
    assert extracting.extract_small(store).shards_written == 0
    assert extracting.extract_small(store, retry_failed=True).counts == {"ok": 3}
    assert part.errors() == []
    assert part.frames([1]).max() > 20
    assert part.read([0, 2]).tobytes() == before


def rewritten_by(store, **versions):
    """The first shard's marker as other libraries would have written it; the second is gone."""
    first, second = (store.path / "ledger" / f"all-{shard:05d}.json" for shard in (0, 1))
    marker = json.loads(first.read_text())
    marker["versions"] |= versions
    first.write_text(json.dumps(marker))
    second.unlink()
    return FeatureStore.open(store.path)


def test_two_decoders_are_not_mixed_in_one_store(clips, tmp_path):
    store = extracting.plan_small(clips, tmp_path / "store")
    extracting.extract_small(store)
    assert store.partitions["all"].marker(0).versions == versions_here()
    other = rewritten_by(store, av="9.1", libavcodec="58.0.100")
    with pytest.raises(
        StoreMismatchError,
        match=r"decoded with av 9\.1, libavcodec 58\.0\.100, here is av .*mixed_decoders=true",
    ):
        extracting.extract_small(other)
    told = []
    config = replace(CONFIG, mixed_decoders=True)
    assert extracting.extract_small(other, config=config, watch=told.append).is_whole
    assert any("shards decoded with av 9.1" in str(line) for line in told)


def test_another_torch_is_a_note(clips, tmp_path):
    store = extracting.plan_small(clips, tmp_path / "store")
    extracting.extract_small(store)
    told = []
    summary = extracting.extract_small(rewritten_by(store, torch="1.0"), watch=told.append)
    assert summary.shards_written == 1
    assert any("encoded with torch 1.0, here is" in str(line) for line in told)


def test_a_store_of_before_has_the_versions_of_its_plan(clips, tmp_path):
    store = extracting.plan_small(clips, tmp_path / "store")
    extracting.extract_small(store)
    again = rewritten_by(store)
    for file in (again.path / "ledger").iterdir():
        marker = json.loads(file.read_text())
        del marker["versions"]
        file.write_text(json.dumps(marker))
    assert extracting.extract_small(again).shards_written == 1


def test_a_store_that_an_older_version_began_goes_on_as_it_was(clips, tmp_path):
    clip, found = extracting.tinyclip(), []
    data, config = load_shapes(extracting.SET, clips), replace(CONFIG, limit=1, clips=1)
    looks = replace(clip.preprocessing, resize="pillow")
    today = replace(clip, preprocessing=looks)
    for resize in ("pillow", "torch"):
        begun = replace(clip, preprocessing=replace(looks, resize=resize))
        StorePlan.of(data, config, begun).write(tmp_path / resize)
        (said, *_) = estimate_lines(
            data, config, today, tmp_path / resize, device=extracting.CPU
        )
        assert said.endswith("nothing written")
        store = StorePlan.of(data, config, today).write(tmp_path / resize)
        assert ("resize" in store.recipe["preprocessing"]) == (resize == "pillow")
        assert extract(store, today, config, device=extracting.CPU).is_whole
        part = store.partitions["all"]
        views = [View.from_json(view) for view in store.recipe["views"]["all"]]
        file = Path(store.root) / part.videos[0].path
        crops, _ = by_hand(file, views, part.videos[0].id, looks=begun.preprocessing)
        want = VisualTower(begun, device=extracting.CPU, batch_size=7).encode(crops)
        found.append(part.read([0])[0].reshape(len(crops), -1))
        np.testing.assert_allclose(found[-1], want.embeddings, rtol=2**-10, atol=1e-4)
    assert (found[0] != found[1]).any()


def test_large_frames_are_resized_a_few_at_a_time_and_are_the_same(whole, monkeypatch):
    part = whole.partitions["all"]
    views = tuple(View.from_json(view) for view in whole.recipe["views"]["all"])
    tower = VisualTower(extracting.tinyclip(), device=extracting.CPU, batch_size=7)
    video = part.videos[0]
    frames = read_frames(Path(whole.root) / video.path, range(20))
    shown = Outcome(
        row=0,
        path="",
        status=Status.OK,
        frames=frames,
        frame_numbers=np.arange(20),
        num_frames=20,
    )
    numbers = ViewPlan(views, 7, video.id)(20)
    looks = tower.preprocessing
    at_once = cut_views(shown, numbers, views, tower, looks, video_id=video.id)
    monkeypatch.setattr("bieff.extract.shard.CUT_BYTES", 3 * 12 * frames[0, ..., 0].size)
    few = cut_views(shown, numbers, views, tower, looks, video_id=video.id)
    assert torch.equal(few, at_once)


def test_frames_that_do_not_fit_the_memory_cost_that_video_alone(clips, tmp_path, monkeypatch):
    store = extracting.plan_small(clips, tmp_path / "store")
    seen = iter(range(10**6))

    def full(frames, crop, looks):
        if next(seen) == 2:  # the second video's first view
            raise torch.OutOfMemoryError("out of memory")
        return cut(frames, crop, looks)

    monkeypatch.setattr("bieff.extract.shard.cut", full)
    summary = extracting.extract_small(store)
    assert summary.counts == {"ok": 23, "crashed": 1}
    (error,) = summary.bad
    assert re.fullmatch(r"no memory for its \d+ frames of 80 x 64 pixels", error.message)

    def broken(frames, crop, looks):
        raise RuntimeError("a bug")

    monkeypatch.setattr("bieff.extract.shard.cut", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        extracting.extract_small(store, retry_failed=True)
