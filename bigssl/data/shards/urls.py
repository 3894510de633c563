"""What the URL of a recipe or of a command names: `~`, `$VAR`, `file:`, `*`, `{000..127}` and `a.tar::b.tar`.

A local path that exists as it is written is that path, whatever signs are in its name. `::` joins only behind the name
of a shard or a path that exists, and never in a query: `http://[::1]/x.tar?a::b` and a folder `a::b` are one place.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

import braceexpand

from bigssl.config.recipe import RemoteConfig
from bigssl.data.errors import DataError, display
from bigssl.data.remote.client import Remote, RemoteError
from bigssl.data.remote.pipes import PIPE
from bigssl.data.shards import leftout, storage, tarwalk, unpack
from bigssl.data.shards.leftout import LeftOut

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_MAGIC = "*?["  # what makes a pattern of a path
_RANGES = ".tar, .tar.gz, .tgz"


def meant(url: str) -> list[str]:
    """The paths and URLs that `url` names, at least one, in order; those of a pattern sorted. Raises DataError for an
    unset variable, a pattern that nothing matches, and what is not supported, by name."""
    return _named(url, _MAGIC)


def place(url: str) -> str:
    """The one path or URL that `url` names, there or not yet; `[`, `]` and `?` are letters of its name. Raises
    DataError."""
    found = _named(url, "*")
    if len(found) > 1:
        raise DataError(f"{display(url)} names {len(found)} places; one is allowed here")
    return found[0]


def _named(url: str, magic: str) -> list[str]:
    if url.startswith(PIPE):
        return _braces(url)
    if not url.strip():
        raise DataError(f"{url!r} is no path; is a variable empty?")
    parts = list(_parts(url))
    if "" in parts:
        raise DataError(f"{display(url)}: nothing stands on one side of `::`, which joins shards as in a.tar::b.tar")
    return [found for part in parts for found in _of_part(part, magic)]


def _parts(url: str) -> Iterator[str]:
    """What `::` joins in `url`."""
    begin = 0
    for place in [] if _is_there(url.removeprefix("file:")) else re.finditer("::", url):
        part = url[begin : place.start()]
        if not part or (storage.bare(part) == part and _can_be_joined(_plain(part))):
            yield part
            begin = place.end()
    yield url[begin:]


def _can_be_joined(path: str) -> bool:
    return unpack.by_name(path) is not None or _is_there(path)


def _plain(url: str) -> str:
    """A local `url` without signs but those of a pattern."""
    if not storage.is_local(url):
        return url
    path = _path_of(url) if url.startswith("file:") else url
    return path if _is_there(path) else _with_variables(os.path.expanduser(path), url)


def _of_part(url: str, magic: str) -> list[str]:
    path = _plain(url) if storage.is_local(url) else _with_variables(url, url)
    return [path] if _is_there(path) else [match for name in _braces(path) for match in _matches(name, magic)]


def _is_there(url: str) -> bool:
    return "://" not in url and os.path.lexists(url)


def _path_of(url: str) -> str:
    """The path of `file:path`, `file:/path` or `file:///path`."""
    path = url.removeprefix("file:")
    if path.startswith("//"):
        host, slash, rest = path[2:].partition("/")
        if host not in ("", "localhost"):
            raise DataError(f"{url}: a file of the host {host!r}; allowed is file:///PATH of this machine")
        path = slash + rest
    return path if _is_there(path) else unquote(path)


def _with_variables(path: str, url: str) -> str:
    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in os.environ:
            raise DataError(f"{display(url)}: the environment variable {name} is not set; set it or write the path")
        return os.environ[name]

    bare = storage.bare(path)  # a query may hold a $ of its own
    return _VARIABLE.sub(value, bare) + path[len(bare) :]


def _braces(url: str) -> list[str]:
    if "{" not in url:
        return [url]
    try:
        return list(braceexpand.braceexpand(url))
    except ValueError as error:
        raise DataError(f"{display(url)}: no pattern ({error}); write one like NAME-{{000..127}}.tar") from None


def _matches(name: str, magic: str) -> list[str]:
    """The files of a pattern. magic: which signs make one of it."""
    if not storage.is_local(name):
        if "*" in storage.bare(name):
            example = "a pattern NAME-{000..127}.tar or the folder"
            raise DataError(f"{display(name)}: `*` is for local files; write {example}")
        return [name]
    if not set(magic) & set(name) or _is_there(name):
        return [name]
    found = sorted(glob.glob(re.sub(r"[*?[]", lambda sign: sign[0] if sign[0] in magic else f"[{sign[0]}]", name)))
    if not found:
        raise DataError(f"{name}: no file matches; see what there is with `ls`")
    return found


def expand(
    urls: Iterable[str], config: RemoteConfig | None = None, *, sequential: bool = False,
    left_out: LeftOut | None = None,
) -> list[str]:  # fmt: skip
    """Shards named by `urls` and in the folders among them, in that order.

    sequential: also `pipe:` commands, and tars packed by bzip2, xz or zstd, which only a reader from front to back can
    take. left_out: is told what a folder holds under hidden names. Raises DataError where there is none.
    """
    tars = [tar for url in urls for found in meant(url) for tar in _shards(found, config, sequential, left_out)]
    if not tars:
        raise DataError(f"{', '.join(map(display, urls))}: no shards ({_RANGES})")
    return tars


def _shards(url: str, config: RemoteConfig | None, sequential: bool, left_out: LeftOut | None) -> list[str]:
    if url.startswith(PIPE) and sequential:
        return [url]
    refuse_pipe(url)
    local = storage.local_path(url) if storage.is_local(url) else None
    packing = unpack.by_name(storage.bare(url))
    if local is not None and local.is_dir():
        found = _local_folder(local)
    elif packing is not None:
        found = [url]
    elif local is None:
        found = _remote_folder(url, config)
    else:
        raise DataError(f"{display(url)} is neither a folder nor a shard ({_RANGES})")
    shown = [tar for tar in found if tar == url or not storage.name_of(tar).startswith(".")]
    for tar in found:
        if left_out is not None and tar not in shown:
            left_out.add(leftout.HIDDEN, storage.name_of(tar))
    for tar in () if sequential else shown:
        refuse_packing(tar)
    return shown


def _local_folder(folder: Path) -> list[str]:
    try:
        return [str(path) for path in sorted(folder.iterdir()) if unpack.by_name(path.name) is not None]
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror})") from error


def refuse_packing(tar: str) -> None:
    """Raises DataError for a shard that cannot be read by range, by its name."""
    if not tarwalk.is_shard(storage.bare(tar)):
        packing = unpack.by_name(storage.bare(tar))
        raise DataError(
            f"{display(tar)}: {packing} cannot be read by range ({_RANGES} can); unpack it, or declare the source with "
            "data.sources.NAME.sequential=true"
        )


def refuse_pipe(url: str) -> None:
    """Raises DataError for a command, which has no index."""
    if url.startswith(PIPE):
        raise DataError(
            f"{display(url)}: a command has no index, so it cannot be read by position; declare the source with "
            "data.sources.NAME.sequential=true, or write its output to tars and run `bigssl shards index`"
        )


def _remote_folder(url: str, config: RemoteConfig | None) -> list[str]:
    try:
        with Remote(config) as remote:
            names = {storage.name_of(path) for path in remote.names(url)}
    except RemoteError as error:
        example = f"{display(url).rstrip('/')}/NAME-{{000..127}}.tar"
        raise DataError(f"{display(url)}: cannot be listed ({error}); name its shards, e.g. {example}") from None
    return [storage.join(url, name) for name in sorted(names) if unpack.by_name(name) is not None]
