"""What tests write: files to be packed, and shards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bigssl.data.shards.index import build_index


def fill(root: Path, files: dict[str, bytes]) -> Path:
    """Files by their paths below `root`, which is given back."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def shards_of(folder: Path, samples: Sequence[Mapping[str, bytes]], shards: int = 1) -> str:
    """An indexed dataset of these samples, members by field; their keys are s000, s001, ... Returns its folder."""
    folder.mkdir(parents=True)
    paths = [folder / f"part-{number}.tar" for number in range(shards)]
    size = -(-len(samples) // shards)
    for number, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            for place in range(number * size, min(len(samples), (number + 1) * size)):
                for field, data in samples[place].items():
                    info = tarfile.TarInfo(f"s{place:03d}.{field}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    build_index(paths, folder)
    return str(folder)
