"""Two pieces of text in a row, told apart by segment ids, and the sentences of which pieces are made.

    [CLS] a a a [SEP] b b [SEP] [PAD]
      0   0 0 0   0   1 1   1     0      token_type_ids (Devlin et al. 2019)

A document ends a sentence, whatever its language,

    at the end of a line (a document that is a list of sentences has one in each line)
    behind . ! ? and ..., with the quotes and brackets that close there, before a space: abbreviations, too
    behind the full stops and question marks of scripts without spaces, and their closing quotes (Chinese 。！？)
    within LONGEST characters, at a space where there is one: where nobody ends a sentence, it is a passage

What has no letter or digit (a line of dashes) is no sentence: it belongs to the one before, the first to the next. Of a
document of more than WINDOW characters, a random part of as many gives the sentences each time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.kinds.text import ids_and_words, padded
from bigssl.data.sample import Sample

LONGEST = 512  # characters
WINDOW = 1 << 17  # characters
FRAME = 3  # special tokens of a pair
OTHER = 0.5  # share of the pairs whose second passage is of another document
SHORT = 0.1  # share of the pairs that are made shorter
_CHARACTERS = 5  # of a token, about
_ALONE = "。！？｡؟۔।॥။።\r\n\u2028\u2029"  # what ends a sentence without a space behind it
_END = re.compile(rf"""[.!?…{_ALONE}][.!?…{_ALONE}"'”’»)\]」』）】〉》]*""")  # begins with a set: searched for fast


class Sentences(NamedTuple):
    """A document. text: all of it. spans: of each sentence, its first character and the one behind its last."""

    text: str
    spans: list[tuple[int, int]]

    def between(self, first: int, end: int) -> str:
        """The sentences from number `first` to the one before `end`, with what stands between them."""
        return self.text[self.spans[first][0] : self.spans[end - 1][1]].strip()


class Neighbours(NamedTuple):
    """Two passages that follow each other: sentences `begin` to before `cut`, and from there to before `end`."""

    begin: int
    cut: int
    end: int


def sentences_of(sample: Sample, rng: np.random.Generator) -> Sentences:
    """The sentences of a document, of a long one those of a random part. Raises DataError where there is none."""
    text = lined_text(sample)
    begin = int(rng.integers(len(text) - WINDOW + 1)) if len(text) > WINDOW else 0
    found = split_sentences(text[begin : begin + WINDOW])
    if not found.spans:
        raise DataError(f"an empty document: {len(text)} characters without a letter or digit")
    if len(text) <= WINDOW:
        return found
    inside = found.spans[1:-1] or found.spans  # the first and the last are cut where the part begins and ends
    return Sentences(text, [(begin + first, begin + end) for first, end in inside])


def lined_text(sample: Sample) -> str:
    """The text of a document; one that is a list of sentences has each in a line. Raises DataError."""
    document = decode.document(sample)
    return document if isinstance(document, str) else "\n".join(document)


def split_sentences(text: str) -> Sentences:
    """The sentences of a text, as this file's first lines say."""
    spans, begin = list[tuple[int, int]](), 0
    for end in _ends(text):
        if any(map(str.isalnum, text[begin:end])):
            spans.append((begin, end))
        elif spans:
            spans[-1] = spans[-1][0], end
        else:
            continue
        begin = end
    return Sentences(text, spans)


def _ends(text: str) -> Iterator[int]:
    """Growing, up to the end of the text."""
    begin = 0
    ends = [found.end() for found in _END.finditer(text) if _ends_one(text, found)]
    for end in [*ends, len(text)]:
        while end - begin > LONGEST:
            space = text.rfind(" ", begin + 1, begin + LONGEST)
            begin = space if space > 0 else begin + LONGEST
            yield begin
        yield end
        begin = end


def _ends_one(text: str, found: re.Match[str]) -> bool:
    """A space tells the end from 3.5 and example.org."""
    return text[found.end() : found.end() + 1].isspace() or not set(_ALONE).isdisjoint(found[0])


def neighbours_in(
    document: Sentences, tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator, target: int
) -> Neighbours:
    """Consecutive passages of about `target` tokens in all: sentences from a random one on until these are reached, cut
    in two between any two of them (Devlin et al. 2019, their create_pretraining_data.py).

    Raises DataError where there is one sentence only.
    """
    count = len(document.spans)
    if count < 2:
        raise DataError("a document of one sentence, which has no next one; leave such documents out (data.on_error: "
                        "skip does), or join what belongs together")  # fmt: skip
    far = document.spans[-1][1] - _CHARACTERS * target  # from there on, too little is left
    starts = sum(begin <= far for begin, _ in document.spans[: count - 1])
    begin = int(rng.integers(max(starts, 1)))
    found, end = tokens_in(tokenizer, document.between(begin, begin + 2)), begin + 2
    while end < count and found < target:
        found += tokens_in(tokenizer, document.between(end, end + 1))
        end += 1
    return Neighbours(begin, int(rng.integers(begin + 1, end)), end)


