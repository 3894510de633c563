"""`launch/slurm.sbatch` under Slurm itself, on two nodes: what ends a job, what has it queued again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from slurm_cluster import NODES, SlurmCluster, why_not

from bigssl.report.metrics import read_metrics

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "launch/slurm.sbatch")
STEPS = 60
RECIPE: dict[str, Any] = {
    "name": "run", "steps": STEPS, "precision": "fp32", "batch": {"size": 16}, "checkpoint": {"every": 1_000_000},
    "objective": {"name": "simclr", "source": "emoji"},
    "backbones": {"image": {"type": "resnet", "size": 16, "config": {
        "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}}},
    "data": {"workers": 1, "ledger": True, "sources": {"emoji": {"url": str(ROOT / "bigssl/demo/emoji/val")}}},
}  # fmt: skip
TIMED = ("speed/", "data/wait")

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = SlurmCluster(Path(folder))
        try:
            cluster.wait_until_idle()
            yield cluster
        finally:
            cluster.end()


class Job:
    """A job of two nodes with a rank each, in a folder of its own."""

    def __init__(self, slurm: SlurmCluster, name: str, *options: str, recipe: str = "recipe.yaml", **variables: str):
        self.slurm, self.folder = slurm, slurm.folder / name
        self.folder.mkdir()
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "out": str(self.folder / "run")}))
        given = ",".join(f"{key}={value}" for key, value in {"BIGSSL_HOME": str(ROOT), **variables}.items())
        words = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=30",
                 f"--export=ALL,{given}", *options, SCRIPT, recipe]  # fmt: skip
        self.id = slurm.run(*words, cwd=self.folder)

    def state(self) -> tuple[str, str, int]:
        """State, exit code, how often it was queued again."""
        state = self.slurm.state(self.id)
        return state["JobState"], state["ExitCode"].partition(":")[0], int(state["Restarts"])

    def update(self, *fields: str) -> None:
        self.slurm.run("scontrol", "update", f"JobId={self.id}", *fields)

    def printed(self) -> str:
        return "\n".join(file.read_text() for file in self.folder.glob("bigssl-*.out"))

    def until_over(self, seconds: float = 60) -> tuple[str, str, int]:
        self.slurm.until(lambda: self.state()[0] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"), seconds)
        return self.state()


# --- one recipe, told before its time limit, to its end -------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same recipe on two ranks of one machine, never stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "out": str(folder / "run")}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    words = [str(Path(sys.executable).parent / "bigssl"), "train", "recipe.yaml", "--ranks", "2"]
    subprocess.run(words, cwd=folder, env=environment, check=True, capture_output=True, timeout=200)
    return folder / "run"


def test_told_before_its_limit_it_saves_is_queued_again_and_ends_as_if_never_stopped(
    slurm: SlurmCluster, undisturbed: Path
) -> None:
    slurm.limit_network(1000)
    job = Job(slurm, "told", "--signal=USR1@119", BIGSSL_VENV=sys.prefix)
    run = job.folder / "run"
    slurm.until(lambda: len(read_metrics(run)) >= 3, 150)
    slurm.limit_network(200)  # so that there is time to tell it: half a minute, or one, less than its steps take
    minutes = int(slurm.run("squeue", "--noheader", "--job", job.id, "--format=%M").split(":")[0])
    job.update(f"TimeLimit={minutes + 2}")  # Slurm looks at limits every 30 seconds: one minute may be over by then
    slurm.until(lambda: job.state()[2] == 1, 100)
    slurm.limit_network(0)
    reached = len(read_metrics(run))
    assert 3 <= reached < STEPS and (run / "checkpoints/latest").read_text().strip() == f"step-{reached:08d}"
    job.update("TimeLimit=30")
    assert job.until_over(150) == ("COMPLETED", "0", 1), job.printed()
    said = job.printed()
    for line in (f"stopped by SIGUSR1 after step {reached}", "bigssl: stopped, and queued again",
                 f"bigssl: job {job.id}, start 2", f"resumed after step {reached}"):  # fmt: skip
        assert said.count(line) == 1, said
    assert curve(run) == curve(undisturbed)
    for rank in range(2):
        name = f"ledger-rank{rank}.jsonl"
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), "each sample once, in the same step"
    ours, theirs = (load_file(folder / "export/image/model.safetensors") for folder in (run, undisturbed))
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def curve(run: Path) -> list[dict[str, float]]:
    rows = [{key: value for key, value in row.items() if not key.startswith(TIMED)} for row in read_metrics(run)]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return rows


# --- what becomes of a job whose ranks end in one way or another ----------------------------------------------------

_RANK = """#!{python}
import json, os, signal, sys, time
if not sys.argv[1].startswith("-u"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
rank, start = os.environ["RANK"], os.environ.get("SLURM_RESTART_COUNT", "0")
names = ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME",
         "OMP_NUM_THREADS", "TORCH_EXTENSIONS_DIR", "SLURM_JOB_ID")
