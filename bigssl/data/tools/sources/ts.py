"""The .ts files of the UEA & UCR archive for `bigssl shards pack`: a line a series."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bigssl.data.errors import DataError
from bigssl.data.npy import npy_bytes
from bigssl.data.tools.channels import MISSING, number
from bigssl.data.tools.classes import LABEL
from bigssl.data.tools.sources.base import Item, json_bytes
from bigssl.data.tools.sources.text import LineFile, document_lines, line_file
from bigssl.data.tools.timed.tally import SeriesCount


class TsLine(NamedTuple):
    """One series of a .ts file."""

    file: LineFile
    number: int
    offset: int
    length: int
    labelled: bool
    labels: bool = True

    def load(self) -> dict[str, bytes]:
        """npy, and json {"label"} where labels are there and wanted."""
        line = self.file.text(self.offset, self.length, self.number)
        values, label = parse_series(f"{self.file.path}, line {self.number}", line, self.labelled)
        said = self.labelled and self.labels
        return {"npy": npy_bytes(values)} | ({"json": json_bytes({LABEL: label})} if said else {})

    def stamp(self) -> object:
        """Which version of the file."""
        return [self.file.version, self.offset, self.labels]


def from_series(
    path: Path, stem: str | None = None, labels: bool = True, seen: SeriesCount | None = None
) -> Iterator[Item]:
    """The .ts format of the UEA & UCR archive: samples `STEM-000000` with npy (float32 [T, C]) and, where `labels` are
    wanted, json {"label"}. seen: lengths and missing values are counted there."""
    labelled, count, file = False, 0, line_file(path)
    for line in document_lines(path):
        text = line.data.strip()
        if text.lower().startswith(b"@classlabel"):
            labelled = text.split()[1].lower() == b"true"
        elif text[:1] not in (b"#", b"@"):
            key = f"{path.stem if stem is None else stem}-{count:06d}"
            series = TsLine(file, line.number, line.offset, len(line.data), labelled, labels)
            if seen is not None:
                _count(seen, text.decode(errors="replace"), labelled)
            yield Item(key, key, series.load, series.stamp)
            count += 1


def _count(seen: SeriesCount, line: str, labelled: bool) -> None:
    parts = line.split(":")[: -1 if labelled else None]
    seen.lengths.update(part.count(",") + 1 for part in parts[:1])
    for place, part in enumerate(parts if "?" in line or "na" in line.lower() else []):
        missing = sum(cell.strip() in MISSING for cell in part.split(","))
        seen.missing.update({f"channel {place}": missing} if missing else {})


def parse_series(where: str, line: str, labelled: bool) -> tuple[np.ndarray, str]:
    """(float32 [T, C], label) of one line `v,v,...:v,v,...:label`; `?` is NaN. Raises DataError naming `where`."""
    parts = line.strip().split(":")
    label = parts.pop().strip() if labelled else ""
    try:
        channels = [[number(v) for v in part.split(",")] for part in parts]
    except ValueError as error:
        raise DataError(f"{where}: {error}; values are numbers or '?'") from error
    lengths = Counter(map(len, channels))
    if len(lengths) != 1:
        raise DataError(f"{where}: channels of lengths {sorted(lengths)}; they must be equal")
    return np.asarray(channels, dtype=np.float32).T.copy(), label
