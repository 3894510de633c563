"""`bigssl doctor` passes on a sane machine, and names what was planted into one: the real command, as one process, as
what starts ranks, and as ranks that others have started."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml

import bigssl.objectives
from bigssl import distributed
from bigssl.cli.main import main
from bigssl.cli.recipes import model
from bigssl.doctor.findings import Diagnoses, findings_text, merged
from bigssl.doctor.network import rounds
from bigssl.objectives.base import discover

ROOT = Path(__file__).parents[2]
RECIPE: dict[str, Any] = {
    "name": "tiny", "steps": 4, "precision": "fp32", "objective": {"name": "mlm", "source": "text"},
    "backbones": {"text": {"type": "bert", "tokenizer": "bigssl/demo/tokenizer.json", "length": 16, "config": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}}},
    "data": {"workers": 0, "sources": {"text": {"url": "bigssl/demo/text/train"}}}, "batch": {"size": 4},
}  # fmt: skip
SANE = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
COMMAND = [str(Path(sys.executable).with_name("bigssl"))]
Found = dict[str, list[tuple[str, str]]]
Ranks = Callable[..., list[Any]]


@pytest.fixture(autouse=True, scope="module")
def imported() -> None:
    """What the command imports, once for all forked ranks."""
    import bigssl.cli.doctor.asking  # noqa: F401

    model()


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., str]:
    def written(**changes: Any) -> str:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(RECIPE | {"out": str(tmp_path / "run")} | changes))
        return str(path)

    return written


def by_name(text: str) -> Found:
    """(level, what is said and what to do) by the name of what was looked at, but what is in order."""
    found: Found = {}
    for each in json.loads(text)["findings"]:
        if each["level"] not in ("ok", "note"):
            found.setdefault(each["name"], []).append((each["level"], f"{each['host']} {each['said']} {each['todo']}"))
    return found


def as_rank(plant: Callable[[], object], *words: str) -> tuple[int, Found]:
    """Exit code and findings (of rank 0) of the command in a rank that a launcher has started."""
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != ROOT]  # where pytest was started
    sys.modules.pop("kernels", None)
    plant()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = main(["doctor", "--json", *words])
    return code, by_name(said.getvalue()) if said.getvalue() else {}


@pytest.mark.distributed
def test_a_sane_machine_is_fit_for_a_run_on_two_ranks(recipe: Any, tmp_path: Path) -> None:
    """The whole command, with the ranks that it starts by DeepSpeed's launcher."""
    (tmp_path / "extensions").mkdir()
    environment = os.environ | SANE | {"TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    command = [*COMMAND, "doctor", "--config", recipe(), "--ranks", "2", "zero.stage=3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("\nfit: 0 fail", "nt_xent", "float64", "all-reduce", "passes on 2 ranks",
                 "mlm on 2 ranks, ZeRO 3, fp32: loss 1.0000"):  # fmt: skip
        assert said in done.stdout, done.stdout


SPOIL = """
set -e
mount -t tmpfs -o size=1m tmpfs /dev/shm
ulimit -n 128
exec "$@"
"""


def test_what_is_wrong_with_a_machine_is_named_each_by_itself(tmp_path: Path) -> None:
    """Six mistakes at once, in a mount namespace: each has its verdict, also that which no import of ours survives."""
    lock = tmp_path / "extensions" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (time.time() - 7200,) * 2)
    packages = tmp_path / "packages"
    (packages / "torchvision").mkdir(parents=True)
    (packages / "torchvision" / "__init__.py").write_text("raise RuntimeError('torchvision::nms does not exist')")
    for name in ("triton", "torchvision"):
        (packages / f"{name}-0.1.0.dist-info").mkdir()
        (packages / f"{name}-0.1.0.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 0.1.0\n")
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        environment = os.environ | SANE | {
            "PYTHONPATH": str(packages), "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"),
            "MASTER_PORT": str(other.getsockname()[1]),
        }  # fmt: skip
        command = [*COMMAND, "doctor", "--json", "--only", "environment"]
        done = subprocess.run(["unshare", "-m", "bash", "-c", SPOIL, "spoil", *command], env=environment,
                              capture_output=True, text=True, timeout=280)  # fmt: skip
    if "unshare: " in done.stderr or "mount: " in done.stderr:
        pytest.skip(f"mount namespaces are not permitted here: {done.stderr.strip()}")
    assert done.returncode == 1, done.stdout + done.stderr
    found = by_name(done.stdout)
    wanted = {
        "extensions": ("fail", f"rm {lock}"),
        "shared memory": ("warn", "1 MiB"),
        "nofile": ("fail", "128 open files"),
        "port": ("fail", "Address already in use"),
        "torchvision": ("fail", "pip uninstall torchvision"),
        "triton": ("warn", "0.1.0, but torch"),
        "imports": ("fail", "mend what is said above"),
    }
    assert found.keys() - {"deepspeed"} == wanted.keys(), found
    for name, (level, words) in wanted.items():
        assert any(level == each and words in said for each, said in found[name]), (name, found[name])


