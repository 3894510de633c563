"""Ranks of one run have the same code, recipe and data: another on one machine would train something else, unseen."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from bigssl import distributed
from bigssl.config.recipe import Recipe
from bigssl.data.errors import redact
from bigssl.engine.guards import Agreed
from bigssl.engine.meeting.versions import fingerprint
from bigssl.engine.resume import flat

MAY_DIFFER = ("recipe.data.workers", "recipe.data.remote.*", "recipe.data.watchdog*")
"""Of a recipe, beside paths and URLs: what a machine may have in its own way."""


class Unlike(Agreed):
    """A rank has another code, recipe or data than rank 0."""


def check_alike(recipe: Recipe, facts: Mapping[str, Any]) -> None:
    """Compare this rank's versions, `recipe` and `facts` of data and networks with rank 0's. Collective.

    Raises:
        Unlike: on every rank.
    """
    if not distributed.active():
        return
    mine = {**fingerprint(), **flat(json.loads(recipe.model_dump_json()), "recipe"), **flat(dict(facts), "facts")}
    theirs = distributed.from_main(mine)
    found = distributed.gather_objects((socket.gethostname(), _difference(theirs, mine)))
    for rank, (host, text) in enumerate(found):
        if text:
            raise Unlike(f"rank {rank} on {host}: {text}; allowed: the same on every machine")


def _difference(first: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    """The first few fields that differ, in words, or ""."""
    names = [name for name in sorted(first.keys() | mine.keys()) if not _same(name, first.get(name), mine.get(name))]
    texts = [f"{name.removeprefix('recipe.')} is {_short(mine.get(name))}, on rank 0 {_short(first.get(name))}"
             for name in names[:3]]  # fmt: skip
    return "; ".join(texts) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")


def _same(name: str, one: Any, other: Any) -> bool:
    if one == other or any(fnmatchcase(name, pattern) for pattern in MAY_DIFFER):
        return True
    # what lies at two paths is compared by `facts`
    return name.startswith("recipe.") and all(isinstance(value, str) and "/" in value for value in (one, other))


def _short(value: Any) -> str:
    text = redact(str(value))
    return text if len(text) <= 80 else f"{text[:77]}..."
