"""Running text as language models are asked about it, and what is counted of a bank of it in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from bigssl.data.kinds import decode
from bigssl.data.kinds.masking import IGNORE, corrupt, select_tokens
from bigssl.data.kinds.text import encode_pieces
from bigssl.data.kinds.texts.following import frame_of
from bigssl.data.kinds.texts.infilling import FRAMED, noised, tokens_by_sentence
from bigssl.data.shards.index import DatasetIndex
from bigssl.transfer.features import samples_at
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.team import Team

CHARACTERS = 1 << 16  # of a document; the rest of a longer one is left out
COUNTED = 1 << 22  # tokens of a bank whose n-grams are counted at most; a rank holds them twice
LEVELS = 33
_MIXER = np.uint64(0x9E3779B97F4A7C15)


class Document(NamedTuple):
    """ids and labels int64 [P, length] of its pieces, padded; mask int64, 1 at tokens. A label stands at the place of
    its token, -100 where nothing is asked. Where a text is to be written from another, ids and mask are of what is
    read, labels of what is written."""

    key: str
    ids: Tensor
    labels: Tensor
    mask: Tensor


def document_parts(document: Document, batch: int) -> Iterator[Document]:
    """As many pieces at a time as a forward pass takes."""
    for start in range(0, len(document.ids), batch):
        yield Document(document.key, *(each[start : start + batch] for each in document[1:]))


@dataclass
class Unasked:
    """Of a rank's documents, the keys of those without a token to predict, and of those that were cut."""

    empty: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)

    def said(self, where: str, everywhere: Sequence[Unasked]) -> list[str]:
        """Sentences on those of all ranks."""
        empty, cut = ([key for part in everywhere for key in getattr(part, name)] for name in ("empty", "cut"))
        found = [f"{where}: {len(empty)} documents have no token to predict and are left out (the first is "
                 f"{empty[0]!r})."] if empty else []  # fmt: skip
        return found + ([f"{where}: of {len(cut)} documents, the first {CHARACTERS:,} characters are asked."] if cut
                        else [])  # fmt: skip


def keyed_texts(url: str, numbers: Sequence[int], left: Unasked) -> Iterator[tuple[int, str, str]]:
    """(number, key, text) of each sample."""
    for number, sample in zip(numbers, samples_at(DatasetIndex.load(url), numbers), strict=True):
        text = decode.running_text(sample)
        left.cut += [sample.key] if len(text) > CHARACTERS else []
        yield number, sample.key, text[:CHARACTERS]


def masked_documents(url: str, numbers: Sequence[int], words: TextInput, seed: int, left: Unasked
                     ) -> Iterator[Document]:
    """15 % of the tokens are asked, masked as BERT does it: the same for everybody, from the seed and the key."""
    for _, key, text in keyed_texts(url, numbers, left):
        rng = np.random.default_rng([seed, *key.encode()])
        pieces = encode_pieces(words.tokenizer, text, words.length)
        yield from _whole(key, [_masked(ids, borders, words, rng) for ids, borders in pieces], left)


