"""Weighted nearest neighbours over a label, on the features of any backbone."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field
from torch import Tensor

from bigssl.config.evaluate import Evaluation, Item, Label, Limit, Parts
from bigssl.config.section import PositiveInt
from bigssl.transfer.bench import Bench
from bigssl.transfer.inputs import input_of
from bigssl.transfer.knn import encode_labels, lost_to_majority, stored_knn
from bigssl.transfer.scores import Score, majority_hits, words_of
from bigssl.transfer.subjects import Encoded, check_parts
from bigssl.transfer.team import AgreedError

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked

MANY = 0.05  # share of queries that a baseline knows nothing of, which has to be said


class Knn(Evaluation):
    """Label of the nearest neighbours in a labelled bank: weighted vote of k (Wu et al. 2018), no training."""

    preset = {"bank": "bigssl/demo/emoji/train", "queries": "bigssl/demo/emoji/val", "label": "category"}

    learns_from = "bank"

    backbone: str = "image"
    bank: str = Field(description="labelled shards in which neighbours are looked for")
    label: Label = "label"
    item: Item = None
    k: PositiveInt = 20
    parts: Parts = None
    bank_limit: Limit = None

    def unlabelled(self) -> dict[str, str]:
        return {self.backbone: "bank"}

    def check(self, seen: Checked) -> None:
        takes = input_of(seen.backbone("backbone"))
        seen.samples("bank", takes, "label")
        seen.samples("queries", takes, "label", "item")
        seen.neighbours("bank")
        check_parts(seen, self.parts)

    def run(self, bench: Bench) -> list[Score]:
        network = bench.subject(self.backbone).in_parts(self.parts)
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
        takes = network.takes
        subject = f"of {len(wanted)} unseen {takes.plural} get the right {self.label} of {len(classes)} from their " \
                  f"{self.k} nearest neighbours"
        return [Score(
            f"{takes.modality} kNN: {self.label}", subject, hits, queries.groups(self.item), chance=1 / len(classes),
            facts={"bank": len(labels), "classes": len(classes), "k": self.k},
        )]  # fmt: skip

    def _votes(self, bench: Bench, bank: Encoded, queries: Encoded, known: Tensor) -> dict[str, Tensor]:
        """Class int64 [M] of each query by contender. A collective."""
        rows, votes = bench.team.share(len(queries)), {}
        for name, of in bench.contenders(bank).items():
            found = bench.hits(partial(stored_knn, of(bank), known, of(queries), rows, k=self.k))
            if (lost := int((found < 0).sum())) >= MANY * len(queries):
                bench.note(f"{bench.where}: {words_of(name)}: {lost} of {len(queries)} queries have nothing in common "
                           f"with the bank; the most frequent {self.label} of it is taken for them.")  # fmt: skip
            votes[name] = lost_to_majority(found, known)
        return votes
