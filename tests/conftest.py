"""Fixtures of all tests: small worlds of gloo ranks."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# One thread: no OpenMP pool exists in this process, so ranks can be forked from it, which saves their imports.
torch.set_num_threads(1)
# A shell starts background jobs with Ctrl-C ignored, which processes under test would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

Ranks = Callable[..., list[Any]]


def _rank_main(function: Callable[..., Any], rank: int, world: int, port: int, folder: Path, args: tuple) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    try:
        torch.save(function(*args), folder / f"{rank}.pt")
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


@pytest.fixture(autouse=True)
def settings_of_data() -> Iterator[None]:
    """What a recipe sets for its process ends with the test."""
    yield
    if process := sys.modules.get("bigssl.data.loading.process"):
        process.use_data_settings(sys.modules["bigssl.config.recipe"].DataConfig(sources={}))


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    """`ranks(function, world, *args)`: what `function(*args)` returns on each of `world` forked processes.

    The processes have the environment of a launcher; `function` joins the process group itself.
    """

    def run(function: Callable[..., Any], world: int, *args: Any, timeout: float = 240) -> list[Any]:
        folder = tmp_path / f"ranks-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = mp.get_context("fork")
        workers = [
            context.Process(target=_rank_main, args=(function, r, world, port, folder, args)) for r in range(world)
        ]
        for worker in workers:
            worker.start()
        deadline = time.monotonic() + timeout
        while any(w.is_alive() for w in workers) and not any(w.exitcode for w in workers):
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        stuck = [r for r, worker in enumerate(workers) if worker.is_alive()]
        for worker in workers:
            worker.kill()
            worker.join()
        errors = "\n".join(p.read_text() for p in sorted(folder.glob("*.txt")))
        assert not errors and not stuck, f"ranks still running after {timeout} s: {stuck}\n{errors}"
        return [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(world)]

    return run
