"""TF-IDF of raw texts against loops in float64 over n-grams as they are, without hashes."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from transformers import PreTrainedTokenizerFast

from bigssl.data.kinds.text import load_tokenizer
from bigssl.data.kinds.vocabularies.training import train_tokenizer
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.nets.embeddings.health import rankme, uniformity
from bigssl.transfer import bags, collapse
from bigssl.transfer.bags import Bags, Grams, TfIdf, character_grams, counted, token_grams
from bigssl.transfer.bench import Bench
from bigssl.transfer.collapse import text_health
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.knn import stored_knn
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.matrix import Held
from bigssl.transfer.scorecard import score
from bigssl.transfer.scores import RAW
from bigssl.transfer.subjects import Exported
from bigssl.transfer.tasks.knn import Knn
from bigssl.transfer.team import Team

BANK = ["红色的苹果", "绿色的苹果", "蓝色的天空", "red apple", "Red apples, red!", "a blue sky", "天空很蓝",
        "green apple", "苹果很红很红", "the sky", "  ", "x", "red apple"]  # fmt: skip
QUERIES = ["红苹果", "blue skies", "天", "§", "", "rot", "red apple"]


@pytest.fixture(scope="module")
def of_bank(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    path = tmp_path_factory.mktemp("bags") / "tokenizer.json"
    train_tokenizer(BANK[:9], 60, path)
    return load_tokenizer(path)


def slow_grams(symbols: Sequence[Any], longest: int) -> Counter[tuple[Any, ...]]:
    return Counter(tuple(symbols[i : i + n]) for n in range(1, longest + 1) for i in range(len(symbols) - n + 1))


def dot(one: dict[Any, float], other: dict[Any, float]) -> float:
    return sum(value * other.get(gram, 0.0) for gram, value in one.items())


def slow_vote(cosines: Sequence[float], labels: Sequence[Any], k: int) -> Any:
    votes: dict[Any, float] = {}
    for value, label in sorted(zip(cosines, labels, strict=True), reverse=True)[:k]:
        votes[label] = votes.get(label, 0.0) + math.exp(value / 0.07)
    return max(sorted(votes), key=lambda label: votes[label])


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

    def centred(self, vector: dict[Any, float]) -> dict[Any, float]:
        """At unit length, without the mean."""
        found = {gram: vector.get(gram, 0.0) - mean for gram, mean in self.mean.items()} if vector else {}
        length = math.sqrt(sum(value**2 for value in found.values()))
        return {gram: value / length for gram, value in found.items()}

    def cosine(self, one: dict[Any, float], other: dict[Any, float]) -> float:
        return dot(self.centred(one), self.centred(other))


def both(kind: str, tokenizer: PreTrainedTokenizerFast) -> tuple[Grams, Callable[[str], Counter[Any]]]:
    if kind == "characters":
        return character_grams(), lambda text: slow_grams(text.lower(), 4)

    def tokens(text: str) -> Counter[Any]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return slow_grams([each for each in ids if each != tokenizer.unk_token_id], 2)

    return token_grams(tokenizer), tokens


def made(grams: Grams, bank: Sequence[str], *others: Sequence[str]) -> tuple[Any, ...]:
    """What the bank says of n-grams, and the vectors of the bank and of other texts. A collective."""
    team = Team()
    counts = [counted(grams, texts, team, Held()) for texts in (bank, *others)]
    weights = TfIdf.of(counts[0], team)
    return weights, *(Bags.of(each, weights, team, Held()) for each in counts)


@pytest.mark.parametrize("rows", [1024, 3])
@pytest.mark.parametrize("kind", ["characters", "tokens"])
def test_cosines_and_votes_are_those_of_loops(
    kind: str, rows: int, of_bank: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bags, "ROWS", rows)
    grams, slow_of = both(kind, of_bank)
    slow, (_, known, queries) = Slow(slow_of, BANK), made(grams, BANK, QUERIES)
    expected = [[slow.cosine(slow.vector(query), there) for there in slow.bank] for query in QUERIES]
    asked = torch.cat([torch.cat([piece.cosines(part) for _, part in known.pieces()], dim=1)
                       for _, piece in queries.pieces()])  # fmt: skip
    assert torch.allclose(asked, torch.tensor(expected), atol=2e-6)
    labels = torch.arange(len(BANK)) % 3
    found = stored_knn(known, labels, queries, range(1, len(QUERIES)), k=4)
    for query, cosines, voted in list(zip(QUERIES, expected, [None, *found.tolist()], strict=True))[1:]:
        if not slow.vector(query):
            assert voted == -1, query
            continue
        assert voted == slow_vote(cosines, labels.tolist(), 4), query
    assert found.tolist().count(-1) == {"characters": 2, "tokens": 3}[kind]


def test_a_bank_without_a_gram_is_known_and_long_texts_come_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    (empty, none) = made(character_grams(), ["", ""])
    assert empty.empty and [piece.values.nnz for _, piece in none.pieces()] == [0]
    texts, limits = ["abcdef", "gh", "ij", "k" * 50, "l"], (bags.ROWS, bags.VALUES)
    ((_, whole),) = made(character_grams(), texts)[1].pieces()
    monkeypatch.setattr(bags, "TOGETHER", 10)
    for (rows, values), expected in {
        limits: [5], (3, 1000): [3, 2], (1000, 24): [3, 2], (1, 1): [1] * 5
    }.items():  # fmt: skip
        monkeypatch.setattr(bags, "ROWS", rows)
        monkeypatch.setattr(bags, "VALUES", values)
        pieces = list(made(character_grams(), texts)[1].pieces())
        assert [len(numbers) for numbers, _ in pieces] == expected
        assert (np.concatenate([piece.values.toarray() for _, piece in pieces]) == whole.values.toarray()).all()
        assert np.concatenate([piece.along for _, piece in pieces]) == pytest.approx(whole.along)


@pytest.mark.parametrize("rows", [1024, 2])
def test_the_rank_of_texts_is_that_of_their_vectors(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bags, "ROWS", rows)
    monkeypatch.setattr(collapse, "SAMPLES", 7)
    known = made(character_grams(), BANK)[1]
    every = np.concatenate([piece.values.toarray() for _, piece in known.pieces()])
    dense = torch.from_numpy(every[::2])
    products = dense.double() @ dense.double().T
    assert {name: value for name, value in text_health(known).items() if name not in ("span", "uniform")} == {
        "rankme": pytest.approx(rankme(dense), rel=1e-4), "samples": 7, "of": 7,
        "uniformity": pytest.approx(uniformity(products).item(), rel=1e-4),
    }  # fmt: skip


def test_the_health_of_texts_holds_two_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which each is VALUES at most, however long the texts are."""
    known, most = made(character_grams(), ["".join(map(chr, range(n, n + 300))) for n in range(64)])[1], []
    read = bags.StoredRows.read

    def noted(self: bags.StoredRows, rows: range) -> sparse.csr_matrix:
        found = read(self, rows)
        most.append(found.nnz)
        return found

    monkeypatch.setattr(bags, "VALUES", 3000)
    monkeypatch.setattr(bags.StoredRows, "read", noted)
    assert text_health(known)["samples"] == 64 and 1000 < max(most) <= 3000


