"""What tests write to be packed."""

from __future__ import annotations

from pathlib import Path


def fill(root: Path, files: dict[str, bytes]) -> Path:
    """Files by their paths below `root`, which is given back."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root
