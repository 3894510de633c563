"""`Chunks` by fsspec's block cache, for `try.sh`.

Blocks of a file lie in a sparse file of its size, read by mmap; which are there is said by a JSON file.
"""

from typing import Any

import fsspec

from bigssl.data.remote.backends import protocol_of
from bigssl.data.remote.cache import DiskCache
from bigssl.data.remote.chunks import RemoteShard
from bigssl.data.remote.client import Remote, RemoteError


class Chunks:
    """As ours; `ahead` does nothing, since its cache reads when it is asked."""

    def __init__(self, remote: Remote, cache: DiskCache, size: int) -> None:
        self._remote, self._cache, self._size = remote, cache, size
        self._systems: dict[str, Any] = {}
        self.full = False

    def read(self, shard: RemoteShard, start: int, stop: int) -> bytes:
        try:
            with self._system(shard.url).open(shard.url, block_size=self._size) as file:
                file.seek(start)
                return bytes(file.read(stop - start))
        except Exception as error:
            raise RemoteError(f"{type(error).__name__}: {error}", url=shard.url) from None

    def ahead(self, shard: RemoteShard, start: int, stop: int) -> None: ...

    def forget(self, shard: RemoteShard, start: int, stop: int) -> None:
        self._system(shard.url).pop_from_cache(shard.url)

    def close(self) -> None:
        self._systems.clear()

    def _system(self, url: str) -> Any:
        protocol = protocol_of(url)
        if protocol not in self._systems:
            folder = str(self._cache.folder / "blocks")
            self._systems[protocol] = fsspec.filesystem(
                "blockcache", target_protocol=protocol, cache_storage=folder, expiry_time=None,
                target_options=self._remote.config.storage.get(protocol, {}), skip_instance_cache=True,
            )  # fmt: skip
        return self._systems[protocol]