def following_documents(url: str, numbers: Sequence[int], words: TextInput, left: Unasked) -> Iterator[Document]:
    """Every token is asked once, but for the first one where the tokenizer puts none before it.

    Pieces overlap by half, so that a token behind the first piece has at least half a piece before it.
    """
    begin, padding = frame_of(words.tokenizer)[0], words.tokenizer.pad_token_id or 0
    inside = words.length - len(begin)
    for _, key, text in keyed_texts(url, numbers, left):
        ids, rows = np.array(_ids(words.tokenizer, text), dtype=np.int64), []
        for start in range(0, max(1, len(ids) - inside // 2), max(1, inside - inside // 2)):
            piece = np.concatenate([begin, ids[start : start + inside]])
            asked = piece.copy()
            asked[: max(1, len(begin) + (inside // 2 if start else 0))] = IGNORE
            rows.append(_filled(piece, asked, padding, words.length))
        yield from _whole(key, rows, left)


def noisy_documents(url: str, numbers: Sequence[int], words: TextInput, seed: int, left: Unasked
                    ) -> Iterator[Document]:
    """Every token is asked once, of pieces that are read with the noise of BART (sentences in another order, 30 % of
    the tokens behind masks): the same for everybody, from the seed and the key. [CLS] and [SEP] are not asked."""
    tokenizer, length = words.tokenizer, words.length
    for _, key, text in keyed_texts(url, numbers, left):
        rng, rows = np.random.default_rng([seed, *key.encode()]), list[tuple[np.ndarray, ...]]()
        ids, sentences = tokens_by_sentence(tokenizer, text)
        for start in range(0, max(1, len(ids)), length - FRAMED):
            rest = ids[start:], sentences[start:]
            source, target = noised(tokenizer, *rest, rng, length, ratio=0.3, span=3.0, permute=True)
            target[[0, -1]] = IGNORE
            shown, _, mask = _filled(source, source, tokenizer.pad_token_id, length)
            rows.append((shown, _filled(target, target, IGNORE, length)[0], mask))
        yield from _whole(key, rows, left)


def _whole(key: str, rows: list[tuple[np.ndarray, ...]], left: Unasked) -> Iterator[Document]:
    document = Document(key, *(torch.from_numpy(np.stack(parts)) for parts in zip(*rows, strict=True)))
    if (document.labels != IGNORE).any():
        yield document
    else:
        left.empty.append(key)


def _masked(ids: np.ndarray, words: np.ndarray, takes: TextInput, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    tokenizer = takes.tokenizer
    selection = select_tokens(words >= 0, rng, 0.15)
    masked, labels = corrupt(ids, selection, rng, vocab_size=len(tokenizer), mask_id=tokenizer.mask_token_id)
    return _filled(masked, labels, tokenizer.pad_token_id, takes.length)


def _filled(ids: np.ndarray, labels: np.ndarray, padding: int, length: int) -> tuple[np.ndarray, ...]:
    fill = (0, length - len(ids))
    mask = (np.arange(length) < len(ids)).astype(np.int64)
    return np.pad(ids, fill, constant_values=padding), np.pad(labels, fill, constant_values=IGNORE), mask


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    found = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return list(found["input_ids"])


class BankTokens(NamedTuple):
    """counts: int64 [V] of all tokens of a bank. documents: tokens int64 [T] of the documents whose n-grams are
    counted, all or a fair part of them, in an order of no meaning."""

    counts: Tensor
    documents: list[np.ndarray]


@dataclass
class Sieve:
    """Documents as they come, thinned out by their numbers whenever they have more than `most` tokens: those that stay
    are of a level or more, each level holding half of the documents of the one below it."""

    most: int
    kept: dict[int, np.ndarray] = field(default_factory=dict)
    sizes: np.ndarray = field(default_factory=lambda: np.zeros(LEVELS, np.int64))

    def add(self, number: int, ids: np.ndarray) -> None:
        before = self.level(self.sizes)
        self.sizes[_level(number)] += len(ids)
        if _level(number) >= before:
            self.kept[number] = ids
        if (now := self.level(self.sizes)) > before:
            self.kept = self.above(now)

    def level(self, sizes: np.ndarray) -> int:
        """The lowest whose documents have `most` tokens or fewer, by the tokens of each level."""
        behind = np.cumsum(sizes[::-1])[::-1]
        return int(np.argmax(np.append(behind, 0) <= self.most))

    def above(self, level: int) -> dict[int, np.ndarray]:
        return self.kept if level == 0 else {n: ids for n, ids in self.kept.items() if _level(n) >= level}


def _code(number: int) -> int:
    mixed = np.array([number], np.uint64) * _MIXER
    return int(((mixed ^ (mixed >> np.uint64(29))) * _MIXER)[0] >> np.uint64(32))


def _level(number: int) -> int:
    return 32 - _code(number).bit_length()


def bank_tokens(url: str, numbers: Sequence[int], tokenizer: PreTrainedTokenizerFast, vocabulary: int, team: Team,
                most: int = COUNTED) -> BankTokens:  # fmt: skip
    """What is counted of a bank; `numbers`: this rank's. Which documents are kept does not depend on the number of
    ranks. A collective."""
    sieve, counts = Sieve(most), torch.zeros(vocabulary, dtype=torch.int64)

    def read() -> None:
        for number, _, text in keyed_texts(url, numbers, Unasked()):
            ids = np.array(_ids(tokenizer, text), dtype=np.int64)
            counts.add_(torch.bincount(torch.from_numpy(ids), minlength=vocabulary))
            sieve.add(number, ids)

    team.each(read)
    sizes = team.total(torch.from_numpy(sieve.sizes.copy())).numpy()
    found = team.gather(lambda: {n: ids.astype(np.int32) for n, ids in sieve.above(sieve.level(sizes)).items()})
    documents = {number: ids for part in found for number, ids in part.items()}
    mixed = sorted(documents, key=_code)
    return BankTokens(team.total(counts), [documents[number].astype(np.int64) for number in mixed])
