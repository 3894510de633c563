"""`bigssl shards pack` as a test calls it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bigssl.cli.main import main
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex

Samples = dict[str, dict[str, bytes]]


def read(folder: Path) -> Samples:
    return {sample.key: sample.fields for sample in read_in_order(DatasetIndex.load(folder))}


def labels(samples: Samples) -> dict[str, object]:
    return {key: json.loads(fields.get("json", b"{}")).get("label") for key, fields in samples.items()}


class Pack:
    """`pack(source, *words)` -> (samples, what was said); `pack.refused(...)` -> the one line of a refusal."""

    def __init__(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.out, self._capsys = tmp_path / "packed" / "out", capsys

    def run(self, source: Path, *words: object) -> tuple[int, str]:
        shutil.rmtree(self.out.parent, ignore_errors=True)
        self.out.parent.mkdir()
        code = main(["shards", "pack", str(source), str(self.out), "--jobs", "1", *map(str, words)])
        return code, self._capsys.readouterr().err

    def __call__(self, source: Path, *words: object) -> tuple[Samples, str]:
        code, said = self.run(source, *words)
        assert code == 0, said
        return ({} if (self.out / "train").exists() else read(self.out)), said

    def refused(self, source: Path, *words: object) -> str:
        code, said = self.run(source, *words)
        assert code == 2 and not self.out.exists()
        lines = [line for line in said.splitlines() if line.startswith("bigssl: ")]
        assert len(lines) == 1 and said.endswith(f"{lines[0]}\n"), said
        return lines[0]
