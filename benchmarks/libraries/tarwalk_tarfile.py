"""`walk` by `tarfile.TarFile`, for `try.sh`.

Left to itself, TarFile takes a damaged header in the middle for the end, and allocates whatever an extended header asks
for. Its hook for both is the class of a header; what it makes of pax headers and long names is taken as it is.
"""

import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

from bigssl.config import limits
from bigssl.data.errors import damaged
from bigssl.data.sample import Readable
from bigssl.data.shards import tarheader
from bigssl.data.shards.tarwalk import _CHUNK, BLOCK, Entry, TarStream


class _Member(tarfile.TarInfo):
    """A header that is refused where ours would be."""

    url = ""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Any:
        block = tar.fileobj.read(BLOCK)
        if len(block) == BLOCK and any(block):
            header = tarheader.parse_header(block, cls.url, tar.offset)
            if header.type in tarheader.EXTENDED and not 0 <= header.size <= tarheader.EXTENDED_BYTES:
                cause = f"an extended header of {header.size} bytes, {tarheader.EXTENDED_BYTES} are allowed"
                raise damaged(cls.url, key=None, offset=tar.offset, cause=cause)
        made = cls.frombuf(block, tar.encoding, tar.errors)
        made.offset = tar.fileobj.tell() - BLOCK
        return made._proc_member(tar)


class _Stream:
    """What TarFile reads from and looks back in: a position, and reads that are complete or an error."""

    def __init__(self, source: TarStream) -> None:
        self._source = source

    def tell(self) -> int:
        return self._source.position

    def seek(self, place: int) -> None:
        self._source.take(place - self._source.position, "a file")

    def read(self, size: int) -> bytes:
        return self._source.take(size, "a header")


def walk(tar: Readable, url: str) -> Iterator[Entry]:
    stream = TarStream(tar, url)
    kind = type("Member", (_Member,), {"url": url})
    archive = tarfile.TarFile(fileobj=_Stream(stream), tarinfo=kind, encoding="utf-8", errors="surrogateescape")
    for number, member in enumerate(iter(archive.next, None), 1):
        archive.members.clear()
        if refused := limits.over("shard_members", number):
            raise damaged(url, key=None, offset=member.offset, cause=f"number of files refused: {refused}")
        name, length = tarheader.member(member, member.pax_headers, url, member.offset)
        crc, left = 0, length
        while left:
            part = stream.take(min(left, _CHUNK), "a file")
            crc, left = zlib.crc32(part, crc), left - len(part)
        if not member.isdir():
            yield Entry(name, member.offset, member.offset_data, length, crc)
    if any(stream.take(BLOCK, "the end mark")):
        place = stream.position - 2 * BLOCK
        raise damaged(url, key=None, offset=place, cause="a zeroed header in the middle of the tar")
    stream.drain()
