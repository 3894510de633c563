"""What cannot run is refused in one line, before anything is started: seen from outside, as its user does, once through
the launcher; else by the driver on forked ranks, which have what they import already."""

from __future__ import annotations

import os
import re
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bigssl import distributed, train
from bigssl.cli import main
from bigssl.config.recipe import load_recipe, recipe_model
from bigssl.data.errors import DataError
from bigssl.engine.launcher import free_port
from bigssl.objectives.base import config_union
from bigssl.transfer.discovery import evaluation_union
from bigssl.transfer.team import AgreedError

ROOT = Path(__file__).parents[1]
DEMO = "launch/recipes/demo.yaml"
TINY = {
    "name": "tiny", "steps": 2, "precision": "fp32", "objective": {"name": "mlm", "source": "text", "masking": "word"},
    "backbones": {"text": {"type": "bert", "tokenizer": "bigssl/demo/tokenizer.json", "length": 16, "config": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}}},
    "data": {"workers": 0, "sources": {"text": {"url": "bigssl/demo/text/train"}}},
    "batch": {"size": 4}, "checkpoint": {"every": 1},
}  # fmt: skip


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def check(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one line with which `bigssl config check` refuses."""
    code = main.main(["config", "check", *map(str, arguments)])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and line.startswith("bigssl: ")
    return line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "the file is empty"),
        (b"- a\n", "a mapping of sections, found list"),
        (b"name: \xff\n", "is not UTF-8 text (byte 6)"),
        (b"? [a, b]\n: 1\n", "not valid YAML: unhashable"),
        (b"a: 1\n---\nb: 2\n", "not valid YAML: expected a single document"),
        (b"a:\n\tb: 1\n", "not valid YAML: while scanning"),
        (b"a: " + b"[" * 3000 + b"]" * 3000, "not valid YAML"),
        (b"name: a\nname: b\n", "'name' stands twice"),
    ],
)
def test_files_that_are_no_recipes(text: bytes, words: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text)
    assert words in check(capsys, path)


def test_what_cannot_be_read_or_written(tmp_path: Path, capsys: Any) -> None:
    """Paths that refuse root as well."""
    file = tmp_path / "file"
    file.write_text("{}")
    recipe = tiny(tmp_path)
    assert "is a folder" in check(capsys, tmp_path)
    assert "/proc/self/mem: cannot be read" in check(capsys, "/proc/self/mem")
    for out in (file, file / "below", "/proc/x", "/dev/null", "a" * 300, '"a\\0b"'):
        assert "out: value" in (line := check(capsys, recipe, f"out={out}")) and "cannot be written to" in line
    for cache in (file, "/proc/x"):
        assert f"data.remote.cache: folder {cache}" in check(capsys, recipe, "out=no/run", f"data.remote.cache={cache}")
    for tokenizer in (file, tmp_path, "/proc/self/mem"):
        line = check(capsys, recipe, "out=no/run", f"backbones.text.tokenizer={tokenizer}")
        assert "backbones.text.tokenizer: value" in line


def test_a_recipe_may_merge_defaults(tmp_path: Path, capsys: Any) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = yaml.safe_dump({**TINY, "out": str(tmp_path / "run")})
    recipe.write_text(text + "optim:\n  <<: &slow {lr: 0.5, warmup: 1}\n  lr: 0.25\n")
    assert main.main(["config", "check", str(recipe)]) == 0
    assert capsys.readouterr().out == "fits: 1 ranks x 1 passes x 4 samples; samples a step: 4 of the 71 of text\n"
    assert main.main(["config", "check", str(recipe), "--resolved"]) == 0
    assert (out := capsys.readouterr().out).startswith("# fits: 1 ranks") and "lr: 0.25" in out and "warmup: 1" in out
    recipe.write_text(out)
    assert main.main(["config", "check", str(recipe)]) == 0  # what is printed is a recipe


@pytest.mark.parametrize("arguments", [["plan", "--config", DEMO, "--world", "0"], ["evaluate", "x", "--device", "?"]])
def test_wrong_arguments_are_one_line(arguments: list[str], capsys: Any) -> None:
    assert main.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert arguments[-1] in line


@pytest.mark.parametrize(("rank", "local", "who"), [("0", "0", ""), ("8", "0", "rank 8: "), ("9", "1", None)])
def test_one_rank_of_each_machine_says_what_is_wrong_there(
    rank: str, local: str, who: str | None, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": "16", "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, value)
    assert train.main(["--config", DEMO, "evaluate.images.bank=nowhere"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("evaluate.images.bank")[0] for line in lines] == ([] if who is None else [f"bigssl: {who}"])


def tiny(folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**TINY, "out": str(folder / "run")}))
    return path


def driver(words: list[str], file_limit: int | None, variables: dict[str, str]) -> int:
    """The exit code of a rank. file_limit: bytes that a file may have, as on a disk that is full beyond them."""
    os.environ.update(variables)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    return train.main(words)


def ours(said: str) -> list[str]:
    assert "Traceback" not in said, said[-3000:]
    return [line for line in said.splitlines() if line.startswith("bigssl: ")]


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    """By one of two ranks, and the launcher ends the other."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        command = [str(Path(sys.executable).with_name("bigssl")), "train", "--ranks", "2", "--master_port", port]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "COLUMNS": "200"}
        done = subprocess.run([*command, str(tiny(tmp_path))], env=environment, capture_output=True, text=True,
                              timeout=200)  # fmt: skip
    (line,) = ours(done.stderr)
    assert f"--master_port: value {port}: Address already in use; allowed: a free port" in line
    assert done.returncode == 2 and not (tmp_path / "run").exists()


def test_a_network_that_is_none_is_named(tmp_path: Path, ranks: Any, capfd: Any) -> None:
    words = ["--config", str(tiny(tmp_path))]
    assert ranks(driver, 1, words, None, {"GLOO_SOCKET_IFNAME": "nowhere0"}) == [1]
    (line,) = ours(capfd.readouterr().err)
    assert "cannot meet the other ranks" in line and "GLOO_SOCKET_IFNAME (nowhere0)" in line


def test_ranks_that_cannot_evaluate_together_do_not_train(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone() -> None:
        raise distributed.NoMeeting("evaluate: no way")

    monkeypatch.setattr(train.zero, "start", lambda: torch.device("cpu"))
    monkeypatch.setattr(train, "Team", alone)
    monkeypatch.setattr(train.loop, "train", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(os, "_exit", sys.exit)
    asked = "evaluate={words: {task: language, bank: bigssl/demo/text/train, queries: bigssl/demo/text/val}}"
    with pytest.raises(SystemExit) as caught:
        train.main(["--config", str(tiny(tmp_path)), asked])
    assert caught.value.code == 1 and capsys.readouterr().err.endswith("bigssl: rank 0: evaluate: no way\n")


@pytest.mark.parametrize(("rank", "error", "said"), [
    (0, AgreedError("no bank"), "bigssl: trained and exported, not evaluated: no bank; after"),
    (3, AgreedError("no bank"), ""),
    (0, DataError("no bank"), "bigssl: rank 0: trained and exported, not evaluated: no bank; after"),
    (3, OSError("no bank"), "bigssl: rank 3: trained and exported, not evaluated: no bank; after"),
])  # fmt: skip
def test_an_error_that_ranks_have_not_agreed_on_is_told_by_its_own(
    rank: int, error: Exception, said: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    ended: list[int] = []
    monkeypatch.setattr(train, "score", fail)
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "active", lambda: True)
    asked = "evaluate={words: {task: language, bank: bigssl/demo/text/train, queries: bigssl/demo/text/val}}"
    recipe = load_recipe(tiny(tmp_path), [asked], recipe_model(config_union(), evaluation_union()))
    assert train._evaluate(recipe, torch.device("cpu"), None) == 1
    line = capsys.readouterr().err
    assert line.startswith(said) and bool(line) == bool(said)
    assert ended == ([] if isinstance(error, AgreedError) else [1]), "others may wait"


def test_a_full_disk_at_the_start_is_refused(tmp_path: Path, ranks: Any, capfd: Any) -> None:
    assert ranks(driver, 1, ["--config", str(tiny(tmp_path))], 1 << 14, {}) == [2]
    (line,) = ours(capfd.readouterr().err)
    full = rf"disk full: {tmp_path}/run, needs 0.062 MiB, has 0.016 MiB a file"
    assert re.search(f"out: value .* cannot be written to .{full}", line)
    assert not (tmp_path / "run").exists()


@pytest.mark.distributed
def test_a_disk_that_fills_up_ends_every_rank_in_one_line(tmp_path: Path, ranks: Any, capfd: Any) -> None:
    """The parts of both ranks are too large. What it leaves: tests/test_full_disks.py."""
    assert ranks(driver, 2, ["--config", str(tiny(tmp_path)), "zero.stage=1"], 1 << 17, {}) == [1, 1]
    (line,) = ours(capfd.readouterr().err)
    full = rf"rank 0: disk full: {tmp_path}/run/checkpoints/step-00000001, needs [\d.]+ MiB, has 0.12 MiB a file"
    assert re.match(f"bigssl: no checkpoint of step 1: {full}", line), line
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
