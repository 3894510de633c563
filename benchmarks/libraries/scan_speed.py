"""Files a second of `walk` and of the stand-in by TarFile, in turn, over a tar of small files.

python benchmarks/libraries/scan_speed.py
"""

import io
import statistics
import tarfile
import time
from typing import Any

import tarwalk_tarfile

from bigssl.data.shards import tarwalk

FILES, ROUNDS = 20_000, 9


def tar(form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as made:
        for number in range(FILES):
            info = tarfile.TarInfo(f"{number:07d}.txt")
            info.size, info.mtime = 1000, 1.5  # pax writes a header for a fraction of a second
            made.addfile(info, io.BytesIO(bytes(1000)))
    return buffer.getvalue()


def seconds(module: Any, data: bytes) -> float:
    begin = time.process_time()
    assert sum(1 for _ in module.walk(io.BytesIO(data), "x.tar")) == FILES
    return time.process_time() - begin


def main() -> None:
    for name, form in (("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        data = tar(form)
        rounds = [(seconds(tarwalk, data), seconds(tarwalk_tarfile, data)) for _ in range(ROUNDS)]
        ours, theirs = (statistics.median(part) / FILES * 1e6 for part in zip(*rounds, strict=True))
        ratio = statistics.median(there / here for here, there in rounds)
        print(f"{name}: ours {ours:.1f} us a file, tarfile {theirs:.1f}, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