class DrawnPair(NamedTuple):
    """Two pieces of text and what is to be told of them, 0 or 1. recurring: the one from another document stood in the
    first's own, so that what follows took its place."""

    first: str
    second: str
    label: int
    recurring: bool = False


def follows_or_other(
    document: Sentences, at: Neighbours, rng: np.random.Generator, other: Callable[[], Sentences]
) -> DrawnPair:
    """Next sentence prediction: a passage and what follows it (0), or one of as many sentences of another document (1),
    half of the pairs. What stands in the first's own document is no negative."""
    first, second = document.between(at.begin, at.cut), document.between(at.cut, at.end)
    if rng.random() >= OTHER:
        return DrawnPair(first, second, 0)
    drawn = passage_of(other(), rng, at.end - at.cut)
    recurring = quotes(document, drawn)
    return DrawnPair(first, second if recurring else drawn, int(not recurring), recurring)


def in_either_order(
    document: Sentences, at: Neighbours, rng: np.random.Generator, other: Callable[[], Sentences]
) -> DrawnPair:
    """Sentence order prediction: two passages that follow each other (0), or swapped (1), half of the pairs."""
    both = document.between(at.begin, at.cut), document.between(at.cut, at.end)
    swapped = int(rng.integers(2))
    return DrawnPair(both[swapped], both[1 - swapped], swapped)


DRAWN = {"next_sentence": follows_or_other, "sentence_order": in_either_order}
"""How each task of pairs draws one, by its name: of `document` at two neighbours in it; `other` draws another."""


def tokens_in(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    """How many tokens a text has, special ones apart."""
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def passage_of(document: Sentences, rng: np.random.Generator, count: int) -> str:
    """`count` consecutive sentences, from a random one on; all where there are fewer."""
    begin = int(rng.integers(max(len(document.spans) - count, 0) + 1))
    return document.between(begin, min(begin + count, len(document.spans)))


def quotes(document: Sentences, passage: str) -> bool:
    """Whether a passage stands in a document, whatever spaces are between its words."""
    return " ".join(passage.split()) in " ".join(document.text.split())


def encode_pair(
    tokenizer: PreTrainedTokenizerFast, first: str, second: str, length: int, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """[CLS] first [SEP] second [SEP], padded, as input_ids, attention_mask and token_type_ids, int64 [length] each; and
    the number of each token's word (see `bigssl.data.kinds.words`), -1 at special tokens and padding.

    Of what is too long, the longer loses tokens until both fit, at its front or its end, by chance (Devlin et al.
    2019). Raises DataError for a piece without a token.
    """
    pieces = [ids_and_words(tokenizer, text) for text in (first, second)]
    for text, (found, _) in zip((first, second), pieces, strict=True):
        if not len(found):
            raise DataError(f"{text[:40]!r} has no token")
    sizes = shared_room(len(pieces[0][0]), len(pieces[1][0]), length - FRAME)
    ids, words = [tokenizer.cls_token_id], [-1]
    for (own, own_words), size in zip(pieces, sizes, strict=True):
        front = int(rng.binomial(len(own) - size, 0.5))
        ids += [*own[front : front + size].tolist(), tokenizer.sep_token_id]
        words += [*own_words[front : front + size].tolist(), -1]
    places = np.arange(length)
    return {
        "input_ids": padded(ids, length, tokenizer.pad_token_id),
        "attention_mask": (places < len(ids)).astype(np.int64),
        "token_type_ids": ((places >= sizes[0] + 2) & (places < len(ids))).astype(np.int64),
    }, padded(words, length, -1)


def shared_room(one: int, other: int, room: int) -> tuple[int, int]:
    """How many tokens each of two pieces keeps: the longer loses some until both fit."""
    kept = min(one, max(room - other, room - room // 2))
    return kept, min(other, room - kept)


def target_of(length: int, short: float, rng: np.random.Generator) -> int:
    """Tokens that a pair should have: all that fit, or with probability `short` any smaller number from 2 on, so that a
    network meets short texts, too (Devlin et al. 2019)."""
    room = length - FRAME
    return int(rng.integers(2, room + 1)) if rng.random() < short else room
