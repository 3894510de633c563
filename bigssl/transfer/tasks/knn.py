"""Weighted nearest neighbours over a label, on the features of any backbone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bigssl.config.evaluate import Evaluation, Item, Label, Limit
from bigssl.config.section import PositiveInt
from bigssl.transfer.bench import Bench
from bigssl.transfer.inputs import input_of
from bigssl.transfer.knn import TEMPERATURE, encode_labels, stored_knn, top, vote
from bigssl.transfer.matrix import ROWS
from bigssl.transfer.scores import Score, majority_hits
from bigssl.transfer.subjects import Encoded
from bigssl.transfer.team import AgreedError

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked

WORD = re.compile(r"(?u)\b\w\w+\b")
WORDS = 20_000  # of the bag of words at most
NO_WORDS = "the texts hold no word of two letters or digits, so there is no bag of words to compare with."


class Knn(Evaluation):
    """Label of the nearest neighbours in a labelled bank: weighted vote of k (Wu et al. 2018), no training."""

    preset = {"bank": "bigssl/demo/emoji/train", "queries": "bigssl/demo/emoji/val", "label": "category"}

    backbone: str = "image"
    bank: str = Field(description="labelled shards in which neighbours are looked for")
    label: Label
    item: Item = None
    k: PositiveInt = 20
    bank_limit: Limit = None

    def unlabelled(self) -> dict[str, str]:
        return {self.backbone: "bank"}

    def check(self, seen: Checked) -> None:
        takes = input_of(seen.backbone("backbone"))
        seen.samples("bank", takes, "label")
        seen.samples("queries", takes, "label", "item")
        seen.neighbours("bank")

    def run(self, bench: Bench) -> list[Score]:
        network = bench.subject(self.backbone)
        bank = bench.encode(network, self.bank, limit=self.bank_limit, field="bank", columns=[self.label])
        queries = bench.encode(network, self.queries, limit=self.query_limit, field="queries",
                               columns=self.metadata())  # fmt: skip
        if self.k > len(bank):
            raise AgreedError(f"{bench.where}.k: value {self.k}, but the bank has {len(bank)} samples; allowed: 1 to "
                              f"{len(bank)}")  # fmt: skip
        labels, wanted = bank.column(self.label), queries.column(self.label)
        (known, asked), classes = encode_labels(labels, wanted)
        hits = {} if bench.live else {"majority": majority_hits(wanted)}
        hits |= {name: found == asked for name, found in self._votes(bench, bank, queries, known).items()}
        bench.look_at(bank)
        takes = network.takes
        subject = f"of {len(wanted)} unseen {takes.plural} get the right {self.label} of {len(classes)} from their " \
                  f"{self.k} nearest neighbours"
        return [Score(
            f"{takes.modality} kNN: {self.label}", subject, hits, queries.groups(self.item),
            chance=1 / len(classes), names={"raw": takes.raw_name},
            facts={"bank": len(labels), "classes": len(classes), "k": self.k},
        )]  # fmt: skip

    def _votes(self, bench: Bench, bank: Encoded, queries: Encoded, known: Tensor) -> dict[str, Tensor]:
        """Class int64 [M] of each query by contender. A collective."""
        rows, means = bench.team.share(len(queries)), bench.means(bank.matrices)
        votes = {
            name: bench.hits(partial(stored_knn, bank.matrices[name], known, queries.matrices[name], rows, mean,
                                     k=self.k, device=bench.device))
            for name, mean in means.items()
        }  # fmt: skip
        if bank.subject.takes.once and not bench.live:
            if has_words(bank.keys):
                mine = queries.keys[rows.start : rows.stop]
                votes["raw"] = bench.hits(lambda: bag_of_words_knn(bank.keys, known, mine, self.k))
            else:
                bench.note(f"{bench.where}.bank: {NO_WORDS}")
        return {name: votes[name] for name in ("random_net", "raw", "trained") if name in votes}


def has_words(texts: Sequence[str]) -> bool:
    """Whether the bag of words has a vocabulary."""
    return any(WORD.search(text) for text in texts)


def bag_of_words_knn(bank: Sequence[str], known: Tensor, queries: Sequence[str], k: int) -> Tensor:
    """Class int64 [M] of each query by weighted kNN over TF-IDF vectors of words (sparse, made piece by piece);
    vocabulary and weights are those of the bank. known: int64 [N], the classes of the bank."""
    # Late: scikit-learn takes a second to import, which every rank of a training run would pay.
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(max_features=WORDS, token_pattern=WORD.pattern, dtype=np.float32, sublinear_tf=True)
    vectorizer.fit(bank)

    def similarities(part: Sequence[str]) -> Iterator[Tensor]:
        asked = vectorizer.transform(part)
        for start in range(0, len(bank), ROWS):
            yield torch.from_numpy((asked @ vectorizer.transform(bank[start : start + ROWS]).T).toarray())

    found = [torch.empty(0, dtype=torch.int64)]
    for start in range(0, len(queries), ROWS):
        values, columns = top(similarities(queries[start : start + ROWS]), k)
        found.append(vote(values, known[columns], int(known.max()) + 1, TEMPERATURE))
    return torch.cat(found)
