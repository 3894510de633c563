"""What does a rank hold while a backbone is made at ZeRO-3? `python benchmarks/construction.py`

A BERT of the given size is made on 2 ranks, once layer by layer in slices (as a run does), and once whole and then
cut. Printed are the most resident memory each took beyond what the process had before, the time, and the promise: the
parameters / ranks + the largest layer. First the numbers are verified: both ways give the same weights to the bit.
Exit status 1 where the first way takes more than the promise (+ 10 % for the allocator), or the weights differ. The
last lines say the same of 1.3 billion parameters, on paper. Takes 10 bytes of memory per parameter, about a minute.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import nn
from transformers import BertConfig, PreTrainedModel

from bigssl import distributed
from bigssl.engine import zero
from bigssl.engine.launcher import free_port
from bigssl.engine.plan.memory import construction
from bigssl.nets import build

RANKS, SPARE, MIB = 2, 1.1, 2**20
SETTINGS = {"train_batch_size": RANKS, "zero_optimization": {"stage": 3}}
BILLION = {"layers": 24, "width": 2048}  # 1.27 billion with this vocabulary


def config(layers: int, width: int) -> BertConfig:
    return BertConfig(vocab_size=30_522, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
                      intermediate_size=4 * width)  # fmt: skip


def in_slices(settings: BertConfig) -> PreTrainedModel:
    with build.postponed(main=distributed.is_main()):
        model = build.create("net", settings)
    zero.cut(model, SETTINGS)
    return model


def whole(settings: BertConfig) -> PreTrainedModel:
    model = build.create("net", settings)
    zero.cut(model, SETTINGS)
    return model


WAYS: dict[str, Callable[[BertConfig], PreTrainedModel]] = {"in slices": in_slices, "whole, then cut": whole}


def resident(peak: bool) -> int:
    """Bytes of this process, now or at most since `forget`."""
    field = "VmHWM" if peak else "VmRSS"
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def forget() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again


def measure(rank: int, way: str, layers: int, width: int, port: str, folder: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=port, GLOO_SOCKET_IFNAME="lo")  # fmt: skip
    torch.set_num_threads(1)
    zero.start()
    torch.manual_seed(0)
    WAYS[way](config(1, 64))  # what the first network of a process takes once
    distributed.barrier()
    forget()
    before, start = resident(peak=False), time.perf_counter()
    model = WAYS[way](config(layers, width))
    distributed.barrier()
    seconds, most = time.perf_counter() - start, resident(peak=True) - before
    slices = [hashlib.sha256(p.ds_tensor.numpy().tobytes()).hexdigest() for p in model.parameters()]
    torch.save({"most": most, "seconds": seconds, "slices": slices}, Path(folder) / f"{rank}.pt")
    zero.stop()


def cell(way: str, layers: int, width: int) -> list[dict[str, Any]]:
    """One row a rank, from processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, (way, layers, width, free_port(), folder), nprocs=RANKS)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(RANKS)]


def on_paper(layers: int, width: int, ranks: int) -> tuple[int, int, int]:
    """Parameters, bytes of all, bytes of the promise."""
    with torch.device("meta"):
        model: nn.Module = build.create("net", config(layers, width))
    count = sum(p.numel() for p in model.parameters())
    return count, construction(model, 0, 1), construction(model, 3, ranks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--width", type=int, default=1024, help="a multiple of 64 (%(default)s)")
    options = parser.parse_args()
    count, all_of_it, promise = on_paper(options.layers, options.width, RANKS)
    sizes = f"{all_of_it / MIB:.0f} MiB whole, promise {promise / MIB:.0f}"
    print(f"{count / 1e6:.0f} M parameters, {RANKS} ranks: {sizes}")
    rows = {way: cell(way, options.layers, options.width) for way in WAYS}
    for way, ranks in rows.items():
        most, seconds = max(r["most"] for r in ranks), max(r["seconds"] for r in ranks)
        print(f"  {way:16} most {most / MIB:6.0f} MiB a rank ({most / promise:.2f} of the promise), {seconds:.1f} s")
    for ranks in (2, 8, 64):
        count, all_of_it, least = on_paper(**BILLION, ranks=ranks)
        sizes = f"{all_of_it / MIB:.0f} MiB whole, {least / MIB:.0f} in slices"
        print(f"{count / 1e9:.2f} B on paper, {ranks:2} ranks: {sizes}")
    first, second = (rows[way] for way in WAYS)
    if any(a["slices"] != b["slices"] for a, b in zip(first, second, strict=True)):
        print("the two ways give other weights")
        return 1
    return int(max(r["most"] for r in first) > SPARE * promise)


if __name__ == "__main__":
    sys.exit(main())
