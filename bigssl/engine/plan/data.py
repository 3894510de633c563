"""What the manifests alone say about the data: the same bytes twice, and the size of the index in memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from bigssl.data.order.order import Order
from bigssl.data.shards import storage
from bigssl.data.shards.index import ShardInfo
from bigssl.data.shards.sidecar import MEMORY

OFFSET, LINE, FIELD = 4, 70, 40  # bytes a sample: the offset of its line, a usual line, and each field in it


def duplicates(orders: Mapping[str, Order]) -> tuple[list[str], list[str]]:
    """(warnings, notes): equal shards within a source distort it; equal shards of two sources may be meant."""
    warnings: list[str] = []
    notes: list[str] = []
    by_source: dict[str, set[str]] = {}
    for source, order in orders.items():
        shards = [(name, shard) for name, index in order.indexes.items() for shard in index.shards]
        by_source[source] = {shard.checksum for _, shard in shards if shard.checksum}
        warnings += [f"data.sources.{source}: {text}" for text in _equal_checksums(shards)]
        notes += [f"data.sources.{source}: {text}" for text in _equal_names(shards)]
    notes += [
        f"data.sources: {first} and {second} share {len(common)} shards (a run sees these samples in both)"
        for number, (first, mine) in enumerate(by_source.items())
        for second, other in list(by_source.items())[number + 1 :]
        if (common := mine & other)
    ]
    return warnings, notes


def _equal_checksums(shards: list[tuple[str, ShardInfo]]) -> Iterator[str]:
    by_checksum: dict[str, list[str]] = defaultdict(list)
    for dataset, shard in shards:
        if shard.checksum:  # a sequential source has none
            by_checksum[shard.checksum].append(f"{dataset}/{shard.name}" if dataset else shard.name)
    equal = [names for names in by_checksum.values() if len(names) > 1]
    if equal:
        copies = sum(len(names) - 1 for names in equal)
        yield (
            f"{copies} of {len(shards)} shards are copies by checksum ({', '.join(equal[0][:3])} ...): their samples "
            f"count twice; remove them"
        )


def _equal_names(shards: list[tuple[str, ShardInfo]]) -> Iterator[str]:
    by_name: dict[str, set[str]] = defaultdict(set)
    for dataset, shard in shards:
        by_name[shard.name].add(dataset)
    double = [(name, datasets) for name, datasets in by_name.items() if len(datasets) > 1]
    if double:
        name, datasets = double[0]
        yield f"{len(double)} shard names occur in several datasets ({name} in {', '.join(sorted(datasets))})"


def sidecar_bytes(order: Order, samples: int, *, cached: bool) -> int:
    """Memory of a process for the sidecars of `samples` samples: the offsets of their lines, and the lines, of which
    half the limit is kept where they are local or cached on disk; all within a limit per dataset."""
    total = 0
    for index in order.indexes.values():
        count = round(samples * len(index) / len(order))
        on_disk = cached or storage.is_local(index.shards[0].index_url)
        lines = count * (LINE + FIELD * len(index.fields))
        total += min(MEMORY, count * OFFSET + min(lines, MEMORY // 2 if on_disk else lines))
    return total
