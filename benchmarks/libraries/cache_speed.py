"""What a read from the disk cache costs, and how much it lets lie on the disk; for `try.sh`.

python benchmarks/libraries/cache_speed.py
"""

import os
import tempfile
import time

from bigssl.data.remote.cache import DiskCache, entry_name

CHUNK, LIMIT, SAMPLE = 8 << 20, 100 << 20, 50_000


def main() -> None:
    data = os.urandom(CHUNK)
    names = [entry_name("s3://bucket/x.tar", "checksum", str(number)) for number in range(40)]
    with tempfile.TemporaryDirectory() as folder:
        cache, most = DiskCache(folder, LIMIT), 0
        for name in names:
            cache.store(name, data)
            most = max(most, sum(path.stat().st_size for path in cache.folder.rglob("*") if path.is_file()))
        seconds = []
        for _ in range(5):
            begin = time.perf_counter()
            for number in range(300):
                cache.read(names[-1 - number % 4], number * 9973, SAMPLE)
            seconds.append((time.perf_counter() - begin) / 300)
        cache.close()
    print(f"a read of 50 kB: {min(seconds) * 1e6:.0f} us; on disk at most {most / LIMIT:.2f} of the limit")


if __name__ == "__main__":
    main()
