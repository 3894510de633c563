"""At which rank the item that is meant is found: among views of one kind, or pictures and their texts in each other,
through the projections of CLIP."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigssl.data.kinds.captions import all_captions
from bigssl.transfer.bench import Bench
from bigssl.transfer.cosines import DenseRows, VectorPiece, Vectors
from bigssl.transfer.features import column, metadata, samples_at
from bigssl.transfer.knn import nearest_rows
from bigssl.transfer.matrix import Matrix
from bigssl.transfer.scores import Score
from bigssl.transfer.zero_shot import clip_heads, project

PLURALS = {"image": "images", "text": "texts", "audio": "sounds"}  # sides of pairs


def first_ranks(
    queries: Vectors, asking: Sequence[int], query_ids: Sequence[str], gallery: Vectors, members: Sequence[int],
    gallery_ids: Sequence[str], rows: range, *, deepest: int,
) -> Tensor:  # fmt: skip
    """int64: for each asking row of the queries that lies in `rows`, in order, the rank (1: nearest) of the first
    member of the gallery with its id; deepest + 1 where the `deepest` nearest have none. Cosine, float32, exact, in
    pieces.

    asking, members: ascending row numbers. query_ids, gallery_ids: of all rows. Raises ValueError where an id has no
    counterpart among the members: such a query could only fail.
    """
    alone = sorted({query_ids[row] for row in asking} - {gallery_ids[row] for row in members})
    if alone:
        raise ValueError(f"{len(alone)} query ids are not in the gallery, the first {alone[0]!r}; leave them out")
    wanted, inside = set(asking), set(members)
    names = {name: number for number, name in enumerate(dict.fromkeys(gallery_ids))}
    numbers = torch.tensor([names[gallery_ids[row]] for row in members])
    found = [torch.empty(0, dtype=torch.int64)]
    for mine, asked in _asking(queries, rows, wanted):
        parts = ((part, [row - at.start for row in at if row in inside]) for at, part in gallery.pieces())
        pieces = (part[chosen] for part, chosen in parts if chosen)
        _, nearest = nearest_rows(asked, pieces, min(deepest, len(members)))
        right = numbers[nearest.cpu()] == torch.tensor([names[query_ids[row]] for row in mine])[:, None]
        first = right.int().argmax(1) + 1
        found.append(torch.where(right.any(1), first, torch.full_like(first, deepest + 1)))
    return torch.cat(found)


def ascending(k: list[int]) -> list[int]:
    """Numbers of neighbours that are looked at. Raises ValueError where they do not ascend."""
    if sorted(set(k)) != k:
        raise ValueError(f"{k} do not ascend; allowed: as in [1, 5, 10]")
    return k


def ranks_among_others(among: Vectors, meant: Mapping[int, int], rows: range, *, deepest: int) -> Tensor:
    """int64: for each key of `meant` (ascending row numbers) that lies in `rows`, in order, the rank (1: nearest) among
    all rows but itself of the row that is meant; deepest + 1 where it is none of the `deepest` nearest. Cosine,
    float32, exact, in pieces."""
    found = [torch.empty(0, dtype=torch.int64)]
    for mine, asked in _asking(among, rows, meant):
        parts = (part for _, part in among.pieces())
        nearest = nearest_rows(asked, parts, min(deepest + 1, len(among)))[1].cpu()
        itself = (nearest == torch.tensor(mine)[:, None]).int().cumsum(1)  # from where it stands on
        right = nearest == torch.tensor([meant[row] for row in mine])[:, None]
        first = right.int().argmax(1)
        place = first + 1 - itself.gather(1, first[:, None]).squeeze(1)
        found.append(torch.where(right.any(1), place, deepest + 1))
    return torch.cat(found)


def recalled(
    title: str, subject: str, ranks: Mapping[str, Tensor], groups: Sequence[str], *, k: int, galleries: Sequence[int],
    row: str,
) -> Score:  # fmt: skip
    """The row of recall@k, from the ranks [N] by contender of N queries.

    galleries: size of the gallery of each; chance is k of it, as if one were meant.
    """
    hits = {name: found <= k for name, found in ranks.items()}
    chance = sum(min(1.0, k / size) for size in galleries) / len(galleries)
    return Score(title, subject, hits, groups, chance=chance, facts={"gallery": max(galleries), "k": k}, row=row)


@dataclass(frozen=True)
class InSharedSpace:
    """Features [N, D] in the space [N, P] of a projection [P, D], at unit length, computed on `device`."""

    matrix: Matrix
    weight: Tensor
    device: str | torch.device = "cpu"

    def __len__(self) -> int:
        return len(self.matrix)

    def pieces(self, rows: range | None = None) -> Iterator[tuple[range, DenseRows]]:
        for numbers, piece in self.matrix.pieces(rows):
            yield numbers, DenseRows(project(piece, self.weight).to(self.device))


@dataclass(frozen=True)
class Direction:
    """What one side finds in the other.

    Attributes:
        ranks: [N] by contender. ids: of the items that ask. gallery: how many they are looked for among.
    """

    row: str
    words: str
    ranks: Mapping[str, Tensor]
    ids: Sequence[str]
    gallery: int

    def scores(self, ks: Sequence[int]) -> Iterator[Score]:
        for k in ks:
            where = "nearest" if k == 1 else f"among the {k} nearest"
            yield recalled(
                f"retrieval: {self.words}" + (f", recall@{k}" if k > 1 else ""),
                f"of {len(self.ids)} unseen {self.words.replace(' to ', ' have one of their ')} {where}",
                self.ranks, self.ids, k=k, galleries=[self.gallery] * len(self.ids),
                row=self.row if k == 1 else f"{self.row}@{k}",
            )  # fmt: skip


class Across(NamedTuple):
    """Both sides of pairs, by contender, with the item that each is of: samples of one modality, and the different
    texts of a dataset or its samples in another modality.

    words: of the two, as in "images".
    """

    words: tuple[str, str]
    vectors: tuple[Mapping[str, InSharedSpace], Mapping[str, InSharedSpace]]
    ids: tuple[list[str], list[str]]

    @classmethod
    def of(cls, bench: Bench, heads: str, sides: Mapping[str, str], *, url: str, limit: int | None, pair: str | None
           ) -> Across:
        """Of a dataset of samples of one side with texts, or of both sides. A collective.

        Args:
            heads: name of the head. sides: its backbones by modality, two, "text" last where it is one.
            pair: metadata field of the item; None: each sample is one.
        """
        (one, first), (other, second) = sides.items()
        asked = bench.encode(bench.subject(first, one), url, limit=limit, field="queries",
                             columns=[pair] if pair else [])  # fmt: skip
        ids = asked.groups(pair)
        if other == "text":
            said = _texts(bench, url, limit, pair)
            meant = items_as_one(said)
            found = bench.texts(bench.subject(second, other), list(dict.fromkeys(words for words, _ in said)))
            ids = [meant.get(item, item) for item in ids]
            others = [*{words: meant[item] for words, item in said}.values()]
        else:
            there = bench.encode(bench.subject(second, other), url, limit=limit, field="queries",
                                 columns=[pair] if pair else [])  # fmt: skip
            found, others = there.matrices, there.groups(pair)
        widths = {one: asked.matrices["trained"].width, other: found["trained"].width}
        weights = clip_heads(bench, heads, widths)
        both = tuple({name: InSharedSpace(matrices[name], head[f"{side}_projection"], bench.device)
                      for name, head in weights.items() if name in found}
                     for side, matrices in ((one, asked.matrices), (other, found)))  # fmt: skip
        return cls((PLURALS[one], PLURALS[other]), (both[0], both[1]), (ids, others))

    def directions(self, bench: Bench, deepest: int) -> Iterator[Direction]:
        """Collectives."""
        for asks, answers in ((0, 1), (1, 0)):
            asking, ids, gallery, known = self.vectors[asks], self.ids[asks], self.vectors[answers], self.ids[answers]
            words = f"{self.words[asks]} to {self.words[answers]}"
            rows = bench.team.share(len(ids))
            ranks = {name: bench.hits(partial(first_ranks, asking[name], range(len(ids)), ids, gallery[name],
                                              range(len(known)), known, rows, deepest=deepest))
                     for name in asking}  # fmt: skip
            yield Direction(words.replace(" ", "_"), words, ranks, ids, len(known))


def items_as_one(said: Sequence[tuple[str, str]]) -> dict[str, str]:
    """{item: the one that it counts as}, of (text, item): items with an equal text are the same, since nothing could
    tell which of them that text means."""
    first: dict[str, str] = {}
    counts_as: dict[str, str] = {}

    def root(item: str) -> str:
        while counts_as[item] != item:
            item = counts_as[item]
        return item

    for words, item in said:
        counts_as.setdefault(item, item)
        other = root(first.setdefault(words, item))
        counts_as[root(item)] = other
    return {item: root(item) for item in counts_as}


def _texts(bench: Bench, url: str, limit: int | None, pair: str | None) -> list[tuple[str, str]]:
    """The different (text, item) of a dataset. A collective."""
    key: Any = ("texts with items", url, limit, pair)
    if key not in bench.kept:
        index = bench.index(url)
        numbers = bench.numbers(index, limit, "queries")

        def read() -> list[tuple[str, str]]:
            found: dict[tuple[str, str], None] = {}
            for sample in samples_at(index, numbers):
                item = column([sample.key], [metadata(sample)], pair)[0] if pair else sample.key
                found |= dict.fromkeys((text, item) for text in all_captions(sample))
            return list(found)

        bench.kept[key] = list(dict.fromkeys(each for part in bench.team.gather(read) for each in part))
    found: list[tuple[str, str]] = bench.kept[key]
    return found


def _asking(vectors: Vectors, rows: range, wanted: Container[int]) -> Iterator[tuple[list[int], VectorPiece]]:
    """(numbers, vectors [n, D]) of those of `rows` that are wanted, n > 0, in pieces."""
    for there, piece in vectors.pieces(rows):
        if mine := [row for row in there if row in wanted]:
            yield mine, piece[[row - there.start for row in mine]]
