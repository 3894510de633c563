"""What lies in the repository: text that people wrote, and no more than one can read."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = (Path("bigssl/demo"), Path("benchmarks/results"))  # where pictures, shards and measurements belong
MOST = 1_000_000  # bytes


def strays(root: Path, names: list[str]) -> Iterator[str]:
    """A line for each file outside DATA that is binary (not UTF-8, or with a zero byte) or larger than MOST."""
    for name in names:
        path = root / name
        if not path.is_file() or any(folder in Path(name).parents for folder in DATA):
            continue
        content = path.read_bytes()
        try:
            binary = "\0" in content.decode()
        except UnicodeDecodeError:
            binary = True
        if binary or len(content) > MOST:
            yield f"{name}: {len(content)} bytes{', binary' * binary}"


def test_binaries_and_large_files_stay_out():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    names = [name for name in listed.stdout.split("\0") if name]
    assert len(names) > 100
    assert not list(strays(ROOT, names)), "git rm them, or name what makes them; git keeps every version for ever"


def test_strays_are_found(tmp_path):
    files = {
        "bigssl.whl": b"PK\3\4\0\0",
        "bigssl/latin.py": "ä".encode("latin-1"),
        "README.md": "für".encode(),
        "tests/long.txt": b"x" * (MOST + 1),
        "bigssl/demo/picture.png": b"\x89PNG\0",
        "benchmarks/results/run.json": b" " * (MOST + 1),
        "bigssl/demonstration/picture.png": b"\x89PNG\0",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = [line.split(":")[0] for line in strays(tmp_path, [*files, "gone.py"])]
    assert found == ["bigssl.whl", "bigssl/latin.py", "tests/long.txt", "bigssl/demonstration/picture.png"]
