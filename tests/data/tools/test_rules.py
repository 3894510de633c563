"""Rules: which samples they catch and with what value; equals against a search of all pairs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigssl.data.errors import DataError
from bigssl.data.tools.pack import pack
from bigssl.data.tools.rules import RULES, Thresholds, first_of_equals, judge_samples, meaning
from bigssl.data.tools.sources.base import Item
from bigssl.data.tools.survey import survey
from bigssl.data.tools.texts.rules import TEXT_RULES

from .test_survey import NOISE, npy, png, surveyed

GREY = png(np.full((8, 8), 50, np.uint8))
SAMPLES = {
    "a-good": {"txt": b"abc", "png": png(NOISE)},
    "b-blank": {"txt": b"abc", "png": GREY},
    "c-short": {"txt": b"... a", "png": png(NOISE + 1), "mask.png": GREY},  # a mask may be blank
    "d-nan": {"npy": npy([[1.0], [np.nan]])},
    "e-flat": {"npy": npy([[1.0], [1.0]])},
    "f-wave": {"npy": npy([[1.0], [2.0]])},
    "g-bad": {"png": b"?"},
    "h-copy": {"txt": b"abc", "png": png(NOISE)},
    "i-both": {"txt": b"", "png": GREY},
    "j-still": {"npy": npy([[1.0, 3.0, 2.0], [2.0, 3.0, 2.0]])},
}


def caught(verdicts: list) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for verdict in verdicts:
        found.setdefault(verdict.rule, {})[list(SAMPLES)[verdict.hit.number]] = verdict.hit.value
    return found


def test_each_rule_catches_its_own(tmp_path: Path) -> None:
    facts = surveyed(tmp_path / "x", SAMPLES)
    assert caught(judge_samples(facts, [name for name in RULES if name not in TEXT_RULES], Thresholds())) == {
        "damaged": {"g-bad": "field 'png': undecodable image of 1 bytes (no known picture format)"},
        "blank": {"b-blank": 0.0, "i-both": 0.0},
        "empty-text": {"c-short": 1.0, "i-both": 0.0},
        "non-finite": {"d-nan": 1.0},
        "constant-series": {"d-nan": 0.0, "e-flat": 0.0},
        "still-channels": {"j-still": "channels 1, 2"},
        "duplicates": {"h-copy": "a-good"},
    }
    assert caught(judge_samples(facts, ["blank"], Thresholds())) == {"blank": {"b-blank": 0.0, "i-both": 0.0}}
    with pytest.raises(DataError, match="no rule 'blink'; allowed are damaged, blank"):
        judge_samples(facts, ["blink"], Thresholds())


def test_silence_and_what_is_cut_off_are_counted(tmp_path: Path) -> None:
    loud = np.sin(np.arange(4000) / 5).astype(np.float32)
    sounds = {"a-loud": loud, "b-silent": loud * 5e-5, "c-clipped": np.clip(3 * loud, -1, 1)}
    facts = surveyed(tmp_path / "x", {key: {"flac": flac(values)} for key, values in sounds.items()})
    assert [each.hit.number for each in judge_samples(facts, ["silent"], Thresholds())] == [1]
    (clipped,), (rate,) = (facts.of(name).values() for name in ("clipped", "rate"))
    assert clipped[0] == clipped[1] == 0 and clipped[2] > 0.7 and (rate == 8000).all()


def flac(values: np.ndarray) -> bytes:
    soundfile, file = pytest.importorskip("soundfile"), io.BytesIO()
    soundfile.write(file, values, 8000, format="FLAC")
    return file.getvalue()


def test_thresholds_move_the_border(tmp_path: Path) -> None:
    facts = surveyed(tmp_path / "x", SAMPLES)
    assert set(caught(judge_samples(facts, ["blank"], Thresholds(blank=255)))["blank"]) == {
        "a-good", "b-blank", "c-short", "h-copy", "i-both",
    }  # fmt: skip
    assert set(caught(judge_samples(facts, ["empty-text"], Thresholds(min_text=1)))["empty-text"]) == {"i-both"}
    assert "at most 255 (of 255)" in meaning("blank", Thresholds(blank=255))
    assert meaning("duplicates", Thresholds(by=("jpg", "txt"))).endswith("the same bytes in jpg, txt")


def test_duplicates_by_field_keep_one_that_no_other_rule_drops(tmp_path: Path) -> None:
    facts = surveyed(tmp_path / "x", SAMPLES)
    by = Thresholds(by=("png",))
    assert caught(judge_samples(facts, ["duplicates"], by)) == {"duplicates": {"h-copy": "a-good", "i-both": "b-blank"}}
    texts = {"p": b"", "q": b"word", "r": b"xyz"}
    first_is_bad = {key: {"txt": text, "png": GREY} for key, text in texts.items()}
    facts = surveyed(tmp_path / "y", first_is_bad)
    verdicts = judge_samples(facts, ["empty-text", "duplicates"], by)
    assert [(v.hit.number, v.rule, v.hit.value) for v in verdicts] == [(0, "empty-text", 0.0), (2, "duplicates", "q")]
    with pytest.raises(DataError, match="duplicates by 'jpg': no sample has this field; there are png, txt"):
        judge_samples(facts, ["duplicates"], Thresholds(by=("jpg",)))


FIELDS = st.dictionaries(st.sampled_from("xyz"), st.sampled_from([b"", b"1", b"2"]), min_size=1)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(FIELDS, min_size=1, max_size=9),
    st.lists(st.sampled_from("xyz"), unique=True),
    st.data(),
)
def test_equals_are_those_of_all_pairs(tmp_path_factory, samples: list, fields: list[str], data: st.DataObject) -> None:
    items = [Item(f"k{n}", "", lambda value=value: value) for n, value in enumerate(samples)]  # type: ignore[misc]
    facts = survey(pack(items, tmp_path_factory.mktemp("rules") / "x", name="x", shard_size=4)[""])
    among = np.array(data.draw(st.lists(st.booleans(), min_size=len(samples), max_size=len(samples))))
    fields = [name for name in fields if name in facts.digests]

    def compared(number: int) -> bool:
        return bool(among[number]) and all(name in samples[number] for name in fields)

    def same(a: int, b: int) -> bool:
        return all(samples[a].get(name) == samples[b].get(name) for name in fields or "xyz")

    expected = [
        next((m for m in range(n) if compared(m) and same(m, n)), n) if compared(n) else n for n in range(len(samples))
    ]
    assert first_of_equals(facts, fields, among).tolist() == expected
