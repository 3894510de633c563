"""One header of a tar: parsed, and refused where it is damaged or asks for what a shard has no need of."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator

from bigssl.config import limits
from bigssl.data.errors import damaged

EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE)
EXTENDED_BYTES = 1 << 20
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_REFUSED = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.GNUTYPE_LONGLINK: "a link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
_ORDINARY = "pack it anew with ordinary files (`tar --dereference --hard-dereference`, or `bigssl shards pack FOLDER`)"
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:[/\\]")


def parse_header(block: bytes, url: str, position: int) -> tarfile.TarInfo:
    """The header in the 512 bytes at `position`. Raises DataError where its checksum or a number is wrong."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise damaged(url, key=None, offset=position, cause=f"bad tar header ({error})") from error


def begins(first: bytes) -> bool:
    """Whether a file that begins with these 512 bytes is a tar; one of no files is two zeroed blocks."""
    if len(first) < tarfile.BLOCKSIZE or not any(first):
        return len(first) == tarfile.BLOCKSIZE
    try:
        tarfile.TarInfo.frombuf(first, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def extension(header: tarfile.TarInfo, read: Callable[[int, str], bytes], url: str, position: int) -> dict[str, str]:
    """What a GNU long name or a pax header says about the next file (a global pax header: nothing).

    read(size, what): takes that many bytes from the tar. Raises DataError.
    """
    size = header.size
    if not 0 <= size <= EXTENDED_BYTES:
        cause = f"an extended header of {size} bytes, {EXTENDED_BYTES} are allowed"
        raise damaged(url, key=None, offset=position, cause=cause)
    body = read(-(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, "an extended header")[:size]
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": body.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    try:
        records = dict(_pax_records(body))
    except (ValueError, IndexError) as error:
        raise damaged(url, key=None, offset=position, cause=f"bad pax header ({error})") from error
    if header.type == tarfile.XHDTYPE:
        return records
    if {"path", "size"} & set(records):  # would give every file that follows one name or size
        raise damaged(url, key=None, offset=position, cause="a global pax header with a path or a size")
    return {}


def _pax_records(body: bytes) -> Iterator[tuple[str, str]]:
    while body:  # each is "LENGTH KEY=VALUE\n", LENGTH counting all of it
        length = int(body.split(b" ", 1)[0])
        if not 0 < length <= len(body):
            raise ValueError(f"a record of {length} bytes")
        name, value = body[:length].split(b" ", 1)[1].removesuffix(b"\n").split(b"=", 1)
        yield name.decode(), value.decode("utf-8", "surrogateescape")
        body = body[length:]


def member(header: tarfile.TarInfo, override: dict[str, str], url: str, position: int) -> tuple[str, int]:
    """(name, length) of the file that follows `header`; length 0 for a folder. `override`: its extended header.

    Raises DataError for links, devices and unknown kinds, names that leave the folder they are unpacked in or are not
    UTF-8, and sizes
    that are none or over the limit `member_bytes`.
    """
    name = override.get("path", header.name)
    kind = _bad_kind(header, override)
    cause = kind or _bad_name(name)
    if cause:
        advice = _ORDINARY if kind else ""
        raise damaged(url, key=None, offset=position, cause=f"member {name!r} {cause}", advice=advice)
    if header.isdir():
        return name, 0
    length = _length(header, override)
    if length is None:
        cause = f"member {name!r} has a size of {override.get('size', header.size)!r}"
        raise damaged(url, key=None, offset=position, cause=cause)
    if refused := limits.over("member_bytes", length):
        raise damaged(url, key=None, offset=position, cause=f"member {name!r} refused: {refused}")
    return name, length


def _bad_kind(header: tarfile.TarInfo, override: dict[str, str]) -> str:
    if any(record.startswith("GNU.sparse") for record in override):
        return "is a sparse file; a shard holds ordinary files only"
    if header.type in _PLAIN or header.isdir():
        return ""
    return f"is {_REFUSED.get(header.type, f'of the unknown kind {header.type!r}')}; a shard holds ordinary files only"


def _bad_name(name: str) -> str:
    if _ABSOLUTE.match(name):
        return "has an absolute path"
    if ".." in re.split(r"[/\\]", name):
        return "has a path that leads out of its folder (..)"
    if re.search("[\ud800-\udfff]", name):  # bytes that tarfile could not decode
        return "has a name that is not UTF-8"
    return "has a NUL in its name" if "\0" in name else ""


def _length(header: tarfile.TarInfo, override: dict[str, str]) -> int | None:
    size = override.get("size", str(header.size))
    return int(size) if size.isascii() and size.isdigit() and len(size) < 20 else None