def full_disk(disk: Path) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here ({done.stderr.strip()})")
    with (disk / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free)


@pytest.mark.distributed
def test_a_lost_shard_and_a_full_disk(recipe: Any, tmp_path: Path, ranks: Ranks) -> None:
    shutil.copytree("bigssl/demo/text/train", tmp_path / "shards")
    (lost := sorted((tmp_path / "shards").glob("*.tar*"))[2]).unlink()
    (disk := tmp_path / "disk").mkdir()
    full_disk(disk)
    try:
        data = {"workers": 0, "sources": {"text": {"url": str(tmp_path / "shards")}}}
        words = ("--only", "environment,data", "--config", recipe(out=str(disk / "run"), data=data))
        sane = SANE | {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
        ((code, found),) = ranks(as_rank, 1, lambda: os.environ.update(sane), *words)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert code == 1 and found.keys() == {"run folder", "plan"}, found
    assert "(full)" in found["run folder"][0][1]
    assert any(level == "fail" and lost.name in said for level, said in found["plan"]), found["plan"]


@pytest.mark.distributed
def test_what_is_wrong_with_one_of_two_machines(recipe: Any, tmp_path: Path, ranks: Ranks) -> None:
    """A run folder that cannot be made and an interface that is not there, on both, and shards that one has not."""
    (tmp_path / "file").touch()
    data = {"workers": 0, "sources": {"text": {"url": "$SHARDS"}}}
    config = recipe(out=str(tmp_path / "file" / "run"), data=data)

    def misnamed() -> None:
        os.environ |= {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCH_EXTENSIONS_DIR": str(tmp_path), **SANE}
        os.environ["SHARDS"] = "bigssl/demo/text/train" if os.environ["RANK"] == "0" else "/nowhere"
        os.environ["NCCL_SOCKET_IFNAME"] = os.environ["GLOO_SOCKET_IFNAME"] + "9"
        socket.gethostbyname = lambda name: "127.0.1.1"  # which is no trouble: nobody listens there
        socket.gethostname = lambda: f"node{os.environ['RANK']}"

    words = ("--only", "environment,equivalence", "--config", config)
    (code, found), (other, nothing) = ranks(as_rank, 2, misnamed, *words)
    assert (code, other, nothing) == (1, 0, {})
    assert found.keys() == {"run folder", "interface", "objective"}
    assert "cannot be written to" in found["run folder"][0][1]
    assert "this machine has" in found["interface"][0][1]
    assert "rank 1 raised" in found["objective"][0][1] and "/nowhere" in found["objective"][0][1]


@pytest.mark.distributed
def test_a_master_that_other_machines_cannot_reach(tmp_path: Path, ranks: Ranks) -> None:
    """Its name is 127.0.0.1 there, as /etc/hosts of Debian says of a machine's own name."""

    def misnamed() -> None:
        os.environ |= {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCH_EXTENSIONS_DIR": str(tmp_path), **SANE}
        del os.environ["GLOO_SOCKET_IFNAME"]
        socket.gethostname = lambda: f"node{os.environ['RANK']}"

    for rank, (code, found) in enumerate(ranks(as_rank, 2, misnamed, "--only", "environment")):
        (said,) = found["meeting"]
        assert code == 1 and f"is 127.0.0.1 on node{rank}, which other machines cannot reach" in said[1], found


PLANTED = '''
"""MLM without the factor of the ranks."""

from bigssl import distributed
from bigssl.objectives.mlm import Mlm


class Planted(Mlm):
    """Each rank's loss is its share of the sum over all, as if gradients were added."""

    def judge(self, *arguments):
        losses = super().judge(*arguments)
        return losses._replace(total=losses.total / distributed.world())
'''


@pytest.mark.distributed
def test_a_loss_that_is_not_scaled_by_the_ranks_and_a_clock_that_is_late(
    recipe: Any, tmp_path: Path, ranks: Ranks
) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    part = {"name": "mlm", "source": "text"}
    objective = {"name": "joint", "parts": {"right": part, "wrong": part | {"name": "planted"}}}

    def spoilt() -> None:
        bigssl.objectives.__path__.append(str(tmp_path))
        discover.cache_clear()
        right = time.time
        if os.environ["RANK"] == "1":
            time.time = lambda: right() - 300

    words = ("--only", "network,equivalence", "--config", recipe(objective=objective))
    (code, found), (other, _) = ranks(as_rank, 2, spoilt, *words)
    assert (code, other) == (1, 0)
    assert found.keys() == {"clocks", "objective", "part wrong"}, found
    assert "rank 1" in found["clocks"][0][1] and "-300" in found["clocks"][0][1]
    level, said = found["part wrong"][0]
    assert level == "fail" and "gradient 0.5" in said and "divided by the ranks once too often" in said


@pytest.mark.distributed
def test_a_slow_pair_is_named(ranks: Ranks) -> None:
    def slow() -> None:
        send = dist.send

        def late(tensor: torch.Tensor, to: int) -> None:
            if {distributed.rank(), to} == {1, 2}:
                time.sleep(0.1)
            send(tensor, to)

        dist.send = late  # type: ignore[assignment]

    (code, found), *_ = ranks(as_rank, 3, slow, "--only", "network")
    assert code == 0 and found.keys() == {"pair"}
    ((level, said),) = found["pair"]
    assert level == "warn" and "rank 1" in said and "rank 2" in said


@pytest.mark.distributed
def test_a_kernel_with_a_wrong_gradient_is_named(ranks: Ranks) -> None:
    def wrong() -> None:
        import bigssl_kernels

        right = bigssl_kernels.info_nce

        @functools.wraps(right)
        def info_nce(query: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
            if query.dtype != torch.float64:
                query = query.detach() + 0.9 * (query - query.detach())
            return right(query, *arguments, **options)

        bigssl_kernels.info_nce = info_nce

    ((code, found),) = ranks(as_rank, 1, wrong, "--only", "kernels")
    assert code == 1 and found.keys() == {"info_nce"}
    assert "gradient of one in fp32 is off by 0.1" in found["info_nce"][0][1]


def test_every_pair_meets_once() -> None:
    for world in (2, 3, 4, 7, 8):
        met = [pair for pairs in rounds(world) for pair in pairs]
        assert sorted(met) == [(a, b) for b in range(world) for a in range(b)] or sorted(met) == sorted(
            (a, b) for a in range(world) for b in range(a + 1, world))  # fmt: skip
        for pairs in rounds(world):
            assert len({rank for pair in pairs for rank in pair}) == 2 * len(pairs)


def test_machines_that_say_the_same_say_it_once() -> None:
    hosts = [Diagnoses("environment", f"node{number}") for number in range(6)]
    for each in hosts:
        each.ok("python", "3.11")
    hosts[4].fail("port", "taken", "take another")
    text = findings_text(merged(found for each in hosts for found in each.found))
    assert text.count("3.11") == 1 and "node0, node1, node2, node3 and 2 more: 3.11" in text
    assert "FAIL port" in text and "node4: taken" in text and text.endswith("not fit: 1 fail, 0 warn, 0 note, 1 ok")


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--only", "kernel"], "--only: value 'kernel'"), (["--config", "nowhere.yaml"], "nowhere.yaml"),
     (["steps=2"], "there is no recipe to change")],
)  # fmt: skip
def test_what_cannot_be_read_ends_with_2(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *words]) == 2
    assert said in capsys.readouterr().err
