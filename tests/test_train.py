"""The driver as its user runs it: the launcher, two ranks, a kill, the same command again, and what is left on disk.

Where a run only goes on, its ranks are forked, which saves their imports and the launcher's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from bigssl import train

ROOT = Path(__file__).parents[1]
OVERRIDES = [
    "steps=8", "optim.warmup=2", "precision=fp32", "batch.size=32", "data.sources.text.batch=8", "checkpoint.every=2",
    "backbones.image.size=16", "backbones.image.config.hidden_sizes=[8, 16]", "backbones.image.config.depths=[1, 1]",
    "backbones.image.config.embedding_size=8", "backbones.text.config.hidden_size=16",
    "backbones.text.config.num_hidden_layers=1", "backbones.text.config.num_attention_heads=2",
    "probe.every=4", "probe.knn.bank=bigssl/demo/emoji/val", "probe.knn.bank_limit=64", "probe.knn.query_limit=32",
    *(f"evaluate.{name}.bank=bigssl/demo/emoji/val" for name in ("images", "designs", "captions")),
    *(f"evaluate.{name}.captions=bigssl/demo/emoji/val" for name in ("names", "class_mean")),
    "evaluate.few_labels={task: linear, train: bigssl/demo/emoji/train, queries: bigssl/demo/emoji/val, "
    "label: category, train_limit: 200, query_limit: 100, seeds: 2, fractions: [0.1, 1.0], l2: [10.0]}",
]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def words(out: Path) -> list[str]:
    """What the launcher gives to each rank."""
    return ["--config", "launch/recipes/demo.yaml", f"out={out}", *OVERRIDES]


def rows(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("speed/")} for line in lines]


def command(out: Path, *overrides: str) -> list[str]:
    launcher = Path(sys.executable).with_name("deepspeed")
    start = [str(launcher), "--num_gpus", "2", "--master_port", str(free_port()), "bigssl/train.py"]
    return [*start, *words(out), *overrides]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """An uninterrupted run on two ranks."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = subprocess.run(command(out), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=280)
    return out, done


def test_a_run_leaves_what_it_promises(finished: Any) -> None:
    out, done = finished
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("config.yaml", "metrics.jsonl", "tensorboard", "checkpoints/latest", "export/README.md",
                 "scorecard.json", "report.html", "environment.json"):  # fmt: skip
        assert (out / name).exists(), name
    assert "step 8/8" in done.stderr and "(blind " in done.stderr and "ETA" in done.stderr
    assert "image kNN" in done.stdout and f"report: {out}/report.html" in done.stdout
    last = rows(out)[-1]
    curve = json.loads((out / "scorecard.json").read_text())["tasks"]["few_labels"]["curve"]
    assert [point["fraction"] for point in curve] == [0.1, 1] and curve[1]["samples"] == 200
    assert "few labels: image linear probe" in done.stdout
    assert last["step"] == 8 and {"loss/views", "blind/captions", "probe/knn", "optim/grad_norm"} <= set(last)


def test_the_export_is_the_trained_weights(finished: Any) -> None:
    out, _ = finished
    checkpoint = torch.load(
        out / "checkpoints/step-00000008/state/mp_rank_00_model_states.pt", map_location="cpu", weights_only=False
    )
    for name, prefix in (("image", "parts.captions.image.model."), ("text", "parts.captions.text.model.")):
        model = AutoModel.from_pretrained(out / "export" / name)
        for key, value in model.state_dict().items():
            if key.startswith("pooler."):  # not trained, not exported
                continue
            assert torch.equal(value, checkpoint["module"][prefix + key]), f"{name}: {key}"
    heads = load_file(out / "export/heads/clip.safetensors")
    assert set(heads) == {"image_projection", "text_projection", "logit_scale"}


@pytest.mark.distributed
def test_killed_and_started_again_it_ends_the_same(
    finished: Any, tmp_path: Path, ranks: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = finished
    out = tmp_path / "killed"
    process = subprocess.Popen(
        command(out), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while not (out / "checkpoints" / "latest").exists() and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert not (out / "scorecard.json").exists()
    monkeypatch.chdir(ROOT)
    assert ranks(train.main, 2, words(out)) == [0, 0]
    assert "resumed after step" in capfd.readouterr().err
    assert rows(out) == rows(whole)
    assert json.loads((out / "scorecard.json").read_text())["tasks"] == json.loads(
        (whole / "scorecard.json").read_text()
    )["tasks"]


@pytest.mark.distributed
def test_a_signal_to_the_whole_group_leaves_a_checkpoint(finished: Any, tmp_path: Path) -> None:
    """Ctrl-C reaches the launcher and the ranks, and the launcher passes it on: that is one wish, not two."""
    out = tmp_path / "stopped"
    process = subprocess.Popen(
        command(out, "checkpoint.every=1000", "steps=100000"), cwd=ROOT, env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not (out / "metrics.jsonl").exists() or len(rows(out)) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    (checkpoint,) = (out / "checkpoints").glob("step-*")
    assert int(checkpoint.name.removeprefix("step-")) == len(rows(out))
    assert "stopped by SIG" in output and "the same command goes on" in output


@pytest.mark.distributed
def test_the_same_command_on_a_finished_run_only_evaluates(
    finished: Any, tmp_path: Path, ranks: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = finished
    out = tmp_path / "again"
    shutil.copytree(whole, out)
    config = (out / "config.yaml").read_text().replace(str(whole), str(out))
    (out / "config.yaml").write_text(config)
    before, stamp = rows(out), (out / "scorecard.json").stat().st_mtime
    monkeypatch.chdir(ROOT)
    assert ranks(train.main, 2, words(out)) == [0, 0]
    assert "resumed after step 8" in capfd.readouterr().err and rows(out) == before
    assert (out / "scorecard.json").stat().st_mtime > stamp


def test_mistakes_end_with_one_line_and_code_2(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert train.main(["--config", "launch/recipes/demo.yaml", "optim.lrr=1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bigssl: ") and "nearest: lr" in line


def test_a_wish_to_stop_that_comes_with_the_last_step_is_heeded_before_the_export(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    did: list[str] = []
    monkeypatch.setattr(train, "ATTENTION", SimpleNamespace(heed=lambda: did.append("heed")))
    monkeypatch.setattr(train, "zero", SimpleNamespace(start=lambda: "cpu", stop=lambda: did.append("stop")))
    monkeypatch.setattr(train, "live_probe", lambda *_: None)
    monkeypatch.setattr(train.loop, "train", lambda *_: train.loop.Outcome(8))
    monkeypatch.setattr(train, "_export", lambda *_: did.append("export"))
    monkeypatch.setattr(train, "_evaluate", lambda *_: 0)
    assert train._run(SimpleNamespace(evaluate=None, probe=None), SimpleNamespace()) == 0  # type: ignore[arg-type]
    assert did == ["heed", "export", "stop"]
