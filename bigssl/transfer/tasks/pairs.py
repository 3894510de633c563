"""Held-out pairs of passages: what the head of next sentence or sentence order that was trained knows of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.config.evaluate import Evaluation, Limit
from bigssl.config.section import PositiveInt
from bigssl.data.errors import display
from bigssl.data.kinds.texts.pairs import DRAWN, SHORT, DrawnPair
from bigssl.nets.heads.pooled import PooledHead
from bigssl.nets.modality import MODALITIES
from bigssl.transfer.bags import Bags, Grams, StoredRows, TfIdf, counted
from bigssl.transfer.bench import Bench
from bigssl.transfer.features import chosen, evaluating
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.random_nets import random_mean, with_heads
from bigssl.transfer.scores import RAW, Score, majority_hits
from bigssl.transfer.team import AgreedError
from bigssl.transfer.texts.drawn import Drawing, PairBatch, Threshold, Unpaired, pair_batches
from bigssl.transfer.texts.passages import first_sentences

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked

BANK = 1024  # pairs of the bank that baselines learn from, about
WORDS = {"next_sentence": "next sentence", "sentence_order": "sentence order"}
Judge = tuple[PreTrainedModel, PooledHead]


class PairsOfPassages(Evaluation):
    """Next sentence or sentence order on pairs of held-out documents, by the head that was trained: how many are told
    right, and the loss, beside random networks with random heads, the most frequent label, and TF-IDF.

    Pairs are drawn as the task draws them, several of a document, from its key: the same for all. TF-IDF calls by the
    cosine of the two passages, with the threshold that is best on pairs of the bank. Pairs of one document count as one
    for the standard error.
    """

    preset = {"head": "next_sentence", "bank": "bigssl/demo/text/train", "queries": "bigssl/demo/text/val",
              "bank_limit": 3, "query_limit": 3, "each": 20, "seeds": 2}  # fmt: skip

    learns_from = "bank"

    head: str = Field(description="name under export/heads of the head of next_sentence or sentence_order")
    backbone: str = "text"
    bank: str = Field(description="documents trained on, from whose pairs the threshold of TF-IDF is chosen")
    bank_limit: Limit = None
    each: PositiveInt = Field(64, description="pairs of a document at most; no more than it has sentences")
    short: float = Field(SHORT, ge=0, le=1, description="share of the pairs that are made shorter, by any length")
    seeds: PositiveInt = Field(3, description="random networks, the mean of which is the baseline")

    def check(self, seen: Checked) -> None:
        seen.backbone("backbone", "text")
        seen.head("head", DRAWN, {"text": "backbone"})
        for field in ("bank", "queries"):
            seen.at_least(field, 2, "of which one is drawn beside another")
            seen.documents(field)
        sizes: list[int] = []
        seen.readable("queries", lambda sample: sizes.append(len(first_sentences(sample)[0].spans)))
        if max(sizes, default=0) < 2:
            seen.refuse("queries", f"none of {len(sizes)} documents that were looked at has two sentences")

    def run(self, bench: Bench) -> list[Score]:
        subject, head = bench.subject(self.backbone, "text"), bench.head(self.head)
        assert isinstance(subject.takes, TextInput)
        drawing = Drawing(head.kind, subject.takes, self.each, self.short)
        judges = with_heads(bench, subject, self.seeds, _fresh_head, head.tensors)
        found = self._answers(bench, judges, drawing)
        labels = torch.tensor([each.label for each in found.drawn])
        hits = {name: each.argmax(1) == labels for name, each in found.logits.items()}
        nats = {name: F.cross_entropy(each, labels, reduction="none") for name, each in found.logits.items()}
        if not bench.live:
            hits |= {"majority": majority_hits([str(each) for each in labels.tolist()])}
            hits |= {RAW + name: said == labels for name, said in self._by_cosine(bench, drawing, found.drawn).items()}
            nats |= {"blind": -(labels.bincount() / len(labels)).log()[labels]}
        return list(self._scores(head.kind, found.documents, hits, nats))

    def _answers(self, bench: Bench, judges: dict[str, Judge], drawing: Drawing) -> Answers:
        """To the pairs of all ranks. A collective."""
        numbers, everyone = self._numbers(bench, "queries")
        left = Unpaired()
        batches = bench.read(
            ("pairs", self.queries, self.query_limit, drawing, bench.batch),
            lambda: pair_batches(drawing.of(self.queries, numbers, everyone, left), bench.batch),
        )
        passes = bench.passes(batches, partial(_judged, bench, judges), _nothing)
        parts = bench.team.gather(lambda: (list(passes), left))
        if not (found := [each for mine, _ in parts for each in mine]):
            raise AgreedError(f"{bench.where}.queries: {display(self.queries)} has no document of two sentences")
        for said in Unpaired.said(f"{bench.where}.queries", [part for _, part in parts]):
            bench.note(said)
        return Answers.joined(found)

    def _numbers(self, bench: Bench, field: str) -> tuple[Sequence[int], Sequence[int]]:
        """(this rank's samples of a dataset, those of all ranks). A collective."""
        url, limit = (self.bank, self.bank_limit) if field == "bank" else (self.queries, self.query_limit)
        index = bench.index(url)
        return bench.numbers(index, limit, field), chosen(index, limit)

    def _by_cosine(self, bench: Bench, drawing: Drawing, asked: list[DrawnPair]) -> dict[str, Tensor]:
        """What TF-IDF answers, int64 [N], by what it counts. A collective."""
        numbers, everyone = self._numbers(bench, "bank")
        few = replace(drawing, count=max(1, min(self.each, BANK // len(everyone))))
        parts = bench.team.gather(lambda: [each.drawn for each in few.of(self.bank, numbers, everyone, Unpaired())])
        if not (known := [each for part in parts for each in part]):
            raise AgreedError(f"{bench.where}.bank: {display(self.bank)} has no document of two sentences")
        labels = np.array([each.label for each in known])
        answers = {}
        for grams in drawing.takes.bags():
            counts = _counted(bench, grams, known)
            weights = TfIdf.of(counts, bench.team)
            seen = _cosines(Bags.of(counts, weights, bench.team, bench.store))
            new = _cosines(Bags.of(_counted(bench, grams, asked), weights, bench.team, bench.store))
            answers[grams.name] = torch.from_numpy(Threshold.of(seen, labels).says(new))
        return answers

    def _scores(
        self, kind: str, documents: list[str], hits: dict[str, Tensor], nats: dict[str, Tensor]
    ) -> Iterator[Score]:
        right, seeds = random_mean(hits)
        title, of = f"{WORDS[kind]}, held-out pairs", f"of {len(documents)} pairs of {len(set(documents))} documents"
        facts = {"pairs": len(documents), "documents": len(set(documents))}
        yield Score(title, f"{of} are told right", right, documents, chance=0.5, seeds=seeds, facts=facts)
        surprise, seeds = random_mean(nats)
        yield Score(f"{title}, loss", f"a pair, {of}", surprise, documents, unit="nats", higher_is_better=False,
                    names={"blind": "the share of each label"}, seeds=seeds, facts=facts, row="loss")  # fmt: skip


class Answers(NamedTuple):
    """logits: float32 [N, 2] by contender."""

    documents: list[str]
    drawn: list[DrawnPair]
    logits: dict[str, Tensor]

    @classmethod
    def joined(cls, parts: list[Answers]) -> Answers:
        logits = {name: torch.cat([part.logits[name] for part in parts]) for name in parts[0].logits}
        return cls([key for part in parts for key in part.documents], [each for part in parts for each in part.drawn],
                   logits)  # fmt: skip


def _fresh_head(model: PreTrainedModel) -> PooledHead:
    return PooledHead(int(model.config.hidden_size), 2)


def _judged(bench: Bench, judges: dict[str, Judge], batch: PairBatch) -> Answers:
    inputs = {name: value.to(bench.device) for name, value in batch.inputs.items()}
    logits = {}
    for name, (model, head) in judges.items():
        model.to(bench.device)  # type: ignore[arg-type]
        with evaluating(model):
            logits[name] = head(MODALITIES["text"].hidden(model, inputs).float()).float().cpu()
    return Answers(batch.documents, batch.drawn, logits)


def _nothing(batch: PairBatch) -> Answers:
    return Answers(batch.documents, batch.drawn, {"trained": torch.zeros(len(batch.drawn), 2)})


def _counted(bench: Bench, grams: Grams, drawn: list[DrawnPair]) -> StoredRows:
    """First passages, then second ones. A collective."""
    return counted(grams, [each.first for each in drawn] + [each.second for each in drawn], bench.team, bench.store)


def _cosines(bags: Bags) -> np.ndarray:
    """float32 [N], of both passages of each pair."""
    half = len(bags) // 2
    return bags.beside(range(half), range(half, 2 * half)).numpy()
