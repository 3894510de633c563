"""Nearest neighbours, the linear probe and embedding against faiss, scikit-learn and the bare forward pass.

    python benchmarks/transfer.py knn                # 1 M x 512 on disk, 4,096 queries: faiss.IndexFlatIP; peak memory
    python benchmarks/transfer.py linear             # 50 k x 512, 10 classes, 13 strengths: LogisticRegression at one
    python benchmarks/transfer.py embed RUN DATA     # `bigssl embed` to the forward pass alone on the same batches (RUN
                                                     # may be resnet-18)

Each verifies before it times: equal neighbours, accuracy within .3 points, equal vectors. A row has the ratio of one
run on one machine, theirs to ours.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as bigssl's commands set it

import numpy as np
import torch
from measure import RESULTS, device_name, in_turn, peak_bytes, write_rows

from bigssl.transfer.cosines import Centred
from bigssl.transfer.knn import nearest_rows
from bigssl.transfer.labelled.logistic import fit_logistic
from bigssl.transfer.matrix import FilePart, Matrix

CPU = torch.device("cpu")
RESNET = "resnet-18"


def knn(options: argparse.Namespace) -> dict[str, Any]:
    """Ours reads the bank from disk and takes cosines; faiss has it in memory, of unit length already."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        bank = _written(Path(folder) / "bank", options.rows, 0)
        queries = _written(Path(folder) / "queries", options.queries, 1)

        def ours() -> tuple[np.ndarray, np.ndarray]:
            zero = torch.zeros(512)
            found = []
            for _, asked in Centred(queries, zero).pieces():
                parts = (part for _, piece in Centred(bank, zero).pieces() for part in piece.strips())
                found.append(nearest_rows(asked, parts, options.k))
            return tuple(torch.cat(each).numpy() for each in zip(*found, strict=True))  # type: ignore[return-value]

        extra = peak_bytes(ours, CPU)
        index = faiss.IndexFlatIP(512)
        for _, piece in bank.pieces():
            index.add(torch.nn.functional.normalize(piece).numpy())
        asked = torch.nn.functional.normalize(queries.read(0, len(queries))).numpy()
        values, columns = index.search(asked, options.k)
        mine = ours()
        assert np.allclose(mine[0], values, atol=1e-4) and (mine[1] == columns).mean() > 0.999
        times = in_turn({"ours": ours, "theirs": lambda: index.search(asked, options.k)}, CPU, options.rounds, "wall")
    return _row(f"knn {options.rows} x 512, {options.queries} queries", "faiss.IndexFlatIP", times) | {
        "extra_mib": round(extra / 2**20)}  # fmt: skip


def _written(path: Path, rows: int, seed: int) -> Matrix:
    generator = torch.Generator().manual_seed(seed)
    with path.open("wb") as file:
        for start in range(0, rows, 8192):
            file.write(torch.randn(min(8192, rows - start), 512, generator=generator).numpy().tobytes())
    return Matrix([FilePart(path, rows, 512, torch.float32)])


