"""Samples of equal content as one group, so that a split leaves them on one side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from bigssl.data.errors import DataError
from bigssl.data.tools.sources import Item

_SAID = ("txt", "json")  # what a sample says of the rest of it; its content where there is nothing else


def content_hash(fields: Mapping[str, bytes]) -> bytes:
    """Of what a sample is: its picture, sound or series, whatever their names; of one without these the text, or else
    the json."""
    seen = sorted(data for name, data in fields.items() if name.rpartition(".")[2] not in _SAID)
    said = next((fields[name] for name in _SAID if name in fields), b"")
    digest = hashlib.blake2b(digest_size=16)
    for data in seen or [said]:
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def equal_together(items: Iterable[Item]) -> Iterator[Item]:
    """The items with a group that those of equal content share, and those of the group that each had, too. Each is
    loaded once. Raises DataError as they do, and OSError."""
    found, joined = list(items), dict[str | bytes, str | bytes]()
    for item in found:
        _join(joined, item.group, _content(item))
    names: dict[str | bytes, str] = {}  # the first by name, whatever the order of the items
    for item in found:
        root = _root(joined, item.group)
        names[root] = min(item.group, names.get(root, item.group))
    for item in found:
        yield replace(item, group=names[_root(joined, item.group)])


def _content(item: Item) -> bytes:
    if item.stretch is not None:
        raise DataError(f"--equal-together: has no effect on {item.key!r}, rows of a series, which are split by time")
    return content_hash(item.load())


def _root(joined: dict[str | bytes, str | bytes], name: str | bytes) -> str | bytes:
    while joined.setdefault(name, name) != name:
        joined[name] = joined[joined[name]]
        name = joined[name]
    return name


def _join(joined: dict[str | bytes, str | bytes], one: str | bytes, other: str | bytes) -> None:
    joined[_root(joined, one)] = _root(joined, other)
