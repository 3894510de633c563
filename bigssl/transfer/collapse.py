"""The health of features that are evaluated, which need not fit into memory, in the measures of
`bigssl.nets.embeddings.health` (rankme, span, uniformity, uniform, spread), and beside them

    std        `feature_std`: spread / √D
    samples    of which rankme, std and spread were taken; uniformity: of SAMPLES of them at most
    of         what `rankme` could be at most
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from bigssl.data.errors import DataError
from bigssl.nets.embeddings.health import effective_rank, evenness, span, uniformity
from bigssl.transfer.bags import WIDTH, Bags
from bigssl.transfer.matrix import Matrix
from bigssl.transfer.scores import words_of
from bigssl.transfer.team import Team

SAMPLES = 512  # of raw ones at most, which have many more values than features
COLUMNS = 1024  # of them that are multiplied at once


def feature_std(features: Tensor) -> float:
    """Mean over dimensions of the standard deviation of unit-length features [N, D] (Chen and He 2021).

    1/√D when they point everywhere, 0 when they have collapsed into one direction.
    """
    return F.normalize(features.float(), dim=1).std(0, correction=0).mean().item()


def stored_health(features: Matrix) -> dict[str, float]:
    """Of features that need not fit into memory: D × D numbers are held, or N × N where these are fewer."""
    if len(features) <= features.width:
        rows = features.read(0, len(features)).double()
        return _health(len(features), features.width, rows @ rows.T, feature_std(rows), _sample(features))
    gram = torch.zeros(features.width, features.width, dtype=torch.float64)
    sums, squares = torch.zeros(2, features.width, dtype=torch.float64)
    for _, piece in features.pieces():
        x, directions = piece.double(), F.normalize(piece, dim=1).double()
        gram += x.T @ x
        sums += directions.sum(0)
        squares += directions.square().sum(0)
    variance = squares / len(features) - (sums / len(features)).square()
    return _health(len(features), features.width, gram, variance.clamp(min=0).sqrt().mean().item(), _sample(features))


def sampled_health(raw: Matrix) -> dict[str, float]:
    """Of SAMPLES rows at most, at equal distances: SAMPLES × D numbers are held."""
    rows = _some(raw)
    gram = _products(rows)
    return _health(len(rows), raw.width, gram, feature_std(rows), gram)


def text_health(texts: Bags) -> dict[str, float]:
    """The same of raw texts, without `std` and `spread`: nearly all of their values are 0. Two pieces are held."""
    rows = _spaced(len(texts), SAMPLES)
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for some, one in texts.pieces(rows):
        first, last = rows.index(some[0]), rows.index(some[-1]) + 1
        products = [one.products(other) for _, other in texts.pieces(rows[first:])]
        gram[first:last, first:] = torch.cat(products, 1)
    gram = gram.triu() + gram.triu(1).T
    found = _health(len(rows), WIDTH, gram, 0.0, gram)
    return {name: value for name, value in found.items() if name not in ("std", "spread")}


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


def _health(samples: int, width: int, gram: Tensor, std: float, products: Tensor) -> dict[str, float]:
    """gram: of rows or of columns. products: of some rows, [N, N]."""
    rank, of = effective_rank(gram), min(samples, width)
    even = uniformity(products) if len(products) > 1 else torch.zeros(())
    return {
        "std": std, "rankme": rank.item(), "samples": samples, "of": of, "span": span(rank, of).item(),
        "uniformity": even.item(), "uniform": evenness(even, width).item(), "spread": std * width**0.5,
    }  # fmt: skip


def _some(of: Matrix) -> Tensor:
    return torch.cat([of.read(row, row + 1) for row in _spaced(len(of), min(SAMPLES, of.rows))])


def _sample(of: Matrix) -> Tensor:
    return _products(_some(of))


def _products(rows: Tensor) -> Tensor:
    return sum((part @ part.T for part in _doubles(rows)), torch.zeros(len(rows), len(rows), dtype=torch.float64))


def _spaced(count: int, most: int) -> range:
    return range(0, count, -(-count // most))


def _doubles(rows: torch.Tensor) -> Iterable[torch.Tensor]:
    return (part.double() for part in rows.split(COLUMNS, dim=1))
