"""kNN over a label of texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bigssl.config.evaluate import EvalText
from bigssl.transfer.bench import Bench, Captions, Networks, Task
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.knn import encode_labels, stored_knn, top, vote
from bigssl.transfer.matrix import ROWS
from bigssl.transfer.tasks.images import refuse_large_k
from bigssl.transfer.verdicts import majority_hits, task_of

WORD = re.compile(r"(?u)\b\w\w+\b")
WORDS = 20_000  # of the bag of words at most
TEMPERATURE = 0.07
NO_WORDS = "the texts hold no word of two letters or digits, so there is no bag of words to compare with."


def texts(bench: Bench, networks: Networks, words: TextInput, settings: EvalText) -> tuple[dict[str, Task], dict]:
    """(tasks, health of the bank's features). A collective."""
    where, label = "evaluate.text", settings.label
    bank = bench.captions(settings.bank, label, limit=settings.bank_limit, where=f"{where}.bank")
    queries = bench.captions(settings.queries, label, limit=settings.query_limit, where=f"{where}.queries")
    refuse_large_k(settings.k, len(bank.texts), f"{where}.k")
    stored, asked = bench.texts(networks, words, bank.texts), bench.texts(networks, words, queries.texts)
    means = bench.means(stored)
    (known, wanted), classes = encode_labels(bank.labels, queries.labels)
    rows = bench.team.share(len(queries.texts))
    hits = {"majority": majority_hits(queries.labels)}
    hits["random_net"], hits["trained"] = (
        bench.hits(partial(stored_knn, stored[name], known, asked[name], rows, means[name], k=settings.k,
                           device=bench.device)) == wanted
        for name in ("random_net", "trained")
    )  # fmt: skip
    mine = queries.texts[rows.start : rows.stop]
    if has_words(bank):
        hits["raw"] = bench.hits(lambda: bag_of_words_knn(bank, mine, known, settings.k)) == wanted
    else:
        bench.notes.append(f"{where}.bank: {NO_WORDS}")
    subject = f"of {len(queries.texts)} unseen texts get the right {settings.label} of {len(classes)} from their " \
              f"{settings.k} nearest neighbours"
    task = task_of(f"text kNN: {settings.label}", subject, hits, chance=1 / len(classes), groups=queries.texts,
                 raw_name="TF-IDF bag of words",
                 facts={"bank": len(bank.texts), "classes": len(classes), "k": settings.k})
    return {"text.knn": task}, bench.health(stored)


def has_words(bank: Captions) -> bool:
    """Whether the bag of words has a vocabulary."""
    return any(WORD.search(text) for text in bank.texts)


def bag_of_words_knn(bank: Captions, queries: list[str], known: Tensor, k: int) -> Tensor:
    """Class int64 [M] of each query by weighted kNN over TF-IDF vectors of words (sparse, made piece by piece);
    vocabulary and weights are those of the bank. known: int64 [N], the classes of the bank."""
    # Late: scikit-learn takes a second to import, which every rank of a training run would pay.
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(max_features=WORDS, token_pattern=WORD.pattern, dtype=np.float32, sublinear_tf=True)
    vectorizer.fit(bank.texts)

    def similarities(part: list[str]) -> Iterator[Tensor]:
        asked = vectorizer.transform(part)
        for start in range(0, len(bank.texts), ROWS):
            yield torch.from_numpy((asked @ vectorizer.transform(bank.texts[start : start + ROWS]).T).toarray())

    found = [torch.empty(0, dtype=torch.int64)]
    for start in range(0, len(queries), ROWS):
        values, columns = top(similarities(queries[start : start + ROWS]), k)
        found.append(vote(values, known[columns], int(known.max()) + 1, TEMPERATURE))
    return torch.cat(found)
