import json
import struct

import pytest

from bieff.train.runs.metrics import (
    EVENTS,
    METRICS,
    EventFile,
    Metrics,
    _masked,
    _varint,
    read_metrics,
)


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
    with Metrics(tmp_path, {}) as metrics:
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
    with Metrics(tmp_path, {}) as metrics:
        metrics.add(3, {"loss": 0.1})
    assert (tmp_path / METRICS).read_text() == '{"step": 3, "loss": 0.1}\n'
    assert read_metrics(tmp_path) == [{"step": 3, "loss": 0.1}]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_lies_behind_the_checkpoint_is_cut_off(tmp_path):
    with Metrics(tmp_path, {}) as metrics:
        metrics.add(0, {"loss": 4.0})
        sizes = metrics.sizes()
        metrics.add(10, {"loss": 3.0})
        metrics.add(20, {"loss": 2.0})
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 30, "lo')  # a killed process may leave half a line
    with Metrics(tmp_path, json.loads(json.dumps(sizes))) as metrics:
        metrics.add(10, {"loss": 3.5})
    assert [line["loss"] for line in read_metrics(tmp_path)] == [4.0, 3.5]
    assert scalars(tmp_path) == {"loss": [(0, 4.0), (10, 3.5)]}


def test_a_new_run_begins_with_empty_files(tmp_path):
    for name in (METRICS, EVENTS):
        (tmp_path / name).write_bytes(b"of an earlier run\n")
    with Metrics(tmp_path, {}) as metrics:
        metrics.add(0, {"loss": 1.0})
    assert read_metrics(tmp_path) == [{"step": 0, "loss": 1.0}]


def test_the_first_record_by_hand(tmp_path):
    """Length, its checksum, the event, its checksum; the event says its format."""
    EventFile(tmp_path / EVENTS).close()
    data = (tmp_path / EVENTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    event = data[12 : 12 + length]
    assert len(data) == 8 + 4 + length + 4
    assert event[0] == 0x09  # field 1, a double: the time
    assert event[9:] == b"\x1a\x0dbrain.Event:2"  # field 3, 13 bytes
    assert data[8:12] == _masked(data[:8])
    assert data[-4:] == _masked(event)


def test_checksum_and_numbers_by_hand():
    # crc32c of "123456789" is e3069283 (RFC 3720); turned by 15 bits, plus the constant
    turned = ((0xE3069283 >> 15) | (0xE3069283 << 17)) & 0xFFFFFFFF
    assert _masked(b"123456789") == struct.pack("<I", (turned + 0xA282EAD8) & 0xFFFFFFFF)
    assert _varint(300) == b"\xac\x02"
    assert _varint(127) == b"\x7f"
