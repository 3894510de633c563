"""Real servers on the loopback, each a process of its own, and options with short waits."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bigssl.config.recipe import RemoteConfig

QUICK = {"retries": 3, "timeout": 5, "deadline": 20}


@dataclass
class HttpServer:
    """A server of `folder` (see http_server.py)."""

    url: str
    folder: Path

    def set(self, **state: Any) -> None:
        """Change what the server does from now on."""
        body = json.dumps(state).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/_set", body)) as answer:
            answer.read()

    def fault(self, kind: str, **options: Any) -> None:
        """Spoil the next answer(s)."""
        self.set(faults=[{"kind": kind, **options}])

    def log(self) -> dict[str, Any]:
        """The requests so far, and the most at the same time."""
        with urllib.request.urlopen(f"{self.url}/_log") as answer:
            return json.loads(answer.read())

    def ranges(self, suffix: str = ".tar") -> list[tuple[int, int]]:
        """[start, stop) of every range asked of files with this suffix."""
        asked = [header for path, header in self.log()["requests"] if path.endswith(suffix) and header]
        places = [header.removeprefix("bytes=").split("-") for header in asked]
        return [(int(start), int(stop) + 1) for start, stop in places]


@pytest.fixture
def serve() -> Iterator[Callable[[Path], HttpServer]]:
    """`serve(folder)` -> HttpServer."""
    processes = []

    def start(folder: Path) -> HttpServer:
        script = Path(__file__).with_name("http_server.py")
        process = subprocess.Popen([sys.executable, script, folder], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        processes.append(process)
        assert process.stdout is not None
        return HttpServer(f"http://127.0.0.1:{int(process.stdout.readline())}", folder)

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backoff in hundredths of a second; what a server asks for stays as it is."""
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 40)


@pytest.fixture
def quick(tmp_path: Path) -> Callable[..., RemoteConfig]:
    """`quick(cache=True, ...)` -> options whose waits are short."""

    def make(cache: bool = False, **options: Any) -> RemoteConfig:
        folder = {"cache": str(tmp_path / "cache"), "chunk_mb": 1} if cache else {}
        return RemoteConfig(**{**QUICK, **folder, **options})

    return make
