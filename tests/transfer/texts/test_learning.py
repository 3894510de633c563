"""Small networks learn by heart what they are taught, so that what is asked reaches them and what they say is heard;
what a reader has to know of the data is said."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, PreTrainedModel, PreTrainedTokenizerFast
from written import shards_of

from bigssl.config.errors import ConfigError
from bigssl.data.errors import DataError
from bigssl.engine.plan.evaluation import Checked
from bigssl.transfer.bench import Bench
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.labelled.trials import Trial
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.matrix import Held
from bigssl.transfer.scorecard import score
from bigssl.transfer.subjects import Exported, Subject
from bigssl.transfer.tasks.language import Language
from bigssl.transfer.tasks.qa import Qa, _dealt
from bigssl.transfer.tasks.seq2seq import Seq2Seq
from bigssl.transfer.tasks.token import Token
from bigssl.transfer.team import Team
from bigssl.transfer.texts.answering import Answering, Question

Make = Callable[..., PreTrainedModel]
BENCH = Bench(Team(), Held(), Exported(Path("unused"), 0, {}), "cpu", where="evaluate.mine")


def test_a_reader_answers_by_the_question_and_from_every_window(
    make_model: Make, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Two questions on one text, whose answers stand in different windows, and one that it does not answer."""
    text = "warm thing number 1 number 1 number 1 cool thing number 2"
    asked = [Question("warm", text, ["number 1"], [text.index("number 1")]),
             Question("cool thing", text, ["number 2"], [text.index("number 2")]),
             Question("red-ish thing cool", text, [], [])]  # fmt: skip
    takes = TextInput(tokenizer, 16)
    subject = Subject("text", {"trained": make_model("bert", hidden_size=32, intermediate_size=64)}, takes)
    job = Answering(subject, asked, asked, 4)
    assert job.lost == 0 and len(job._asked) > 3
    settings = Qa(train="unused", queries="unused", epochs=60, lr=3e-2, backbone_lr=3e-2, layer_decay=1.0)
    found = job.by_network(BENCH, settings, Trial("trained", 1.0, 0, torch.arange(3)))
    assert found == ["number 1", "number 2", ""]


def test_answers_are_dealt_within_their_texts() -> None:
    asked = [Question("q", "word " * size, ["word"], [5 * (size - 1)]) for size in (2, 30, 7)]
    dealt = _dealt(asked, 0)
    assert [each.context for each in dealt] == [each.context for each in asked]
    assert [each.starts for each in dealt] != [each.starts for each in asked]
    for each in dealt:
        assert each.answers == ["word"] and each.context[each.starts[0] :].startswith("word ")


def tagged(rows: Sequence[tuple[str, str]]) -> list[Mapping[str, bytes]]:
    return [{"txt": words.encode(), "json": json.dumps({"tokens": words.split(), "label": tags.split()}).encode()}
            for words, tags in rows]


def test_tags_that_are_no_entities_are_counted(
    tmp_path: Path, make_model: Make, tokenizer: PreTrainedTokenizerFast
) -> None:
    """ "thing" is what stands before it; a tag of the queries that nobody was taught is said."""
    export_run(tmp_path, {"text": make_model("bert")}, {"text": TextInput(tokenizer, 12)}, {}, {})
    rows = [("warm thing", "A A"), ("cool thing", "B B"), ("number cool thing", "C B B"),
            ("number warm thing", "C A A")]  # fmt: skip
    train = shards_of(tmp_path / "train", tagged(rows))
    queries = shards_of(tmp_path / "val", tagged([*rows[:2], ("warm number \u200b", "A D A")]))
    section = Token(train=train, queries=queries, fractions=[1.0], seeds=1, epochs=30, lr=2e-2, backbone_lr=2e-2,
                    layer_decay=1.0)  # fmt: skip
    card = score(tmp_path, {"tags": section}, seed=0)
    row = card["tasks"]["tags"]
    assert row["trained"] == pytest.approx(6 / 7) and row["words"] == 7, "all but D"
    assert row["raw"] == pytest.approx((2 + 1 + 2) / 7) and row["raw_name"] == "the most frequent tag of each word"
    assert row["majority"] == pytest.approx(4 / 7) and row["chance"] == pytest.approx(1 / 3)
    said = " ".join(card["notes"])
    assert "1 tags of the queries are none of the train shards (D): 1 words" in said
    assert "no token of 1 words of the queries" in said
    alike = shards_of(tmp_path / "alike", tagged([("warm thing", "A A")]))
    with pytest.raises(DataError, match="evaluate.tags.label: all label of the train shards are 'A'; needed are two"):
        score(tmp_path, {"tags": section.model_copy(update={"train": alike})}, seed=0)


def test_what_the_shards_do_not_hold_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = shards_of(tmp_path / "tags", tagged([("warm", "A"), ("cool", "B")]))
    other = shards_of(tmp_path / "other", tagged([("thing", "B")]))
    tower: Any = SimpleNamespace(modality="text", model=SimpleNamespace(config=CONFIG_MAPPING["gpt_neox"]()))

    def check(section: Any) -> None:
        section.check(Checked("evaluate.mine", section, {"text": tower}, {}))

    check(Token(train=tags, queries=other))
    with pytest.raises(ConfigError, match=r"evaluate.mine.queries: .* shards are also in evaluate.mine.train"):
        check(Token(train=tags, queries=tags))
    with pytest.raises(ConfigError, match=r"evaluate.mine.train: value '.*no field 'question' in its json"):
        check(Qa(train=tags, queries=other))
    with pytest.raises(ConfigError, match="evaluate.mine.backbone: value 'text': this gpt_neox has no head of next"):
        check(Language(bank=tags, queries=other))
    pairs = [{"txt": text, "json": b'{"target": "warm"}'} for text in (b"thing", b"number")]
    made = Seq2Seq(train=shards_of(tmp_path / "one", pairs[:1]), queries=shards_of(tmp_path / "two", pairs[1:]))
    check(made)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ConfigError, match=r"evaluate.mine.bleu_words: value '13a': BLEU needs sacrebleu, which is not"):
        check(made)
