"""Rules of texts: each catches its own, thresholds move them, what is rewritten is judged as it then is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bigssl.data.errors import DataError
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.clean import clean
from bigssl.data.tools.pack import pack
from bigssl.data.tools.rules import check_thresholds, judge_samples
from bigssl.data.tools.sources.base import Item
from bigssl.data.tools.stats import statistics, table
from bigssl.data.tools.survey import survey
from bigssl.data.tools.texts.rules import TEXT_RULES
from bigssl.data.tools.verdicts import Thresholds

pytest.importorskip("datasketch")
WHO = [("fox", "hill"), ("owl", "lake"), ("cat", "roof"), ("hen", "yard")] * 3
STORY = [
    f"On day {day} the {who} went over the {where} and found its old friend, who told it about the {where} of {day}."
    for day, (who, where) in enumerate(WHO)
]
FOOT = "Subscribe to our newsletter for more stories"
TEXTS = {
    "a-good": "\n".join(STORY[:6]),
    "b-near": "\n".join(STORY[:6]).replace("day 5", "Day 77"),
    "c-few": "Only a few words here.",
    "d-tags": "\n".join(f"{line} #{line[:4]} #x #y #z" for line in STORY[6:]),
    "e-numbers": "\n".join(f"{n} | {n + 1} - {n + 2} = {n}, total of {n}" for n in range(40)),
    "f-list": "\n".join(f"- {line}" for line in STORY[::-1]),
    "g-teaser": "\n".join(f"{n} {line}..." for n, line in enumerate(STORY[2:])),
    "h-again": "\n".join([*STORY[3:8], *["again and again, my dear friends, it is said here"] * 4]),
    "i-menu": "\n".join(["home", "news", "about us"] + [f"item n{n}" for n in range(50)]),
    **{f"j-foot{n}": f"{FOOT}\n{' '.join(f'{word}{n}' for word in STORY[n].split() * 3)}\n{FOOT} today"
       for n in range(3)},
    "k-russian": " ".join(["однажды лиса пошла через холм и нашла там старого друга"] * 6),
}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    items = [Item(key, key, lambda text=text: {"txt": text.encode()}) for key, text in TEXTS.items()]  # type: ignore[misc]
    return pack(items, tmp_path_factory.mktemp("texts") / "x", name="x", shard_size=4)[""]


def test_each_rule_catches_its_own(index: DatasetIndex) -> None:
    facts, keys = survey(index, near=True), list(TEXTS)
    asked = Thresholds(scripts=("latin",))
    caught = {
        name: {keys[found.hit.number]: found.hit.value for found in judge_samples(facts, [name], asked)}
        for name in TEXT_RULES
    }
    shared = {f"j-foot{n}": pytest.approx(2 / 3, abs=1e-3) for n in range(3)}
    assert {name: set(found) for name, found in caught.items()} == {
        "few-words": {"c-few"}, "symbols": {"d-tags"},
        "lettered": {"e-numbers"}, "bullets": {"f-list"}, "ellipses": {"g-teaser"}, "repeated-lines": {"h-again"},
        "short-lines": {"i-menu"}, "shared-lines": set(shared),
        "script": {"k-russian"}, "near-duplicates": {"b-near"},
    }  # fmt: skip
    assert caught["near-duplicates"] == {"b-near": "a-good"} and caught["script"] == {"k-russian": 0.0}
    assert caught["few-words"] == {"c-few": 5} and {k: caught["shared-lines"][k] for k in shared} == shared
    looser = Thresholds(at={"few-words": 5, "short-lines": 1})
    assert not judge_samples(facts, ["few-words", "short-lines"], looser)


def test_stats_counts_each_rule_by_itself_with_examples(index: DatasetIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    found = survey(index, 2, near=True)
    facts = json.loads(json.dumps(statistics(found, Thresholds())))
    assert facts["rules"]["script"] == {
        "meaning": "a text of whose letters less than 0.5 are of the scripts of --script",
        "missing": "needs --script NAMES, e.g. latin or han,hiragana,katakana",
    }
    near = facts["rules"]["near-duplicates"]
    assert (near["samples"], near["examples"]) == (1, [{"key": "b-near", "value": "a-good"}])
    assert near["share"] == pytest.approx(1 / len(TEXTS), abs=1e-6)
    assert list(facts["scripts"]) == ["latin", "cyrillic"] and facts["rewrites"]["nfc"]["samples"] == 0
    shown = table(facts)
    assert "near-duplicates  1" in shown and "b-near (a-good)" in shown and "cyrillic" in shown
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # the package is not installed
    assert statistics(found, Thresholds())["rules"]["near-duplicates"]["missing"] == (
        "needs the package datasketch: pip install 'bigssl[text]'")  # fmt: skip
    with pytest.raises(DataError, match=r"rule near-duplicates needs the package datasketch: pip install 'bigssl\["):
        clean(index, Path("x"), ["near-duplicates"], Thresholds(), name="x")


@pytest.mark.parametrize(("thresholds", "said"), [
    (Thresholds(at={"bullet": 0.5}), "--at bullet: allowed: few-words, .*; nearest: bullets"),
    (Thresholds(at={"bullets": 50}), "--at bullets=50: allowed: 0 to 1"),
    (Thresholds(at={"few-words": -1}), "--at few-words=-1: allowed: 0 or more"),
    (Thresholds(at={"near-duplicates": 0}), "--at near-duplicates=0: allowed: 0.1 to 0.95"),
    (Thresholds(scripts=("roman-ish",)), "--script roman-ish: no letter of unicode is in it"),
])  # fmt: skip
def test_thresholds_that_mean_nothing_are_refused(thresholds: Thresholds, said: str) -> None:
    with pytest.raises(DataError, match=said):
        check_thresholds(thresholds)


def test_texts_are_judged_as_they_are_rewritten_and_go_on_only_by_the_same_rules(tmp_path: Path) -> None:
    texts = {"a": "Ｗｉｄｅ letters\r\n", "b": "Wide letters\n", "c": "e\u0301t\u00e9", "d": "\x00\x01"}
    items = [Item(key, key, lambda text=text: {"txt": text.encode()}) for key, text in texts.items()]  # type: ignore[misc]
    index = pack(items, tmp_path / "x", name="x", shard_size=1)[""]
    rules = {"rewrite": ("nfkc", "controls"), "name": "y", "shard_size": 1}
    cleaned = clean(index, tmp_path / "y", ["duplicates", "empty-text"], Thresholds(), jobs=2, **rules)
    assert {sample.key: sample.fields["txt"].decode() for sample in read_in_order(cleaned.dataset)} == {
        "a": "Wide letters\n", "c": "été"}  # fmt: skip
    assert (cleaned.dropped, cleaned.rules) == (2, {"duplicates": 1, "empty-text": 1})
    assert cleaned.rewrites == {"nfkc": 2, "controls": 1}

    def only(names: tuple[str, ...], folder: str, notes: list[str]) -> bytes:
        options = {"rewrite": names, "name": "z", "shard_size": 1, "note": notes.append}
        dataset = clean(index, tmp_path / folder, [], Thresholds(), **options).dataset
        return b"".join(sample.fields["txt"] for sample in read_in_order(dataset))

    staging, notes = tmp_path / ".z.staging" / ".shards", list[str]()
    expected = only(("nfc",), "other", notes)
    clean(index, tmp_path / "z", [], Thresholds(), rewrite=("nfkc",), name="z", shard_size=1)
    staging.mkdir(parents=True)  # as an interrupted run with other rules leaves it
    monkey = pytest.MonkeyPatch()
    monkey.setattr("bigssl.data.tools.pack.staged.assemble", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        only(("nfkc",), "w", notes)
    monkey.undo()
    assert only(("nfc",), "w", notes) == expected
    assert any("were made from other sources or options and have been written anew" in note for note in notes)


def _interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt
