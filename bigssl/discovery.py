"""How a file becomes a pretext task or an evaluation: by lying in its folder. Nothing is registered."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TypeVar

T = TypeVar("T")


def classes_in(folder: str, base: type[T]) -> dict[str, type[T]]:
    """By file name, the subclass of `base` that each file of the package `folder` defines; what begins with _ is a part
    of it.

    Raises:
        ValueError: a file defines several, of which only one could be meant by its name.
    """
    found: dict[str, type[T]] = {}
    for info in pkgutil.iter_modules(importlib.import_module(folder).__path__):
        module = importlib.import_module(f"{folder}.{info.name}")
        own = {value for value in vars(module).values() if isinstance(value, type) and issubclass(value, base)
               and value is not base and value.__module__ == module.__name__}  # fmt: skip
        named = sorted((value for value in own if not value.__name__.startswith("_")), key=lambda value: value.__name__)
        if len(named) > 1:
            names = ", ".join(value.__name__ for value in named)
            raise ValueError(f"{module.__file__}: {len(named)} classes of {base.__name__}, {names}; allowed: one, and "
                             "bases that begin with _")  # fmt: skip
        found.update((info.name, value) for value in named)
    return found
