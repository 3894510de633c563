"""What code a rank runs."""

from __future__ import annotations

import platform
import zlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy", "pillow")


def fingerprint() -> dict[str, str]:
    """Versions that shape what a rank computes, by name; of bigssl also a checksum of its files. A tenth of a second;
    imports none of them."""
    root = Path(__file__).parents[2]
    check = 0
    for path in sorted(root.rglob("*.py")):
        check = zlib.crc32(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes(), check)
    python = ".".join(platform.python_version_tuple()[:2])
    found = {"bigssl": f"{_installed('bigssl')} (files {check:08x})", "python": python}
    return found | {name: _installed(name) for name in PACKAGES}


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
