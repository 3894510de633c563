"""Vectors with the keys and metadata of their rows, as .npz or .parquet; written piece by piece.

.npz: arrays `keys`, `vectors` float32 [N, D], one for each field of metadata that any sample has, and `about` (JSON:
what they were made of). .parquet: the same as columns, `about` in the metadata of the schema under `bigssl`. Whole
numbers are int64 and truth values bool where all rows have one (in parquet also where some have none), other numbers
float64 (NaN where a row has none), as long as that holds each of them exactly; all else is text: lists and mixtures as
JSON, "" (null in parquet) where a row has none. A field that is called as one of our own gets `meta.` before its name.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bigssl.config.errors import ConfigError
from bigssl.data.errors import DataError
from bigssl.files import whole
from bigssl.transfer.matrix import Matrix

OWN = ("keys", "vectors", "about")
DATE = (1980, 1, 1, 0, 0, 0)  # of files in a zip: equal rows, equal bytes
WIDEST = 1 << 30  # bytes of a column of texts in an .npz, each of which takes as much as the longest
EXACT = 2**53  # up to here float64 holds every whole number
KINDS = {bool: "bool", int: "int", float: "float", str: "text"}


@dataclass
class Column:
    """A field of the metadata: the kinds of its values, in how many rows it is, characters of the longest, and the
    largest size of a whole number."""

    name: str
    kinds: set[str] = field(default_factory=set)
    count: int = 0
    longest: int = 1
    largest: int = 0

    def see(self, value: Any) -> None:
        big = isinstance(value, int) and not -(2**63) <= value < 2**63
        self.kinds.add("json" if big else KINDS.get(type(value), "json"))
        self.largest = max(self.largest, abs(value) if isinstance(value, int) else 0)
        self.count += 1
        self.longest = max(self.longest, len(value if isinstance(value, str) else json.dumps(value)))

    def kind(self, rows: int) -> str:
        """Of a column that has no room for a gap among `rows` whole numbers or truth values."""
        if self.kinds == {"bool"} and self.count == rows:
            return "bool"
        if self.kinds == {"int"} and self.count == rows:
            return "int"
        return "float" if self.kinds <= {"int", "float"} and self.largest <= EXACT else "text"

    def stored(self, value: Any, kind: str) -> Any:
        """`value` of a row as the table has it; None where the row has none."""
        if value is None or kind in ("bool", "int"):
            return value
        return float(value) if kind == "float" else value if isinstance(value, str) else json.dumps(value)


def check_table(out: Path) -> None:
    """Raises ConfigError for a file that cannot be written: of another kind, or in need of what is not installed."""
    if out.suffix not in (".npz", ".parquet"):
        raise ConfigError(f"--out: value {str(out)!r}; allowed: a file .npz or .parquet")
    if out.is_dir():
        raise ConfigError(f"--out: {out} is a folder; allowed: a file .npz or .parquet")
    if out.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"--out: value {str(out)!r} needs pyarrow ({error}): pip install 'bigssl[parquet]'; or "
                              "write a .npz") from None  # fmt: skip


def about_of(out: Path) -> dict[str, Any] | None:
    """What a table was made of; None of a file that is none of ours."""
    try:
        if out.suffix == ".npz":
            with np.load(out) as arrays:
                said = str(arrays["about"])
        else:
            import pyarrow.parquet

            said = pyarrow.parquet.read_schema(out).metadata[b"bigssl"].decode()
        about: dict[str, Any] = json.loads(said)
    except Exception:  # another program's file, of any content: readers raise a dozen types
        return None
    return about


def write_table(
    out: Path, vectors: Matrix, rows: Path, about: dict[str, Any], note: Callable[[str], None] = lambda text: None
) -> None:
    """rows: a file of JSON lines [key, metadata]. note: is told what has no place in an .npz."""
    keys, columns = Column("keys"), dict[str, Column]()
    for key, meta in _lines(rows):
        keys.see(key)
        for name, value in meta.items():
            if value is not None:
                columns.setdefault(name, Column(name)).see(value)
    if keys.count != len(vectors):
        raise DataError(f"{rows}: {keys.count} keys of {len(vectors)} vectors; remove {rows.parent} and begin anew")
    with whole(out) as staging:
        write = _write_npz if out.suffix == ".npz" else _write_parquet
        write(staging, vectors, rows, keys, [columns[name] for name in sorted(columns)], json.dumps(about), note)


def _lines(rows: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with rows.open("rb") as file:
        for line in file:
            key, meta = json.loads(line)
            yield key, meta


def _name(column: Column) -> str:
    bare = column.name
    while bare.startswith("meta."):  # `meta.keys` makes room for `keys`
        bare = bare.removeprefix("meta.")
    return f"meta.{column.name}" if bare in OWN or "/" in bare else column.name


def _write_npz(
    staging: Path, vectors: Matrix, rows: Path, keys: Column, columns: list[Column], about: str,
    note: Callable[[str], None],
) -> None:  # fmt: skip
    count = len(vectors)
    kinds = {"bool": np.dtype(bool), "int": np.dtype(np.int64), "float": np.dtype(np.float64)}
    blank = {"float": np.nan, "text": ""}
    with zipfile.ZipFile(staging, "w", zipfile.ZIP_STORED) as archive:
        _put(archive, "keys", np.dtype(f"U{keys.longest}"), (count,), _parts(key for key, _ in _lines(rows)))
        _put(archive, "vectors", np.dtype(np.float32), (count, vectors.width),
             (piece.numpy() for _, piece in vectors.pieces()))  # fmt: skip
        for column in columns:
            kind = column.kind(count)
            dtype = kinds.get(kind, np.dtype(f"U{column.longest}"))
            if dtype.kind == "U" and dtype.itemsize * count > WIDEST:
                note(f"left out: {column.name}, whose longest text of {column.longest} characters would make it "
                     f"{dtype.itemsize * count / 2**30:.1f} GiB; a .parquet has room for it")  # fmt: skip
                continue
            values = (column.stored(meta.get(column.name), kind) for _, meta in _lines(rows))
            filled = (blank.get(kind) if value is None else value for value in values)
            _put(archive, _name(column), dtype, (count,), _parts(filled))
        _put(archive, "about", np.dtype(f"U{len(about)}"), (), iter([np.array(about)]))


def _parts(values: Iterator[Any]) -> Iterator[list[Any]]:
    while part := list(islice(values, 4096)):
        yield part


def _put(archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], parts: Iterator[Any]
         ) -> None:  # fmt: skip
    with archive.open(zipfile.ZipInfo(f"{name}.npy", DATE), "w", force_zip64=True) as file:
        descr = np.lib.format.dtype_to_descr(dtype)
        np.lib.format.write_array_header_2_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype=dtype).tobytes())


def _write_parquet(
    staging: Path, vectors: Matrix, rows: Path, keys: Column, columns: list[Column], about: str,
    note: Callable[[str], None],
) -> None:  # fmt: skip
    import pyarrow as pa
    import pyarrow.parquet

    types = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "text": pa.string()}
    kinds = [column.kind(column.count) for column in columns]  # a null is no number
    fields = [pa.field("keys", pa.string()), pa.field("vectors", pa.list_(pa.float32(), vectors.width)),
              *(pa.field(_name(column), types[kind]) for column, kind in zip(columns, kinds, strict=True))]  # fmt: skip
    schema, lines = pa.schema(fields, metadata={"bigssl": about}), _lines(rows)
    with pyarrow.parquet.ParquetWriter(staging, schema) as writer:
        for _, piece in vectors.pieces():
            part = list(islice(lines, len(piece)))
            flat = pa.array(piece.reshape(-1).numpy(), pa.float32())
            arrays = [pa.array([key for key, _ in part], pa.string()),
                      pa.FixedSizeListArray.from_arrays(flat, vectors.width)]  # fmt: skip
            for column, kind in zip(columns, kinds, strict=True):
                arrays.append(pa.array([column.stored(meta.get(column.name), kind) for _, meta in part], types[kind]))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
