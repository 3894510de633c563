"""`launch/k8s`: the manifests against the published schemas, and the container's command as two pods would run it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigssl import exits
from bigssl.config.recipe import load_recipe, recipe_model
from bigssl.objectives.base import config_union
from bigssl.report.metrics import read_metrics
from bigssl.transfer.discovery import evaluation_union

ROOT = Path(__file__).parents[2]
BASE = ROOT / "launch/k8s"
MANIFESTS = ("service.yaml", "storage.yaml", "job.yaml")
RECIPE: dict[str, Any] = {
    "name": "run", "steps": 100, "precision": "fp32", "batch": {"size": 16}, "checkpoint": {"every": 1_000_000},
    "objective": {"name": "simclr", "source": "emoji"},
    "backbones": {"image": {"type": "resnet", "size": 16, "config": {
        "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}}},
    "data": {"workers": 1, "sources": {"emoji": {"url": str(ROOT / "bigssl/demo/emoji/val")}}},
}  # fmt: skip


def manifest(name: str) -> Any:
    return yaml.safe_load((BASE / name).read_text())


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_manifests_are_what_kubernetes_publishes(version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed").validate
    for name in MANIFESTS:
        validate(manifest(name), version, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_the_base_is_rendered() -> None:
    done = subprocess.run(["kubectl", "kustomize", str(BASE)], capture_output=True, text=True, check=True)
    kinds = {part["kind"]: part for part in yaml.safe_load_all(done.stdout)}
    assert set(kinds) == {"Service", "PersistentVolumeClaim", "Job", "ConfigMap"}
    assert kinds["ConfigMap"]["data"].keys() == {"recipe.yaml", "hosts"}


def test_its_files_fit_each_other() -> None:
    """Nodes, GPUs, names; and what is done about each exit code."""
    job, service = manifest("job.yaml"), manifest("service.yaml")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    hosts = [line.split() for line in (BASE / "hosts").read_text().splitlines()]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert len(hosts) == spec["completions"] == spec["parallelism"]
    assert hosts == [[f"{job['metadata']['name']}-{n}.{pod['subdomain']}", f"slots={gpus}"] for n in range(len(hosts))]
    assert {item["name"]: item["value"] for item in container["env"]}["MASTER_ADDR"] == hosts[0][0]
    assert service["metadata"]["name"] == pod["subdomain"] and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    rules = {code: rule["action"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule
             for code in rule["onExitCodes"]["values"]}  # fmt: skip
    assert rules == {exits.REFUSED: "FailJob", exits.STOPPED: "Ignore"} and pod["restartPolicy"] == "Never"
    recipe = load_recipe(str(BASE / "recipe.yaml"), [], recipe_model(config_union(), evaluation_union()))
    assert recipe.batch.size % (len(hosts) * gpus) == 0


class Pods:
    """The command of the job in two processes, with what the controller and the kubelet put into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = str(probe.getsockname()[1])
        (folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "out": str(folder / "run")}))
        hosts = (BASE / "hosts").read_text().replace("slots=8", "slots=1")
        (folder / "hosts").write_text(hosts)

    def start(self) -> list[subprocess.Popen[str]]:
        return [self._pod(index) for index in range(2)]

    def _pod(self, index: int) -> subprocess.Popen[str]:
        """Its name service answers 127.0.0.1; the mounted folder and the port are ours."""
        container = manifest("job.yaml")["spec"]["template"]["spec"]["containers"][0]
        given = {item["name"]: item["value"] for item in container["env"] if item["name"] != "HOME"}
        given |= {"JOB_COMPLETION_INDEX": str(index), "MASTER_ADDR": "127.0.0.1"}
        words = []
        for word in container["command"]:
            for name, value in given.items():
                word = word.replace(f"$({name})", value)
            words.append(word.replace("/etc/bigssl", str(self.folder)).replace("29500", self._port))
        environment = {**os.environ, **given, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        environment["TORCH_EXTENSIONS_DIR"] = str(self.folder / f"extensions-{index}")
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        with (self.folder / f"pod-{index}.log").open("a") as log:
            return subprocess.Popen(words, cwd=self.folder, env=environment, stdout=log, stderr=log, text=True)

    def printed(self) -> str:
        return "\n".join(file.read_text() for file in sorted(self.folder.glob("pod-*.log")))


@pytest.mark.distributed
def test_a_pod_that_is_evicted_has_all_save_and_the_same_pods_again_end(tmp_path: Path) -> None:
    pods = Pods(tmp_path)
    first = pods.start()
    second: list[subprocess.Popen[str]] = []
    try:
        deadline = time.monotonic() + 120
        while not read_metrics(tmp_path / "run"):
            assert time.monotonic() < deadline and all(pod.poll() is None for pod in first), pods.printed()
            time.sleep(0.05)
        first[1].send_signal(signal.SIGTERM)
        assert [pod.wait(60) for pod in first] == [exits.STOPPED] * 2, pods.printed()
        reached = len(read_metrics(tmp_path / "run"))
        assert 0 < reached < RECIPE["steps"]
        second = pods.start()
        assert [pod.wait(120) for pod in second] == [exits.DONE] * 2, pods.printed()
        assert f"resumed after step {reached}" in pods.printed()
        assert [row["step"] for row in read_metrics(tmp_path / "run")] == list(range(1, RECIPE["steps"] + 1))
    finally:
        for pod in [*first, *second]:
            if pod.poll() is None:
                pod.kill()
                pod.wait()
