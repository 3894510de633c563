"""`bigssl embed`: vectors of a whole dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts.types import PositiveInt

from bigssl.cli.fields import Fields
from bigssl.cli.listing import listed
from bigssl.cli.making import mark_of
from bigssl.cli.options import local, note
from bigssl.config.errors import ConfigError
from bigssl.config.places import seen_from
from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.sample import Sample
from bigssl.data.shards import storage, unpack
from bigssl.data.shards.index import MANIFEST, DatasetIndex
from bigssl.data.shards.urls import place
from bigssl.data.tools.sources.base import Item

if TYPE_CHECKING:
    from bigssl.transfer.vectors.embedding import Given


def embed(
    path: Path, data: str, /, *, out: Path, backbone: str | None = None, batch: PositiveInt = 64,
    device: str | None = None, limit: PositiveInt | None = None, overwrite: bool = False,
) -> None:  # fmt: skip
    """Arrays keys, vectors (float32, a row for each sample, in order) and the fields of the samples' json, with labels
    among them. Interrupted, the same command goes on.

    Args:
        path: a run (runs/demo), an export, or the folder of a network as transformers writes it
        data: shards; or a folder of files, a table, a text file or jsonl as `bigssl shards pack` takes them
        out: the file, .npz or .parquet
        backbone: network that makes the vectors (default: the one that takes such data)
        batch: samples of a forward pass
        device: cpu, cuda, cuda:1 ... (default: cuda where there is one)
        limit: the first samples alone
        overwrite: replace --out, and what an interrupted command left of it
    """
    from bigssl.transfer.arriving.sizes import prepared_otherwise
    from bigssl.transfer.vectors.embedding import embed_to
    from bigssl.transfer.vectors.encoder import encoder_at
    from bigssl.transfer.vectors.tables import check_table

    check_table(out)
    given, fields = _given(data, out, limit)
    held = [modality for modality, names in decode.FIELDS.items() if set(names) & set(fields)]
    encoder = encoder_at(path, backbone, device, held if backbone is None else None)
    if encoder.takes.modality not in held:
        raise ConfigError(f"{data} has {', '.join(fields)}, but the network {encoder.name} takes "
                          f"{encoder.takes.plural}")  # fmt: skip
    if said := prepared_otherwise(encoder.folder):
        note(said)
    count, width = embed_to(out, encoder, given, batch=batch, overwrite=overwrite, note=note)
    print(f"{out}: {count} vectors of {width} values, by {encoder.folder}")


def _given(data: str, out: Path, limit: int | None) -> tuple[Given, Sequence[str]]:
    """What is embedded, and the names of the fields that its samples have."""
    from bigssl.transfer.features import samples_at
    from bigssl.transfer.vectors.embedding import Given

    if _in_shards(data):
        index = DatasetIndex.load(data)
        count = min(limit or len(index), len(index))
        return Given(data, index.fingerprint, count, lambda start: samples_at(index, range(start, count))), index.fields
    items = _listed(data, out)[:limit]
    fields = sorted(items[0].fields or items[0].load())
    return Given(data, mark_of(items), len(items), lambda start: map(_sample, _from(items, start))), fields


def _in_shards(data: str) -> bool:
    """Whether `data` names shards, rather than what can be packed into some."""
    if not storage.is_local(place(data)) or not (path := local(data)).exists():
        return not storage.is_local(place(data)) or bool(set(data) & set("*{"))
    if not path.is_dir():
        return unpack.by_name(path.name) is not None
    parts = sorted(child.name for child in path.iterdir() if (child / MANIFEST).is_file())
    if parts and not (path / MANIFEST).is_file():
        raise ConfigError(f"{data} holds the datasets {', '.join(parts)}; allowed: one of them, {path / parts[0]}")
    return (path / MANIFEST).is_file() or any(unpack.by_name(child.name) is not None for child in path.iterdir())


def _listed(data: str, out: Path) -> list[Item]:
    source = local(data)
    if not source.exists():
        raise DataError(f"{source}: no such file or folder{seen_from(source)}")
    try:
        return listed(source, Fields(), out).items
    except DataError as error:
        raise DataError(str(error).replace("nothing to pack", "nothing to embed")) from None


def _from(items: Sequence[Item], start: int) -> Iterator[Item]:
    return (items[number] for number in range(start, len(items)))


def _sample(item: Item) -> Sample:
    try:
        return Sample(item.key, item.load(), 0, 0, "", "")
    except OSError as error:
        raise DataError(f"sample {item.key!r}: {error.filename or ''} cannot be read ({error.strerror})") from error