seen = {{name: os.environ.get(name) for name in names}}
seen |= {{"words": sys.argv[2:], "cores": len(os.sched_getaffinity(0))}}
open(f"seen-{{rank}}-{{start}}.json", "w").write(json.dumps(seen))
{story}
"""
STORIES = {
    "fails": "sys.exit(1)",
    "alone": "if rank == '1': sys.exit(1)\nsignal.signal(signal.SIGTERM, lambda *_: os._exit(75)); time.sleep(100)",
    "refuses": "sys.exit(2)",
    "killed": "if rank == '1': os.kill(os.getpid(), 9)",
    "stops": "sys.exit(75 if start == '0' else 0)",
    "deaf": "time.sleep(100) if start == '0' else sys.exit(0)",  # it still imports: the signal ends it
    "for good": "time.sleep(100)",
}


@pytest.fixture(scope="module")
def jobs(slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """All at once, each with ranks that only play theirs: two cores a node take them two by two. (Those that wait to be
    told are told by the first tests.)"""
    found = {}
    for name, story in STORIES.items():
        venv = tmp_path_factory.mktemp("venv")
        (venv / "bin").mkdir()
        python = venv / "bin/python"
        python.write_text(_RANK.format(python=sys.executable, story=story))
        python.chmod(0o755)
        found[name] = Job(slurm, name.replace(" ", "-"), BIGSSL_VENV=str(venv), BIGSSL_WAIT="2", BIGSSL_RESTARTS="1")
    return found


def test_told_before_it_listens_it_is_queued_again(jobs: dict[str, Job]) -> None:
    job = jobs["deaf"]
    job.slurm.until(lambda: (job.folder / "seen-1-0.json").exists(), 60)
    job.slurm.run("scancel", "--signal=USR1", job.id)
    assert job.until_over() == ("COMPLETED", "0", 1), job.printed()


def test_it_is_stopped_for_good(jobs: dict[str, Job]) -> None:
    job = jobs["for good"]
    job.slurm.until(lambda: (job.folder / "seen-1-0.json").exists(), 60)
    job.update("Requeue=0")
    job.slurm.run("scancel", "--signal=USR1", job.id)
    assert job.until_over() == ("FAILED", "75", 0), job.printed()
    assert "Slurm does not queue it again; the same sbatch goes on" in job.printed()


@pytest.mark.parametrize(("name", "end"), [
    ("fails", ("FAILED", "1", 0)), ("alone", ("FAILED", "137", 0)), ("refuses", ("FAILED", "2", 0)),
    ("killed", ("FAILED", "137", 0)), ("stops", ("COMPLETED", "0", 1)),
])  # fmt: skip
def test_a_job_is_queued_again_if_it_was_stopped_and_not_if_it_failed(
    name: str, end: tuple[str, str, int], jobs: dict[str, Job]
) -> None:
    assert jobs[name].until_over() == end, jobs[name].printed()


def test_what_ranks_are_told(jobs: dict[str, Job]) -> None:
    job = jobs["refuses"]
    job.until_over()
    for rank in range(2):
        seen = json.loads((job.folder / f"seen-{rank}-0.json").read_text())
        assert seen.pop("words") == [str(ROOT / "bigssl/train.py"), "--config", "recipe.yaml"]
        assert seen.pop("TORCH_EXTENSIONS_DIR").startswith(f"/tmp/bigssl-{os.getuid()}-")
        assert seen == {
            "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": next(iter(NODES)),
            "MASTER_PORT": str(20000 + int(job.id)), "GLOO_SOCKET_IFNAME": None, "OMP_NUM_THREADS": "1", "cores": 1,
            "SLURM_JOB_ID": job.id,
        }  # fmt: skip


@pytest.mark.parametrize(("name", "options", "recipe", "said"), [
    ("no-recipe", [], "nowhere.yaml", "recipe: no file nowhere.yaml in"),
    ("few-tasks", ["--gres=gpu:2"], "recipe.yaml", "--ntasks-per-node: 1 tasks for 2 GPUs a node; allowed: a task for"),
])  # fmt: skip
def test_what_cannot_be_started_is_refused_on_the_first_node(
    name: str, options: list[str], recipe: str, said: str, slurm: SlurmCluster
) -> None:
    job = Job(slurm, name, *options, recipe=recipe, BIGSSL_VENV=sys.prefix)
    assert job.until_over() == ("FAILED", "2", 0)
    assert said in job.printed() and job.printed().count("\n") == 1
