"""Finding the passage that follows another one in its document, among all passages of documents never trained on."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field, field_validator
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.config.evaluate import Evaluation, Limit
from bigssl.config.section import PositiveInt
from bigssl.data.errors import display
from bigssl.transfer.bench import Bench
from bigssl.transfer.features import encoder, text_batches
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.matrix import Matrix
from bigssl.transfer.random_nets import more_random, random_mean
from bigssl.transfer.recall import ascending, ranks_among_others
from bigssl.transfer.scores import Score
from bigssl.transfer.subjects import Encoded, Subject
from bigssl.transfer.team import AgreedError
from bigssl.transfer.texts.passages import Followed, cut_document, cut_documents, some_passages

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked

BANK = 1024  # passages of the bank whose mean, and n-grams, are counted


class NextPassage(Evaluation):
    """Sentence retrieval: the passage that follows another one in its document, looked for among all other passages of
    all held-out documents by the cosine of pooled features.

    Passages are of whole sentences, do not overlap, and are the same for every network (`transfer/texts/passages.py`
    has the rules, that of boilerplate among them). The one that asks is no candidate. Those of one document count as
    one for the standard error.
    """

    preset = {"bank": "bigssl/demo/text/train", "queries": "bigssl/demo/text/val", "bank_limit": 2, "query_limit": 2,
              "asked": 100, "k": [1, 5], "seeds": 2}  # fmt: skip

    learns_from = "bank"

    backbone: str = "text"
    bank: str = Field(description="documents trained on: the mean of their passages is taken from all features before "
                                  "each cosine, and from them TF-IDF knows how rare n-grams are")  # fmt: skip
    bank_limit: Limit = None
    sentences: PositiveInt = Field(2, description="of a passage")
    asked: PositiveInt = Field(1024, description="passages that ask at most, chosen by document and place")
    k: list[PositiveInt] = Field([1], min_length=1, description="neighbours that are looked at, ascending")
    seeds: PositiveInt = Field(3, description="random networks, the mean of which is the baseline")

    _ascends = field_validator("k")(ascending)

    def check(self, seen: Checked) -> None:
        seen.backbone("backbone", "text")
        seen.documents("bank")
        sizes: list[int] = []
        seen.readable("queries", lambda sample: sizes.append(len(cut_document(sample, self.sentences).passages)))
        if max(sizes, default=0) < 2:
            seen.refuse("queries", f"none of {len(sizes)} documents that were looked at has two passages of "
                                   f"{self.sentences} sentences; allowed: longer documents, or a smaller `sentences`")

    def run(self, bench: Bench) -> list[Score]:
        subject = bench.subject(self.backbone, "text")
        asked = self._asked(bench)
        known = some_passages(cut_documents(bench, self.bank, self.bank_limit, "bank", self.sentences), BANK)
        if not known:
            raise AgreedError(f"{bench.where}.bank: {display(self.bank)} has no sentence")
        bank, gallery = (self._encoded(bench, subject, texts) for texts in (known, asked.texts))
        rows = bench.team.share(len(asked.texts))
        ranks = {name: bench.hits(partial(ranks_among_others, of(gallery), asked.meant, rows, deepest=self.k[-1]))
                 for name, of in bench.contenders(bank).items()}  # fmt: skip
        return [self._score(k, ranks, asked) for k in self.k]

    def _asked(self, bench: Bench) -> Followed:
        documents = cut_documents(bench, self.queries, self.query_limit, "queries", self.sentences)
        asked = Followed.of(documents, self.asked)
        if not asked.meant:
            raise AgreedError(f"{bench.where}.queries: {display(self.queries)} has no two passages of {self.sentences} "
                              "sentences that follow each other and stand there once")  # fmt: skip
        if short := sum(len(document.passages) < 2 for document in documents):
            bench.note(f"{bench.where}.queries: {short} of {len(documents)} documents have one passage or none, of "
                       "which nobody asks.")  # fmt: skip
        if asked.common:
            bench.note(f"{bench.where}.queries: {asked.common} of {len(asked.texts)} passages stand there more than "
                       "once: candidates once each, and neither asked nor meant.")  # fmt: skip
        return asked

    def _encoded(self, bench: Bench, subject: Subject, texts: list[str]) -> Encoded:
        """With the features of further random networks. A collective."""
        matrices = dict(bench.texts(subject, texts))
        others = more_random(bench, subject, self.seeds)
        matrices |= {name: _features(bench, subject, model, texts) for name, model in others.items()}
        return Encoded(subject, matrices, texts, [])

    def _score(self, k: int, ranks: dict[str, Tensor], asked: Followed) -> Score:
        hits, seeds = random_mean({name: found <= k for name, found in ranks.items()})
        others = len(asked.texts) - 1
        where = "as their nearest" if k == 1 else f"among their {k} nearest"
        return Score(
            "next passage, held-out documents" + (f", recall@{k}" if k > 1 else ""),
            f"of {len(asked.meant)} held-out passages have the one that follows {where} of {others} others", hits,
            asked.documents, chance=min(1.0, k / others), seeds=seeds, row="" if k == 1 else f"recall@{k}",
            facts={"gallery": others, "k": k, "documents": len(set(asked.documents))},
        )  # fmt: skip


def _features(bench: Bench, subject: Subject, model: PreTrainedModel, texts: list[str]) -> Matrix:
    """Of another network, with the input of the subject. A collective."""
    takes, mine = subject.takes, bench.team.share(len(texts))
    assert isinstance(takes, TextInput)
    encode = encoder(model, bench.device)
    batches = text_batches(texts[mine.start : mine.stop], takes, batch=bench.batch)
    return bench.stored({"rows": encode(views.arrays)} for views in batches)["rows"]
