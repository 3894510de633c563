"""Sentences of any language, and two passages side by side as BERT has them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from bigssl.data.errors import DataError
from bigssl.data.kinds import pairs
from bigssl.data.kinds.text import load_tokenizer
from bigssl.data.sample import Sample

DEMO = Path(__file__).parents[3] / "bigssl" / "demo"
RNG = np.random.default_rng(0)
TEXTS = {
    "Smith paid 3.5 at example.org (now!) \"Yes.\" He left.": ["Smith paid 3.5 at example.org (now!)", '"Yes."',
                                                               "He left."],
    "A title\n----\nA line without an end\r\n\r\nAnother": ["A title\n----", "A line without an end", "Another"],
    "你好。他说：“很好！”再见？好": ["你好。", "他说：“很好！”", "再见？", "好"],
    "*** One... Two?! ***": ["*** One...", "Two?! ***"],
    "यह एक है। वह दो है॥": ["यह एक है।", "वह दो है॥"],
    " \n*** ": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer(DEMO / "tokenizer-prose.json")


def document(text: str | list[str]) -> Sample:
    fields = {"txt": text.encode()} if isinstance(text, str) else {"json": json.dumps(text).encode()}
    return Sample("s", fields, 0, 0, "x.tar", "text")


@pytest.mark.parametrize("text", TEXTS)
def test_sentences_end_where_their_language_ends_them(text: str) -> None:
    found = pairs.split_sentences(text)
    assert [found.between(n, n + 1) for n in range(len(found.spans))] == TEXTS[text]


def test_no_sentence_is_lost_or_endless() -> None:
    """Whatever is cut: spans follow each other, and what nobody ends is cut at a space, or anywhere (Thai)."""
    for text in ("word " * 500, "ก" * 2000, "short. " + "a" * 600 + " end.\n" + "b " * 700):
        spans = pairs.split_sentences(text).spans
        assert spans[0][0] == 0 and spans[-1][1] == len(text)
        assert all(end == begin for (_, end), (begin, _) in zip(spans, spans[1:], strict=False))
        assert max(end - begin for begin, end in spans) <= pairs.LONGEST
        cuts = [begin for begin, _ in spans[1:]]
        assert "ก" in text or all(text[cut - 1].isspace() or text[cut].isspace() or "aaa" in text for cut in cuts)


def test_a_list_of_sentences_ends_each() -> None:
    found = pairs.sentences_of(document(["no end here", "nor here"]), RNG)
    assert [found.between(n, n + 1) for n in range(2)] == ["no end here", "nor here"]
    assert found.between(0, 2) == "no end here\nnor here"


def test_of_a_long_document_a_part_is_cut_and_all_is_known() -> None:
    text = " ".join(f"Sentence number {n} is here." for n in range(20_000))
    found = [pairs.sentences_of(document(text), np.random.default_rng(seed)) for seed in range(8)]
    for each in found:
        assert each.text == text and len({each.spans[0] for each in found}) == 8
        assert all(text[begin:end].strip().startswith("Sentence") and text[end - 1] == "." for begin, end in each.spans)
        assert 0.9 * pairs.WINDOW < each.spans[-1][1] - each.spans[0][0] <= pairs.WINDOW
    assert pairs.stands_in(found[0], "Sentence number 7 is here.") and pairs.stands_in(found[0], "number 19999 is")


def cut_by_hand(one: int, other: int, room: int) -> tuple[int, int]:
    """Token by token, as in google-research/bert."""
    while one + other > room:
        one, other = (one - 1, other) if one > other else (one, other - 1)
    return one, other


def test_the_longer_piece_loses_tokens_until_both_fit() -> None:
    for one, other, room in np.random.default_rng(0).integers(1, 40, (500, 3)).tolist():
        assert pairs.shared_room(one, other, room + 1) == cut_by_hand(one, other, room + 1)


def test_a_pair_is_framed_and_its_pieces_are_told_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    first, second = "we will work", "the congress and the people"
    inputs, words = pairs.encode_pair(tokenizer, first, second, 24, np.random.default_rng(0))
    known = tokenizer(first, second, padding="max_length", max_length=24, return_token_type_ids=True)
    assert {name: values.tolist() for name, values in inputs.items()} == {name: known[name] for name in inputs}
    special = np.isin(inputs["input_ids"], tokenizer.all_special_ids)
    assert ((words < 0) == special).all() and words[1] == 0
    cut = [pairs.encode_pair(tokenizer, first, second, 8, np.random.default_rng(n))[0] for n in range(30)]
    begun = {tuple(each["input_ids"].tolist()) for each in cut}
    assert len(begun) > 2 and {int(each["token_type_ids"].sum()) for each in cut} == {3}  # at both ends, by chance


def test_neighbours_follow_each_other_and_fill_the_target(tokenizer: PreTrainedTokenizerFast) -> None:
    found = pairs.split_sentences(" ".join(f"This is sentence {n}." for n in range(40)))
    drawn = [pairs.neighbours_in(found, tokenizer, np.random.default_rng(seed), 40) for seed in range(200)]
    assert all(0 <= at.begin < at.cut < at.end <= 40 for at in drawn)
    sizes = [pairs.tokens_in(tokenizer, found.between(at.begin, at.end)) for at in drawn]
    assert min(sizes) >= 40 and max(sizes) < 60
    assert len({at.begin for at in drawn}) > 25 and len({at.cut - at.begin for at in drawn}) > 2
    whole = pairs.neighbours_in(found, tokenizer, np.random.default_rng(0), 4000)
    assert (whole.begin, whole.end) == (0, 40)  # of a short document all


def test_targets_are_all_that_fits_and_sometimes_less() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([pairs.target_of(64, 0.1, rng) for _ in range(4000)])
    assert set(drawn) <= set(range(2, 62)) and len(set(drawn)) > 50
    assert (drawn == 61).mean() == pytest.approx(0.9 + 0.1 / 60, abs=3 * (0.09 / 4000) ** 0.5)


def test_a_document_without_a_pair_says_why(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in ("", " \n", "...", []):
        with pytest.raises(DataError, match=r"^an empty document: \d+ characters without a letter or digit$"):
            pairs.sentences_of(document(text), RNG)
    with pytest.raises(DataError, match=r"^a document of one sentence, which has no next one; leave such"):
        pairs.neighbours_in(pairs.sentences_of(document("Only one."), RNG), tokenizer, np.random.default_rng(0), 9)


def test_a_passage_is_found_whatever_its_spaces() -> None:
    found = pairs.split_sentences("One  two.\nThree four. 五六。")
    assert pairs.stands_in(found, "two. Three") and pairs.stands_in(found, "五六。")
    assert not pairs.stands_in(found, "two. four")
