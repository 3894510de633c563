"""How large the parts of a dataset may be: what a damaged or hostile file claims beyond that is refused before any
memory is taken for it.

The limits hold for a process, like numpy's error state: `use` sets them where a recipe is read, worker processes
inherit them, and whatever reads or decodes asks `over`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel, ConfigDict, Field


class Limits(BaseModel):
    """The section `data.limits` of a recipe, and `--limit NAME=VALUE` of `bigssl shards`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    member_bytes: int = Field(1 << 30, ge=1, description="bytes of one file in a shard, which is one field of a sample")
    sample_bytes: int = Field(1 << 31, ge=1, description="bytes of all files of one sample with their tar headers")
    shard_members: int = Field(10_000_000, ge=1, description="files in one shard")
    ratio: int = Field(250, ge=1, description="unpacked bytes per byte of a packed shard, judged from 1 MiB on")
    image_pixels: int = Field(1 << 26, ge=1, le=89_478_485, description="width × height; Pillow itself allows no more")
    audio_values: int = Field(1 << 28, ge=1, description="frames × channels of one recording")


_current = Limits()


def current() -> Limits:
    """The limits of this process."""
    return _current


def use_limits(limits: Limits) -> None:
    """Sets the limits of this process and of those that it forks from now on."""
    global _current
    _current = limits


@contextmanager
def applied(limits: Limits) -> Iterator[None]:
    """Sets the limits for a `with` block."""
    before = current()
    use_limits(limits)
    try:
        yield
    finally:
        use_limits(before)


def over(name: str, value: int) -> str:
    """Why `value` is refused by the limit `name`, with what to change; empty when it is allowed."""
    allowed = getattr(_current, name)
    if value <= allowed:
        return ""
    what = Limits.model_fields[name].description
    how = f"data.limits.{name} of the recipe or --limit {name}=N"
    return f"{value} is over the limit {name} = {allowed} ({what}); if the data is right, raise {how}"