def rank_weights(texts: list[str], queries: list[str]) -> list[float]:
    weights, known, asked = made(character_grams(), texts, queries)
    found = [float(weights.weights.sum()), float(weights.mean.sum()), float(weights.mean @ weights.mean)]
    return found + [*known.along.tolist(), *asked.along.tolist(), text_health(known)["rankme"]]


@pytest.mark.distributed
def test_three_ranks_weigh_as_one(ranks: Callable[..., list[Any]], tmp_path: Path) -> None:
    alone = rank_weights(BANK, QUERIES[:2])
    for found in ranks(rank_weights, 3, BANK, QUERIES[:2]):
        assert found == pytest.approx(alone, rel=1e-6)


def drawn(count: int, letters: str, seed: int) -> list[str]:
    """Different texts of ten letters; those in front are the most frequent."""
    odds = 1 / np.arange(1, len(letters) + 1)
    draw = np.random.default_rng(seed)
    return ["".join(draw.choice(list(letters), 10, p=odds / odds.sum())) for _ in range(count)]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Any], tokenizer: PreTrainedTokenizerFast
           ) -> tuple[Path, dict[str, tuple[list[str], list[str]]]]:  # fmt: skip
    """(the folder of an export and of two banks and queries, their texts and labels by name)."""
    folder = tmp_path_factory.mktemp("judged")
    export_run(folder, {"text": make_model("bert")}, {"text": TextInput(tokenizer, 8)}, {}, {})
    sizes = {"bank": (40, "abcdef"), "queries": (60, "fedcba"), "small": (20, "abcdef")}  # as frequent in none
    made = {}
    for seed, (name, (count, letters)) in enumerate(sizes.items()):
        texts = drawn(count, letters, seed)
        made[name] = texts, [min(text[0], "c") for text in texts]
        samples = [{"txt": text.encode(), "json": json.dumps({"label": label}).encode()}
                   for text, label in zip(*made[name], strict=True)]  # fmt: skip
        pack([Item(f"{n:03d}", f"{n:03d}", lambda each=each: each) for n, each in enumerate(samples)], folder / name,
             name="x")  # fmt: skip
    return folder, made


