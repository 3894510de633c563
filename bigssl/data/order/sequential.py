"""The declared fallback for what has no index: `pipe:` commands and tars, also ones packed by gzip, bzip2, xz or zstd,
read from front to back.

    epoch e:   shards permuted by (seed, e), their samples in a row, cut into blocks of `window`, each permuted by
               (seed, e, block)
    position:  p = e·N + q, N as declared; q is sample q of that order

The order is still a pure function of (shards, seed, position), the same for every world size and number of workers,
and an epoch is still every sample once: a shard that ends early, a command that fails (also after its last byte) and a
count that differs from the declared one are errors. What is lost: a position costs reading everything before it in
its epoch, each process reads every shard, and nothing tells payloads that changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Collection, Generator
from contextlib import AbstractContextManager, closing
from functools import lru_cache
from itertools import islice

import numpy as np

from bigssl.config.recipe import RemoteConfig
from bigssl.data.errors import DataError, damaged, display
from bigssl.data.order import rng
from bigssl.data.order.lanes import block_order
from bigssl.data.order.stream import Stream
from bigssl.data.remote import pipes
from bigssl.data.remote.client import Remote
from bigssl.data.remote.pipes import PIPE
from bigssl.data.sample import Readable, Sample
from bigssl.data.shards import storage, tarwalk, unpack
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.shards.leftout import LeftOut
from bigssl.data.shards.sidecar import ShardInfo
from bigssl.data.shards.urls import expand

log = logging.getLogger("bigssl")

_HELD = 2  # blocks: stand-ins for the last samples of one may come from the next
_Found = tuple[str, dict[str, bytes], str]  # key, fields, name of the shard


class SequentialIndex(DatasetIndex):
    """Shards in the order of the URL, without an index; the number of their samples is declared, not known."""

    def __init__(self, url: str, samples: int, config: RemoteConfig | None = None) -> None:
        self._samples = samples
        self._hidden = LeftOut()
        urls = expand([url], config, sequential=True, left_out=self._hidden)
        if len(set(urls)) < len(urls):
            raise DataError(f"{display(url)}: a shard is named twice, its samples would come twice in an epoch")
        shown = [display(u) for u in urls]
        names = [name if shown.count(name) == 1 else f"{name} #{number}" for number, name in enumerate(shown)]
        infos = [ShardInfo(name, u, "", 0, 0, "", "", ()) for name, u in zip(names, urls, strict=True)]
        super().__init__(url, infos, Remote(config))

    def __len__(self) -> int:
        return self._samples

    @property
    def fingerprint(self) -> str:
        """SHA-256 hex over names and the declared count: what the shards hold is not known."""
        return hashlib.sha256(json.dumps([self._samples, *(s.name for s in self.shards)]).encode()).hexdigest()

    @property
    def limits(self) -> str:
        """What a run on this source cannot promise, for its user."""
        return (
            f"{display(self.url)} has no index and is read sequentially ({len(self.shards)} shards, {len(self)} "
            "samples declared). Not promised: a shuffle beyond data.shuffle_window samples of shards in random order; "
            "a resume without reading again what lies before its position; that a process reads only its part (each "
            "reads every shard); a check of payloads against checksums. Still promised: one order for every world "
            "size, each sample once an epoch, an error for every truncation and failed command. All is promised after "
            f"`bigssl shards index`{''.join(f'. {line}' for line in self._hidden.lines())}"
        )


class SequentialStream(Stream):
    """As `Stream`, for a `SequentialIndex`. Rising positions are one pass; going back begins the epoch anew."""

    def __init__(
        self,
        index: SequentialIndex,
        *,
        seed: int,
        window: int = 1024,
        source: str = "",
        on_error: str = "raise",
        max_errors: int = 100,
    ) -> None:
        super().__init__(
            index, seed=seed, lanes=1, window=window, source=source, on_error=on_error, max_errors=max_errors
        )
        self.lanes, self.window = 1, window  # one pass is one reader: it can be mixed within the window only
        self._blocks: OrderedDict[tuple[int, int], list[_Found]] = OrderedDict()
        self._pass: Generator[_Found, None, None] | None = None
        self._next = (0, 0)
        self._failure: DataError | None = None
        self._said = False

    @property
    def remote(self) -> bool:
        """False: there are no ranges to announce."""
        return False

    def locate(self, position: int) -> tuple[int, int]:
        """(epoch, how many samples of that epoch's pass come before) of `position`."""
        epoch, place = divmod(int(position), len(self))
        block, inside = divmod(place, self.window)
        return epoch, block * self.window + int(self._order(epoch, block)[inside])

    def locate_many(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = np.array([self.locate(position) for position in positions], dtype=np.int64).reshape(-1, 2)
        return found[:, 0], found[:, 1]

    def lanes_at(self, positions: np.ndarray) -> np.ndarray:
        return np.zeros_like(positions)

    def identity(self, position: int, sample: Sample | None) -> str:
        """Shard and key, which are known once a sample is read; else the place in the order: what could not be read
        counts again in each epoch."""
        return f"position {position}" if sample is None else f"{sample.shard}/{sample.key}"

    def key(self, position: int) -> str:
        """Key of the sample at `position`; without an index, it is read for that."""
        return self.read(position).key

    def shard_at(self, position: int) -> str:
        """The source: which of its shards holds a position is known when it is read."""
        return display(self.index.url)

    def read(self, position: int) -> Sample:
        """The sample at `position`. Raises DataError naming shard, offset and cause; what broke a pass is raised by
        every later read that needs more of it."""
        epoch, place = self.locate(position)
        block, inside = divmod(place, self.window)
        key, fields, shard = self._block(epoch, block)[inside]
        return Sample(key, fields, int(position), epoch, shard, self.source)

    def another(self, position: int, rng: np.random.Generator, without: Collection[int] = ()) -> int:
        """Raises DataError: there is no way back to what has passed."""
        raise DataError(
            f"{display(self.index.url)} is read from front to back, so that no further sample can be drawn; run "
            "`bigssl shards index`"
        )

    def close(self) -> None:
        """End the commands and connections of the pass; a later read begins it anew."""
        self._end_pass()
        self._blocks.clear()
        super().close()

    def _extent(self, block: int) -> int:
        return min(self.window, len(self) - block * self.window)

    def _order(self, epoch: int, block: int) -> np.ndarray:
        return _block_order(self._extent(block), self.seed, epoch, block * self.window)

    def _block(self, epoch: int, block: int) -> list[_Found]:
        if (epoch, block) in self._blocks:
            return self._blocks[epoch, block]
        if self._pass is None or epoch != self._next[0] or block < self._next[1]:
            self._end_pass()
            self._pass, self._next, self._failure = self._samples(epoch), (epoch, 0), None
        if self._failure is not None:
            raise self._failure
        try:
            while self._next[1] <= block:
                self._read_block()
        except DataError as error:
            self._failure = error
            raise
        return self._blocks[epoch, block]

    def _read_block(self) -> None:
        epoch, block = self._next
        assert self._pass is not None
        samples = list(islice(self._pass, self._extent(block)))
        before = block * self.window
        if len(samples) < self._extent(block):
            raise self._miscounted(before + len(samples))
        if before + len(samples) == len(self):  # the end is looked at while this pass can still be blamed
            more = sum(1 for _ in self._pass)
            if more:
                raise self._miscounted(before + len(samples) + more)
        self._blocks[epoch, block] = samples
        self._next = (epoch, block + 1)
        while len(self._blocks) > _HELD:
            self._blocks.popitem(last=False)

    def _miscounted(self, count: int) -> DataError:
        field = f"data.sources.{self.source}.samples"
        return DataError(
            f"source {self.source!r}: {display(self.index.url)} holds {count} samples, {field} declares {len(self)}; "
            f"set {field}={count} (a run that was started with another number begins anew), or index the shards: "
            "`bigssl shards index`"
        )

    def _samples(self, epoch: int) -> Generator[_Found, None, None]:
        for number in rng.permutation(len(self.index.shards), "shards", self.seed, epoch):
            shard = self.index.shards[int(number)]
            left_out = LeftOut()
            with closing(samples_of(shard.url, self.index.remote, left_out)) as samples:
                for key, fields in samples:
                    yield key, fields, shard.name
            self._say(shard.name, left_out)

    def _say(self, shard: str, left_out: LeftOut) -> None:
        """Once in a process: the same is true of other shards as a rule, and `verify` counts all of them."""
        if left_out and not self._said:
            said = "; ".join(left_out.lines())
            log.warning("shard %s: %s. `bigssl shards verify %s` counts all", shard, said, display(self.index.url))
            self._said = True

    def _end_pass(self) -> None:
        if self._pass is not None:
            self._pass.close()
        self._pass = None

    def __getstate__(self) -> dict[str, object]:
        return super().__getstate__() | {"_pass": None, "_blocks": OrderedDict(), "_failure": None}


@lru_cache(maxsize=16)
def _block_order(size: int, seed: int, epoch: int, begin: int) -> np.ndarray:
    return block_order(size, rng.key("block", seed, epoch), 0, begin)


def samples_of(
    url: str, remote: Remote | None = None, left_out: LeftOut | None = None
) -> Generator[tuple[str, dict[str, bytes]], None, None]:
    """Key and fields of every sample of a tar (bare, or packed by gzip, bzip2, xz or zstd, whatever it is called) or of
    the output of a `pipe:` command, front to back. left_out: as of `tarwalk.group`. Raises DataError where it is
    damaged or ends early, and where the command fails."""
    name = display(url)
    try:
        with _open(url, remote) as raw:
            source = _Recorder(unpack.unpacked(raw))
            for group in tarwalk.group_entries(tarwalk.walk(source, name), name, left_out):
                fields = {field: source.take(entry.offset, entry.length) for field, entry in group.fields.items()}
                source.forget(group.stop)
                yield group.key, fields
    except OSError as error:
        raise _broken(url, DataError("", cause=f"cannot be read ({error.strerror or error})")) from None
    except DataError as error:
        raise _broken(url, error) from None


def _broken(url: str, error: DataError) -> DataError:
    run = "run the command by itself" if url.startswith(PIPE) else ""
    cause, advice = error.cause or str(error), error.advice or run
    return damaged(url, key=error.key, offset=error.offset, cause=cause, advice=advice)


def _open(url: str, remote: Remote | None) -> AbstractContextManager[Readable]:
    return pipes.output_of(url) if url.startswith(PIPE) else storage.open_stream(url, remote)


class _Recorder:
    """A readable stream that keeps what went through it until it is forgotten."""

    def __init__(self, source: Readable) -> None:
        self._source, self._kept, self._base = source, bytearray(), 0

    def read(self, size: int = -1) -> bytes:
        """As the stream's own."""
        data = self._source.read(size)
        self._kept += data
        return data

    def take(self, offset: int, length: int) -> bytes:
        """`length` bytes of the stream at `offset`."""
        return bytes(self._kept[offset - self._base : offset - self._base + length])

    def forget(self, offset: int) -> None:
        """Drop everything before `offset`."""
        del self._kept[: offset - self._base]
        self._base = offset
