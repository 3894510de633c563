"""Several datasets with weights as one source: an order of orders.

    position p:   Schedule says which dataset d serves it, and how many positions d served before: n
    n:            position n of d's own epochs, lanes and windows (its `Stream`)
    global batch: sorted by lane, as a share of the lanes of its dataset

so each dataset keeps its own epochs, in each of which every sample of it comes exactly once; a batch holds the datasets
in proportion to their weights; and each rank, which has a contiguous piece of the batch, has a contiguous piece of
every dataset's lanes, whatever the weights, the batch and the world size are. World size, workers and history do not
occur in the order. The state of a run is one integer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np

from bigssl.data.errors import DataError
from bigssl.data.order import rng
from bigssl.data.order.order import Order
from bigssl.data.order.schedule import Schedule
from bigssl.data.order.stream import Stream
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex

SEPARATOR = "/"  # between a dataset's name and the key in it


class Mixture(Order):
    """The datasets of `indexes` (by name), dealt out in proportion to `weights`. Options as for `Stream`.

    Keys of samples are `NAME/key`, so that equal keys of two datasets do not look alike nor draw one augmentation;
    epochs are those of the sample's dataset. Numbers of samples go on from one dataset to the next. A bad sample is
    replaced from its own dataset, from which further samples are drawn, too. Raises DataError for names with a slash
    and weights that are not > 0.
    """

    def __init__(
        self,
        indexes: Mapping[str, DatasetIndex],
        weights: Mapping[str, float],
        *,
        seed: int,
        lanes: int = 256,
        window: int = 1024,
        source: str = "",
        on_error: str = "raise",
        max_errors: int = 100,
    ) -> None:
        bad = [name for name in indexes if not name or SEPARATOR in name]
        if bad or indexes.keys() != weights.keys():
            names = f"datasets {list(indexes)} and weights {list(weights)}"
            raise DataError(f"mixture: {names}; allowed: the same names, none of them empty or with a {SEPARATOR}")
        self.source, self.on_error, self.max_errors = source, on_error, max_errors
        self.parts = {
            name: Stream(index, seed=rng.offset(2**63, "mixture", seed, name), lanes=lanes, window=window,
                         source=source, on_error=on_error, max_errors=max_errors)
            for name, index in indexes.items()
        }  # fmt: skip
        self.schedule = Schedule([weights[name] for name in self.parts])
        self._names = list(self.parts)
        self._streams = list(self.parts.values())
        self._first = np.cumsum([0, *map(len, self._streams)])

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def indexes(self) -> dict[str, DatasetIndex]:
        return {name: stream.index for name, stream in self.parts.items()}

    @property
    def fingerprint(self) -> str:
        """SHA-256 hex over names, weights and the datasets' fingerprints."""
        content = [
            (name, weight, stream.fingerprint)
            for (name, stream), weight in zip(self.parts.items(), self.schedule.weights, strict=True)
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def locate(self, position: int) -> tuple[int, int]:
        dataset, place = self.schedule.deal_one(position)
        epoch, number = self._streams[dataset].locate(place)
        return epoch, int(self._first[dataset]) + number

    def locate_many(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        datasets, places = self.schedule.deal(positions)
        epochs, numbers = np.empty_like(places), np.empty_like(places)
        for dataset, stream in enumerate(self._streams):
            rows = np.flatnonzero(datasets == dataset)
            epochs[rows], numbers[rows] = stream.locate_many(places[rows])
        return epochs, numbers + self._first[datasets]

    def key(self, position: int) -> str:
        dataset, place = self.schedule.deal_one(position)
        return self._qualified(dataset, self._streams[dataset].key(place))

    def shard_at(self, position: int) -> str:
        dataset, place = self.schedule.deal_one(position)
        return self._streams[dataset].shard_at(place)

    @property
    def remote(self) -> bool:
        return any(stream.remote for stream in self._streams)

    def announce(self, now: Iterable[int], later: Iterable[int]) -> None:
        parts = [self.schedule.deal(np.fromiter(part, np.int64)) for part in (now, later)]
        for dataset, stream in enumerate(self._streams):
            if stream.remote:
                stream.announce(*(places[datasets == dataset].tolist() for datasets, places in parts))

    def close(self) -> None:
        for stream in self._streams:
            stream.close()

    def read(self, position: int) -> Sample:
        dataset, place = self.schedule.deal_one(position)
        sample = self._streams[dataset].read(place)
        return sample._replace(key=self._qualified(dataset, sample.key), position=int(position))

    def _qualified(self, dataset: int, key: str) -> str:
        return f"{self._names[dataset]}{SEPARATOR}{key}"

    def another(self, position: int, rng: np.random.Generator, without: Collection[int] = ()) -> int:
        dataset, place = self.schedule.deal_one(position)
        taken = [self.schedule.deal_one(other)[1] for other in without]
        return self.schedule.position(dataset, self._streams[dataset].another(place, rng, taken))

    def candidates(self, position: int) -> Iterator[int]:
        """`position`, then, where bad samples are skipped, the next ones of the same dataset and epoch of it."""
        dataset, place = self.schedule.deal_one(position)
        for number in self._streams[dataset].candidates(place):
            yield self.schedule.position(dataset, number)

    def global_batch(self, step: int, size: int) -> np.ndarray:
        """int64 [size]: positions of a step by relative lane, (lane + (i + ½)/c) / lanes for the i-th of a lane's c.

        Spreading the samples of one lane over its width keeps the datasets' shares even over the ranks also where a
        dataset has fewer lanes than there are ranks.
        """
        positions = np.arange(step * size, (step + 1) * size, dtype=np.int64)
        datasets, places = self.schedule.deal(positions)
        lanes = np.array([stream.lanes for stream in self._streams])[datasets]
        lane = np.empty_like(places)
        for dataset, stream in enumerate(self._streams):
            rows = np.flatnonzero(datasets == dataset)
            lane[rows] = stream.lanes_at(places[rows])
        order = np.lexsort((positions, lane, datasets))
        new = np.flatnonzero(np.diff(lane[order]) | np.diff(datasets[order])) + 1
        first = np.concatenate([[0], new])
        counts = np.diff(np.concatenate([first, [size]]))
        inside = (np.arange(size) - np.repeat(first, counts) + 0.5) / np.repeat(counts, counts)
        relative = np.empty(size)
        relative[order] = (lane[order] + inside) / lanes[order]
        return positions[np.lexsort((positions, datasets, relative))]
