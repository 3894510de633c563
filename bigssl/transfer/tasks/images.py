"""kNN over a label, and finding the same item in another view, on images never trained on."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bigssl.config.evaluate import EvalImages
from bigssl.transfer.bench import Bench, Encoded, Networks, Task
from bigssl.transfer.knn import encode_labels, stored_knn
from bigssl.transfer.retrieval import retrieval_hits
from bigssl.transfer.team import AgreedError
from bigssl.transfer.verdicts import majority_hits, task_of

CONTENDERS = ("random_net", "raw", "trained")


def images(bench: Bench, networks: Networks, size: int, settings: EvalImages) -> tuple[dict[str, Task], dict]:
    """(tasks, health of the bank's features); size: picture side in pixels. A collective."""
    views = [each for each in (settings.pair, settings.view) if each is not None]  # both or neither
    fields = [settings.label, *views]
    bank = bench.images(networks, settings.bank, size=size, fields=[settings.label], limit=settings.bank_limit,
                        where="evaluate.images.bank")  # fmt: skip
    queries = bench.images(networks, settings.queries, size=size, fields=fields, limit=settings.query_limit,
                           where="evaluate.images.queries")  # fmt: skip
    refuse_large_k(settings.k, len(bank.keys), "evaluate.images.k")
    means = bench.means(bank.matrices)
    found = {"images.knn": _knn(bench, bank, queries, means, settings)}
    if views:
        found["images.retrieval"] = _retrieval(bench, queries, means, *views)
    return found, bench.health(bank.matrices)


def refuse_large_k(k: int, samples: int, where: str) -> None:
    if k > samples:
        raise AgreedError(f"{where}: value {k}, but the bank has {samples} samples; allowed: 1 to {samples}")


def _knn(bench: Bench, bank: Encoded, queries: Encoded, means: dict[str, Tensor], settings: EvalImages) -> Task:
    labels, wanted = bank.columns[settings.label], queries.columns[settings.label]
    (known, asked), classes = encode_labels(labels, wanted)
    rows = bench.team.share(len(wanted))
    hits = {"majority": majority_hits(wanted)}
    for name in CONTENDERS:
        found = partial(stored_knn, bank.matrices[name], known, queries.matrices[name], rows, means[name],
                        k=settings.k, device=bench.device)  # fmt: skip
        hits[name] = bench.hits(found) == asked
    subject = f"of {len(wanted)} unseen images get the right {settings.label} of {len(classes)} from their " \
              f"{settings.k} nearest neighbours"
    groups = queries.keys if settings.pair is None else queries.columns[settings.pair]
    facts = {"bank": len(labels), "classes": len(classes), "k": settings.k}
    return task_of(f"image kNN: {settings.label}", subject, hits, chance=1 / len(classes), groups=groups,
                 raw_name="raw pixels", facts=facts)


def _retrieval(bench: Bench, queries: Encoded, means: dict[str, Tensor], pair: str, view: str) -> Task:
    """Each ordered pair of views in turn: nearest neighbour of an item of one among all items of the other."""
    ids, views = queries.columns[pair], queries.columns[view]
    members = {name: [i for i, each in enumerate(views) if each == name] for name in sorted(set(views))}
    hits: dict[str, list[Tensor]] = {name: [] for name in CONTENDERS}
    groups: list[str] = []
    chances: list[float] = []
    rows = bench.team.share(len(ids))
    for a, b in [(a, b) for a in members for b in members if a != b]:
        there = {ids[i] for i in members[b]}
        asking = [i for i in members[a] if ids[i] in there]
        if not asking:
            continue
        groups += [ids[i] for i in asking]
        chances += [1 / len(members[b])] * len(asking)
        for name in CONTENDERS:
            found = partial(retrieval_hits, queries.matrices[name], means[name], asking, members[b], ids, rows,
                            bench.device)  # fmt: skip
            hits[name].append(bench.hits(found))
    if not groups:
        raise AgreedError(f"evaluate.images.pair: value {pair!r}, but none occurs in two {view!r}s; allowed: a "
                          "metadata field that views of one item share, or neither pair nor view")
    subject = f"of {len(groups)} unseen images have the same {pair} in the other {view} as their nearest neighbour"
    joined = {name: torch.cat(parts) for name, parts in hits.items()}
    return task_of(f"retrieval: same {pair}, other {view}", subject, joined, chance=sum(chances) / len(chances),
                 groups=groups, raw_name="raw pixels", facts={"gallery": max(map(len, members.values()))})
