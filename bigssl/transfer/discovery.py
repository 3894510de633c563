"""How evaluations are found. One is a file in `bigssl/transfer/tasks`: a subclass of `Evaluation`, whose fields are its
section of a recipe, with `check` and `run`. Nothing else has to be edited; the file's name is `task` in recipes."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal, Union

from pydantic import Field, create_model

from bigssl.config.evaluate import Evaluation
from bigssl.discovery import classes_in


@cache
def discover_evaluations() -> dict[str, type[Evaluation]]:
    """Every evaluation by file name, its `task` fixed."""
    found = classes_in("bigssl.transfer.tasks", Evaluation)
    return {name: _with_task(section, name) for name, section in found.items()}


def _with_task(section: type[Evaluation], name: str) -> type[Evaluation]:
    doc = (section.__doc__ or "").partition("\n")[0]
    fields: dict[str, Any] = {"task": (Literal[name], Field(description=doc))}
    return create_model(section.__name__, __base__=section, __doc__=section.__doc__, **fields)


def evaluation_union() -> Any:
    """The type of a section of `evaluate` and `probe`: one of the discovered evaluations, told apart by `task`."""
    types = tuple(discover_evaluations().values())
    return Annotated[Union[types], Field(discriminator="task")]  # noqa: UP007 - a union of a computed list
