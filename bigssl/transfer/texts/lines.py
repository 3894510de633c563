"""What is learnt of a bank of documents without a network, and has to be beaten: token frequencies and n-grams."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from bigssl.data.kinds.masking import IGNORE
from bigssl.nets.heads.frequencies import TokenFrequencies
from bigssl.transfer.bench import Bench
from bigssl.transfer.scores import RAW
from bigssl.transfer.subjects import Subject
from bigssl.transfer.texts.documents import Document, bank_tokens
from bigssl.transfer.texts.ngrams import AROUND, BEFORE, NGrams, neighbours

Sums = dict[str, float]


@dataclass(frozen=True)
class Lines:
    """surprise: float32 [V], -ln of each token's frequency in the bank. grams: of what memory has room for. written:
    whether the neighbours of a token are those asked before it, and not what is read."""

    surprise: Tensor
    grams: NGrams
    written: bool = False

    def sums(self, part: Document) -> Sums:
        """Over the tokens asked."""
        asked = part.labels != IGNORE
        ids, there = (part.labels, asked) if self.written else (part.ids, part.mask.bool())
        tokens = part.labels[asked]
        grams = self.grams.surprise(surroundings(ids, there, asked), tokens.numpy()).sum()
        return {"blind": self.surprise[tokens].sum().item(), f"{RAW}interpolated n-grams": float(grams)}


def surroundings(ids: Tensor, there: Tensor, asked: Tensor) -> np.ndarray:
    """int64 [M, N]: the neighbours (see `bigssl.transfer.texts.ngrams`) of each token that is asked, of pieces int64
    [P, length] with tokens where bool [P, length] `there`."""
    shown = [neighbours(row[real].numpy()) for row, real in zip(ids, there, strict=True)]
    return np.concatenate([each[row[real].numpy()] for each, row, real in zip(shown, asked, there, strict=True)])


def lines_of_bank(
    bench: Bench, url: str, limit: int | None, tokenizer: PreTrainedTokenizerFast, vocabulary: int, *, around: bool,
    written: bool = False,
) -> Lines:
    """Of the documents of a bank. around: n-grams look at both sides of a token, else at what stands before it.
    written: of `Lines`. A collective."""
    numbers = bench.numbers(bench.index(url), limit, "bank")
    found = bank_tokens(url, numbers, tokenizer, vocabulary, bench.team)
    frequencies = TokenFrequencies(vocabulary)
    frequencies.counts += found.counts
    surprise = frequencies.surprise()
    base = np.exp(-surprise.double().numpy())
    grams = NGrams.of(found.documents, base / base.sum(), AROUND if around else BEFORE)
    if grams.tokens < (everything := int(found.counts.sum())):
        bench.note(f"{bench.where}.bank: n-grams are those of {grams.tokens:,} of its {everything:,} tokens.")
    return Lines(surprise, grams, written)


def vocabulary_of(subject: Subject) -> int:
    """How many tokens its network knows."""
    return int(subject.models["trained"].config.vocab_size)
