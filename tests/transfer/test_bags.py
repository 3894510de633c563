"""TF-IDF of raw texts against loops in float64 over n-grams as they are, without hashes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from bigssl.data.kinds.text import load_tokenizer, train_tokenizer
from bigssl.transfer import bags
from bigssl.transfer.bags import Bags, Grams, TfIdf, character_grams, token_grams
from bigssl.transfer.collapse import rankme, text_health
from bigssl.transfer.knn import stored_knn
from bigssl.transfer.team import Team

BANK = ["红色的苹果", "绿色的苹果", "蓝色的天空", "red apple", "Red apples, red!", "a blue sky", "天空很蓝",
        "green apple", "苹果很红很红", "the sky", "  ", "x", "red apple"]  # fmt: skip
QUERIES = ["红苹果", "blue skies", "天", "§", "", "rot", "red apple"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    path = tmp_path_factory.mktemp("bags") / "tokenizer.json"
    train_tokenizer(BANK[:9], 60, path)
    return load_tokenizer(path)


def slow_grams(symbols: Sequence[Any], longest: int) -> Counter[tuple[Any, ...]]:
    return Counter(tuple(symbols[i : i + n]) for n in range(1, longest + 1) for i in range(len(symbols) - n + 1))


class Slow:
    """Cosines of texts with a bank."""

    def __init__(self, grams: Callable[[str], Counter[Any]], bank: Sequence[str]) -> None:
        self.grams, self.seen = grams, Counter(gram for text in bank for gram in grams(text))
        self.idf = {gram: 1 + math.log((1 + len(bank)) / (1 + n)) for gram, n in self.seen.items()}
        self.bank = [self.vector(text) for text in bank]
        self.mean: dict[Any, float] = {}
        for vector in self.bank:
            for gram, value in vector.items():
                self.mean[gram] = self.mean.get(gram, 0.0) + value / len(bank)

    def vector(self, text: str) -> dict[Any, float]:
        found = {gram: (1 + math.log(n)) * self.idf[gram] for gram, n in self.grams(text).items() if gram in self.idf}
        length = math.sqrt(sum(value**2 for value in found.values()))
        return {gram: value / length for gram, value in found.items()}

    def cosine(self, one: dict[Any, float], other: dict[Any, float]) -> float:
        if not one or not other:
            return 0.0
        a, b = ({gram: each.get(gram, 0.0) - mean for gram, mean in self.mean.items()} for each in (one, other))
        dot = sum(a[gram] * b[gram] for gram in a)
        return dot / math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))


def both(kind: str, tokenizer: PreTrainedTokenizerFast) -> tuple[Grams, Callable[[str], Counter[Any]]]:
    if kind == "characters":
        return character_grams(), lambda text: slow_grams(text.lower(), 4)

    def tokens(text: str) -> Counter[Any]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return slow_grams([each for each in ids if each != tokenizer.unk_token_id], 2)

    return token_grams(tokenizer), tokens


@pytest.mark.parametrize("rows", [1024, 3])
@pytest.mark.parametrize("kind", ["characters", "tokens"])
def test_cosines_and_votes_are_those_of_loops(
    kind: str, rows: int, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bags, "ROWS", rows)
    grams, slow_of = both(kind, tokenizer)
    slow, weights = Slow(slow_of, BANK), TfIdf.of(grams, BANK, Team())
    expected = [[slow.cosine(slow.vector(query), there) for there in slow.bank] for query in QUERIES]
    asked = torch.cat([torch.cat([piece.cosines(part) for _, part in Bags(BANK, weights).pieces()], dim=1)
                       for _, piece in Bags(QUERIES, weights).pieces()])  # fmt: skip
    assert torch.allclose(asked, torch.tensor(expected), atol=2e-6)
    labels = torch.arange(len(BANK)) % 3
    found = stored_knn(Bags(BANK, weights), labels, Bags(QUERIES, weights), range(1, len(QUERIES)), k=4)
    for query, cosines, voted in list(zip(QUERIES, expected, [None, *found.tolist()], strict=True))[1:]:
        if not slow.vector(query):
            assert voted == -1, query
            continue
        votes: dict[int, float] = {}
        for value, label in sorted(zip(cosines, labels.tolist(), strict=True), reverse=True)[:4]:
            votes[label] = votes.get(label, 0.0) + math.exp(value / 0.07)
        assert voted == max(sorted(votes), key=lambda label: votes[label]), query
    assert found.tolist().count(-1) == {"characters": 2, "tokens": 3}[kind]


def test_a_bank_without_a_gram_is_known_and_long_texts_come_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TfIdf.of(character_grams(), ["", ""], Team()).empty
    texts, limits = ["abcdef", "gh", "ij", "k" * 50, "l"], (bags.ROWS, bags.VALUES)
    weights = TfIdf.of(character_grams(), texts, Team())
    (whole,) = [piece.values.toarray() for _, piece in Bags(texts, weights).pieces()]
    monkeypatch.setattr(bags, "TOGETHER", 10)
    for (rows, values), expected in {limits: [5], (3, 1000): [3, 2], (1000, 24): [3, 2], (1, 1): [3, 1, 1]}.items():
        monkeypatch.setattr(bags, "ROWS", rows)
        monkeypatch.setattr(bags, "VALUES", values)
        pieces = list(Bags(texts, weights).pieces())
        assert [len(numbers) for numbers, _ in pieces] == ([1] * 5 if rows == 1 else expected)
        assert (np.concatenate([piece.values.toarray() for _, piece in pieces]) == whole).all()


def test_the_rank_of_texts_is_that_of_their_vectors() -> None:
    weights = TfIdf.of(character_grams(), BANK, Team())
    dense = torch.from_numpy(weights.vectors(BANK).toarray())
    found = text_health(BANK, weights)
    assert found == {"rankme": pytest.approx(rankme(dense), rel=1e-4), "samples": len(BANK), "of": len(BANK)}


def rank_weights(texts: list[str]) -> list[float]:
    found = TfIdf.of(character_grams(), texts, Team())
    return [float(found.weights.sum()), float(found.mean.sum()), float(found.mean @ found.mean)]


@pytest.mark.distributed
def test_three_ranks_weigh_as_one(ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    for found in ranks(rank_weights, 3, BANK):
        assert found == pytest.approx(rank_weights(BANK), rel=1e-6)
