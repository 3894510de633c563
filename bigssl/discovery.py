"""How a file becomes a pretext task or an evaluation: by lying in its folder. Nothing is registered."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TypeVar

T = TypeVar("T")


def classes_in(folder: str, base: type[T]) -> dict[str, type[T]]:
    """By file name, the subclass of `base` that each file of the package `folder` defines."""
    found: dict[str, type[T]] = {}
    for info in pkgutil.iter_modules(importlib.import_module(folder).__path__):
        module = importlib.import_module(f"{folder}.{info.name}")
        for value in vars(module).values():
            of_this_file = isinstance(value, type) and value.__module__ == module.__name__
            if of_this_file and issubclass(value, base) and value is not base:
                found[info.name] = value
    return found
