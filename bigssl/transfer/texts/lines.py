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
    """surprise: float32 [V], -ln of each token's frequency in the bank. grams: of what memory has room for."""

    surprise: Tensor
    grams: NGrams

    def sums(self, part: Document) -> Sums:
        """Over the tokens asked."""
        asked = part.labels != IGNORE
        tokens = part.labels[asked]
        grams = self.grams.surprise(surroundings(part.ids, part.mask, asked), tokens.numpy()).sum()
        return {"blind": self.surprise[tokens].sum().item(), f"{RAW}interpolated n-grams": float(grams)}


def surroundings(ids: Tensor, mask: Tensor, asked: Tensor) -> np.ndarray:
    """int64 [M, N]: the neighbours (see `bigssl.transfer.texts.ngrams`) of each token that is asked, of pieces int64
    [P, length] with 1 in `mask` at their tokens."""
    shown = [neighbours(row[real.bool()].numpy()) for row, real in zip(ids, mask, strict=True)]
    return np.concatenate([each[row[: len(each)].numpy()] for each, row in zip(shown, asked, strict=True)])


def lines_of_bank(
    bench: Bench, url: str, limit: int | None, tokenizer: PreTrainedTokenizerFast, vocabulary: int, causal: bool
) -> Lines:
    """Of the documents of a bank. causal: n-grams look at what stands before a token, else at both sides. A
    collective."""
    numbers = bench.numbers(bench.index(url), limit, "bank")
    found = bank_tokens(url, numbers, tokenizer, vocabulary, bench.team)
    frequencies = TokenFrequencies(vocabulary)
    frequencies.counts += found.counts
    surprise = frequencies.surprise()
    base = np.exp(-surprise.double().numpy())
    grams = NGrams.of(found.documents, base / base.sum(), BEFORE if causal else AROUND)
    if grams.tokens < (everything := int(found.counts.sum())):
        bench.note(f"{bench.where}.bank: n-grams are those of {grams.tokens:,} of its {everything:,} tokens.")
    return Lines(surprise, grams)


def vocabulary_of(subject: Subject) -> int:
    """How many tokens its network knows."""
    return int(subject.models["trained"].config.vocab_size)
