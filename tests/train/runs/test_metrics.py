import pytest

from bieff.train.runs.metrics import METRICS, Metrics, read_metrics


def scalars(folder):
    """What TensorBoard itself reads."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_is_written(tmp_path):
    with Metrics(tmp_path) as metrics:
        metrics.add(0, {"loss": 3.25, "lr": 1e-4})
        metrics.add(130, {"loss": 1.5, "lr": 0.0})
        metrics.add(70_000, {"val_top1": 62.5, "epoch": 7})
    assert scalars(tmp_path) == {
        "loss": [(0, 3.25), (130, 1.5)],
        "lr": [(0, pytest.approx(1e-4)), (130, 0.0)],
        "val_top1": [(70_000, 62.5)],
        "epoch": [(70_000, 7.0)],
    }


def test_lines_are_json(tmp_path):
    with Metrics(tmp_path) as metrics:
        metrics.add(3, {"loss": 0.1})
    assert (tmp_path / METRICS).read_text() == '{"step": 3, "loss": 0.1}\n'
    assert read_metrics(tmp_path) == [{"step": 3, "loss": 0.1}]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_lies_behind_the_checkpoint_is_cut_off(tmp_path):
    with Metrics(tmp_path) as metrics:
        metrics.add(0, {"loss": 4.0})
        size = metrics.size()
        metrics.add(10, {"loss": 3.0})
        metrics.add(20, {"loss": 2.0})
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 30, "lo')  # a killed process may leave half a line
    with Metrics(tmp_path, step=10, size=size) as metrics:
        metrics.add(10, {"loss": 3.5})
    assert [line["loss"] for line in read_metrics(tmp_path)] == [4.0, 3.5]
    assert scalars(tmp_path) == {"loss": [(0, 4.0), (10, 3.5)]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_that_begins_again_forgets_what_was(tmp_path):
    with Metrics(tmp_path) as metrics:
        metrics.add(0, {"loss": 2.0})
        metrics.add(3, {"loss": 1.5})
    with Metrics(tmp_path) as metrics:
        metrics.add(0, {"loss": 1.0})
    assert read_metrics(tmp_path) == [{"step": 0, "loss": 1.0}]
    assert scalars(tmp_path) == {"loss": [(0, 1.0)]}
