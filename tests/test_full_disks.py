"""A disk that fills while a run trains: a non-zero exit code, one line, the last good checkpoint, and no half files."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from bigssl import train
from bigssl.engine import checkpoint
from bigssl.engine.checkpoint import CheckpointStore
from bigssl.report.metrics import read_metrics

ROOT = Path(__file__).parents[1]
RECIPE = {
    "name": "tiny", "steps": 3, "precision": "fp32", "objective": {"name": "mlm", "source": "text"},
    "backbones": {"text": {"type": "bert", "tokenizer": "bigssl/demo/tokenizer.json", "length": 16, "config": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}}},
    "data": {"workers": 0, "sources": {"text": {"url": "bigssl/demo/text/train"}}},
    "batch": {"size": 4}, "checkpoint": {"every": 1}, "optim": {"warmup": 0},
}  # fmt: skip
LEFT = 1 << 17  # bytes that still fit: lines of metrics do, a checkpoint (1.6 MiB) and an export (0.5 MiB) do not
Fill = Callable[[Path], None]


def no_large_files(_: Path) -> None:
    """What the system allows everywhere: it refuses to let a file grow, as a full disk would."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LEFT, resource.RLIM_INFINITY))


def nearly_full(disk: Path) -> None:
    with (disk / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - LEFT)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here ({done.stderr.strip()}); the other cases are of a limit per file")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def attempt(disk: Path, fill: Fill | None, when: int, *overrides: str) -> int:
    """Exit code of the driver in this process, where `fill` comes before checkpoint number `when`, 0: the export."""
    os.chdir(ROOT)
    (disk / "tiny.yaml").write_text(yaml.safe_dump({**RECIPE, "out": str(disk / "run")}))
    save, export, count = CheckpointStore.save, train.export_run, iter(range(1, 100))

    def counted(self: CheckpointStore, *arguments: Any) -> None:
        if fill is not None and next(count) == when:
            fill(disk)
        save(self, *arguments)

    def last(*arguments: Any, **options: Any) -> Path:
        if fill is not None and when == 0:
            fill(disk)
        return export(*arguments, **options)

    CheckpointStore.save, train.export_run = counted, last  # type: ignore[method-assign]
    return train.main(["--config", str(disk / "tiny.yaml"), *overrides])


def check(disk: Path, fill: Fill, when: int, ranks: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert ranks(attempt, 1, disk, fill, when) == [1]
    said = capfd.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("bigssl: ")]
    what = f"checkpoints/step-0000000{when}" if when else "export"
    assert re.search(rf"disk full: {disk}/run/{what}, needs [\d.]+ MiB, has [\d.]+ MiB", line), line
    kept = [f"step-0000000{step}" for step in range(1, when or 4)][-2:]
    if when:
        stays = f"{kept[-1]} stays, after which the same command goes on" if kept else "the same command begins anew"
        assert line.startswith(f"bigssl: no checkpoint of step {when}: ") and line.endswith(stays)
    hidden = {path.name for path in (disk / "run").glob(".*")}
    assert "Traceback" not in said and not list((disk / "run").rglob("*.tmp*")) and hidden == {".lock"}
    assert sorted(path.name for path in (disk / "run" / "checkpoints").glob("step-*")) == kept
    (disk / "ballast").unlink(missing_ok=True)
    assert ranks(attempt, 1, disk, None, 0) == [0]
    assert ("resumed after step" in capfd.readouterr().err) == bool(kept)
    assert [row["step"] for row in read_metrics(disk / "run")] == [1, 2, 3]
    assert load_file(disk / "run" / "export" / "text" / "model.safetensors")


@pytest.mark.parametrize("when", [1, 2, 3, 0])
def test_first_later_last_checkpoint_and_export(
    when: int, tmp_path: Path, ranks: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    check(tmp_path, no_large_files, when, ranks, capfd)


def test_the_same_on_a_small_disk(small_disk: Path, ranks: Any, capfd: pytest.CaptureFixture[str]) -> None:
    check(small_disk, nearly_full, 2, ranks, capfd)


def test_a_run_that_is_to_wait_goes_on_when_somebody_has_made_room(
    small_disk: Path, ranks: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "ATTEMPTS", 0.05)
    waiting = checkpoint.CheckpointStore._wait

    def relieved(self: CheckpointStore, *arguments: Any) -> str:
        (small_disk / "ballast").unlink()
        return waiting(self, *arguments)

    monkeypatch.setattr(checkpoint.CheckpointStore, "_wait", relieved)
    assert ranks(attempt, 1, small_disk, nearly_full, 2, "checkpoint.on_full=wait") == [0]
    assert capfd.readouterr().err.count("waiting for room for the checkpoint of step 2: disk full: ") == 1
    assert [path.name for path in sorted((small_disk / "run" / "checkpoints").glob("step-*"))][-1] == "step-00000003"
