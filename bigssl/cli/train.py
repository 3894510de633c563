"""`bigssl train`: the launcher, with the ranks that this machine has room for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from bigssl.cli.app import AllowPartial
from bigssl.cli.supervisor import Supervisor
from bigssl.config.errors import ConfigError
from bigssl.config.yaml import apply_override, read_mapping
from bigssl.engine.launcher import free_port

SCRIPT = Path(__file__).parents[1] / "train.py"
VISIBLE = "CUDA_VISIBLE_DEVICES"
# launcher options by which it chooses devices, and by which it starts ranks elsewhere
_CHOOSING = ("-i", "--include", "-e", "--exclude", "--num_gpus", "--num_accelerators", "--num_nodes")
_NO_SSH = "--no_ssh"
_ELSEWHERE = ("-H", "--hostfile", "--force_multi", _NO_SSH, "--launcher")


def train(
    recipe: Path, /, *overrides: str, ranks: PositiveInt | None = None,
    master_port: Annotated[PositiveInt | None, Parameter(name=("--master-port", "--master_port"))] = None,
    hostfile: Path | None = None, change: str | None = None, allow_partial: AllowPartial = False,
) -> int:  # fmt: skip
    """Told to stop (Ctrl-C, SIGTERM, SIGUSR1, SIGUSR2, a terminal that closes), it saves a checkpoint at the next step
    that it logs, and ends with 75; a second time, 10 seconds later, ends it at once.

    Args:
        recipe: YAML, for example launch/recipes/demo.yaml
        overrides: recipe fields to change, a.b=c; then, after --, options of DeepSpeed's launcher
        ranks: processes on each machine (default: one per GPU, one without GPUs)
        master_port: where ranks meet (default: a free port on one machine, DeepSpeed's on several)
        hostfile: several machines, one `NAME slots=GPUS` a line; DeepSpeed's launcher then does the rest
        change: fields in which the recipe differs from that of the run folder on purpose
    """
    first = next((n for n, word in enumerate(overrides) if word.startswith("-")), len(overrides))
    fields, options = overrides[:first], list(overrides[first:])
    refuse_unreadable(recipe, fields)
    given = {option.partition("=")[0] for option in options}
    changed = [] if change is None else ["--change", change]
    changed += ["--allow-partial"] if allow_partial else []
    rank = [str(SCRIPT), "--config", str(recipe), *changed, *fields]
    if hostfile is not None or given.intersection(_ELSEWHERE):
        port = [] if master_port is None else ["--master_port", str(master_port)]
        hosts = [] if hostfile is None else ["--hostfile", str(_existing(hostfile))]
        devices = [] if ranks is None else ["--num_gpus", str(ranks)]
        words = [*_launcher(), *hosts, *port, *devices, *options, *rank]
        if _NO_SSH in given:  # only those of this machine: DeepSpeed's launcher leaves them behind when it ends
            return Supervisor(SCRIPT).run(words, dict(os.environ))
        _become(words)
    _refuse_many(recipe)
    environment = dict(os.environ)
    devices = [] if given.intersection(_CHOOSING) else _devices(ranks, environment)
    port = ["--master_port", str(master_port or free_port())]
    quiet = ["--log_level", "critical", "--hostfile", ""]  # ranks speak for themselves; no hostfile of its own
    return Supervisor(SCRIPT).run([*_launcher(), *quiet, *port, *devices, *options, *rank], environment)


def _launcher() -> list[str]:
    return [sys.executable, "-m", "deepspeed.launcher.runner"]


def _become(command: list[str]) -> NoReturn:
    """Ranks of other machines are no descendants of this process: nothing would be gained by staying."""
    os.execv(command[0], command)


def refuse_unreadable(recipe: Path, fields: Sequence[str]) -> None:
    """Raises ConfigError for what is seen at once; ranks check the rest, with the files that the recipe names."""
    values = read_mapping(recipe)
    for field in fields:
        apply_override(values, field, str(recipe))


def _existing(hostfile: Path) -> Path:
    if not hostfile.is_file():  # DeepSpeed would train on this machine alone
        raise ConfigError(f"--hostfile: no file {hostfile}; allowed: a file with a line `NAME slots=GPUS` a machine")
    return hostfile


def _refuse_many(recipe: Path) -> None:
    """Where a scheduler started this command many times, each would train alone, into one folder."""
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE"):
        value = os.environ.get(name) or "1"
        if value != "1":
            raise ConfigError(
                f"{name}: value {value}: this was started as one of many, and starts ranks itself; allowed: start it "
                f"once a machine, or as ranks `torchrun ... {SCRIPT} --config {recipe}`"
            )


def _devices(ranks: int | None, environment: dict[str, str]) -> list[str]:
    """Options of the launcher that start `ranks` (default: one per GPU, one without). Without GPUs, `environment` is
    made to say so."""
    count = _count_gpus()
    if not count:
        environment.pop(VISIBLE, None)
        environment.setdefault("DS_ACCELERATOR", "cpu")
        return ["--num_gpus", str(ranks or 1)]
    if ranks is None:
        return []
    if ranks > count:
        raise ConfigError(f"--ranks: value {ranks}; allowed: at most {count}, a rank for each GPU of this machine")
    visible = environment.get(VISIBLE, "").split(",")[:ranks]  # which --num_gpus would have it ignore
    return ["--include", f"localhost:{','.join(visible)}"] if visible[0] else ["--num_gpus", str(ranks)]


def _count_gpus() -> int:
    """Asked in another process: this one lives as long as the run, and torch takes 200 MiB (and seconds, which a build
    for CPUs, by its name, is not asked for)."""
    if version("torch").endswith("+cpu"):
        return 0
    code = "import torch; print(torch.accelerator.device_count())"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return int(asked.stdout.strip() or 0)
