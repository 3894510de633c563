"""Evaluation of datasets that do not fit into memory."""

from __future__ import annotations

import io
import json
import os
import resource
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bigssl.config.evaluate import Evaluation
from bigssl.data.shards.index import build_index
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.files import DiskFull
from bigssl.transfer import bags, matrix
from bigssl.transfer.inputs import ImageInput, TextInput
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.matrix import Matrix, Scratch, joined
from bigssl.transfer.scorecard import score
from bigssl.transfer.tasks import knn, zero_shot

SIDE = 64
MIB = 1 << 20


def write_pictures(folder: Path, count: int) -> None:
    """A tar of `count` plain pictures of SIDE × SIDE pixels: few bytes on disk, 48 KiB each as float32."""
    folder.mkdir()
    with tarfile.open(folder / "part.tar", "w") as tar:
        for number in range(count):
            colour = tuple(np.random.default_rng(number).integers(0, 256, 3).tolist())
            out = io.BytesIO()
            Image.new("RGB", (SIDE, SIDE), colour).save(out, "png")
            members = {"png": out.getvalue(), "json": json.dumps({"label": str(number % 5)}).encode()}
            for kind, data in members.items():
                info = tarfile.TarInfo(f"{number:06d}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    build_index([folder / "part.tar"], folder)


def letters(number: int) -> dict[str, bytes]:
    """3200 letters without any order: most of their n-grams are others."""
    drawn = np.random.default_rng(number).integers(ord("a"), ord("z") + 1, 3200, dtype=np.uint8)
    return {"txt": drawn.tobytes(), "json": json.dumps({"label": str(number % 5)}).encode()}


def status(field: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def growth(run: Path, asked: dict[str, Evaluation]) -> int:
    """Bytes by which the memory of this process grows at most while it evaluates."""
    matrix.VALUES, matrix.ROWS = 1 << 18, 64
    bags.TOGETHER, bags.ROWS, bags.VALUES = 1 << 14, 32, 1 << 16
    score(run, {}, seed=0)  # whatever is imported late
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    score(run, asked, seed=0)
    return status("VmHWM") - before


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_dataset(
    tmp_path: Path, make_model: Callable[..., PreTrainedModel], ranks: Callable[..., list[Any]]
) -> None:
    """The raw pixels of the larger bank are 18 MiB as bytes, 70 as float32; of the smaller one 2 and 9."""
    export_run(tmp_path, {"image": make_model("resnet")}, {"image": ImageInput(SIDE)}, {}, {})
    peaks = []
    for count in (200, 1500):
        write_pictures(tmp_path / str(count), count)
        url = str(tmp_path / str(count))
        images = knn.Knn(bank=url, queries=str(tmp_path / "200"), label="label", query_limit=50, batch=16)
        (peak,) = ranks(growth, 1, tmp_path, {"images": images})
        peaks.append(peak)
    assert peaks[1] < 100 * MIB and peaks[1] - peaks[0] < 11 * MIB, [f"{peak / MIB:.0f} MiB" for peak in peaks]


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_vectors_of_raw_texts(
    tmp_path: Path, make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast,
    ranks: Callable[..., list[Any]],
) -> None:  # fmt: skip
    """Counts and vectors of the larger bank, had they been kept, are 40 MiB more, three times what is allowed: both of
    some 6,700 values of 8 bytes a text. Those of the smaller one already fill several pieces, so that the peak of what
    is read at a time has been reached."""
    export_run(tmp_path, {"text": make_model("bert")}, {"text": TextInput(tokenizer, 8)}, {}, {})
    peaks = []
    for count in (80, 450):
        items = [Item(f"{n:06d}", f"{n:06d}", lambda n=n: letters(n)) for n in range(count)]
        pack(items, tmp_path / str(count), name="x")
        bank, queries = str(tmp_path / str(count)), str(tmp_path / "80")
        texts = knn.Knn(backbone="text", bank=bank, queries=queries, label="label", query_limit=20)
        (peak,) = ranks(growth, 1, tmp_path, {"texts": texts})
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 13 * MIB, [f"{peak / MIB:.0f} MiB" for peak in peaks]


def test_parts_of_several_ranks_are_read_as_one_matrix(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "ROWS", 4)
    rows = torch.randn(13, 3, generator=torch.Generator().manual_seed(0))
    parts = [scratch.store(iter([{"x": rows[a:b]}] if a < b else [])) for a, b in ((0, 5), (5, 5), (5, 6), (6, 13))]
    whole = joined(parts)["x"]
    assert len(whole) == 13 and whole.width == 3
    for start in range(13):
        for stop in range(start + 1, 14):
            assert torch.equal(whole.read(start, stop), rows[start:stop])
    pieces = list(whole.pieces(range(2, 12)))
    assert [numbers for numbers, _ in pieces] == [range(2, 6), range(6, 10), range(10, 12)]
    assert torch.equal(torch.cat([piece for _, piece in pieces]), rows[2:12])
    assert len(Matrix([])) == 0


def test_bytes_are_read_back_as_shares_of_255(scratch: Scratch) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(2, 128)
    found = joined([scratch.store(iter([{"raw": pixels[:1]}, {"raw": pixels[1:]}]))])["raw"]
    assert torch.equal(found.read(0, 2), pixels.float() / 255)


def test_texts_are_kept_apart_by_the_fields_that_are_asked_for(run: Path, shards: Path) -> None:
    """A field by which texts differ is no field that is noted besides: of class names, then of nearest neighbours."""
    train, val = str(shards / "train"), str(shards / "val")
    names = zero_shot.ZeroShot(queries=val, captions=train, label="category")
    near = knn.Knn(backbone="text", bank=train, queries=train, label="category", item="subcategory", k=5)
    both = score(run, {"names": names, "near": near}, seed=0)["tasks"]
    assert both == score(run, {"near": near, "names": names}, seed=0)["tasks"]


def test_a_full_disk_is_one_line(scratch: Scratch) -> None:
    """As the system refuses it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(DiskFull, match=r"^disk full: .*rank-0, needs more than .*, has .*bank_limit") as caught:
            scratch.store(iter([{"x": torch.zeros(1, 1000)}, {"x": torch.zeros(1, 1000)}]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
