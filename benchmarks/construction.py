"""What does a rank hold while a backbone is made at ZeRO-3? `python benchmarks/construction.py`

A BERT of the given size is made on 2 ranks: layer by layer in slices (as a run does), from a folder of float32 and from
one of bfloat16 (`init_from`, `start_from`), and whole and then cut. Printed are the most memory each took beyond what
the process had before, the time, and the promise: the parameters / ranks + the largest layer. Memory is that of the
process's own (RssAnon, looked at every millisecond): pages of a file that is read, which the system takes back when
it needs them, are printed beside it. First the numbers are verified: made in slices and whole, and read from a folder
of float32, the weights are the same to the bit. Exit status 1 where weights differ, or one of the ways in slices takes
more than the promise (+ 10 % for the allocator) on any rank; reading may take two further copies of a layer, which is
sent to the others. The last lines say the same of 1.3 billion parameters, on paper. About 10 bytes of memory per
parameter, a minute or two.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import tempfile
import threading
import time
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


def read(settings: BertConfig, dtype: str, folder: str) -> PreTrainedModel:
    with build.postponed(main=distributed.is_main()):
        model = build.load_network("net", str(Path(folder) / f"{dtype}-{settings.hidden_size}"), settings)
    zero.cut(model, SETTINGS)
    return model


def whole(settings: BertConfig) -> PreTrainedModel:
    model = build.create("net", settings)
    zero.cut(model, SETTINGS)
    return model


SLICED, READ = "in slices", {"read, float32": "float32", "read, bfloat16": "bfloat16"}
WHOLE = "whole, then cut"
COPIES = {SLICED: 0, **dict.fromkeys(READ, 2)}  # of the largest layer, while ranks are sent it


def make(way: str, settings: BertConfig, folder: str) -> PreTrainedModel:
    if way in READ:
        return read(settings, READ[way], folder)
    return in_slices(settings) if way == SLICED else whole(settings)


def resident(field: str) -> int:
    """Bytes of this process: RssAnon, its own, or RssFile, pages of files."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


class Watch:
    """The most of each field that another thread saw since it began, every millisecond."""

    def __init__(self) -> None:
        self.most = dict.fromkeys(("RssAnon", "RssFile"), 0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(0.001):
            for field, most in self.most.items():
                self.most[field] = max(most, resident(field))

    def end(self) -> dict[str, int]:
        self._ended.set()
        self._thread.join()
        return self.most


def save(layers: int, width: int, folder: Path) -> None:
    """The networks that `make` reads; the small one is for what the first network of a process takes once."""
    for settings in (config(layers, width), config(1, 64)):
        torch.manual_seed(0)
        model = build.create("net", settings)
        for dtype in READ.values():
            model.to(getattr(torch, dtype)).save_pretrained(folder / f"{dtype}-{settings.hidden_size}")


def measure(rank: int, way: str, layers: int, width: int, port: str, folder: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=port, GLOO_SOCKET_IFNAME="lo")  # fmt: skip
    torch.set_num_threads(1)
    zero.start()
    torch.manual_seed(0)
    make(way, config(1, 64), folder)  # what the first network of a process takes once
    distributed.barrier()
    before, watch = {field: resident(field) for field in ("RssAnon", "RssFile")}, Watch()
    torch.manual_seed(0)
    start = time.perf_counter()
    model = make(way, config(layers, width), folder)
    distributed.barrier()
    seconds, seen = time.perf_counter() - start, watch.end()
    most, mapped = (seen[field] - before[field] for field in before)
    slices = [hashlib.sha256(p.ds_tensor.numpy().tobytes()).hexdigest() for p in model.parameters()]
    torch.save({"most": most, "mapped": mapped, "seconds": seconds, "slices": slices}, Path(folder) / f"{rank}.pt")
    zero.stop()


def cell(way: str, layers: int, width: int, folder: str) -> list[dict[str, Any]]:
    """One row a rank, from processes of their own."""
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
    with torch.device("meta"):
        layer = build.largest_layer(build.create("net", config(options.layers, options.width)))
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        save(options.layers, options.width, Path(folder))
        for way in (SLICED, *READ, WHOLE):
            rows[way] = cell(way, options.layers, options.width, folder)
    for way, ranks in rows.items():
        most, seconds = (max(r[what] for r in ranks) for what in ("most", "seconds"))
        each = " and ".join(f"{r['most'] / MIB:.0f}" for r in ranks)
        mapped = max(r["mapped"] for r in ranks)
        print(f"  {way:16} most {each} MiB on ranks 0 and 1 ({most / promise:.2f} of the promise), pages of files "
              f"{mapped / MIB:.0f} MiB, {seconds:.1f} s")  # fmt: skip
    for ranks in (2, 8, 64):
        count, all_of_it, least = on_paper(**BILLION, ranks=ranks)
        sizes = f"{all_of_it / MIB:.0f} MiB whole, {least / MIB:.0f} in slices"
        print(f"{count / 1e9:.2f} B on paper, {ranks:2} ranks: {sizes}")
    same = [[row["slices"] for row in rows[way]] for way in (SLICED, WHOLE, "read, float32")]
    if any(each != same[0] for each in same):
        print("the ways give other weights")
        return 1
    return int(any(row["most"] > SPARE * (promise + copies * layer) for way, copies in COPIES.items()
                   for row in rows[way]))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
