"""Words and the tokens that stand for them; what cannot be read is refused; a tagger learns from what stands around."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from bigssl.data.errors import DataError
from bigssl.data.sample import Sample
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.texts.tagging import stretches, tagged_words

LONG = "thingthingthingthing"


@pytest.mark.parametrize("words", [
    ["red-ish", "thing", "number", "9"], ["thing"], [LONG * 3, "cool"], ["warm", "\u200b", "cool"], ["", "cool", ""],
    ["thing", "number"] * 20, ["a", "ünïcode", "🙂", "x"],
])  # fmt: skip
def test_a_word_is_known_by_its_first_token(words: list[str], tokenizer: PreTrainedTokenizerFast) -> None:
    """A word by itself has the tokens that it has in the text, for this tokenizer cuts at spaces."""
    takes = TextInput(tokenizer, 12)
    alone = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    found = stretches(takes, [words])
    firsts = {int(word): int(part.ids[place]) for part in found
              for word, place in zip(part.words, part.places, strict=True)}  # fmt: skip
    assert firsts == {number: ids[0] for number, ids in enumerate(alone) if ids}
    inside = [token for part in found for token in part.ids.tolist() if token not in tokenizer.all_special_ids
              or token == tokenizer.unk_token_id]  # fmt: skip
    assert inside == [token for ids in alone for token in ids], "nothing is lost"
    for part in found:
        assert len(part.ids) <= 12 and part.ids[0] == tokenizer.cls_token_id and part.ids[-1] == tokenizer.sep_token_id
    whole = [part for part in found if len(part.words)]
    cut = [number for number, ids in enumerate(alone) if len(ids) > 10]
    for part in whole[:-1]:
        last = int(part.words[-1])
        assert last in cut or part.places[-1] + len(alone[last]) == len(part.ids) - 1, "cut between words"


def read(meta: Any) -> Any:
    return tagged_words(Sample("s", {"json": json.dumps(meta).encode()}, 0, 0, "x.tar", "t"), "tokens", "label")


@pytest.mark.parametrize("meta, message", [
    ({"tokens": ["a", "b"], "label": ["O"]}, "2 tokens, but 1 label; allowed: a tag for each"),
    ({"tokens": [], "label": []}, "tokens is empty; leave such samples out"),
    ({"tokens": "a b", "label": ["O"]}, "tokens is str 'a b'; allowed: a list of words"),
    ({"tokens": ["a"]}, "no field 'label' in its json; it has tokens"),
    ({"tokens": ["a", None], "label": ["O", "O"]}, "None among tokens and label"),
    ({"tokens": ["a"], "label": [True]}, "True among tokens and label"),
])  # fmt: skip
def test_what_is_no_tagged_text_is_refused(meta: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(meta)


def test_tags_may_be_numbers() -> None:
    assert read({"tokens": ["a", "b"], "label": [3, 0]}).tags == ["3", "0"]
