"""The memory that an index takes in a worker, and sidecars that change, are evicted, or lie behind a URL."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path

import pytest

from bigssl.config.recipe import RemoteConfig
from bigssl.data.errors import DataError
from bigssl.data.order.stream import Stream
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.shards.sidecar import FORMAT, MEMORY, SIDECAR, Member, Row, Sidecars, to_line

SHARDS, SAMPLES = 20, 2500
OFFSETS_ONLY = 240_000  # half of it is less than one sidecar, all of it more than the offsets of all lines


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest and sidecars of 50,000 samples, without the shards."""
    folder = tmp_path_factory.mktemp("paper")
    shards = []
    for number in range(SHARDS):
        facts = {"name": f"{number}.tar", "samples": SAMPLES, "bytes": 1, "sha256": str(number), "fields": ["jpg"]}
        rows = [Row(f"{number}-{i}", 2048 * i, 1536, 2048 * i, {"jpg": Member(i, 1000, 7)}) for i in range(SAMPLES)]
        content = "\n".join([json.dumps({"format": FORMAT, **facts}), *map(to_line, rows)]) + "\n"
        (folder / f"{number}.tar{SIDECAR}").write_text(content)
        shards.append({"path": f"{number}.tar", "index_sha256": hashlib.sha256(content.encode()).hexdigest(), **facts})
    (folder / "index.json").write_text(json.dumps({"format": FORMAT, "shards": shards}))
    return folder


@pytest.mark.parametrize("limit", [MEMORY, OFFSETS_ONLY])
def test_memory_is_some_bytes_per_sample_and_flat_over_epochs(paper: Path, limit: int) -> None:
    """300 MB for a million samples would be 300 bytes each; beyond the limit this is 4, whatever a line is long."""
    stream = Stream(DatasetIndex.load(paper), seed=0, lanes=16)
    stream.index._sidecars._limit = limit
    places = [stream.micro_batch(step, 512, 0, 1, 0, 1) for step in range(2 * SHARDS * SAMPLES // 512)]
    used = []
    tracemalloc.start()
    for part in (places[: len(places) // 2], places[len(places) // 2 :]):
        for batch in part[::20]:
            for place in batch:
                stream.index.row(stream.locate(int(place))[1])
        used.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert stream.index._sidecars.memory <= limit
    assert (stream.index._sidecars.memory == 4 * (SAMPLES + 1) * SHARDS) == (limit == OFFSETS_ONLY)
    assert used[0] < 300 * SHARDS * SAMPLES
    assert used[1] < 1.5 * used[0] + 1e6  # the cache of permutations fills up


def test_the_bound_holds_and_rows_are_right(paper: Path) -> None:
    index = DatasetIndex.load(paper)
    bound = Sidecars(str(paper), index.shards, index.remote, limit=5 * 4 * (SAMPLES + 1))
    for number in [*range(SHARDS), *range(SHARDS)]:
        assert bound.get(number).row(17).key == f"{number}-17"
        assert bound.memory <= 5 * 4 * (SAMPLES + 1)
    bound.load(range(8))  # a micro-batch may need more at once than the bound; they stay together
    assert len(bound._loaded) == 8
    bound.get(9)
    assert len(bound._loaded) == 5


@pytest.mark.parametrize("cache", [False, True])
def test_remote_sidecars(paper: Path, tmp_path: Path, cache: bool) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in paper.iterdir():
        memory.pipe(f"/paper/{path.name}", path.read_bytes())
    config = RemoteConfig(cache=str(tmp_path / "cache") if cache else None)
    index = DatasetIndex.load("memory://paper", config)
    index._sidecars._limit = OFFSETS_ONLY if cache else MEMORY
    index.prepare(range(0, len(index), SAMPLES))
    keys = [index.row(number)[1].key for number in range(0, len(index), 777)]
    assert keys == [f"{n // SAMPLES}-{n % SAMPLES}" for n in range(0, len(index), 777)]
    size = sum(path.stat().st_size for path in paper.glob("*.idx"))
    offsets = 4 * (SAMPLES + 1) * SHARDS
    assert index._sidecars.memory == (offsets if cache else offsets + size)
    for path in (tmp_path / "cache").glob("??/*"):
        path.unlink()  # as another process that needs room
    index.close()
    assert index.row(5)[1].key == "0-5"
    memory.rm("/paper", recursive=True)
    index.close()
    if cache:
        assert index.row(5)[1].key == "0-5"  # on disk again


def test_a_sidecar_that_is_overwritten_in_use_is_named(dataset) -> None:
    index = dataset((20,))
    index._sidecars._limit = 0  # none is whole in memory
    assert index.row(3)[1].key == "s-00003"
    path = Path(index.shards[0].index_url)
    content = path.read_bytes()
    for other in (b"x" * len(content), content.replace(b"s-00004", b"s-00099")):
        path.write_bytes(other)
        with pytest.raises(DataError, match=r"tar\.idx: it changed while it was in use; run `bigssl shards verify"):
            index.row(4)
    path.unlink()
    path.write_bytes(content)
    index.close()
    with pytest.raises(DataError, match="it changed while it was in use"):
        index.row(4)
