"""Datasets made of others: what is dropped is reported, what is kept is unchanged, the source is never touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bigssl.data.errors import DataError
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.clean import REPORT, clean, split
from bigssl.data.tools.rules import Thresholds
from bigssl.data.tools.sources.base import json_bytes
from bigssl.data.tools.verify import verify

from .test_staged import files
from .test_survey import surveyed


def content(index: DatasetIndex) -> dict[str, dict[str, bytes]]:
    return {sample.key: sample.fields for sample in read_in_order(index)}


SAMPLES = {f"k{n:02d}": {"txt": f"text {n % 8}".encode(), "json": json_bytes({"group": n % 5})} for n in range(20)}


@pytest.mark.parametrize("jobs", [1, 2])
def test_clean_keeps_the_first_and_reports_the_rest(tmp_path: Path, jobs: int) -> None:
    samples = SAMPLES | {"empty": {"txt": b" .", "json": b"{}"}}
    index = surveyed(tmp_path / "source", samples).index
    before = files(tmp_path / "source")
    cleaned = clean(
        index, tmp_path / "x", ["empty-text", "duplicates"], Thresholds(by=("txt",)), jobs=jobs, name="x", shard_size=3
    )
    kept = {key: fields for key, fields in samples.items() if key in list(SAMPLES)[:8]}
    assert content(cleaned.dataset) == kept
    assert [shard.samples for shard in cleaned.dataset.shards] == [3, 3, 2]
    assert (cleaned.dropped, cleaned.rules) == (13, {"empty-text": 1, "duplicates": 12})
    lines = [json.loads(line) for line in (tmp_path / "x" / REPORT).read_text().splitlines()]
    assert len(lines) == 13
    assert lines[0] == {"key": "k08", "shard": "x-000004.tar", "rule": "duplicates", "field": None, "value": "k00"}
    assert lines[-1] == {"key": "empty", "shard": "x-000010.tar", "rule": "empty-text", "field": "txt", "value": 0.0}
    assert {line["key"] for line in lines} | set(kept) == set(samples)
    assert files(tmp_path / "source") == before
    assert not list(verify(str(tmp_path / "x")))


def test_nothing_to_drop_is_a_copy_with_an_empty_report(tmp_path: Path) -> None:
    index = surveyed(tmp_path / "source", SAMPLES).index
    cleaned = clean(index, tmp_path / "x", ["blank"], Thresholds(), name="x")
    assert content(cleaned.dataset) == SAMPLES
    assert (tmp_path / "x" / REPORT).read_bytes() == b""


def test_damage_is_dropped_only_when_asked(tmp_path: Path) -> None:
    index = surveyed(tmp_path / "source", SAMPLES | {"bad": {"txt": b"\xff\xff"}}).index
    cause = r"sample 'bad', byte \d+: field 'txt': text is not UTF-8.*1 damaged samples in all; the rule `damaged`"
    with pytest.raises(DataError, match=cause):
        clean(index, tmp_path / "x", ["blank"], Thresholds(), name="x")
    assert not (tmp_path / "x").exists()
    cleaned = clean(index, tmp_path / "x", ["damaged"], Thresholds(), name="x")
    assert content(cleaned.dataset) == SAMPLES


def test_the_target_is_looked_at_before_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = surveyed(tmp_path / "source", SAMPLES).index
    clean(index, tmp_path / "x", ["blank"], Thresholds(), name="x")
    clean(index, tmp_path / "x", ["duplicates"], Thresholds(by=("txt",)), name="x", overwrite=True)
    assert len(DatasetIndex.load(tmp_path / "x")) == 8
    monkeypatch.setattr("bigssl.data.tools.clean.survey", lambda *_: pytest.fail("samples are read"))
    with pytest.raises(DataError, match="x exists; .*--overwrite"):
        clean(index, tmp_path / "x", ["blank"], Thresholds(), name="x")


def test_an_empty_rest_is_an_error(tmp_path: Path) -> None:
    index = surveyed(tmp_path / "source", SAMPLES).index
    with pytest.raises(DataError, match="all 20 samples fall under empty-text; nothing would be left"):
        clean(index, tmp_path / "x", ["empty-text"], Thresholds(min_text=100), name="x")


def test_split_is_by_key_and_deterministic(tmp_path: Path) -> None:
    index = surveyed(tmp_path / "source", SAMPLES).index
    parts = split(index, tmp_path / "a", ("val", 0.3), seed=1, name="x")
    split(index, tmp_path / "b", ("val", 0.3), seed=1, name="x", jobs=2)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    train, val = content(parts["train"]), content(parts["val"])
    assert train | val == SAMPLES and not set(train) & set(val)
    other = content(split(index, tmp_path / "c", ("val", 0.3), seed=2, name="x")["val"])
    assert set(other) != set(val)
    fewer = surveyed(tmp_path / "fewer", dict(list(SAMPLES.items())[5:])).index
    again = content(split(fewer, tmp_path / "d", ("val", 0.3), seed=1, name="x")["val"])
    assert set(again) == set(val) - set(list(SAMPLES)[:5])  # a key stays on its side when others go


def test_split_by_a_field_keeps_groups_together(tmp_path: Path) -> None:
    index = surveyed(tmp_path / "source", SAMPLES).index
    parts = split(index, tmp_path / "a", ("val", 0.4), by="group", name="x")
    groups = [{json.loads(f["json"])["group"] for f in content(parts[name]).values()} for name in ("train", "val")]
    assert groups[0] | groups[1] == set(range(5)) and not groups[0] & groups[1]
    with pytest.raises(DataError, match="sample 'k00': no 'who' in its json, which has group"):
        split(index, tmp_path / "b", ("val", 0.4), by="who", name="x")