def linear(options: argparse.Namespace) -> dict[str, Any]:
    """Features of overlapping classes whose directions have very different scales, as those of networks."""
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(512, 512, generator=generator) * torch.logspace(0, -2, 512)[:, None]
    centres = 0.1 * torch.randn(10, 512, generator=generator)
    y = torch.randint(10, (options.rows + 10_000,), generator=generator)
    x = (centres[y] + torch.randn(len(y), 512, generator=generator)) @ mix + 1
    known, asked = slice(0, options.rows), slice(options.rows, None)
    valid = torch.randperm(options.rows, generator=generator)[: options.rows // 5]
    strengths = np.logspace(-6, 6, 13).tolist()
    begin = time.perf_counter()
    model = fit_logistic(x[known], y[known], l2=strengths, valid=valid)
    ours = time.perf_counter() - begin
    theirs = LogisticRegression(C=1 / model.l2, max_iter=5000, tol=1e-6)
    begin = time.perf_counter()
    theirs.fit(x[known].numpy(), y[known].numpy())
    other = time.perf_counter() - begin
    hits = (float((model(x[asked]).argmax(1) == y[asked]).double().mean()), theirs.score(x[asked].numpy(), y[asked]))
    assert abs(hits[0] - hits[1]) < 0.003, hits
    times = {"ours": (ours,) * 3, "theirs": (other,) * 3}
    return _row(f"linear {options.rows} x 512, 10 classes, 13 strengths", "LogisticRegression, one strength", times) | {
        "accuracy": round(hits[0], 4), "their_accuracy": round(float(hits[1]), 4), "l2": model.l2}  # fmt: skip


def embed(options: argparse.Namespace) -> dict[str, Any]:
    """Reading, decoding, the network and the file, to the network alone on batches that are in memory."""
    from bigssl.data.shards.index import DatasetIndex
    from bigssl.transfer.features import samples_at, view_batches
    from bigssl.transfer.vectors.embedding import Given, embed_to
    from bigssl.transfer.vectors.encoder import encoder_at

    with tempfile.TemporaryDirectory() as folder:
        run = _resnet(Path(folder), options.backbone) if options.run == RESNET else Path(options.run)
        index, encoder = DatasetIndex.load(options.data), encoder_at(run, options.backbone)
        count, out = min(options.rows, len(index)), Path(folder) / "v.npz"
        given = Given(options.data, index.fingerprint, count, lambda start: samples_at(index, range(start, count)))
        batches = list(view_batches(given.samples(0), encoder.takes, batch=options.batch))

        def ours() -> None:
            embed_to(out, encoder, given, batch=options.batch, overwrite=True)

        def forward() -> torch.Tensor:
            return torch.cat([encoder.of(views) for views in batches])

        ours()
        assert np.array_equal(np.load(out)["vectors"], forward().numpy())
        times = in_turn({"ours": ours, "theirs": forward}, encoder.device, options.rounds, "wall")
    what = f"embed {count} samples by {options.run}" + ("" if options.run == RESNET else f"/{encoder.name}")
    return _row(what, "the forward pass alone", times)


def _resnet(folder: Path, name: str) -> Path:
    """An export of a ResNet-18 with random weights, for pictures of 64 pixels."""
    from transformers import AutoModel, ResNetConfig

    from bigssl.nets.vision.sizes import NAMED
    from bigssl.transfer.inputs import ImageInput
    from bigssl.transfer.leaving.export import export_run

    torch.manual_seed(0)
    model = AutoModel.from_config(ResNetConfig(**NAMED[RESNET].fields))
    return export_run(folder, {name: model}, {name: ImageInput(64)}, {}, {})


def _row(what: str, peer: str, times: dict[str, tuple[float, float, float]]) -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scikit-learn", "faiss-cpu")}
    return {"what": what, "peer": peer, "seconds": round(times["ours"][1], 3), "p20": round(times["ours"][0], 3),
            "p80": round(times["ours"][2], 3), "their_seconds": round(times["theirs"][1], 3),
            "ratio": round(times["theirs"][1] / times["ours"][1], 3), "machine": device_name(CPU),
            "versions": " ".join(f"{name} {version}" for name, version in versions.items())}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runs: dict[str, tuple[Callable[[argparse.Namespace], dict[str, Any]], int]] = {
        "knn": (knn, 1_000_000), "linear": (linear, 50_000), "embed": (embed, 2000)}  # fmt: skip
    for name, (_, rows) in runs.items():
        command = commands.add_parser(name)
        command.add_argument("--rows", type=int, default=rows)
        command.add_argument("--rounds", type=int, default=3)
        if name == "knn":
            command.add_argument("--queries", type=int, default=4096)
            command.add_argument("--k", type=int, default=20)
        if name == "embed":
            command.add_argument("run", help=f"a run, an export, or {RESNET}: with random weights")
            command.add_argument("data")
            command.add_argument("--backbone", default="image")
            command.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    row = runs[options.command][0](options)
    print("\n".join(f"{name}: {value}" for name, value in row.items()))
    machine = device_name(CPU).replace(" ", "-").replace("/", "-")
    write_rows(RESULTS / f"transfer_{options.command}_{machine}.csv", [row])


if __name__ == "__main__":
    main()
