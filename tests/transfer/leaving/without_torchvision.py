"""Runs a script with timm, which imports torchvision everywhere and uses it, in its networks, nowhere: a stand-in that
has every name serves, and the tests need no torchvision, with which transformers would resize pictures otherwise.

    python without_torchvision.py -I SCRIPT ARGUMENT ...      the arguments of an interpreter
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import runpy
import sys
import types
from typing import Any


class AnyName(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class AnyModule(types.ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return AnyName(name, (), {})


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        found = name.partition(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if found else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> AnyModule:
        return AnyModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


if __name__ == "__main__":
    sys.meta_path.insert(0, StandIn())
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