def test_a_row_of_raw_texts_weighs_by_the_bank(judged: tuple[Path, Any]) -> None:
    """The row's number, and the cosines behind it, which few numbers show: queries neither weigh anything nor have a
    mean of their own."""
    folder, made = judged
    asked = Knn(backbone="text", bank=str(folder / "bank"), queries=str(folder / "queries"), label="label", k=5)
    bench = Bench(Team(), Held(), Exported(folder / "export", 0, {}), "cpu").at("evaluate.texts", 16)
    (found,) = asked.run(bench)
    network = bench.subject("text")
    bank, queries = (bench.encode(network, getattr(asked, name), limit=None, field=name, columns=["label"])
                     for name in ("bank", "queries"))  # fmt: skip
    make = bench.contenders(bank)[RAW + "TF-IDF of characters"]
    ((_, there),), ((_, here),) = make(bank).pieces(), make(queries).pieces()
    assert sorted(bank.keys) == sorted(made["bank"][0]) and sorted(queries.keys) == sorted(made["queries"][0])
    slow = Slow(both("characters", None)[1], bank.keys)
    known = [slow.centred(vector) for vector in slow.bank]
    cosines = [[dot(slow.centred(slow.vector(query)), one) for one in known] for query in queries.keys]
    assert torch.allclose(here.cosines(there), torch.tensor(cosines), atol=2e-6)
    hits = [slow_vote(each, bank.column("label"), 5) == label
            for each, label in zip(cosines, queries.column("label"), strict=True)]  # fmt: skip
    assert found.values[RAW + "TF-IDF of characters"].bool().tolist() == hits and 0.5 < np.mean(hits) < 1


def test_the_ngrams_of_a_text_are_counted_once(judged: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pieces of queries meet however many of the bank, in however many evaluations."""
    folder, made = judged
    count, seen = Grams.counts, Counter()

    def noted(self: Grams, texts: Sequence[str]) -> sparse.csr_matrix:
        seen.update((self.name, text) for text in texts)
        return count(self, texts)

    monkeypatch.setattr(bags, "ROWS", 7)
    monkeypatch.setattr(Grams, "counts", noted)
    queries = str(folder / "queries")
    asked = {f"{name} {k}": Knn(backbone="text", bank=str(folder / name), queries=queries, label="label", k=k)
             for name, k in (("bank", 5), ("bank", 3), ("small", 3))}  # fmt: skip
    health = score(folder, asked, seed=0)["health"]["text"]
    assert set(seen.values()) == {1} and len(seen) == 2 * len({text for texts, _ in made.values() for text in texts})
    assert health["TF-IDF of characters"]["samples"] == 40, "of the larger bank, not of the later one"
