"""Fixtures of all tests: small worlds of gloo ranks."""

from __future__ import annotations

import gc
import os
import pickle
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
from hypothesis import settings

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Property tests draw the same examples in every run, so that what fails, fails again; with HYPOTHESIS_PROFILE=default
# they draw others.
settings.register_profile("same", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
# One thread: no OpenMP pool exists in this process, so ranks can be forked from it, which saves their imports.
torch.set_num_threads(1)
# A shell starts background jobs with Ctrl-C ignored, nohup with the end of the terminal: processes under test would
# inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

Ranks = Callable[..., list[Any]]


# Files of real runs, minutes each: they begin first, so that the two processes of launch/test.sh end together.
LONG = {f"test_{name}.py" for name in ("first_hour", "train", "extend", "refusals", "loop", "interpreted")}


def pytest_configure(config: pytest.Config) -> None:
    """Tests run on the CPU, also where there are GPUs, which forked ranks could not use: `-m gpu` runs those on one."""
    if config.option.markexpr != "gpu":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_collection_finish() -> None:
    """What is there stays: each collection of garbage, here and in ranks forked from here, walked through all of it."""
    gc.collect()
    gc.freeze()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _launched(rank: int, world: int, port: int) -> None:
    """What a launcher tells a rank."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")


def _rank_main(function: Callable[..., Any], rank: int, world: int, port: int, folder: Path, args: tuple) -> None:
    _launched(rank, world, port)
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
        port = _free_port()
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


class Crew:
    """Ranks that live as long as a session and serve one case after another, so that a case costs no start of one.

    They stay in the process group that the first case joins. When a case fails on one of them, all are ended (the
    others may wait for it in a collective), and the next case starts new ones.
    """

    def __init__(self) -> None:
        self._members: dict[int, list[tuple[Any, Any]]] = {}

    def __call__(self, function: Callable[..., Any], world: int, *args: Any, timeout: float = 120) -> list[Any]:
        """What `function(*args)`, a function of a module, returns on each of `world` ranks."""
        try:
            answers = self._answers(world, pickle.dumps((function, args)), timeout)
        except BaseException:  # pytest's own timeout, too: a late answer would be taken for that of the next case
            self.end(world)
            raise
        return [answers[rank][1] for rank in range(world)]

    def _answers(self, world: int, case: bytes, timeout: float) -> dict[int, tuple[bool, Any]]:
        members = self._members.get(world) or self._start(world)
        for _, pipe in members:
            pipe.send_bytes(case)
        deadline, answers = time.monotonic() + timeout, dict[int, tuple[bool, Any]]()
        while len(answers) < world:
            for rank, (worker, pipe) in enumerate(members):
                if rank not in answers and worker.is_alive() and pipe.poll(0.002):
                    answers[rank] = pickle.loads(pipe.recv_bytes())
                failed = rank in answers and not answers[rank][0]
                if failed or not worker.is_alive() or time.monotonic() > deadline:
                    why = answers[rank][1] if failed else f"it has died, or gave no answer in {timeout} s"
                    raise AssertionError(f"rank {rank} of {world}: {why}")
        return answers

    def _start(self, world: int) -> list[tuple[Any, Any]]:
        context, port, members = mp.get_context("fork"), _free_port(), []
        for rank in range(world):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_serve, args=(theirs, rank, world, port), daemon=True)
            worker.start()
            theirs.close()
            members.append((worker, ours))
        self._members[world] = members
        return members

    def end(self, world: int) -> None:
        for worker, pipe in self._members.pop(world, []):
            worker.kill()
            worker.join()
            pipe.close()


def _serve(pipe: Any, rank: int, world: int, port: int) -> None:
    _launched(rank, world, port)
    gc.freeze()  # what tests before left, too: DeepSpeed's engines collect garbage, for a third of a short run
    parent = os.getppid()
    while os.getppid() == parent:
        if not pipe.poll(2.0):
            continue
        function, args = pickle.loads(pipe.recv_bytes())
        try:
            answer = (True, function(*args))
        except BaseException:
            answer = (False, traceback.format_exc())
        pipe.send_bytes(pickle.dumps(answer))
    os._exit(0)


@pytest.fixture(scope="session")
def crew() -> Iterator[Crew]:
    """`crew(function, world, *args)`: as `ranks`, with ranks that are already there, for many short cases.

    `function` joins the group by `zero.start()` and leaves the process as it found it.
    """
    members = Crew()
    yield members
    for world in (1, 2):
        members.end(world)
