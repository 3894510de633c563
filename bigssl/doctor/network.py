"""How fast do ranks talk to each other, which pair is slower than the others, and do their clocks agree?"""

from __future__ import annotations

import functools
import socket
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from bigssl import distributed
from bigssl.doctor.findings import Diagnoses

_BYTES = {"cpu": 8 << 20, "cuda": 128 << 20}
_PAIR = {"cpu": 1 << 20, "cuda": 16 << 20}
_REPEATS, _ROUNDS = 5, 31
_SLOW = 3.0  # times the median of all pairs
_LEAST = 2e-3  # seconds: what a scheduler takes away at times
_APART, _FAR = 1.0, 60.0  # seconds between clocks


def examine_network(section: Diagnoses, device: torch.device) -> None:
    """Findings on clocks, bandwidth and pairs, the same on every rank. Collective."""
    if not distributed.active():
        why = "one rank: nothing to measure"
        if device.type == "cuda":
            why += "; `CUDA_VISIBLE_DEVICES= bigssl doctor` tries two on the CPU"
        section.note("bandwidth", why)
        return
    hosts = distributed.gather_objects(f"rank {distributed.rank()} on {socket.gethostname()}")
    _clocks(section, hosts)
    _bandwidth(section, device)
    _pairs(section, device, hosts)


def _clocks(section: Diagnoses, hosts: list[str]) -> None:
    """Read just after a barrier, the median of some: what is left is the time a barrier takes to be over."""
    mine = list[float]()
    for _ in range(_REPEATS):
        distributed.barrier()
        mine.append(time.time())
    read = distributed.gather_objects(mine)
    apart = [statistics.median(a - b for a, b in zip(other, read[0], strict=True)) for other in read]
    worst = max(range(len(apart)), key=lambda rank: abs(apart[rank]))
    skew = abs(apart[worst])
    said = f"{hosts[worst]} is {apart[worst]:+.2f} s from {hosts[0]}"
    todo = "`timedatectl set-ntp true` (chrony) on every machine"
    if skew > _FAR:
        section.fail("clocks", f"{said}: object stores refuse what is signed so, and ages of files and logs mislead",
                     todo)  # fmt: skip
    elif skew > _APART:
        section.warn("clocks", said, todo)
    else:
        section.ok("clocks", f"within {max(skew, 1e-3):.3f} s on {len(hosts)} ranks")


def _bandwidth(section: Diagnoses, device: torch.device) -> None:
    world, size = distributed.world(), _BYTES[device.type]
    whole = torch.zeros(size // 4, device=device)
    part = torch.zeros(size // 4 // world, device=device)
    parts = [torch.empty_like(part) for _ in range(world)]
    found = {
        "all-reduce": (lambda: dist.all_reduce(whole), 2 * (world - 1) / world * size),
        "all-gather": (lambda: dist.all_gather(parts, part), (world - 1) * part.nbytes),
    }
    for name, (call, sent) in found.items():
        seconds = _slowest(_timed(call, device))
        rate = f"{sent / seconds / 1e9:.2f} GB/s sent by each rank ({dist.get_backend()})"
        section.ok(name, f"{size >> 20} MiB on {world} ranks in {1e3 * seconds:.1f} ms: {rate}")  # fmt: skip


def _timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the least of some."""
    best = float("inf")
    for _ in range(_REPEATS):
        distributed.barrier()
        best = min(best, _once(call, device))
    return best


def _once(call: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _slowest(seconds: float) -> float:
    return max(distributed.gather_objects(seconds))


def rounds(world: int) -> Iterator[list[tuple[int, int]]]:
    """Pairs that meet at the same time, until each has met each (the circle method), or of many ranks some."""
    ranks: list[int | None] = [*range(world), *([None] if world % 2 else [])]
    for _ in range(min(len(ranks) - 1, _ROUNDS)):
        half = len(ranks) // 2
        pairs = zip(ranks[:half], reversed(ranks[half:]), strict=True)
        yield [(min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None]
        ranks = [ranks[0], ranks[-1], *ranks[1:-1]]


def _pairs(section: Diagnoses, device: torch.device, hosts: list[str]) -> None:
    """Each pair sends to and fro while others do, as in a collective."""
    mine, count = dict[tuple[int, int], float](), 0
    payload = torch.zeros(_PAIR[device.type] // 4, device=device)
    for pairs in rounds(distributed.world()):
        count += len(pairs)
        pair = next((each for each in pairs if distributed.rank() in each), None)
        best = float("inf")
        for _ in range(_REPEATS):
            distributed.barrier()
            if pair is not None:
                best = min(best, _once(functools.partial(_to_and_fro, pair, payload), device))
        if pair is not None:
            mine[pair] = best
    took: dict[tuple[int, int], float] = {}
    for each in distributed.gather_objects(mine):
        for found, seconds in each.items():
            took[found] = max(took.get(found, 0.0), seconds)
    usual = statistics.median(took.values())
    rate = 2 * payload.nbytes / usual / 1e9
    slow = {pair: seconds for pair, seconds in took.items() if seconds > max(_SLOW * usual, usual + _LEAST)}
    for pair, seconds in sorted(slow.items(), key=lambda item: -item[1])[:8]:
        times = f"{1e3 * seconds:.1f} ms to and fro, {seconds / usual:.1f} times the median of {count} pairs"
        section.warn("pair", f"{hosts[pair[0]]} and {hosts[pair[1]]}: {times} ({1e3 * usual:.1f} ms)",
                     f"look at the cable, the switch port or the load of {_suspect(slow, pair, hosts)}")  # fmt: skip
    if not slow:
        section.ok("pairs", f"{count} of {payload.nbytes >> 20} MiB to and fro: median {1e3 * usual:.1f} ms "
                   f"({rate:.2f} GB/s), slowest {max(took.values()) / usual:.1f} times that")  # fmt: skip


def _suspect(slow: dict[tuple[int, int], float], pair: tuple[int, int], hosts: list[str]) -> str:
    """The rank of `pair` that is in most slow pairs, or both."""
    counts = [sum(rank in each for each in slow) for rank in pair]
    if counts[0] == counts[1]:
        return "both"
    return hosts[pair[0] if counts[0] > counts[1] else pair[1]]


def _to_and_fro(pair: tuple[int, int], payload: Tensor) -> None:
    first = distributed.rank() == pair[0]
    other = pair[1] if first else pair[0]
    for sending in (first, not first):
        if sending:
            dist.send(payload, other)
        else:
            dist.recv(payload, other)
