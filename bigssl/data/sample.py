"""What every room of data/ speaks of: a sample, and anything that gives bytes."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Sample(NamedTuple):
    """One sample: raw bytes per field, and where it stands.

    done: share of the run's steps before the one that it is read for, [0, 1); 0 where it is read for no step. What is
        made of samples may follow it (a ramp of the masked share), as losses follow their `Progress`.
    """

    key: str
    fields: dict[str, bytes]
    position: int
    epoch: int
    shard: str
    source: str
    done: float = 0.0

    @property
    def where(self) -> str:
        """What an error calls it."""
        return f"{f'shard {self.shard}, ' if self.shard else ''}sample {self.key!r}"


class Readable(Protocol):
    """Anything with `read(size)`."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes, none at the end."""
