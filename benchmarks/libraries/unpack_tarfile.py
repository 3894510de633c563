"""How many of 40 files `tarfile.open(mode="r|*")` and we see in packed tars that are damaged.

python benchmarks/libraries/unpack_tarfile.py
"""

import bz2
import gzip
import io
import lzma
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from bigssl.data.order.sequential import samples_of


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        for number in range(40):
            info = tarfile.TarInfo(f"{number}.txt")
            info.size = 100
            made.addfile(info, io.BytesIO(b"x" * 100))
    return buffer.getvalue()


def damages(data: bytes, pack: Callable[[bytes], bytes]) -> dict[str, bytes]:
    packed = pack(data)
    half = len(packed) // 2
    return {
        "sound": packed,
        "of two streams (sound)": pack(data[:1000]) + pack(data[1000:]),
        "garbage behind": packed + b"garbage" * 1000,
        "a byte flipped": packed[:half] + bytes([packed[half] ^ 255]) + packed[half + 1 :],
        "cut in half": packed[:half],
        "cut by 20 bytes": packed[:-20],
    }


def theirs(path: Path) -> int:
    with tarfile.open(path, mode="r|*") as members:
        return sum(1 for _ in members)


def seen(count: Callable[[Path], int], path: Path) -> str:
    try:
        return str(count(path))
    except Exception as error:
        return f"{type(error).__name__}"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, pack in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)):
            for damage, data in damages(tar(), pack).items():
                path = Path(folder, f"x.tar.{name}")
                path.write_bytes(data)
                ours = seen(lambda path: sum(1 for _ in samples_of(str(path))), path)
                print(f"{name:5}{damage:24}tarfile {seen(theirs, path):12}ours {ours}")


if __name__ == "__main__":
    main()
