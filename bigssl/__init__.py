"""bigssl: self-supervised pretraining of foundation models. Command: `bigssl`; from Python, `load` and `pretrain`."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What takes long to import is imported when it is asked for."""
    if name in ("load", "pretrain"):
        return getattr(import_module("bigssl.api"), name)
    raise AttributeError(f"module 'bigssl' has no attribute {name!r}")
