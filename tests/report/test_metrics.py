"""metrics.jsonl: what is written is what is read, whatever happened to the process or the disk in between."""

import errno
import json
import logging
import math
import os
from pathlib import Path

import pytest

from bigssl.report.metrics import FILE, MetricsWriter, read_metrics


def write_steps(folder: Path, steps: range, resume_step: int = 0) -> None:
    writer = MetricsWriter(folder, resume_step=resume_step, enabled=True)
    for step in steps:
        writer.write(step, {"loss": step / 10, "probe/near": 0.5})
    writer.close()


def test_round_trip(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 4))
    assert read_metrics(tmp_path) == [{"step": s, "loss": s / 10, "probe/near": 0.5} for s in (1, 2, 3)]
    assert all(isinstance(row["step"], int) for row in read_metrics(tmp_path))


def test_line_is_on_disk_before_close(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, resume_step=0, enabled=True)
    writer.write(1, {"loss": 1.0})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]
    writer.close()


def test_not_a_number_is_strict_json_and_comes_back(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, resume_step=0, enabled=True)
    writer.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    writer.close()
    json.loads((tmp_path / FILE).read_text(), parse_constant=pytest.fail)
    (row,) = read_metrics(tmp_path)
    assert math.isnan(row["a"]) and row["b"] == math.inf and row["c"] == -math.inf


def test_resume_drops_what_will_be_repeated(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 11))
    write_steps(tmp_path, range(7, 13), resume_step=6)
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 13))


def test_line_cut_off_by_a_kill_does_not_spoil_the_next(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 4))
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-9])
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    write_steps(tmp_path, range(3, 5), resume_step=2)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "run", resume_step=0, enabled=False)
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("resume_step", [0, 3])
def test_tensorboard_has_the_same_numbers(tmp_path: Path, resume_step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    # files of one second and process are read in the order of their numbers as words: 10 before 9
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    write_steps(tmp_path, range(1, 6))
    write_steps(tmp_path, range(resume_step + 1, 8), resume_step=resume_step)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, round(e.value, 6)) for e in events.Scalars("loss")] == [(s, s / 10) for s in range(1, 8)]


@pytest.mark.parametrize("room", [0, 11])
def test_full_disk_warns_once_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    writer = MetricsWriter(tmp_path, resume_step=0, enabled=True)
    writer.write(1, {"loss": 1.0})
    _allow(monkeypatch, room)
    with caplog.at_level(logging.WARNING, "bigssl"):
        writer.write(2, {"loss": 1.0})
        writer.write(3, {"loss": 1.0})
    (record,) = caplog.records
    assert f"disk full: {tmp_path / FILE}, needs " in record.getMessage() and writer.lost == 2
    monkeypatch.undo()  # somebody freed the disk
    writer.write(4, {"loss": 1.0})
    writer.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 4]


def test_a_resume_on_a_full_disk_drops_what_will_be_repeated_and_writes_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_steps(tmp_path, range(1, 6))

    def full(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("bigssl.files.fsync", full)  # no new file
    writer = MetricsWriter(tmp_path, resume_step=3, enabled=True)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    monkeypatch.undo()
    writer.write(4, {"loss": 1.0})
    writer.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]


def _allow(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """`room` bytes more fit on the disk, then it answers as a full one does."""
    write, left = os.write, [room]

    def some(file: int, data: bytes) -> int:
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(file, data[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr("bigssl.files.os.write", some)


def test_folder_that_cannot_be_made_does_not_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    writer = MetricsWriter(tmp_path / "file", resume_step=0, enabled=True)
    writer.write(1, {"loss": 1.0})
    writer.close()
    assert len(caplog.records) == 1


def test_tensorboard_that_dies_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = MetricsWriter(tmp_path, resume_step=0, enabled=True)
    events = writer._events
    assert events is not None

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(events, "add_scalar", refuse)
    writer.write(1, {"loss": 1.0})
    writer.write(2, {"loss": 1.0})
    writer.close()
    events.close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
