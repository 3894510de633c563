"""Finding the same item in its other view by nearest neighbour, among samples never trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from bigssl.config.evaluate import Evaluation, Limit, Metadata
from bigssl.transfer.bench import Bench
from bigssl.transfer.cosines import Vectors
from bigssl.transfer.inputs import input_of
from bigssl.transfer.knn import top
from bigssl.transfer.scores import Score
from bigssl.transfer.team import AgreedError

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked


class Retrieval(Evaluation):
    """Nearest neighbour of an item among all items in another view: is it the same item?"""

    preset = {"bank": "bigssl/demo/emoji/train", "queries": "bigssl/demo/emoji/val", "pair": "code", "view": "design"}

    learns_from = "bank"

    backbone: str = "image"
    bank: str = Field(description="shards whose mean is taken from all features before each cosine")
    pair: Metadata = Field(description="metadata field that views of one item share")
    view: Metadata = Field(description="metadata field that tells the views of an item apart")
    bank_limit: Limit = None

    def unlabelled(self) -> dict[str, str]:
        return {self.backbone: "bank"}

    def check(self, seen: Checked) -> None:
        takes = input_of(seen.backbone("backbone"))
        seen.samples("bank", takes)
        seen.samples("queries", takes, "pair", "view")

    def run(self, bench: Bench) -> list[Score]:
        network = bench.subject(self.backbone)
        bank = bench.encode(network, self.bank, limit=self.bank_limit, field="bank", columns=[])
        queries = bench.encode(network, self.queries, limit=self.query_limit, field="queries",
                               columns=self.metadata())  # fmt: skip
        contenders = {name: of(queries) for name, of in bench.contenders(bank).items()}
        ids, views = queries.column(self.pair), queries.column(self.view)
        rows = bench.team.share(len(ids))
        hits: dict[str, list[Tensor]] = {name: [] for name in contenders}
        groups: list[str] = []
        chances: list[float] = []
        for asking, gallery in _rounds(ids, views):
            groups += [ids[i] for i in asking]
            chances += [1 / len(gallery)] * len(asking)
            for name, among in contenders.items():
                hits[name].append(bench.hits(partial(retrieval_hits, among, asking, gallery, ids, rows)))
        if not groups:
            raise AgreedError(f"{bench.where}.pair: value {self.pair!r}, but none occurs in two {self.view!r}s; "
                              "allowed: a metadata field that views of one item share")  # fmt: skip
        takes = network.takes
        subject = f"of {len(groups)} unseen {takes.plural} have the same {self.pair} in the other {self.view} as " \
                  "their nearest neighbour"
        return [Score(
            f"retrieval: same {self.pair}, other {self.view}", subject,
            {name: torch.cat(parts) for name, parts in hits.items()}, groups, chance=sum(chances) / len(chances),
            facts={"gallery": max(views.count(view) for view in set(views))},
        )]  # fmt: skip


def _rounds(ids: list[str], views: list[str]) -> Iterator[tuple[list[int], list[int]]]:
    """(samples of one view that have a counterpart in another, all samples of that) for each ordered pair of views."""
    members = {name: [i for i, each in enumerate(views) if each == name] for name in sorted(set(views))}
    for one, other in ((a, b) for a in members for b in members if a != b):
        there = {ids[i] for i in members[other]}
        if asking := [i for i in members[one] if ids[i] in there]:
            yield asking, members[other]


def retrieval_hits(
    among: Vectors, asking: Sequence[int], gallery: Sequence[int], ids: Sequence[str], rows: range
) -> Tensor:
    """bool: for each asking row that lies in `rows`, in order, whether the gallery row nearest to it has its id.

    asking, gallery: ascending numbers of N rows. ids: of all N. Cosine, float32, exact, in pieces. Raises ValueError
    where an id has no counterpart in the gallery: such a query could only fail.
    """
    alone = sorted({ids[row] for row in asking} - {ids[row] for row in gallery})
    if alone:
        raise ValueError(f"{len(alone)} query ids are not in the gallery, the first {alone[0]!r}; leave them out")
    wanted, members = set(asking), set(gallery)
    hits: list[bool] = []
    for numbers, piece in among.pieces(rows):
        mine = [row for row in numbers if row in wanted]
        if not mine:
            continue
        queries = piece[[row - numbers.start for row in mine]]
        parts = ((part, [row - there.start for row in there if row in members]) for there, part in among.pieces())
        _, nearest = top((queries.cosines(part[chosen]) for part, chosen in parts if chosen), 1)
        hits += [ids[gallery[found]] == ids[row] for row, found in zip(mine, nearest[:, 0].tolist(), strict=True)]
    return torch.tensor(hits, dtype=torch.bool)
