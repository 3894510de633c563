"""launch/multinode.sh on two machines that are namespaces: the same curve as on one, and words when one is gone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from hosts import ROOT, Cluster, why_not

pytestmark = pytest.mark.skipif(bool(why := why_not()), reason=why)
SMALL = [
    "steps=4", "optim.warmup=1", "precision=fp32", "batch.size=16", "data.sources.text.batch=8",
    "data.sources.captions.batch=16", "checkpoint.every=2", "log_every=1", "evaluate=null", "probe=null",
    "backbones.image.size=16", "backbones.image.config.hidden_sizes=[8, 16]", "backbones.image.config.depths=[1, 1]",
    "backbones.image.config.embedding_size=8", "backbones.text.config.hidden_size=16",
    "backbones.text.config.num_hidden_layers=1", "backbones.text.config.num_attention_heads=2",
    "backbones.prose.config.hidden_size=16", "backbones.prose.config.num_attention_heads=2",
]  # fmt: skip


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    found = Cluster(tmp_path, getattr(request, "param", 2))
    yield found
    found.end()


def start(cluster: Cluster, out: Path, *overrides: str, **variables: str) -> list[subprocess.Popen[bytes]]:
    """The per-node form, on each host."""
    return [
        host.start(
            out.parent / f"{host.name}.log", "bash", "launch/multinode.sh", "--nodes", "2", "--node_rank", str(number),
            "--master_addr", cluster.hosts[0].address, "--ranks", "1", "launch/recipes/demo.yaml", f"out={out}", *SMALL,
            *overrides, **variables,
        )
        for number, host in enumerate(cluster.hosts)
    ]  # fmt: skip


def said(out: Path, number: int) -> str:
    return (out.parent / f"host-{number}.log").read_text()


def curve(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("speed/")} for line in lines]


def test_two_hosts_of_a_rank_train_as_one_of_two(cluster: Cluster, tmp_path: Path) -> None:
    cluster.limit(0, "100mbit")
    far, near = tmp_path / "far", tmp_path / "near"
    for number, process in enumerate(start(cluster, far)):
        assert process.wait(280) == 0, said(far, number)
    words = ["bash", "launch/local.sh", "--ranks", "2", "launch/recipes/demo.yaml", f"out={near}", *SMALL]
    alone = cluster.hosts[0].start(tmp_path / "host-0.log", *words)
    assert alone.wait(280) == 0, said(near, 0)
    assert curve(far) == curve(near) and len(curve(far)) == 4
    for name in ("image", "text", "prose"):
        one, other = (load_file(out / "export" / name / "model.safetensors") for out in (far, near))
        assert one.keys() == other.keys() and all(bool((one[key] == other[key]).all()) for key in one)


@pytest.fixture
def by_ssh(cluster: Cluster, tmp_path: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """The form with a host file, on the first host."""
    asked = cluster.serve_ssh(tmp_path)
    hostfile = tmp_path / "hosts"
    hostfile.write_text("".join(f"{host.name} slots=1\n" for host in cluster.hosts))

    def start(out: Path, *words: str, **variables: str) -> subprocess.Popen[bytes]:
        options = [word for word in words if word.startswith("--") or word.isdigit()]
        command = ["bash", "launch/multinode.sh", "--hostfile", str(hostfile), *options, "launch/recipes/demo.yaml",
                   f"out={out}", *SMALL, *(word for word in words if word not in options)]  # fmt: skip
        return cluster.hosts[0].start(tmp_path / "host-0.log", *command, PDSH_SSH_ARGS_APPEND=asked, **variables)

    return start


ssh = pytest.mark.skipif(bool(unreached := why_not("pdsh", "ssh", "sshd")), reason=unreached)


@ssh
def test_a_host_file_starts_all_and_what_one_lacks_is_said_before(
    cluster: Cluster, by_ssh: Any, tmp_path: Path
) -> None:
    out = tmp_path / "far"
    assert by_ssh(out).wait(280) == 0, said(out, 0)
    assert len(curve(out)) == 4 and (out / "export/image/model.safetensors").is_file()
    cluster.hosts[1].do("mount", "-t", "tmpfs", "tmpfs", str(ROOT / "launch/recipes"))
    assert by_ssh(out).wait(120) == 2
    assert f"bigssl: host-1: recipe: no file launch/recipes/demo.yaml in {ROOT} on host-1" in said(out, 0)


@ssh
@pytest.mark.parametrize("cluster", [4], indirect=True)
def test_a_host_that_loses_power_is_left_out_and_the_others_go_on(
    cluster: Cluster, by_ssh: Any, tmp_path: Path
) -> None:
    """As many of them as the batch can be dealt to. One is slow from the start: nobody takes it for gone."""
    cluster.limit(1, "40mbit")
    out = tmp_path / "less"
    started = by_ssh(out, "--restarts", "1", "steps=40", BIGSSL_SILENCE="6")
    deadline = time.monotonic() + 200
    while not (out / "metrics.jsonl").exists() or len(curve(out)) < 6:
        assert time.monotonic() < deadline and started.poll() is None, said(out, 0)
        time.sleep(0.1)
    cluster.hosts[2].kill()
    assert started.wait(280) == 0, said(out, 0)
    assert "bigssl: ended with" in said(out, 0)
    again = "starts again on host-0 host-1 (0 restarts left); without host-3: `bigssl plan` finds fault with more ranks"
    assert again in said(out, 0)
    assert [row["step"] for row in curve(out)] == list(range(1, 41))


def test_a_host_that_is_cut_off_is_named_and_both_end(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "cut"
    processes = start(cluster, out, "steps=1000000", "checkpoint.every=1000000", BIGSSL_SILENCE="6")
    deadline = time.monotonic() + 200
    while not (out / "metrics.jsonl").exists() or len(curve(out)) < 2:
        assert time.monotonic() < deadline and all(each.poll() is None for each in processes), said(out, 0)
        time.sleep(0.1)
    cluster.cut(1)
    assert [process.wait(60) for process in processes] == [1, 1]
    assert "rank 1 on host-1 has said nothing for 6 s (BIGSSL_SILENCE), last in " in said(out, 0)
    assert "rank 0's machine, 10.9.0.1, does not answer" in said(out, 1)
