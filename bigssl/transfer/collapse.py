"""Measures that tell healthy features from collapsed ones, which the loss alone cannot:

    std        `feature_std`
    rankme     `rankme`
    samples    of which they were taken
    of         what `rankme` could be at most
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from bigssl.data.errors import DataError
from bigssl.transfer.bags import WIDTH, Bags
from bigssl.transfer.matrix import Matrix
from bigssl.transfer.scores import words_of
from bigssl.transfer.team import Team

EPS = 1e-7
SAMPLES = 512  # of raw ones at most, which have many more values than features
COLUMNS = 1024  # of them that are multiplied at once


def feature_std(features: Tensor) -> float:
    """Mean over dimensions of the standard deviation of unit-length features [N, D] (Chen and He 2021).

    1/√D when they point everywhere, 0 when they have collapsed into one direction.
    """
    return F.normalize(features.float(), dim=1).std(0, correction=0).mean().item()


def rankme(features: Tensor) -> float:
    """Effective rank of features [N, D]: exp of the entropy of their normalised singular values.

    RankMe (Garrido et al. 2023, arXiv:2210.02885); between 1 (collapsed) and min(N, D). Float64, through the smaller
    of the two Gram matrices.
    """
    x = features.double()
    return _effective_rank(x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T)


def _effective_rank(gram: Tensor) -> float:
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    p = singular / singular.sum().clamp(min=1e-300) + EPS
    return (-(p * p.log()).sum()).exp().item()


def stored_health(features: Matrix) -> dict[str, float]:
    """Of features that need not fit into memory: D × D numbers are held."""
    if len(features) <= features.width:
        rows = features.read(0, len(features))
        return _health(len(features), features.width, rankme(rows), feature_std(rows))
    gram = torch.zeros(features.width, features.width, dtype=torch.float64)
    sums, squares = torch.zeros(2, features.width, dtype=torch.float64)
    for _, piece in features.pieces():
        x, directions = piece.double(), F.normalize(piece, dim=1).double()
        gram += x.T @ x
        sums += directions.sum(0)
        squares += directions.square().sum(0)
    variance = squares / len(features) - (sums / len(features)).square()
    std = variance.clamp(min=0).sqrt().mean().item()
    return _health(len(features), features.width, _effective_rank(gram), std)


def sampled_health(raw: Matrix) -> dict[str, float]:
    """Of SAMPLES rows at most, at equal distances: SAMPLES × D numbers are held."""
    rows = torch.cat([raw.read(row, row + 1) for row in _spaced(len(raw), min(SAMPLES, raw.rows))])
    gram = sum((part @ part.T for part in _doubles(rows)), torch.zeros(len(rows), len(rows), dtype=torch.float64))
    return _health(len(rows), raw.width, _effective_rank(gram), feature_std(rows))


def text_health(texts: Bags) -> dict[str, float]:
    """The same of raw texts, without `std`: nearly all of their values are 0. Two pieces are held."""
    rows = _spaced(len(texts), SAMPLES)
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for some, one in texts.pieces(rows):
        first, last = rows.index(some[0]), rows.index(some[-1]) + 1
        products = [one.products(other) for _, other in texts.pieces(rows[first:])]
        gram[first:last, first:] = torch.cat(products, 1)
    gram = gram.triu() + gram.triu(1).T
    found = _health(len(rows), WIDTH, _effective_rank(gram), 0.0)
    return {name: value for name, value in found.items() if name != "std"}


class NotFinite:
    """Counts features that are no finite numbers: nothing can be measured by them."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._of = 0

    def among(self, batches: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The same features [B, D] by contender."""
        for batch in batches:
            self._of += max(map(len, batch.values()))
            for name, rows in batch.items():
                if odd := len(rows) - int(rows.isfinite().all(1).sum()):
                    self._rows[name] = self._rows.get(name, 0) + odd
            yield batch

    def refuse(self, where: str, backbone: str) -> None:
        """Raises DataError where there were any."""
        for name, count in self._rows.items():
            raise DataError(f"{where}: features of {backbone} ({words_of(name)}) are not finite for {count} of "
                            f"{self._of} samples; export a checkpoint from before it diverged")  # fmt: skip


@dataclass
class Checkup:
    """Looks at features, of each network and of what it is compared with at the largest dataset that there is.

    Attributes:
        health: {backbone: {contender: {std, rankme, samples, of}}}
        sizes: of the dataset each was looked at, by backbone and contender.
    """

    health: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    sizes: dict[tuple[str, str], int] = field(default_factory=dict)

    def look(self, team: Team, backbone: str, size: int, measures: Mapping[str, Callable[[], dict[str, float]]]
             ) -> None:
        """At those contenders of which no dataset as large was looked at. The ranks share the work. A collective."""
        due = [name for name in measures if size > self.sizes.get((backbone, name), 0)]
        if not due:
            return
        found = team.gather(lambda: {name: measures[name]() for name in due[team.rank :: team.world]})
        everything = {name: value for part in found for name, value in part.items()}
        self.health.setdefault(backbone, {}).update({name: everything[name] for name in due})
        self.sizes.update({(backbone, name): size for name in due})


def _health(samples: int, width: int, rank: float, std: float) -> dict[str, float]:
    return {"std": std, "rankme": rank, "samples": samples, "of": min(samples, width)}


def _spaced(count: int, most: int) -> range:
    return range(0, count, -(-count // most))


def _doubles(rows: torch.Tensor) -> Iterable[torch.Tensor]:
    return (part.double() for part in rows.split(COLUMNS, dim=1))
